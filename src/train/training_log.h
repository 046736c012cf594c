#pragma once

#include <filesystem>
#include <vector>

#include "train/train.h"

namespace firp {

/// A line of `firp train --log`: the heads on a few held-out texts, at some time of their training.
struct TrainingLogLine {
  double seconds = 0;  ///< in all phases so far, the writing of texts included
  int updates = 0;
  long long rows = 0;       ///< pseudo rows that the updates saw
  double loss = 0;          ///< mean KL a row over the last updates; NaN before the first
  std::vector<float> top1;  ///< of each step's rows, 0..1
  TokensPerForward tokens_per_forward;
};

/// Begins the CSV file of a training with its header. With `resume`, a file that has one stays. An
/// Error where it cannot be written.
void begin_training_log(const std::filesystem::path& path, int steps, bool resume);
void append_to_training_log(const std::filesystem::path& path, const TrainingLogLine& line);

/// An Error names the line that is none of such a file, or a file without lines.
std::vector<TrainingLogLine> read_training_log(const std::filesystem::path& path);

}  // namespace firp
