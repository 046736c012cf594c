#include "engine/context_vocabulary.h"

#include <algorithm>
#include <bit>

namespace firp {

void ContextVocabulary::follow(std::span<const Token> context, const std::vector<bool>& known,
                               const Tensor& head, ggml_type type) {
  const std::size_t before = tokens_.size();
  for (; seen_ < context.size(); ++seen_) {
    const Token token = context[seen_];
    if (tokens_.size() == kMost) break;
    if (!known[token] && in_tokens_.insert(token).second) tokens_.push_back(token);
  }
  if (tokens_.size() == before) return;
  const bool grows = tokens_.size() > static_cast<std::size_t>(packed_.outputs());
  if (grows) reserve(tokens_.size(), head, type);

  const std::int64_t d = head.columns();
  const std::size_t row_bytes = ggml_row_size(type, d);
  std::vector<float> values(d);
  for (std::size_t i = before; i < tokens_.size(); ++i) {
    std::byte* const row = rows_.data() + i * row_bytes;
    if (type == head.type) {
      std::ranges::copy(head.data.subspan(tokens_[i] * row_bytes, row_bytes), row);
      continue;
    }
    dequantize_row(head, tokens_[i], values);
    ggml_quantize_chunk(type, values.data(), row, 0, 1, d, nullptr);
  }
  const Tensor rows = {
      .name = head.name, .type = type, .shape = {d, packed_.outputs(), 1, 1}, .data = rows_};
  packed_.pack(rows, grows ? 0 : static_cast<int>(before) / kBlockOutputs,
               (static_cast<int>(tokens_.size()) - 1) / kBlockOutputs + 1);
}

void ContextVocabulary::reserve(std::size_t count, const Tensor& head, ggml_type type) {
  const std::size_t outputs = std::bit_ceil(std::max<std::size_t>(count, 4 * kBlockOutputs));
  rows_.resize(outputs * ggml_row_size(type, head.columns()));
  const Tensor rows = {.name = head.name,
                       .type = type,
                       .shape = {head.columns(), static_cast<std::int64_t>(outputs), 1, 1},
                       .data = rows_};
  memory_ = AlignedBytes(PackedMatrix::packed_bytes(rows, type));
  packed_ = PackedMatrix(rows, type, memory_.data());
}

}  // namespace firp
