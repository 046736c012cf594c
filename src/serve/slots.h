#pragma once

#include <condition_variable>
#include <functional>
#include <list>
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
///
/// The slots share the engine's positions, each as much as is free. Where none are, idle slots give
/// up what they hold, the one that was not used for longest first; then answers that began later
/// do, and wait until there is room to read it again. So the oldest answer always goes on.
class Slots {
 public:
  static constexpr int kMostWaiting = 256;  ///< requests for a slot; more are refused

  /// All must outlive the slots. `options`: how every slot drafts.
  Slots(Engine& engine, const Vocabulary& vocabulary, const DecodeOptions& options, int count);

  /// A RequestError where complete() would throw one, as things are.
  void refuse_if_full();

  struct Answer {
    FinishReason finish = FinishReason::kLength;
    Usage usage;
  };

  /// Continues `prompt`, in the free slot that holds most of it and little else, or was not used
  /// for longest; waits for one. `on_text` gets the text as it comes. Looks between any two passes,
  /// and while it waits, whether the answer `is_unwanted`, and then throws Cancelled. The text is a
  /// function of prompt and request alone. A RequestError where too many wait. Threads may call it
  /// at once.
  Answer complete(std::span<const Token> prompt, const CompletionRequest& request,
                  const std::function<void(std::string_view text)>& on_text,
                  const std::function<bool()>& is_unwanted);

 private:
  struct Slot {
    std::unique_ptr<Session> session;  ///< used within turns alone, while the slot is taken
    bool taken = false;
    unsigned long long used = 0;  ///< the number of the answer that last had it
    int positions = 0;            ///< that its session may hold, until it gives them up
  };
  class Taken;

  void refuse_if_full(const std::unique_lock<std::mutex>& held) const;

  /// Whether the slot may hold so many positions; others give up theirs for it. Within a turn.
  bool make_room(Slot& slot, int positions);

  Engine& engine_;
  const Vocabulary& vocabulary_;
  const DecodeOptions options_;
  Turns turns_;
  std::mutex mutex_;
  std::condition_variable changed_;  ///< a slot is free, has less, or somebody waits no more
  std::vector<Slot> slots_;
  std::list<unsigned long long> waiting_;  ///< numbers of answers, the first to have a slot first
  unsigned long long answers_ = 0;
};

}  // namespace firp
