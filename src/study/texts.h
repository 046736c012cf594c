#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "model/vocabulary.h"
#include "train/synthesis.h"

namespace firp {

/// The model's own texts for experiments.
struct StudyTexts {
  std::vector<Text> measured;  ///< greedy answers, to measure on
  std::vector<Text> fitted;    ///< further ones, for ridge regression
};

/// `tokens` (about) of answers to measure on, to `prompts` from all over the list, or to the
/// model's own where it is empty; and `fitted_tokens` others. `on_progress`: tokens done, of.
StudyTexts write_study_texts(Engine& engine, const Vocabulary& vocabulary,
                             const std::vector<std::string>& prompts, int tokens, int fitted_tokens,
                             std::uint64_t seed,
                             const std::function<void(long long, long long)>& on_progress);

}  // namespace firp
