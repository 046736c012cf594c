#pragma once

#include "serve/reply.h"

namespace firp {

/// llama.cpp's own completions, /completion and /infill (its tools/server/README.md).
class LlamaWriter : public ReplyWriter {
 public:
  LlamaWriter(const TextRequest& request, ReplyHead head, std::vector<std::string> prompts)
      : request_(request), head_(std::move(head)), prompts_(std::move(prompts)) {}

  /// A list where there are several prompts.
  Json whole(const std::vector<FinishedAnswer>& answers) override;
  Events progress(const Usage& usage) override;
  Events part(int answer, const ReplyPart& part, const ReplyDelta& delta,
              const Usage& usage) override;
  Events end(int answer, const FinishedAnswer& finished, const ReplyDelta& delta) override;

 private:
  Json chunk(int answer, const ReplyPart& part, const Usage& usage) const;
  Json last(int answer, const FinishedAnswer& finished, bool streamed) const;

  const TextRequest& request_;
  const ReplyHead head_;
  const std::vector<std::string> prompts_;
};

/// The settings of an answer by llama.cpp's names, as it repeats them in replies and /props.
Json settings_member(const SamplingOptions& sampling, int max_tokens);

}  // namespace firp
