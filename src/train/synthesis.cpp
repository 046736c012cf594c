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
#include "chat/chat_template.h"
#include "decode/batch_decoder.h"
#include "model/text_input.h"
#include "train/instructions.h"

namespace firp {
namespace {

constexpr int kSessions = 64;            // that decode side by side
constexpr int kMaxPrompt = 1024;         // tokens; longer ones are left out
constexpr int kMinAnswer = 8;            // shorter answers have next to nothing to learn from
constexpr int kMaxTurn = 56;             // tokens of a sampled user's turn
constexpr int kExpectedTurn = 40;        // for the progress bar
constexpr int kHeldOut = 20;             // one text in so many
constexpr int kMaxDocument = 192;        // tokens of a document without a chat around it
constexpr std::size_t kMinPassage = 48;  // tokens of an answer that a turn can work on
constexpr int kMaxPieces = 4;            // documents and answers that make up a passage, at most

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
  const ChatTemplate chat_template(vocabulary);
  if (!chat_template.exists()) {
    return {"", "\n", /*is_chat=*/false};
  }
  const std::string text =
      chat_template.write({.messages = {{{"role", "user"}, {"content", kPlaceholder}}}})
          .prompt.text;
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

namespace {

/// The texts while they are written.
class Synthesis {
 public:
  Synthesis(Engine& engine, const Vocabulary& vocabulary, const SynthesisOptions& options,
            const std::function<bool(long long, long long)>& on_progress)
      : engine_(engine),
        vocabulary_(vocabulary),
        options_(options),
        on_progress_(on_progress),
        form_(chat_form(vocabulary)),
        generator_(options.seed) {
    total_ = options.answer_tokens + sampled_ * kExpectedTurn + with_passage_ * kMaxDocument;
  }

  /// Empty where it was stopped.
  std::vector<Text> write() {
    std::vector<std::string> turns =
        built_in_instructions(options_.sequences - own_ - with_passage_ - sampled_, generator_());
    std::vector<std::string> prompts = options_.prompts;
    shuffle(prompts, generator_);
    turns.insert(turns.end(), prompts.begin(), prompts.begin() + own_);
    begin_phase(static_cast<long long>(sampled_) * kExpectedTurn);
    write_turns(turns);
    begin_phase(static_cast<long long>(with_passage_) * kMaxDocument);
    write_documents();
    // First whatever stands for itself, then turns that work on passages.
    begin_phase(form_.is_chat ? options_.answer_tokens * 3LL / 4 : options_.answer_tokens);
    if (!stopped_) shuffle(turns, generator_);
    answer(turns);
    begin_phase(options_.answer_tokens - planned_);
    answer(turns_on_passages());
    if (stopped_) return {};
    on_progress_(total_, total_);
    return std::move(texts_);
  }

 private:
  bool is_end(Token token) const { return vocabulary_.is_end_of_generation(token); }

  void begin_phase(long long tokens) {
    tokens_before_ += planned_;
    planned_ = tokens;
  }

  std::vector<std::vector<Token>> generate(std::span<const GenerationJob> jobs, long long budget) {
    if (stopped_) return std::vector<std::vector<Token>>(jobs.size());
    return generate_batch(
        engine_, jobs, [&](Token token) { return is_end(token); }, budget,
        [&](long long tokens) {
          stopped_ =
              stopped_ || !on_progress_(tokens_before_ + std::min(tokens, planned_ - 1), total_);
          return !stopped_;
        });
  }
  std::vector<std::vector<Token>> generate(std::span<const GenerationJob> jobs) {
    return generate(jobs, std::numeric_limits<long long>::max());
  }

  /// How a turn begins; without a chat, a document.
  const std::string& opener() {
    if (form_.is_chat) return instruction_openers()[generator_() % instruction_openers().size()];
    return document_openers()[generator_() % document_openers().size()].text;
  }

  /// The model's own turns: half from its bare prefix, half with an opening given.
  void write_turns(std::vector<std::string>& turns) {
    std::vector<GenerationJob> jobs;
    std::vector<std::string> openings;
    for (int i = 0; i < sampled_; ++i) {
      openings.push_back(i % 2 == 0 ? "" : opener());
      GenerationJob job;
      job.prompt = vocabulary_.tokenize(form_.before + openings.back(), true);
      if (job.prompt.empty()) {  // no chat form and no BOS: something to go on from
        openings.back() = opener();
        job.prompt = vocabulary_.tokenize(openings.back(), true);
      }
      job.max_tokens = kMaxTurn;
      job.sampling = {.temperature = 1.0f,
                      .top_k = 200,
                      .top_p = 0.98f,
                      .min_p = 0.01f,
                      .seed = options_.seed,
                      .stream = stream_++};
      jobs.push_back(std::move(job));
    }
    const std::vector<std::vector<Token>> continuations = generate(jobs);
    for (int i = 0; i < sampled_; ++i) {
      const std::vector<Token>& tokens = continuations[i];
      const bool ended = !tokens.empty() && is_end(tokens.back());
      turns.push_back(whole_sentences(openings[i] + vocabulary_.text(tokens), ended));
    }
  }

  /// Documents: the passages, and the foreign sentences, that later turns work on.
  void write_documents() {
    const std::vector<DocumentOpener>& openers = document_openers();
    std::vector<GenerationJob> jobs;
    for (int i = 0; i < with_passage_; ++i) {
      GenerationJob job;
      job.prompt = vocabulary_.tokenize(openers[i % openers.size()].text, true);
      job.max_tokens = kMaxDocument;
      job.sampling = {.temperature = 0.9f,
                      .top_k = 200,
                      .top_p = 0.98f,
                      .seed = options_.seed,
                      .stream = stream_++};
      jobs.push_back(std::move(job));
    }
    const std::vector<std::vector<Token>> continuations = generate(jobs);
    for (int i = 0; i < with_passage_; ++i) {
      const std::vector<Token>& tokens = continuations[i];
      const DocumentOpener& opener = openers[i % openers.size()];
      const std::string document = whole_sentences(opener.text + vocabulary_.text(tokens),
                                                   !tokens.empty() && is_end(tokens.back()));
      if (document.empty()) continue;
      if (opener.language.empty()) {
        passages_.push_back(document);
      } else {
        const std::string sentence = document.substr(0, document.find_first_of(".?!\n") + 1);
        passage_turns_.push_back(translation_instruction(sentence.empty() ? document : sentence,
                                                         opener.language, generator_()));
      }
    }
  }

  void answer(const std::vector<std::string>& questions) {
    if (stopped_) return;
    std::vector<GenerationJob> jobs;
    for (const std::string& question : questions) {
      if (question.empty() || !seen_.insert(question).second) continue;
      GenerationJob job;
      // A document goes on where its beginning ends.
      job.prompt = vocabulary_.tokenize(
          form_.is_chat ? form_.around(question) : PromptText{question, {{0, question.size()}}},
          true);
      if (job.prompt.size() > kMaxPrompt) continue;
      job.max_tokens = options_.max_answer;
      if (jobs.size() % 2 == 1) {
        job.sampling = {.temperature = 0.7f + 0.1f * static_cast<float>(generator_() % 4),
                        .top_k = 100,
                        .top_p = 0.95f,
                        .min_p = 0.02f,
                        .seed = options_.seed};
      }
      job.sampling.stream = stream_++;
      jobs.push_back(std::move(job));
    }
    const std::vector<std::vector<Token>> answers = generate(jobs, planned_);
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      if (answers[i].size() < kMinAnswer) continue;
      Text text;
      text.tokens = jobs[i].prompt;
      text.answer_begin = static_cast<int>(text.tokens.size());
      text.tokens.insert(text.tokens.end(), answers[i].begin(), answers[i].end());
      text.greedy = jobs[i].sampling.temperature == 0;
      text.held_out = i % kHeldOut == 0;
      texts_.push_back(std::move(text));
    }
  }

  /// Documents and answers from before, alone or several together, so that there are long contexts
  /// too.
  std::vector<std::string> turns_on_passages() {
    for (const Text& text : texts_) {
      const std::span<const Token> tokens = std::span(text.tokens).subspan(text.answer_begin);
      if (text.greedy || tokens.size() < kMinPassage) continue;
      const std::string passage = whole_sentences(vocabulary_.text(tokens), is_end(tokens.back()));
      if (!passage.empty()) passages_.push_back(passage);
    }
    shuffle(passages_, generator_);
    for (std::size_t next = 0;
         next < passages_.size() && std::ssize(passage_turns_) < with_passage_;) {
      std::string passage = passages_[next++];
      for (int more = static_cast<int>(generator_() % kMaxPieces); more > 0; --more) {
        if (next < passages_.size()) passage += "\n\n" + passages_[next++];
      }
      passage_turns_.push_back(passage_instruction(passage, generator_()));
    }
    return std::move(passage_turns_);
  }

  Engine& engine_;
  const Vocabulary& vocabulary_;
  const SynthesisOptions& options_;
  const std::function<bool(long long, long long)>& on_progress_;
  const ChatForm form_;
  std::mt19937_64 generator_;

  // How the texts divide up: a third the user's own prompts, if any; a quarter of the others works
  // on passages that the model wrote before; the rest are half its own turns, half built-in
  // instructions. Without a chat all of the others are its own documents.
  const int own_ = std::min(options_.sequences / 3, static_cast<int>(options_.prompts.size()));
  const int with_passage_ = form_.is_chat ? (options_.sequences - own_) / 4 : 0;
  const int sampled_ = (options_.sequences - own_ - with_passage_) / (form_.is_chat ? 2 : 1);

  // Tokens: to be written in all, in the phases before, and in this one.
  long long total_ = 0, tokens_before_ = 0, planned_ = 0;
  bool stopped_ = false;
  int stream_ = 0;  ///< of the next job
  std::vector<std::string> passages_, passage_turns_;
  std::unordered_set<std::string> seen_;
  std::vector<Text> texts_;
};

}  // namespace

std::vector<Text> synthesize(Engine& engine, const Vocabulary& vocabulary,
                             const SynthesisOptions& options,
                             const std::function<bool(long long, long long)>& on_progress) {
  return Synthesis(engine, vocabulary, options, on_progress).write();
}

}  // namespace firp
