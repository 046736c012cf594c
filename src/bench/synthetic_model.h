#pragma once

#include <cstdio>
#include <deque>
#include <filesystem>
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
  float rope_base() const { return rope_base_; }

 private:
  float rope_base_;
  std::deque<RandomWeights> matrices_;  // a deque: the model points to them
  std::vector<float> ones_;
  Tensor norm_;
  std::unique_ptr<Model> model_;
};

/// A synthetic model as a GGUF file, for programs that need one; the layers' tensors written out
/// for each. It lies in the folder for temporary files (TMPDIR) and has no name there, so that it
/// goes away however this program ends.
class SyntheticFile {
 public:
  /// An Error where the disk has no room for it.
  explicit SyntheticFile(const SyntheticModel& synthetic);

  /// What this process can open it by, while this object lives.
  std::filesystem::path path() const;

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::unique_ptr<std::FILE, Close> file_;
};

}  // namespace firp
