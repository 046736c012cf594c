#pragma once

#include <functional>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "train/synthesis.h"

namespace firp {

/// Maps by ridge regression alone, without a token input, that enter after each of `layers`: from
/// texts that are not held out. On any engine, for the model `base`.
std::vector<Heads> ridge_heads(Engine& engine, const ModelIdentity& base,
                               std::span<const Text> texts, std::span<const int> layers,
                               int draft_steps);

/// The layer t at which ridge-regressed maps give most tokens for their cost on held-out text:
/// those of a chain, over what a verifying pass and a drafting pass read. Candidates are every
/// other layer or so from a third of the depth on. With `token_input` the maps read the token
/// behind the anchor, too. `on_progress` (candidates done, of) may end it: then 0.
int choose_layer(Engine& engine, const Model& model, std::span<const Text> texts, int draft_steps,
                 bool token_input, const std::function<bool(int, int)>& on_progress);

}  // namespace firp
