#include "train/instructions.h"

#include <random>
#include <set>
#include <string_view>
#include <utility>

namespace firp {
namespace {

using Generator = std::mt19937_64;
using List = std::vector<std::string>;

const std::string& pick(const List& list, Generator& generator) {
  return list[generator() % list.size()];
}

// {t} a topic, {p} a place, {o} a thing, {w} a person, {l} a language, {c} a programming task,
// {n} a number below 100, {s} a short sentence.
const List kPatterns = {
    "What is {t}?",
    "What is {t}, and why does it matter?",
    "Explain {t} to a ten-year-old.",
    "Explain {t} in simple terms, with an example.",
    "Can you tell me about {t}?",
    "Why is {t} important?",
    "What are the advantages and disadvantages of {t}?",
    "Give me five facts about {t}.",
    "How did {t} change the world?",
    "What are common misunderstandings about {t}?",
    "Compare {t} with {t2}.",
    "What is the difference between {t} and {t2}?",
    "Write a short essay about {t}.",
    "Write an introduction to an article on {t}.",
    "Write a blog post about {t} for beginners.",
    "Make an outline for a presentation about {t}.",
    "Write three quiz questions about {t}, with their answers.",
    "I want to learn about {t}. Where do I start?",
    "Who are the most important people in the history of {t}?",
    "What will {t} look like in fifty years?",
    "Where is {p}, and what is it known for?",
    "I am visiting {p} for three days. What should I see?",
    "Write a travel blog post about a trip to {p}.",
    "What is the climate of {p} like?",
    "Describe a busy morning in {p}.",
    "What food should I try in {p}?",
    "Tell me briefly about the history of {p}.",
    "How do I clean a {o}?",
    "How does a {o} work?",
    "Write a product description for a {o}.",
    "Who invented the {o}?",
    "My {o} is broken. What can I do?",
    "What should I look for when I buy a {o}?",
    "Write a funny review of a {o}.",
    "List {k} uses for a {o}.",
    "List {k} ideas for a birthday party.",
    "List {k} tips for {t}.",
    "Give me {k} names for a shop that sells a {o}.",
    "Make a shopping list for a dinner with friends.",
    "Give me a recipe with a few simple ingredients.",
    "Plan a weekly schedule for a busy {w}.",
    "What does a {w} do?",
    "What advice would you give to a young {w}?",
    "Write a short story about a {w} who finds a {o}.",
    "Write a short story about a {w} in {p}.",
    "Write a story that begins with: \"{s}\"",
    "Continue this story: {s}",
    "Write a dialogue between a {w} and a {w2}.",
    "Write a poem about {t}.",
    "Write a poem about {p} in autumn.",
    "Write a haiku about a {o}.",
    "Write a song for a {w}.",
    "Imagine you are a {w}. Describe your day.",
    "Pretend to be a {w} and answer: what do you think of {t}?",
    "Describe a character who is a {w}, for a novel.",
    "Write an email to my manager to ask for a day off.",
    "Write a polite email to a {w} about a late delivery of a {o}.",
    "Write a cover letter for a job as a {w}.",
    "Write a short speech for the opening of a school.",
    "Write a thank-you note to a {w}.",
    "Translate into {l}: {s}",
    "Translate to {l}: \"{s}\"",
    "How do you say \"{s}\" in {l}?",
    "What are some useful phrases in {l}?",
    "Correct the grammar of this sentence: {s}",
    "Rewrite this sentence so that it is more formal: {s}",
    "Rewrite this in a friendlier tone: {s}",
    "Say this in other words: {s}",
    "Is this sentence positive or negative? {s}",
    "What are the nouns in this sentence? {s}",
    "Write a Python function that {c}.",
    "Write a function in JavaScript that {c}.",
    "Write a C++ program that {c}.",
    "Write a program in Java that {c}, and explain it step by step.",
    "How can I write code that {c}?",
    "Write an SQL query that finds the {k} newest orders of each customer.",
    "Write an HTML page with a heading, a list and a link.",
    "Explain what a loop is in programming, with an example.",
    "What is {n} + {n2}?",
    "What is {n} times {k}? Show the steps.",
    "What is {n} percent of {n2}0?",
    "A {w} buys {k} boxes with {n} apples each and gives away {n2} apples. How many are left?",
    "A train travels {n} miles in {k} hours. What is its average speed?",
    "Tom is {n} years old and his sister is {k} years younger. How old will she be in {k2} years?",
    "A {o} costs ${n}. The price falls by {n2} percent. What is the new price?",
    "A rectangle is {n} cm long and {n2} cm wide. What are its area and its perimeter?",
    "{w3} has ${n2}0 and spends ${n} a week. After {k} weeks, how much is left? Think step by "
    "step.",
    "Solve for x: {k}x + {n} = {n2}",
    "If I read {k} pages a day, how long do I need for a book of {n2}0 pages?",
    "Sort these numbers from small to large: {n}, {n2}, {k}, {k2}, 41, 17.",
    "How are you today?",
    "I feel stressed about {t}. Can you help me?",
    "I had a bad day at work as a {w}. What should I do?",
    "What should I cook tonight?",
    "Tell me a joke about a {w}.",
    "Can you recommend a book about {t}?",
    "Give me step-by-step instructions to repair a {o}.",
    "What is the capital of the country where {p} lies?",
    "Name {k} animals and say where they live.",
    "Which is heavier, a {o} or an elephant? Explain why.",
    "Should schools teach {t}? Argue for and against.",
    "Write a news report about a {w} and a {o}.",
    "Extract the people and the places from this text: {s}",
};

const List kTopics = {"photosynthesis",
                      "machine learning",
                      "the French Revolution",
                      "climate change",
                      "gravity",
                      "the water cycle",
                      "the human heart",
                      "inflation",
                      "democracy",
                      "black holes",
                      "vaccines",
                      "the Roman Empire",
                      "renewable energy",
                      "meditation",
                      "time management",
                      "public speaking",
                      "chess",
                      "classical music",
                      "the stock market",
                      "healthy sleep",
                      "recycling",
                      "evolution",
                      "the Industrial Revolution",
                      "electric cars",
                      "social media",
                      "artificial intelligence",
                      "volcanoes",
                      "plate tectonics",
                      "the immune system",
                      "nutrition",
                      "yoga",
                      "gardening",
                      "photography",
                      "world trade",
                      "coral reefs",
                      "the solar system",
                      "DNA",
                      "philosophy",
                      "the printing press",
                      "computer security",
                      "cooking",
                      "football",
                      "mental health",
                      "poverty",
                      "space travel",
                      "the Olympic Games",
                      "bees",
                      "antibiotics",
                      "impressionism",
                      "jazz",
                      "probability",
                      "algebra",
                      "blockchain",
                      "the internet",
                      "migration",
                      "earthquakes",
                      "tea",
                      "negotiation",
                      "saving money",
                      "remote work",
                      "urban planning",
                      "friendship",
                      "honesty",
                      "the Renaissance",
                      "quantum mechanics",
                      "nuclear power",
                      "the Silk Road",
                      "Shakespeare",
                      "operating systems",
                      "databases",
                      "robots",
                      "dinosaurs",
                      "the ocean",
                      "bicycles",
                      "grammar"};
const List kPlaces = {"Paris",          "Tokyo",     "Cairo",     "New York", "Istanbul",
                      "Rio de Janeiro", "Sydney",    "Nairobi",   "Iceland",  "Mumbai",
                      "Rome",           "the Alps",  "Vancouver", "Lisbon",   "Vietnam",
                      "Berlin",         "Peru",      "Morocco",   "Scotland", "Shanghai",
                      "Singapore",      "Barcelona", "Hawaii",    "Norway"};
const List kThings = {"bicycle",   "coffee machine", "telescope", "backpack",  "guitar",
                      "umbrella",  "laptop",         "lamp",      "watch",     "tent",
                      "camera",    "printer",        "piano",     "kettle",    "compass",
                      "microwave", "drone",          "blender",   "wardrobe",  "keyboard",
                      "map",       "mirror",         "lantern",   "typewriter"};
const List kWorkers = {
    "teacher", "doctor",    "farmer",      "software engineer", "student", "chef",
    "pilot",   "carpenter", "nurse",       "scientist",         "writer",  "detective",
    "painter", "musician",  "lawyer",      "librarian",         "sailor",  "gardener",
    "robot",   "astronaut", "firefighter", "shopkeeper",        "king",    "journalist"};
const List kNames = {"Maria", "James", "Aisha", "Chen", "Olga", "Samuel", "Priya", "Lucas"};
const List kLanguages = {"French",     "Spanish", "German", "Italian",
                         "Portuguese", "English", "Dutch"};
const List kTasks = {"reverses a string",
                     "checks whether a number is prime",
                     "sorts a list of numbers",
                     "counts the words in a text file",
                     "computes the Fibonacci numbers",
                     "finds the largest value in a list",
                     "removes duplicates from a list",
                     "checks whether a word is a palindrome",
                     "converts Celsius to Fahrenheit",
                     "reads a CSV file and prints its columns",
                     "merges two sorted lists",
                     "computes the factorial of a number",
                     "simulates the roll of two dice",
                     "finds the common elements of two lists",
                     "implements a stack",
                     "draws a triangle of stars",
                     "counts the vowels of a sentence",
                     "searches a sorted list"};
const List kSentences = {
    "The old lighthouse had been dark for years until one night a light appeared.",
    "She opened the letter and read it twice before she spoke.",
    "Yesterday I went to the market and bought fresh bread and three red apples.",
    "The meeting has been moved to Thursday because the director is travelling.",
    "He dont know where the keys is.",
    "The weather was beautiful, but the food at the hotel was terrible.",
    "Could you please send me the report before the end of the week?",
    "When the rain stopped, the children ran into the garden.",
    "Our new phone is faster, lighter and cheaper than the one before.",
    "I am very happy with the service and will come back soon.",
    "My brother works in a hospital in London and loves his job.",
    "There was a small village at the edge of the forest where nobody locked the door.",
    "Me and him was going to the cinema last night.",
    "The scientist looked at the result again and could not believe it.",
    "Good morning! How can I get to the train station from here?",
    "The company reported a loss of two million dollars in the first quarter.",
    "Anna met Peter in Vienna, where they both studied music.",
    "The cat sat on the warm roof and watched the birds."};

const List kPassagePatterns = {
    "Summarize the following text:\n\n{x}",
    "Summarize this in one sentence: {x}",
    "Write a headline for this text:\n{x}",
    "Translate the following text into French:\n\n{x}",
    "Translate into German: {x}",
    "Rewrite this text so that a child can understand it:\n\n{x}",
    "Read this passage and list its main points.\n\n{x}",
    "{x}\n\nWhat is the main idea of the text above?",
    "Context: {x}\n\nQuestion: What does the text say, and what does it leave out?\n\nAnswer:",
    "Improve this text:\n{x}",
    "{x}\n\nTL;DR:",
    "Summarize: {x}",
    "Summarise this article in three sentences.\n\n{x}",
    "{x}\n\nUsing only the text above, say who is involved, what happened, and where.",
    "{x}\nWhat is this text about?",
    "Use the following documents to answer.\n\n{x}\n\nWhich facts do they state?",
    "Extract the key facts from the following passage as a list: {x}"};

const List kOpeners = {"How do I",
                       "How can I",
                       "What is the",
                       "What are",
                       "Why do",
                       "Can you",
                       "Write a",
                       "Write a short story",
                       "Explain",
                       "Tell me",
                       "Give me",
                       "I am",
                       "I need",
                       "Please",
                       "Create a",
                       "Describe",
                       "In the",
                       "Is it",
                       "What would",
                       "Write a Python",
                       "Compare",
                       "List",
                       "Find the",
                       "Who was",
                       "When did",
                       "Where can I",
                       "Which",
                       "Imagine",
                       "My",
                       "Summarize",
                       "Translate",
                       "A farmer has",
                       "If a",
                       "Calculate the",
                       "Design a",
                       "Provide",
                       "Suppose",
                       "As a",
                       "Help me",
                       "Let's",
                       "who is",
                       "who played",
                       "who wrote",
                       "who won the",
                       "when was",
                       "when does",
                       "where is",
                       "where was the",
                       "what is the name of",
                       "what year did",
                       "how many",
                       "how long is",
                       "what does",
                       "which country",
                       "why did the"};

const List kTranslationPatterns = {"Translate {l} to English: {x}", "Translate to English: {x}",
                                   "Translate from {l} into English:\n\n{x}",
                                   "What does this {l} sentence mean? {x}"};

// The first words of what people publish: news, reference works, letters, reports, fiction.
const std::vector<DocumentOpener> kDocumentOpeners = {
    {"LONDON -- Police said on Monday that", ""},
    {"WASHINGTON (Reuters) - The president", ""},
    {"A man has been arrested after", ""},
    {"The film, which was released in 20", ""},
    {"The song was written and recorded by", ""},
    {"The town lies in the north of", ""},
    {"He was born in 18", ""},
    {"She is an American actress, best known for", ""},
    {"The club won the match 2-1 after", ""},
    {"Scientists have found that", ""},
    {"According to a new report,", ""},
    {"The company announced on Tuesday", ""},
    {"The war began in", ""},
    {"The species is found in", ""},
    {"In the season finale,", ""},
    {"A mother of three from", ""},
    {"The study, published in the journal", ""},
    {"It was a cold evening when", ""},
    {"Dear customers, we would like to inform you", ""},
    {"The law was passed by", ""},
    {"The human body", ""},
    {"The novel tells the story of", ""},
    {"Chapter 1\n\n", ""},
    {"The hotel is close to", ""},
    {"Der Bürgermeister sagte, dass", "German"},
    {"Die Stadt liegt im", "German"},
    {"Er wurde im Jahr 18", "German"},
    {"Das Unternehmen hat", "German"},
    {"In der Nacht zum Sonntag", "German"},
    {"Wir haben gestern", "German"},
    {"La ville est située", "French"},
    {"Le gouvernement a annoncé", "French"},
    {"La ciudad se encuentra", "Spanish"},
    {"El presidente dijo que", "Spanish"},
    {"La città si trova", "Italian"}};

std::string fill(const std::string& pattern, Generator& generator) {
  std::string out;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const std::size_t end = pattern[i] == '{' ? pattern.find('}', i) : std::string::npos;
    if (end == std::string::npos) {
      out += pattern[i];
      continue;
    }
    const std::string_view slot = std::string_view(pattern).substr(i + 1, end - i - 1);
    if (slot == "w3") {
      out += pick(kNames, generator);
    } else if (slot[0] == 't') {
      out += pick(kTopics, generator);
    } else if (slot[0] == 'p') {
      out += pick(kPlaces, generator);
    } else if (slot[0] == 'o') {
      out += pick(kThings, generator);
    } else if (slot[0] == 'w') {
      out += pick(kWorkers, generator);
    } else if (slot[0] == 'l') {
      out += pick(kLanguages, generator);
    } else if (slot[0] == 'c') {
      out += pick(kTasks, generator);
    } else if (slot[0] == 's') {
      out += pick(kSentences, generator);
    } else if (slot[0] == 'k') {
      out += std::to_string(2 + generator() % 9);
    } else {
      out += std::to_string(11 + generator() % 88);
    }
    i = end;
  }
  return out;
}

}  // namespace

std::vector<std::string> built_in_instructions(int count, std::uint64_t seed) {
  Generator generator(seed);
  List patterns = kPatterns;
  for (std::size_t i = patterns.size(); i > 1; --i) {
    std::swap(patterns[i - 1], patterns[generator() % i]);
  }
  std::vector<std::string> out;
  std::set<std::string> seen;
  // Round after round over all patterns; those without slots give one instruction each.
  for (int tries = 0; static_cast<int>(out.size()) < count && tries < 4 * count + 1000; ++tries) {
    std::string text = fill(patterns[tries % patterns.size()], generator);
    if (seen.insert(text).second) {
      out.push_back(std::move(text));
    }
  }
  return out;
}

std::string passage_instruction(const std::string& passage, std::uint64_t seed) {
  Generator generator(seed);
  std::string text = pick(kPassagePatterns, generator);
  return text.replace(text.find("{x}"), 3, passage);
}

std::string translation_instruction(const std::string& sentence, const std::string& language,
                                    std::uint64_t seed) {
  Generator generator(seed);
  std::string text = pick(kTranslationPatterns, generator);
  if (const std::size_t at = text.find("{l}"); at != std::string::npos) {
    text.replace(at, 3, language);
  }
  return text.replace(text.find("{x}"), 3, sentence);
}

const std::vector<std::string>& instruction_openers() { return kOpeners; }

const std::vector<DocumentOpener>& document_openers() { return kDocumentOpeners; }

}  // namespace firp
