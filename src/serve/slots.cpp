#include "serve/slots.h"

#include <algorithm>

#include "serve/outgoing_text.h"

namespace firp {
namespace {

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
  Taken(Slots& slots, std::span<const Token> prompt) : slots_(slots) {
    std::unique_lock lock(slots.mutex_);
    slots.freed_.wait(lock, [&] { return std::ranges::any_of(slots.slots_, is_free); });
    int best_gain = 0;
    for (Slot& slot : slots.slots_) {
      if (slot.taken) continue;
      // What is held need not be read; what stands behind it is lost, and may be wanted again.
      const int size = static_cast<int>(slot.session->tokens().size());
      const int held = common_prefix(slot.session->tokens(), prompt);
      const int gain = std::max(0, 2 * held - (size - held));
      if (slot_ == nullptr || gain > best_gain || (gain == best_gain && slot.used < slot_->used)) {
        slot_ = &slot;
        held_ = held;
        best_gain = gain;
      }
    }
    slot_->taken = true;
    slot_->used = ++slots.answers_;
  }
  ~Taken() {
    const std::lock_guard lock(slots_.mutex_);
    slot_->taken = false;
    slots_.freed_.notify_one();
  }
  Taken(const Taken&) = delete;
  Taken& operator=(const Taken&) = delete;

  Session& session() { return *slot_->session; }
  int held() const { return held_; }
  /// What it had may have come to harm.
  void renew() { slot_->session = std::make_unique<Session>(slots_.engine_, slots_.options_); }

 private:
  static bool is_free(const Slot& slot) { return !slot.taken; }

  Slots& slots_;
  Slot* slot_ = nullptr;
  int held_ = 0;
};

Slots::Answer Slots::complete(std::span<const Token> prompt, const CompletionRequest& request,
                              const std::function<bool(std::string_view text)>& on_text,
                              const std::atomic<bool>& stop) {
  Taken slot(*this, prompt);
  Session& session = slot.session();
  Answer answer;
  answer.usage.prompt_tokens = static_cast<int>(prompt.size());
  answer.usage.cached_tokens = std::min(slot.held(), answer.usage.prompt_tokens - 1);
  const DecodeStats before = session.stats();
  OutgoingText text(request.stops);
  bool going = true;
  const auto send = [&](const std::string& part) {
    going = (part.empty() || on_text(part)) && going && !stop;
  };
  try {
    turns_.take([&] {
      session.truncate(slot.held());
      session.append(prompt.subspan(slot.held()));
      session.set_sampling(request.sampling);
    });
    while (going && turns_.take([&] { return session.prefill_pass(); })) going = !stop;

    int& written = answer.usage.completion_tokens;
    while (going && written < request.max_tokens &&
           std::ssize(session.tokens()) < session.context()) {
      const std::size_t start = session.tokens().size();
      const std::span<const DecodedToken> decoded = turns_.take([&] { return session.step(); });
      std::size_t used = 0;
      std::string part;
      for (; used < decoded.size() && written < request.max_tokens && !text.stopped(); ++used) {
        if (vocabulary_.is_end_of_generation(decoded[used].token)) {
          going = false;
          answer.finish = FinishReason::kStop;
          break;
        }
        part += text.add(vocabulary_.piece(decoded[used].token));
        ++written;
      }
      if (used < decoded.size()) {
        turns_.take([&] { session.truncate(static_cast<int>(start + used)); });
      }
      if (text.stopped()) answer.finish = FinishReason::kStop;
      send(part);
      if (text.stopped()) going = false;
    }
    send(text.finish());
  } catch (...) {
    turns_.take([&] { slot.renew(); });
    throw;
  }
  answer.usage.stats = session.stats();
  answer.usage.stats -= before;
  answer.usage.stats.tokens = answer.usage.completion_tokens;
  return answer;
}

}  // namespace firp
