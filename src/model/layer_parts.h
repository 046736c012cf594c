#pragma once

#include <array>

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
  Matrix gate{};                    ///< [feed_forward_size x d]
  Matrix up{};                      ///< [feed_forward_size x d]
  Matrix down{};                    ///< [d x feed_forward_size]
  Vector feed_forward_post_norm{};  ///< [d], of what the feed-forward adds

  /// In the order in which a pass reads them.
  std::array<Matrix*, 7> matrices() { return matrices_of(*this); }
  std::array<const Matrix*, 7> matrices() const { return matrices_of(*this); }
  std::array<Vector*, 9> vectors() { return vectors_of(*this); }
  std::array<const Vector*, 9> vectors() const { return vectors_of(*this); }

 private:
  static auto matrices_of(auto& l) {
    return std::array{&l.query, &l.key, &l.value, &l.output, &l.gate, &l.up, &l.down};
  }
  static auto vectors_of(auto& l) {
    return std::array{&l.attention_norm,      &l.query_bias,        &l.key_bias,
                      &l.value_bias,          &l.query_norm,        &l.key_norm,
                      &l.attention_post_norm, &l.feed_forward_norm, &l.feed_forward_post_norm};
  }
};

}  // namespace firp
