#pragma once

#include "draft/source.h"

namespace firp {

/// A smaller model of the same vocabulary drafts token by token (Leviathan et al., arXiv
/// 2211.17192).
class DraftModelSource : public DraftSource {
 public:
  /// `drafter` outlives it. An Error where its vocabulary has another size than `model`'s.
  DraftModelSource(const Engine& model, Engine& drafter);
  ~DraftModelSource() override;
  DraftModelSource(const DraftModelSource&) = delete;
  DraftModelSource& operator=(const DraftModelSource&) = delete;

  DraftTree draft(const DraftPoint& point, const Proposal* proposal) override;

 private:
  /// Makes `tokens` the drafter's context, with as little work as its last one allows. The last
  /// pass, whose last row is the last token's.
  Pass follow(std::span<const Token> tokens);

  Engine& drafter_;
  const int sequence_;
};

}  // namespace firp
