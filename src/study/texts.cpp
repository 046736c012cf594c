#include "study/texts.h"

#include <algorithm>
#include <limits>

namespace firp {
namespace {

constexpr int kMaxAnswer = 128, kUsualAnswer = 80;
constexpr std::size_t kMaxPrompt = 1024;

std::vector<Text> answers_to(Engine& engine, const Vocabulary& vocabulary,
                             const std::vector<std::string>& prompts, int tokens,
                             const std::function<bool(long long)>& on_tokens) {
  const ChatForm form = chat_form(vocabulary);
  const std::size_t count =
      std::min(prompts.size(), static_cast<std::size_t>(tokens / kUsualAnswer + 1));
  std::vector<GenerationJob> jobs;
  for (std::size_t i = 0; i < count; ++i) {
    const std::string& prompt = prompts[i * prompts.size() / count];
    GenerationJob job = {.prompt = vocabulary.tokenize(form.around(prompt), true),
                         .max_tokens = kMaxAnswer,
                         .sampling = {.stream = static_cast<int>(i)}};
    if (job.prompt.size() <= kMaxPrompt) jobs.push_back(std::move(job));
  }
  const auto answers = generate_batch(
      engine, jobs, [&](Token token) { return vocabulary.is_end_of_generation(token); },
      std::numeric_limits<long long>::max(), on_tokens);
  std::vector<Text> texts;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    Text text = {.tokens = jobs[i].prompt,
                 .answer_begin = static_cast<int>(jobs[i].prompt.size()),
                 .greedy = true};
    text.tokens.insert(text.tokens.end(), answers[i].begin(), answers[i].end());
    if (!answers[i].empty()) texts.push_back(std::move(text));
  }
  return texts;
}

}  // namespace

StudyTexts write_study_texts(Engine& engine, const Vocabulary& vocabulary,
                             const std::vector<std::string>& prompts, int tokens, int fitted_tokens,
                             std::uint64_t seed,
                             const std::function<void(long long, long long)>& on_progress) {
  StudyTexts texts;
  const auto progress = [&](long long done, long long total) {
    on_progress(done, total);
    return true;
  };
  if (!prompts.empty()) {
    texts.measured = answers_to(engine, vocabulary, prompts, tokens,
                                [&](long long done) { return progress(done, tokens); });
  }
  // Half of what the model writes of its own is greedy.
  const int own = (prompts.empty() ? 2 * tokens : 0) + fitted_tokens;
  if (own > 0) {
    int measured = 0;
    for (Text& text : synthesize(engine, vocabulary,
                                 {.sequences = own / kUsualAnswer + 1,
                                 .answer_tokens = own,
                                 .max_answer = kMaxAnswer,
                                 .seed = seed,
                                 .prompts = {}},
                                 progress)) {
      text.held_out = prompts.empty() && text.greedy && measured < tokens;
      if (text.held_out) measured += text.answer_tokens();
      (text.held_out ? texts.measured : texts.fitted).push_back(std::move(text));
    }
  }
  return texts;
}

}  // namespace firp
