#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>

#include "decode/session.h"
#include "model/vocabulary.h"
#include "serve/api.h"

namespace firp {

/// The engine runs one pass at a time. Who waits longest has the next turn.
class Turns {
 public:
  template <typename Work>
  auto take(const Work& work) {
    const Turn turn(*this);
    return work();
  }

 private:
  struct Turn {
    explicit Turn(Turns& turns);
    ~Turn();
    Turns& all;
  };

  std::mutex mutex_;
  std::condition_variable changed_;
  unsigned long long next_ = 0, serving_ = 0;
};

/// Answers several requests at once with one engine, pass by pass in turn. Each answer has a slot:
/// a session that keeps what it has read and written, so that a conversation which goes on, or a
/// prompt that begins as another did, is not read anew.
class Slots {
 public:
  /// All must outlive the slots. `options`: how every slot drafts.
  Slots(Engine& engine, const Vocabulary& vocabulary, const DecodeOptions& options, int count);

  struct Answer {
    FinishReason finish = FinishReason::kLength;
    Usage usage;
  };

  /// Continues `prompt`, in the free slot that holds most of it and little else, or was not used
  /// for longest; waits for one. `on_text` gets the text as it comes and returns false where nobody
  /// wants more. Ends early, too, once `stop` is set. The text is a function of prompt and request
  /// alone. Threads may call it at once.
  Answer complete(std::span<const Token> prompt, const CompletionRequest& request,
                  const std::function<bool(std::string_view text)>& on_text,
                  const std::atomic<bool>& stop);

 private:
  struct Slot {
    std::unique_ptr<Session> session;
    bool taken = false;
    unsigned long long used = 0;  ///< the number of the answer that last had it
  };
  class Taken;

  Engine& engine_;
  const Vocabulary& vocabulary_;
  const DecodeOptions options_;
  Turns turns_;
  std::mutex mutex_;
  std::condition_variable freed_;
  std::vector<Slot> slots_;
  unsigned long long answers_ = 0;
};

}  // namespace firp
