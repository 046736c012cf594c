#pragma once

#include "serve/reply.h"

namespace firp {

/// OpenAI's chat completions (https://platform.openai.com/docs/api-reference/chat), with
/// llama.cpp's `timings` and `reasoning_content`.
class ChatWriter : public ReplyWriter {
 public:
  ChatWriter(const TextRequest& request, ReplyHead head, std::vector<std::string> prompts)
      : request_(request), head_(std::move(head)), prompts_(std::move(prompts)) {}

  Json whole(const std::vector<FinishedAnswer>& answers) override;
  Events begin(const Usage& usage) override;
  Events progress(const Usage& usage) override;
  Events part(int answer, const ReplyPart& part, const ReplyDelta& delta,
              const Usage& usage) override;
  Events end(int answer, const FinishedAnswer& finished, const ReplyDelta& delta) override;
  Events finish(const std::vector<FinishedAnswer>& answers) override;
  bool says_done() const override { return true; }

 private:
  Json chunk(int answer, Json delta, Json finish) const;

  const TextRequest& request_;
  const ReplyHead head_;
  const std::vector<std::string> prompts_;
};

/// OpenAI's text completions (https://platform.openai.com/docs/api-reference/completions).
class TextWriter : public ReplyWriter {
 public:
  TextWriter(const TextRequest& request, ReplyHead head, std::vector<std::string> prompts)
      : request_(request), head_(std::move(head)), prompts_(std::move(prompts)) {}

  Json whole(const std::vector<FinishedAnswer>& answers) override;
  Events begin(const Usage& usage) override;
  Events progress(const Usage& usage) override;
  Events part(int answer, const ReplyPart& part, const ReplyDelta& delta,
              const Usage& usage) override;
  Events end(int answer, const FinishedAnswer& finished, const ReplyDelta& delta) override;
  Events finish(const std::vector<FinishedAnswer>& answers) override;
  bool says_done() const override { return true; }

 private:
  const std::string& prompt_of(int answer) const { return prompts_[answer / request_.answers]; }
  Json chunk(int answer, const std::string& text, Json finish) const;

  const TextRequest& request_;
  const ReplyHead head_;
  const std::vector<std::string> prompts_;
};

}  // namespace firp
