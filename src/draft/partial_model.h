#pragma once

#include "draft/source.h"

namespace firp {

/// A part of the model that drafts for the whole.
struct PartialModel {
  std::vector<Sublayer> skipped;
  int steps = 4;         ///< tokens that it drafts one after the other
  double agreement = 0;  ///< of its next tokens with the model's own, where that was measured
};

/// The model with some sublayers left out drafts token by token, each in a pass of its own:
/// self-speculative decoding (Zhang et al., "Draft & Verify", arXiv 2309.08168), and with all
/// layers from some layer on left out, early exit through the model's own head.
class PartialModelSource : public DraftSource {
 public:
  PartialModelSource(Engine& engine, PartialModel part) : engine_(engine), part_(std::move(part)) {}
  DraftTree draft(const DraftPoint& point, const Proposal* proposal) override;

 private:
  Engine& engine_;
  const PartialModel part_;
};

/// All of a layer and of those behind it: what early exit after `layer` layers leaves out.
std::vector<Sublayer> sublayers_from(const ModelConfig& config, int layer);

/// Chooses what to skip, and how many steps to draft, for the most tokens a second on `text`,
/// written by the model: the sublayers that change its next tokens least when left out alone, as
/// many of them as pay. Some hundred passes. `text` is a whole text from its first token on; an
/// Error where it has less than 16 tokens.
PartialModel choose_sublayers_to_skip(Engine& engine, std::span<const Token> text);

/// The same for early exit: the layer after which the head reads.
PartialModel choose_exit_layer(Engine& engine, std::span<const Token> text);

}  // namespace firp
