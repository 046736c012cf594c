#pragma once

#include <deque>
#include <memory>
#include <string_view>
#include <vector>

#include "bench/random_weights.h"
#include "model/model.h"

namespace firp {

/// A model of random weights in the shape of a known one, without a file: for speed only. All of
/// its matrices are of one type, and all layers share one set of tensors, so that beside the packed
/// weights it takes the memory of a layer, the embedding and the head.
class SyntheticModel {
 public:
  /// `name`: "SHAPE:TYPE", as in "llama-7b:q4_0". An Error that lists the shapes or types; or one
  /// where the weights would not fit in the memory that is free now.
  explicit SyntheticModel(std::string_view name);

  const Model& model() const { return *model_; }

 private:
  std::deque<RandomWeights> matrices_;  // a deque: the model points to them
  std::vector<float> ones_;
  Tensor norm_;
  std::unique_ptr<Model> model_;
};

}  // namespace firp
