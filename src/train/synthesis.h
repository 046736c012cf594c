#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "decode/sampler.h"
#include "engine/engine.h"
#include "model/vocabulary.h"

namespace firp {

/// A user's turn in the model's chat form, and the model's own answer with its end token (unless it
/// was cut for length).
struct Text {
  std::vector<Token> tokens;
  int answer_begin = 0;
  bool greedy = false;    ///< every answer token is the model's most probable one
  bool held_out = false;  ///< for evaluation only

  int answer_tokens() const { return static_cast<int>(tokens.size()) - answer_begin; }
};

struct SynthesisOptions {
  int sequences;      ///< texts, at most
  int answer_tokens;  ///< answers are begun until there are so many tokens
  int max_answer;
  std::uint64_t seed;
  std::vector<std::string> prompts;  ///< the user's own: a third of the texts, at most
};

/// The first turns of a JSONL file (one object with "turns": ["...", ..] a line). An Error names
/// the line that is wrong; a file without any prompt is one too.
std::vector<std::string> read_prompts(const std::filesystem::path& path);

/// The text around a user's turn: the turn stands between `before` and `after`, where the answer
/// begins. Without a chat template: nothing before it, a line break after it.
struct ChatForm {
  std::string before, after;
  bool is_chat = true;

  /// With a turn in between, whose words are no control tokens.
  PromptText around(const std::string& turn) const {
    return {before + turn + after, {{before.size(), before.size() + turn.size()}}};
  }
};
ChatForm chat_form(const Vocabulary& vocabulary);

struct GenerationJob {
  std::vector<Token> prompt;
  int max_tokens;
  SamplingOptions sampling;  ///< the tokens depend on nothing else in the batch
};

/// Continues all prompts, many at a time: a sequence that ends makes room for the next job. Gives
/// each job's new tokens, the end token included; empty for jobs that were not begun because
/// `token_budget` was spoken for, or not finished because `on_tokens` (called after every pass with
/// the tokens so far) returned false.
std::vector<std::vector<Token>> generate_batch(Engine& engine, std::span<const GenerationJob> jobs,
                                               const std::function<bool(Token)>& is_end,
                                               long long token_budget,
                                               const std::function<bool(long long)>& on_tokens);

/// The sentences of a sampled user's turn: up to the last sentence end, without white space around
/// them; empty where there is none worth keeping.
std::string whole_sentences(std::string text, bool ended);

/// The model writes its own training text: user's turns from its bare chat prefix, from the
/// built-in instructions and from options.prompts, then its own answers, half of them greedy, half
/// sampled. A twentieth is held out, all of it greedy. No two texts have the same user's turn.
/// A model without a chat template writes documents instead: beginnings, from its begin-of-text
/// token alone or from how published texts begin, and then what follows, as it writes answers.
/// Empty when `on_progress` (tokens done, of) returned false.
std::vector<Text> synthesize(Engine& engine, const Vocabulary& vocabulary,
                             const SynthesisOptions& options,
                             const std::function<bool(long long, long long)>& on_progress);

}  // namespace firp
