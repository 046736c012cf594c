#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_set>
#include <vector>

#include "engine/row.h"
#include "kernels/packed_matrix.h"
#include "model/gguf_file.h"

namespace firp {

/// The tokens of one context that are not in the draft vocabulary, and their rows of the model's
/// head: pseudo rows may draft them, too. A text repeats its own rare words, so a few thousand
/// frequent tokens and these draft as well as many more (docs/training.md).
class ContextVocabulary {
 public:
  /// More of a context's tokens are left out.
  static constexpr int kMost = 4096;

  /// Adds what `context` has beyond what was seen of it. `known`: of each token, whether it is in
  /// the draft vocabulary. The head's rows are kept in `type`.
  void follow(std::span<const Token> context, const std::vector<bool>& known, const Tensor& head,
              ggml_type type);
  /// For a context that goes on differently.
  void clear() { *this = {}; }

  std::span<const Token> tokens() const { return tokens_; }
  /// [tokens().size() x d]; only where there are tokens.
  PackedMatrix head() const { return packed_.first_outputs(static_cast<int>(tokens_.size())); }

 private:
  void reserve(std::size_t count, const Tensor& head, ggml_type type);

  std::size_t seen_ = 0;  ///< tokens of the context
  std::vector<Token> tokens_;
  std::unordered_set<Token> in_tokens_;
  std::vector<std::byte> rows_;  ///< of the head, in the packed matrix's type: room for its outputs
  AlignedBytes memory_;
  PackedMatrix packed_;
};

}  // namespace firp
