#include "train/teacher.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/token_chain.h"

namespace firp {
namespace {

// Runs tokens [0, count) of a text through the engine, chunk by chunk, in a sequence of its own.
// visit(pass, first position, rows) reads from each chunk's pass.
void run_chunks(Engine& engine, std::span<const Token> tokens, std::span<const int> layers,
                const std::function<void(const Pass&, int, int)>& visit) {
  const int sequence = engine.add_sequence();
  const int total = static_cast<int>(tokens.size());
  for (int begin = 0; begin < total; begin += engine.options().max_rows) {
    const int count = std::min(engine.options().max_rows, total - begin);
    const Pass pass = engine.forward(token_chain(sequence, tokens.subspan(begin, count)), layers);
    visit(pass, begin, count);
    pass.commit(sequence, first_rows(count));
  }
  engine.remove_sequence(sequence);
}

void copy_row(std::span<const float> from, const torch::Tensor& to, std::int64_t row) {
  std::memcpy(to.data_ptr<float>() + row * to.size(1), from.data(), from.size_bytes());
}

int first_anchor(const Text& text) { return std::max(kSkippedPositions, text.answer_begin - 1); }

}  // namespace

TeacherText run_teacher(Engine& engine, const UpperLayers& upper, const Text& text,
                        std::span<const int> extra_layers) {
  const int positions = static_cast<int>(text.tokens.size()) - 1;
  const std::int64_t d = engine.config().hidden_size;
  TeacherText out;
  out.tokens = text.tokens;
  out.greedy = text.greedy;
  out.first_anchor = std::min(first_anchor(text), positions - 1);
  out.end_anchor = positions - 1;

  std::vector<int> layers = {upper.first_layer()};
  while (layers.back() + 1 < engine.config().layers) {
    layers.push_back(layers.back() + 1);
  }
  std::vector<torch::Tensor> states;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    states.push_back(torch::empty({positions, d}));
  }
  const std::int64_t rows_kept = positions - out.first_anchor;
  out.top_ids = torch::zeros({rows_kept, kTeacherTokens}, torch::kInt32);
  out.top_probabilities = torch::zeros({rows_kept, kTeacherTokens});

  run_chunks(engine, std::span(text.tokens).first(positions), layers,
             [&](const Pass& pass, int begin, int count) {
               std::vector<int> with_logits;
               for (int row = 0; row < count; ++row) {
                 for (std::size_t i = 0; i < layers.size(); ++i) {
                   copy_row(pass.hidden(row, layers[i]), states[i], begin + row);
                 }
                 if (begin + row >= out.first_anchor) {
                   with_logits.push_back(row);
                 }
               }
               if (with_logits.empty()) {
                 return;
               }
               const std::span<const BestTokens> best =
                   pass.best_tokens(with_logits, kTeacherTokens, /*log_sums=*/true);
               const std::int64_t kept = begin + with_logits.front() - out.first_anchor;
               for (std::size_t i = 0; i < best.size(); ++i) {
                 const std::int64_t at = (kept + static_cast<std::int64_t>(i)) * kTeacherTokens;
                 for (std::size_t k = 0; k < best[i].tokens.size(); ++k) {
                   const TokenLogit& token = best[i].tokens[k];
                   out.top_ids.data_ptr<std::int32_t>()[at + k] = token.token;
                   out.top_probabilities.data_ptr<float>()[at + k] =
                       std::exp(token.logit - best[i].log_sum);
                 }
               }
             });

  const auto from_first_anchor = [&](const torch::Tensor& all) {
    return all.narrow(0, out.first_anchor, rows_kept).clone();
  };
  out.hidden = from_first_anchor(states.front());
  for (const int layer : extra_layers) {
    out.extra_hidden.push_back(from_first_anchor(states[layer - upper.first_layer()]));
  }
  if (upper.layers() == 0) {
    out.context = torch::empty({0, 2, engine.config().kv_heads, out.end_anchor, 0}, torch::kF16);
    return out;
  }
  std::vector<torch::Tensor> context;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    context.push_back(upper.keys_values(layers[i], states[i].narrow(0, 0, out.end_anchor)).cpu());
  }
  out.context = torch::stack(context);
  return out;
}

std::vector<torch::Tensor> run_hidden(Engine& engine, const Text& text,
                                      std::span<const int> layers) {
  const int positions = static_cast<int>(text.tokens.size()) - 1;
  const int first = std::min(first_anchor(text), positions - 1);
  std::vector<torch::Tensor> states;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    states.push_back(torch::empty({positions - first, engine.config().hidden_size}));
  }
  run_chunks(engine, std::span(text.tokens).first(positions), layers,
             [&](const Pass& pass, int begin, int count) {
               for (int row = std::max(0, first - begin); row < count; ++row) {
                 for (std::size_t i = 0; i < layers.size(); ++i) {
                   copy_row(pass.hidden(row, layers[i]), states[i], begin + row - first);
                 }
               }
             });
  return states;
}

torch::Tensor tokens_behind(std::span<const Token> tokens, std::int64_t rows) {
  return torch::tensor(std::vector<std::int64_t>(tokens.end() - rows, tokens.end()));
}

std::vector<std::int32_t> tokens_by_frequency(std::span<const TeacherText> texts, int vocabulary) {
  torch::Tensor mass = torch::zeros({vocabulary}, torch::kFloat64);
  for (const TeacherText& text : texts) {
    mass.index_add_(0, text.top_ids.flatten(),
                    text.top_probabilities.flatten().to(torch::kFloat64));
  }
  const torch::Tensor order = std::get<1>(mass.sort(/*stable=*/true, 0, /*descending=*/true));
  const auto* const first = order.data_ptr<std::int64_t>();
  return {first, first + vocabulary};
}

std::size_t teacher_bytes_per_token(const ModelConfig& config, int layer) {
  return static_cast<std::size_t>(config.layers - layer) * 2 * config.kv_size() * 2 +
         static_cast<std::size_t>(config.hidden_size) * 4 + kTeacherTokens * 8;
}

}  // namespace firp
