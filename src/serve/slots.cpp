#include "serve/slots.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "serve/outgoing_text.h"

namespace firp {
namespace {

/// How often who waits looks whether its client still does.
constexpr std::chrono::milliseconds kGlance{50};

int common_prefix(std::span<const Token> a, std::span<const Token> b) {
  return static_cast<int>(std::ranges::mismatch(a, b).in1 - a.begin());
}

}  // namespace

Turns::Turn::Turn(Turns& turns) : all(turns) {
  std::unique_lock lock(all.mutex_);
  const unsigned long long mine = all.next_++;
  all.changed_.wait(lock, [&] { return all.serving_ == mine; });
}

Turns::Turn::~Turn() {
  const std::lock_guard lock(all.mutex_);
  ++all.serving_;
  all.changed_.notify_all();
}

Slots::Slots(Engine& engine, const Vocabulary& vocabulary, const DecodeOptions& options, int count)
    : engine_(engine), vocabulary_(vocabulary), options_(options), slots_(count) {
  for (Slot& slot : slots_) slot.session = std::make_unique<Session>(engine, options);
}

/// A slot for as long as an answer takes.
class Slots::Taken {
 public:
  Taken(Slots& slots, std::span<const Token> prompt, const std::function<bool()>& is_unwanted)
      : slots_(slots) {
    std::unique_lock lock(slots.mutex_);
    slots.refuse_if_full(lock);
    const unsigned long long number = ++slots.answers_;
    const auto place = slots.waiting_.insert(slots.waiting_.end(), number);
    const auto is_next = [&] {
      return slots.waiting_.front() == number && std::ranges::any_of(slots.slots_, is_free);
    };
    bool unwanted = false;
    while (!is_next() && !(unwanted = is_unwanted())) slots.changed_.wait_for(lock, kGlance);
    slots.waiting_.erase(place);
    slots.changed_.notify_all();
    if (unwanted) throw Cancelled();
    int best_gain = 0;
    for (Slot& slot : slots.slots_) {
      if (slot.taken) continue;
      // What is held need not be read; what stands behind it is lost, and may be wanted again.
      const int size = static_cast<int>(slot.session->tokens().size());
      const int held = common_prefix(slot.session->tokens(), prompt);
      const int gain = std::max(0, 2 * held - (size - held));
      if (slot_ == nullptr || gain > best_gain || (gain == best_gain && slot.used < slot_->used)) {
        slot_ = &slot;
        best_gain = gain;
      }
    }
    slot_->taken = true;
    slot_->used = number;
  }
  ~Taken() {
    const std::lock_guard lock(slots_.mutex_);
    slot_->taken = false;
    slots_.changed_.notify_all();
  }
  Taken(const Taken&) = delete;
  Taken& operator=(const Taken&) = delete;

  Slot& slot() { return *slot_; }
  Session& session() { return *slot_->session; }
  /// What it had may have come to harm. Within a turn.
  void renew() { slot_->session = std::make_unique<Session>(slots_.engine_, slots_.options_); }

 private:
  static bool is_free(const Slot& slot) { return !slot.taken; }

  Slots& slots_;
  Slot* slot_ = nullptr;
};

void Slots::refuse_if_full(const std::unique_lock<std::mutex>&) const {
  if (waiting_.size() < kMostWaiting) return;
  throw RequestError(kBusy, fmt::format("{} requests wait already; ask again later", kMostWaiting));
}
void Slots::refuse_if_full() { refuse_if_full(std::unique_lock(mutex_)); }

bool Slots::make_room(Slot& slot, int positions) {
  const std::lock_guard lock(mutex_);
  int taken = positions;  // with what must stay
  int others = 0;         // what others would give up
  const auto gives_up = [&](const Slot& other) { return !other.taken || other.used > slot.used; };
  for (const Slot& other : slots_) {
    if (&other != &slot) (gives_up(other) ? others : taken) += other.positions;
  }
  const int room = engine_.options().positions;
  if (taken > room) return false;
  while (taken + others > room) {
    // Idle ones first, of them the least recently used; else the answer that began last.
    const auto goes_before = [](const Slot& a, const Slot& b) {
      if (a.taken != b.taken) return b.taken;
      return a.taken ? a.used > b.used : a.used < b.used;
    };
    Slot* first = nullptr;
    for (Slot& other : slots_) {
      if (&other == &slot || other.positions == 0 || !gives_up(other)) continue;
      if (first == nullptr || goes_before(other, *first)) first = &other;
    }
    first->session->release();
    others -= std::exchange(first->positions, 0);
  }
  slot.positions = positions;
  return true;
}

Slots::Answer Slots::complete(std::span<const Token> prompt, const CompletionRequest& request,
                              const std::function<void(std::string_view text)>& on_text,
                              const std::function<bool()>& is_unwanted) {
  Taken taken(*this, prompt, is_unwanted);
  const int context = engine_.options().context;
  Answer answer;
  answer.usage.prompt_tokens = static_cast<int>(prompt.size());
  int& written = answer.usage.completion_tokens;
  OutgoingText text(request.stops);
  std::string part;
  enum class Pass { kMore, kNoRoom, kDone };

  const auto use = [&](std::span<const DecodedToken> decoded) {
    std::size_t used = 0;
    for (; used < decoded.size() && written < request.max_tokens && !text.stopped(); ++used) {
      if (vocabulary_.is_end_of_generation(decoded[used].token)) {
        answer.finish = FinishReason::kStop;
        break;
      }
      part += text.add(vocabulary_.piece(decoded[used].token));
      ++written;
    }
    if (text.stopped()) answer.finish = FinishReason::kStop;
    return used;
  };
  const auto pass = [&] {
    Session& session = taken.session();
    const int length = static_cast<int>(session.tokens().size());
    if (written >= request.max_tokens || length >= context) return Pass::kDone;
    if (!make_room(taken.slot(), std::min(length + session.most_decoded(), context)))
      return Pass::kNoRoom;
    if (session.is_reading()) {
      session.prefill_pass();
      return Pass::kMore;
    }
    const std::span<const DecodedToken> decoded = session.step();
    const std::size_t used = use(decoded);
    if (used < decoded.size()) session.truncate(length + static_cast<int>(used));
    return answer.finish == FinishReason::kStop ? Pass::kDone : Pass::kMore;
  };

  DecodeStats before;
  try {
    turns_.take([&] {
      Session& session = taken.session();
      const int held = common_prefix(session.tokens(), prompt);
      answer.usage.cached_tokens = std::min({held, session.seen(), answer.usage.prompt_tokens - 1});
      before = session.stats();
      session.truncate(held);
      session.append(prompt.subspan(held));
      session.set_sampling(request.sampling);
    });
    for (Pass last = Pass::kMore; last != Pass::kDone;) {
      if (is_unwanted()) throw Cancelled();
      last = turns_.take(pass);
      if (!part.empty()) on_text(std::exchange(part, {}));
      if (last == Pass::kNoRoom) {
        std::unique_lock lock(mutex_);
        changed_.wait_for(lock, kGlance);
      }
    }
    if (const std::string rest = text.finish(); !rest.empty()) on_text(rest);
  } catch (const Cancelled&) {  // what was read is as good as before
    throw;
  } catch (...) {
    turns_.take([&] { taken.renew(); });
    throw;
  }
  answer.usage.stats = taken.session().stats();
  answer.usage.stats -= before;
  answer.usage.stats.tokens = written;
  return answer;
}

}  // namespace firp
