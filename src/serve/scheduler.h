#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "decode/batch_decoder.h"
#include "model/vocabulary.h"
#include "serve/api.h"

namespace firp {

/// Answers several requests at once with one engine. A thread of its own runs the passes, in which
/// all answers take part that there is room for; whoever asks waits for the text.
///
/// Answers share the engine's positions, each as much as is free. Where none are, answers that
/// began later give theirs up, and wait until there is room to read it again. So the oldest answer
/// always goes on.
class Scheduler {
 public:
  static constexpr int kMostWaiting = 256;  ///< requests that wait to begin; more are refused

  /// All must outlive the scheduler, which uses the engine alone. `options`: how answers are
  /// drafted; an Error where they cannot be. `most_running`: answers that are written at once.
  Scheduler(BatchDecoder& decoder, const Vocabulary& vocabulary, const DecodeOptions& options,
            int most_running);
  ~Scheduler();

  /// A RequestError where complete() would throw one, as things are.
  void refuse_if_full();

  struct Answer {
    FinishReason finish = FinishReason::kLength;
    Usage usage;
  };

  /// Continues `prompt`; waits until fewer than `most_running` do. `on_part` gets the answer as it
  /// comes. Looks every now and then whether the answer `is_unwanted`, and then throws Cancelled;
  /// the answer ends with the running pass. The text is a function of prompt and request alone. A
  /// RequestError where too many wait. Threads may call it at once.
  Answer complete(std::span<const Token> prompt, const CompletionRequest& request,
                  const std::function<void(const ReplyPart& part)>& on_part,
                  const std::function<bool()>& is_unwanted);

 private:
  struct Job;
  using Jobs = std::list<std::shared_ptr<Job>>;

  void refuse_if_full(const std::unique_lock<std::mutex>& held) const;

  // Of the thread that runs the passes.
  void run(const std::stop_token& ended);
  /// Takes in who waits, and lets go who is done or unwanted; waits until there is anybody.
  void admit(const std::stop_token& ended);
  void begin(Job& job);
  /// The answers that there is room for in the next pass.
  std::vector<Job*> with_room();
  void step(std::span<Job* const> jobs);
  void take_tokens(Job& job);
  WrittenToken written(const TokenProbability& probability, const std::string& piece, int offset,
                       bool drafted) const;
  void finish(Job& job, std::exception_ptr error = nullptr);

  BatchDecoder& decoder_;
  const Vocabulary& vocabulary_;
  const DecodeOptions options_;
  const int most_running_;
  std::mutex mutex_;
  std::condition_variable_any work_;  ///< somebody waits, or wants no more
  Jobs waiting_;                      ///< the first to begin first
  Jobs running_;                      ///< of that thread alone; the one that began first first
  std::jthread thread_;               ///< the last member: it uses the others
};

}  // namespace firp
