#pragma once

#include <optional>
#include <string>
#include <vector>

#include "serve/reply.h"
#include "serve/scheduler.h"

namespace firp {

/// The answers to a request while they come. Chats are taken apart as they grow.
class GrowingAnswers {
 public:
  /// `reader`: of chats.
  GrowingAnswers(std::size_t answers, std::optional<ReplyReader> reader)
      : reader_(std::move(reader)), answers_(answers) {}

  /// What is new with the part: of a text, its text.
  ReplyDelta add(int answer, const ReplyPart& part);
  /// What is new with the end, after which the answer is complete.
  ReplyDelta end(int answer, const Scheduler::Answer& ended);

  const std::vector<FinishedAnswer>& answers() const { return answers_; }

 private:
  ReplyDelta read(FinishedAnswer& answer, bool complete);

  std::optional<ReplyReader> reader_;
  std::vector<FinishedAnswer> answers_;
};

}  // namespace firp
