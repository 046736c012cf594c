#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "train/distillation.h"
#include "train/synthesis.h"
#include "train/train.h"

namespace firp {

/// Everything that --resume needs. What the engine can compute again from the texts (hidden states,
/// keys and values, the teacher's distributions) is not in it.
struct Checkpoint {
  ModelIdentity base;
  TrainOptions options;  ///< those that the result depends on
  std::vector<Text> texts;
  int layer = 0;                             ///< 0: not chosen yet
  int planned_updates = 0;                   ///< 0: not known yet
  std::optional<Distillation::State> state;  ///< empty before the warm start
  double phase_minutes[kTrainPhases] = {};
};

/// Replaces the file in one step (temporary file, rename).
void write_checkpoint(const Checkpoint& checkpoint, const std::filesystem::path& path);

/// An Error where the file is missing, damaged, or of another model than `base`.
Checkpoint read_checkpoint(const std::filesystem::path& path, const ModelIdentity& base);

}  // namespace firp
