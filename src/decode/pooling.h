#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include "model/gguf_file.h"

namespace firp {

/// What of the final states of a text's tokens is the text's embedding.
enum class Pooling {
  kMean,
  kLast,  ///< that of the last token
  kCls,   ///< that of the first token
  kNone,  ///< each by itself
};

/// mean, last, cls or none; an Error for other names.
Pooling pooling_of_name(std::string_view name);
/// What the file says its model was made for (*.pooling_type); mean where it does not say. An Error
/// where it is another kind.
Pooling pooling_of(const GgufFile& file);

/// Final states, pooled as they come.
class PooledStates {
 public:
  explicit PooledStates(Pooling pooling) : pooling_(pooling) {}

  /// Of the next token. All are of one size d, and come in the order of the text.
  void add(std::span<const float> state);
  void clear();

  /// Of at least one token: [d], and with kNone [tokens x d].
  std::vector<float> values() const;

 private:
  Pooling pooling_;
  std::size_t tokens_ = 0;
  std::vector<double> sum_;    ///< of kMean
  std::vector<float> states_;  ///< of the others
};

}  // namespace firp
