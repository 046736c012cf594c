#include "train/synthesis.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <unordered_set>
#include <utility>

#include "base/error.h"
#include "decode/batch_decoder.h"
#include "model/text_input.h"
#include "train/instructions.h"

namespace firp {
namespace {

constexpr int kSessions = 64;      // that decode side by side
constexpr int kMaxPrompt = 1024;   // tokens; longer ones are left out
constexpr int kMinAnswer = 8;      // shorter answers have next to nothing to learn from
constexpr int kMaxTurn = 56;       // tokens of a sampled user's turn
constexpr int kExpectedTurn = 40;  // for the progress bar
constexpr int kHeldOut = 20;       // one text in so many
constexpr int kMaxDocument = 192;  // tokens of a document without a chat around it
constexpr int kMaxPieces = 4;      // documents and answers that make up a passage, at most

constexpr std::string_view kPlaceholder = "FIRPUSERTURN";

// Fisher-Yates with our own draw: std::shuffle differs between standard libraries.
template <typename T>
void shuffle(std::vector<T>& items, std::mt19937_64& generator) {
  for (std::size_t i = items.size(); i > 1; --i) {
    std::swap(items[i - 1], items[generator() % i]);
  }
}

bool is_valid_utf8(const std::string& text) {
  try {
    require_utf8(text, "");
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

std::vector<std::string> read_prompts(const std::filesystem::path& path) {
  TextInput file("the prompts", path);
  std::vector<std::string> prompts;
  std::string line;
  for (int number = 1; file.next_line(line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) {
      continue;
    }
    const auto refuse = [&](const char* why) {
      throw Error(
          fmt::format("{} line {}: {}; each line must be an object with \"turns\": "
                      "[\"...\"]",
                      path.string(), number, why));
    };
    const nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
    if (object.is_discarded()) {
      refuse("not JSON in UTF-8");
    }
    if (!object.is_object() || !object.contains("turns") || !object["turns"].is_array() ||
        object["turns"].empty()) {
      refuse("no turns");
    }
    const nlohmann::json& turn = object["turns"].front();
    if (!turn.is_string() ||
        turn.get_ref<const std::string&>().find_first_not_of(" \t\r\n") == std::string::npos) {
      refuse("the first turn is not a text");
    }
    prompts.push_back(turn.get<std::string>());
  }
  if (prompts.empty()) {
    throw Error(fmt::format("{} holds no prompts", path.string()));
  }
  return prompts;
}

ChatForm chat_form(const Vocabulary& vocabulary) {
  if (!vocabulary.has_chat_template()) {
    return {"", "\n"};
  }
  const ChatMessage turn = {"user", std::string(kPlaceholder)};
  const std::string text = vocabulary.apply_chat_template(std::span(&turn, 1), true).text;
  const std::size_t at = text.find(kPlaceholder);
  if (at == std::string::npos) {
    throw Error("the model's chat template leaves out what the user says");
  }
  return {text.substr(0, at), text.substr(at + kPlaceholder.size())};
}

std::vector<std::vector<Token>> generate_batch(Engine& engine, std::span<const GenerationJob> jobs,
                                               const std::function<bool(Token)>& is_end,
                                               long long token_budget,
                                               const std::function<bool(long long)>& on_tokens) {
  struct Running {
    std::size_t job;
    std::unique_ptr<Session> session;
    std::vector<Token> answer = {};
  };
  const auto most_positions = [](const GenerationJob& job) {
    return static_cast<long long>(job.prompt.size()) + job.max_tokens;
  };
  std::vector<std::vector<Token>> answers(jobs.size());
  BatchDecoder decoder(engine, /*planner=*/nullptr, /*someone_waits=*/false);
  std::vector<Running> running;
  std::vector<Session*> sessions;
  std::size_t next_job = 0;
  long long tokens_done = 0;
  long long taken = 0;  // positions that running jobs may come to hold
  for (;;) {
    while (std::ssize(running) < kSessions && next_job < jobs.size() &&
           tokens_done < token_budget &&
           taken + most_positions(jobs[next_job]) <= engine.positions()) {
      const GenerationJob& job = jobs[next_job];
      taken += most_positions(job);
      running.push_back({next_job++, std::make_unique<Session>(
                                         decoder, DecodeOptions{.sampling = job.sampling,
                                                                .method = DraftMethod::kNone})});
      running.back().session->append(job.prompt);
    }
    if (running.empty()) return answers;
    sessions.clear();
    for (const Running& each : running) sessions.push_back(each.session.get());
    try {
      decoder.step(sessions);
    } catch (const Cancelled&) {
      on_tokens(tokens_done);  // which knows of it, too
      return answers;
    }
    std::erase_if(running, [&](Running& each) {
      const GenerationJob& job = jobs[each.job];
      bool ended = false;
      for (const DecodedToken& decoded : each.session->decoded()) {
        each.answer.push_back(decoded.token);
        ++tokens_done;
        ended = ended || is_end(decoded.token) || std::ssize(each.answer) == job.max_tokens;
      }
      if (ended) {
        answers[each.job] = std::move(each.answer);
        taken -= most_positions(job);
      }
      return ended;
    });
    if (!on_tokens(tokens_done)) return answers;
  }
}

std::string whole_sentences(std::string text, bool ended) {
  if (!ended) {
    const std::size_t end = text.find_last_of(".?!\n");
    text.resize(end == std::string::npos ? 0 : end + 1);
  }
  const char* const kSpace = " \t\r\n";
  const std::size_t first = text.find_first_not_of(kSpace);
  if (first == std::string::npos) {
    return "";
  }
  text = text.substr(first, text.find_last_not_of(kSpace) + 1 - first);
  return text.size() < 8 || !is_valid_utf8(text) ? "" : text;
}

std::vector<Text> synthesize(Engine& engine, const Vocabulary& vocabulary,
                             const SynthesisOptions& options,
                             const std::function<bool(long long, long long)>& on_progress) {
  std::mt19937_64 generator(options.seed);
  const ChatForm form = chat_form(vocabulary);
  const auto is_end = [&](Token token) { return vocabulary.is_end_of_generation(token); };

  // How the texts divide up: a third the user's own prompts, if any; a quarter of the others works
  // on passages that the model wrote before; the rest are half its own turns, half built-in
  // instructions.
  const int own = std::min<int>(options.sequences / 3, static_cast<int>(options.prompts.size()));
  const int with_passage = (options.sequences - own) / 4;
  const int sampled = (options.sequences - own - with_passage) / 2;
  const int built_in = options.sequences - own - with_passage - sampled;

  long long tokens_before = 0;
  const long long total = options.answer_tokens + static_cast<long long>(sampled) * kExpectedTurn +
                          static_cast<long long>(with_passage) * kMaxDocument;
  bool stopped = false;
  long long planned = static_cast<long long>(sampled) * kExpectedTurn;  // of what runs now
  const auto on_tokens = [&](long long tokens) {
    stopped = stopped || !on_progress(tokens_before + std::min(tokens, planned - 1), total);
    return !stopped;
  };
  const auto begin_next = [&](long long tokens) {
    tokens_before += planned;
    planned = tokens;
  };

  std::vector<std::string> turns = built_in_instructions(built_in, generator());
  {
    std::vector<std::string> prompts = options.prompts;
    shuffle(prompts, generator);
    turns.insert(turns.end(), prompts.begin(), prompts.begin() + own);
  }

  // The model's own turns: half from its bare prefix, half with an opening given.
  {
    std::vector<GenerationJob> jobs;
    std::vector<std::string> openings;
    for (int i = 0; i < sampled; ++i) {
      const std::vector<std::string>& openers = instruction_openers();
      openings.push_back(i % 2 == 0 ? "" : openers[generator() % openers.size()]);
      GenerationJob job;
      job.prompt = vocabulary.tokenize(form.before + openings.back(), true);
      if (job.prompt.empty()) {  // no chat form and no BOS: something to go on from
        openings.back() = openers[generator() % openers.size()];
        job.prompt = vocabulary.tokenize(openings.back(), true);
      }
      job.max_tokens = kMaxTurn;
      job.sampling = {
          .temperature = 1.0f, .top_k = 200, .top_p = 0.98f, .min_p = 0.01f, .seed = options.seed};
      job.sampling.stream = i;
      jobs.push_back(std::move(job));
    }
    const std::vector<std::vector<Token>> continuations =
        generate_batch(engine, jobs, is_end, std::numeric_limits<long long>::max(), on_tokens);
    for (int i = 0; i < sampled; ++i) {
      const std::vector<Token>& tokens = continuations[i];
      const bool ended = !tokens.empty() && is_end(tokens.back());
      turns.push_back(whole_sentences(openings[i] + vocabulary.text(tokens), ended));
    }
    begin_next(static_cast<long long>(with_passage) * kMaxDocument);
  }
  if (stopped) {
    return {};
  }

  // Documents: the passages, and the foreign sentences, that later turns work on.
  std::vector<std::string> passages, passage_turns;
  {
    const std::vector<DocumentOpener>& openers = document_openers();
    std::vector<GenerationJob> jobs;
    for (int i = 0; i < with_passage; ++i) {
      GenerationJob job;
      job.prompt = vocabulary.tokenize(openers[i % openers.size()].text, true);
      job.max_tokens = kMaxDocument;
      job.sampling = {.temperature = 0.9f, .top_k = 200, .top_p = 0.98f, .seed = options.seed};
      job.sampling.stream = sampled + i;
      jobs.push_back(std::move(job));
    }
    const std::vector<std::vector<Token>> continuations =
        generate_batch(engine, jobs, is_end, std::numeric_limits<long long>::max(), on_tokens);
    for (int i = 0; i < with_passage; ++i) {
      const std::vector<Token>& tokens = continuations[i];
      const DocumentOpener& opener = openers[i % openers.size()];
      const std::string document = whole_sentences(opener.text + vocabulary.text(tokens),
                                                   !tokens.empty() && is_end(tokens.back()));
      if (document.empty()) {
        continue;
      }
      if (opener.language.empty()) {
        passages.push_back(document);
      } else {
        const std::string sentence = document.substr(0, document.find_first_of(".?!\n") + 1);
        passage_turns.push_back(translation_instruction(sentence.empty() ? document : sentence,
                                                        opener.language, generator()));
      }
    }
    begin_next(options.answer_tokens * 3LL / 4);
  }
  if (stopped) {
    return {};
  }

  std::vector<Text> texts;
  std::unordered_set<std::string> seen;
  int stream = sampled + with_passage;
  const auto answer = [&](const std::vector<std::string>& questions) {
    std::vector<GenerationJob> jobs;
    for (const std::string& question : questions) {
      if (question.empty() || !seen.insert(question).second) {
        continue;
      }
      GenerationJob job;
      job.prompt = vocabulary.tokenize(form.around(question), true);
      if (job.prompt.size() > kMaxPrompt) {
        continue;
      }
      job.max_tokens = options.max_answer;
      if (jobs.size() % 2 == 1) {
        job.sampling = {.temperature = 0.7f + 0.1f * static_cast<float>(generator() % 4),
                        .top_k = 100,
                        .top_p = 0.95f,
                        .min_p = 0.02f,
                        .seed = options.seed};
      }
      job.sampling.stream = stream++;
      jobs.push_back(std::move(job));
    }
    const std::vector<std::vector<Token>> answers =
        generate_batch(engine, jobs, is_end, planned, on_tokens);
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      if (answers[i].size() < kMinAnswer) {
        continue;
      }
      Text text;
      text.tokens = jobs[i].prompt;
      text.answer_begin = static_cast<int>(text.tokens.size());
      text.tokens.insert(text.tokens.end(), answers[i].begin(), answers[i].end());
      text.greedy = jobs[i].sampling.temperature == 0;
      text.held_out = i % kHeldOut == 0;
      texts.push_back(std::move(text));
    }
  };

  // First whatever stands for itself, then turns that work on passages: documents and answers from
  // before, alone or several together, so that there are long contexts too.
  shuffle(turns, generator);
  answer(turns);
  if (stopped) {
    return {};
  }
  for (const Text& text : texts) {
    const std::span<const Token> tokens = std::span(text.tokens).subspan(text.answer_begin);
    if (!text.greedy && tokens.size() >= 48) {
      const std::string passage = whole_sentences(vocabulary.text(tokens), is_end(tokens.back()));
      if (!passage.empty()) {
        passages.push_back(passage);
      }
    }
  }
  shuffle(passages, generator);
  for (std::size_t next = 0;
       next < passages.size() && static_cast<int>(passage_turns.size()) < with_passage;) {
    std::string passage = passages[next++];
    for (int more = static_cast<int>(generator() % kMaxPieces); more > 0; --more) {
      if (next < passages.size()) {
        passage += "\n\n" + passages[next++];
      }
    }
    passage_turns.push_back(passage_instruction(passage, generator()));
  }
  begin_next(options.answer_tokens - planned);
  answer(passage_turns);
  if (stopped) {
    return {};
  }
  on_progress(total, total);
  return texts;
}

}  // namespace firp
