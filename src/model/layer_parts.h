#pragma once

#include <array>
#include <cstddef>

namespace firp {

/// The parts of a layer: written once, for tensors of a file, packed weights and LibTorch's
/// tensors. A part that the architecture lacks is a Matrix() or Vector().
template <typename Matrix, typename Vector>
struct LayerParts {
  Vector attention_norm{};
  Matrix query{};   ///< [query_size x d]
  Matrix key{};     ///< [kv_size x d]
  Matrix value{};   ///< [kv_size x d]
  Matrix output{};  ///< [d x query_size]
  Vector query_bias{}, key_bias{}, value_bias{};
  Vector query_norm{}, key_norm{};  ///< [head_size], or of all heads: [query_size], [kv_size]
  Vector attention_post_norm{};     ///< [d], of what attention adds
  Vector feed_forward_norm{};
  Matrix router{};  ///< [experts x d], of a mixture; its experts stand one after the other in
  Matrix gate{};    ///< [feed_forward_size x d], [experts * feed_forward_size x d]
  Matrix up{};      ///< likewise
  Matrix down{};    ///< [d x feed_forward_size], [experts * d x feed_forward_size]
  Vector feed_forward_post_norm{};  ///< [d], of what the feed-forward adds

  /// In the order in which a pass reads them.
  std::array<Matrix*, 8> matrices() { return matrices_of(*this); }
  std::array<const Matrix*, 8> matrices() const { return matrices_of(*this); }
  std::array<Vector*, 9> vectors() { return vectors_of(*this); }
  std::array<const Vector*, 9> vectors() const { return vectors_of(*this); }

 private:
  static auto matrices_of(auto& l) {
    return std::array{&l.query, &l.key, &l.value, &l.output, &l.router, &l.gate, &l.up, &l.down};
  }
  static auto vectors_of(auto& l) {
    return std::array{&l.attention_norm,      &l.query_bias,        &l.key_bias,
                      &l.value_bias,          &l.query_norm,        &l.key_norm,
                      &l.attention_post_norm, &l.feed_forward_norm, &l.feed_forward_post_norm};
  }
};

/// Calls visit(a's part, b's part) for each part of a layer, its matrices first.
void for_each_part(auto&& a, auto&& b, const auto& visit) {
  const auto matrices = a.matrices();
  const auto other_matrices = b.matrices();
  for (std::size_t k = 0; k < matrices.size(); ++k) visit(*matrices[k], *other_matrices[k]);
  const auto vectors = a.vectors();
  const auto other_vectors = b.vectors();
  for (std::size_t k = 0; k < vectors.size(); ++k) visit(*vectors[k], *other_vectors[k]);
}

}  // namespace firp
