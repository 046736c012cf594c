#include "serve/growing_answers.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <iterator>
#include <random>
#include <utility>

namespace firp {
namespace {

std::string new_call_id() {
  std::random_device random;
  return fmt::format("call_{:08x}{:08x}{:08x}", random(), random(), random());
}

}  // namespace

ReplyDelta GrowingAnswers::read(FinishedAnswer& answer, bool complete) {
  ChatReply now;
  try {
    now = reader_->read(answer.part.text, complete);
  } catch (const std::exception&) {
    return {};  // no sense yet: the next part may make some
  }
  for (std::size_t i = 0; i < now.tool_calls.size(); ++i) {
    std::string& id = now.tool_calls[i].id;
    if (!id.empty()) continue;
    const bool known = i < answer.reply.tool_calls.size();
    id = known ? answer.reply.tool_calls[i].id : new_call_id();
  }
  ReplyDelta delta = difference(answer.reply, now, complete);
  answer.reply = std::move(now);
  return delta;
}

ReplyDelta GrowingAnswers::add(int answer, const ReplyPart& part) {
  FinishedAnswer& grown = answers_[answer];
  grown.part.text += part.text;
  std::ranges::copy(part.tokens, std::back_inserter(grown.part.tokens));
  std::ranges::copy(part.probabilities, std::back_inserter(grown.part.probabilities));
  return reader_ ? read(grown, /*complete=*/false) : ReplyDelta{.content = part.text};
}

ReplyDelta GrowingAnswers::end(int answer, const Scheduler::Answer& ended) {
  FinishedAnswer& complete = answers_[answer];
  complete.finish = ended.finish;
  complete.stop_string = ended.stop_string;
  complete.prompt = ended.prompt;
  complete.usage = ended.usage;
  return reader_ ? read(complete, /*complete=*/true) : ReplyDelta{};
}

}  // namespace firp
