#pragma once

#include <condition_variable>
#include <exception>
#include <filesystem>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "decode/batch_decoder.h"
#include "model/vocabulary.h"
#include "serve/reply.h"

namespace firp {

/// An answer that is to be written, or an embedding that is to be made.
struct Generation {
  std::vector<Token> prompt;
  SamplingOptions sampling;
  std::shared_ptr<const Grammar> grammar = nullptr;
  int likeliest = -1;  ///< as in DecodeOptions
  bool after_sampling = false;
  /// The same of the prompt's tokens; the answer's end is told as well, as clients that read such
  /// lists expect it.
  bool tells_prompt = false;
  int min_tokens = 0;
  int max_tokens;
  std::vector<std::string> stops = {};
  std::vector<Token> shown_tokens = {};  ///< control tokens that are a part of the text
  int slot = -1;                         ///< where it is to run; -1: anywhere
  /// The embedding of the prompt is made so, and nothing is written.
  std::optional<Pooling> pooling = std::nullopt;
};

/// Who asked for answers; answers are told apart by their numbers.
struct Listener {
  std::function<void(int answer, const ReplyPart& part, const Usage& usage)> on_part;
  /// After each pass that read a prompt, and before its answer's first part.
  std::function<void(int answer, const Usage& usage)> on_reading = nullptr;
  std::function<bool()> is_unwanted = [] { return false; };
};

/// Answers several requests at once with one engine. A thread of its own runs the passes, in which
/// all answers take part that there is room for; whoever asks waits for the text.
///
/// An answer runs in a slot, a number below `most_running`; one that asks for a slot waits until it
/// is free. A slot remembers the tokens of the context that was last there, for save() to find.
/// Nothing of the engine belongs to a slot. While a scheduler lives, nobody else uses its decoder
/// or the engine.
///
/// Answers share the engine's positions, each as much as is free. Where none are, answers that
/// began later give theirs up, and wait until there is room to read it again. So the oldest answer
/// always goes on.
class Scheduler {
 public:
  /// The answer in a slot, or the last one that was.
  struct Slot {
    bool is_busy = false;
    long long answer = -1;  ///< its number, of all that began; -1: there was none
    int prompt_tokens = 0;
    int max_tokens = 0;
    SamplingOptions sampling = {};
    Usage usage = {};
  };
  /// What the scheduler does, and has done.
  struct Status {
    std::vector<Slot> slots;
    int waiting;
    long long answers;  ///< that ended
    Usage all;          ///< of those, and of what is being written
    double busy_seconds;
    long long passes;
    int longest;  ///< of those: prompt and answer, in tokens
    /// What a pass of so many rows took when an answer last ended, where a planner knows: on a
    /// short context, drafted.
    std::map<int, double> pass_seconds;
    int free_positions;  ///< of the engine's; what is held of old answers is free
  };

  /// All must outlive the scheduler, which uses the engine alone. `options`: how answers are
  /// drafted; an Error where they cannot be. `most_running`: answers that are written at once;
  /// `most_waiting`: that wait to begin; more are refused. `before`: what is told as done already.
  Scheduler(BatchDecoder& decoder, const Vocabulary& vocabulary, const DecodeOptions& options,
            int most_running, int most_waiting, Status before = {});
  ~Scheduler();

  /// A RequestError where complete() would throw one for so many answers, as things are.
  void refuse_if_full(std::size_t answers);

  struct Answer {
    FinishReason finish = FinishReason::kLength;
    std::string stop_string = {};
    std::vector<WrittenToken> prompt = {};  ///< where it was asked for
    std::vector<float> embedding = {};      ///< with Generation::pooling: Session::embedding()
    Usage usage;
  };

  /// Writes all the answers; they wait until fewer than `most_running` are written. The listener
  /// gets them as they come. Looks every now and then whether they are unwanted, and then throws
  /// Cancelled; they end with the running pass, as they do where the listener throws. A text is a
  /// function of its generation alone. A RequestError where too many wait. Threads may call it at
  /// once.
  std::vector<Answer> complete(std::vector<Generation> generations, const Listener& listener);

  /// Makes the embeddings of texts, as many at once as answers are written, so that who asks for
  /// something later need not wait for all of them. Else as complete(), but that too many wait
  /// matters for the first ones alone.
  std::vector<Answer> embed(std::vector<std::vector<Token>> texts, Pooling pooling,
                            const std::function<bool()>& is_unwanted);

  /// What is of a slot on disk.
  struct SlotFile {
    int tokens;
    std::size_t bytes;  ///< of the file
    double seconds;     ///< that it took, without waiting
  };
  // All three wait until nothing runs in the slot, and act between two passes. They throw Cancelled
  // when they are unwanted before that.
  /// Writes what the engine still holds of the slot's context; where that is nothing, a
  /// RequestError. An Error where it cannot be written.
  SlotFile save(int slot, const std::filesystem::path& path,
                const std::function<bool()>& is_unwanted);
  /// Puts a saved context into the slot, and into the engine, for whoever's prompt begins so. A
  /// RequestError where that cannot be (engine/context_file.h); the slot is then as it was.
  SlotFile restore(int slot, const std::filesystem::path& path,
                   const std::function<bool()>& is_unwanted);
  /// Forgets the slot's context, but for what other slots remember. Its tokens.
  int erase(int slot, const std::function<bool()>& is_unwanted);

  Status status();
  int most_running() const { return most_running_; }

 private:
  struct Group;
  struct Job;
  struct Errand;
  /// What is of a slot between its answers.
  struct Memory {
    std::vector<Token> tokens;    ///< of the thread that runs the passes
    unsigned long long used = 0;  ///< when, among the uses of all
  };
  using Jobs = std::list<std::shared_ptr<Job>>;

  void refuse_if_full(const std::unique_lock<std::mutex>& held, std::size_t answers) const;
  /// complete(), whoever waits. `lock` is held before and after.
  std::vector<Answer> wait_for(std::unique_lock<std::mutex>& lock,
                               std::vector<Generation> generations, const Listener& listener);

  // Of the thread that runs the passes.
  void run(const std::stop_token& ended);
  /// Takes in who waits, and lets go who is done or unwanted; waits until there is anybody.
  void admit(const std::stop_token& ended);
  void begin(Job& job);
  /// Runs what waits for slots that are free.
  void run_errands(std::unique_lock<std::mutex>& held);
  void at_slot(int slot, const std::function<void(Memory&)>& act,
               const std::function<bool()>& is_unwanted);
  /// Where a job may run now; -1: nowhere.
  int free_slot_for(const Generation& generation) const;
  /// Ends the job's session, under the mutex.
  void leave(Job& job);
  /// The answers that there is room for in the next pass.
  std::vector<Job*> with_room();
  void step(std::span<Job* const> jobs);
  void take_tokens(Job& job);
  std::map<int, double> pass_seconds() const;
  void finish_embedding(Job& job);
  std::string piece_of(const Job& job, Token token) const;
  WrittenToken written(const DecodedToken& token, const TokenProbability& probability,
                       const std::string& piece, int offset) const;
  std::vector<WrittenToken> prompt_of(const Job& job) const;
  Usage usage_of(const Job& job) const;
  void finish(Job& job, std::exception_ptr error = nullptr);

  BatchDecoder& decoder_;
  const Vocabulary& vocabulary_;
  const DecodeOptions options_;
  const int most_running_;
  const int most_waiting_;
  std::mutex mutex_;
  std::condition_variable_any work_;  ///< somebody waits, or wants no more
  Jobs waiting_;                      ///< the first to begin first
  Jobs running_;  ///< of that thread, which changes it under the mutex; the one that began first
                  ///< first
  std::list<Errand*> errands_;
  std::vector<Slot> slots_;
  std::vector<Memory> memories_;  ///< [slots_]
  unsigned long long uses_ = 0;   ///< of slots
  long long begun_ = 0;           ///< answers that began
  Status done_;                   ///< of answers that ended
  std::jthread thread_;           ///< the last member: it uses the others
};

}  // namespace firp
