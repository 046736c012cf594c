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

  DraftTree draft(const DraftPoint& point) override;

 private:
  /// Makes `tokens` the drafter's context, with as little work as its last one allows; the last
  /// token's row is the last pass's last. Its number.
  int follow(std::span<const Token> tokens);

  Engine& drafter_;
  const int sequence_;
  std::vector<Token> committed_;  ///< the drafter's context
};

}  // namespace firp
