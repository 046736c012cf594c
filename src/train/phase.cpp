#include "train/phase.h"

namespace firp {

const char* phase_name(TrainPhase phase) {
  switch (phase) {
    case TrainPhase::kSynthesis:
      return "Writing training text";
    case TrainPhase::kLayerScan:
      return "Choosing the layer";
    case TrainPhase::kCapture:
      return "Reading hidden states";
    case TrainPhase::kWarmStart:
      return "Ridge regression";
    case TrainPhase::kDistillation:
      return "Training";
    case TrainPhase::kEvaluation:
      return "Measuring";
  }
  return "";
}

const char* phase_unit(TrainPhase phase) {
  switch (phase) {
    case TrainPhase::kSynthesis:
    case TrainPhase::kCapture:
      return "tokens";
    case TrainPhase::kLayerScan:
      return "steps";
    case TrainPhase::kWarmStart:
      return "maps";
    case TrainPhase::kDistillation:
      return "updates";
    case TrainPhase::kEvaluation:
      return "texts";
  }
  return "";
}

}  // namespace firp
