#include "engine/draft_head.h"

#include <algorithm>
#include <cmath>

namespace firp {
namespace {

/// Parents of one level of a draft tree, at most (draft/draft_tree.h keeps fewer).
constexpr int kMostParents = 64;

}  // namespace

DraftHead::DraftHead(const Tensor& token_embedding, const Tensor& head, const Heads& heads,
                     const Kernels& kernels, ThreadPool& pool)
    : token_embedding_(token_embedding),
      head_(head),
      kernels_(kernels),
      pool_(pool),
      sequential_(heads.steps.size()),
      state_input_(1, static_cast<int>(head.columns())),
      token_input_(kMostParents, static_cast<int>(head.columns())),
      inner_input_(kMostParents, heads.steps[0].sequence->rank) {
  const int d = static_cast<int>(head.columns());
  std::vector<MatrixOfValues> matrices;
  for (std::size_t i = 0; i < sequential_.size(); ++i) {
    const SequentialHead& from = *heads.steps[i].sequence;
    Sequential& to = sequential_[i];
    matrices.push_back({&to.state, from.state, from.rank, d, GGML_TYPE_F16});
    matrices.push_back({&to.token, from.token, from.rank, d, GGML_TYPE_F16});
    matrices.push_back({&to.output, from.output, d, from.rank, GGML_TYPE_F16});
    to.bias = from.bias;
  }
  memory_ = pack_values(matrices);
  candidate_rows_.resize(static_cast<std::size_t>(kRankedCandidates) * d);
  corrections_.resize(static_cast<std::size_t>(kMostParents) * d);
  logits_.resize(static_cast<std::size_t>(kMostParents) * kRankedCandidates);
  products_.resize(static_cast<std::size_t>(kMostParents) * heads.steps[0].sequence->rank);
}

void DraftHead::multiply(const PackedMatrix& w, const Activations& x, float* y, std::size_t stride,
                         int thread) const {
  pool_.divide(thread, w.blocks(), kTileBlocks, [&](int begin, int end, bool) {
    kernels_.matmul(
        {.weights = w, .first_block = begin, .end_block = end, .y = y, .y_stride = stride}, x);
  });
}

std::vector<float> DraftHead::take_states(std::span<const std::span<const float>> states) {
  const int rank = sequential_.front().state.outputs();
  std::vector<float> inner(states.size() * static_cast<std::size_t>(rank));
  state_input_.resize(1, static_cast<int>(head_.columns()));
  pool_.run_on_free_cores([&](int thread) {
    for (std::size_t i = 0; i < states.size(); ++i) {
      if (thread == 0) std::ranges::copy(states[i], state_input_.values(0));
      pool_.barrier(thread);
      multiply(sequential_[i].state, state_input_, inner.data() + i * rank, rank, thread);
      pool_.barrier(thread);
    }
  });
  for (std::size_t i = 0; i < states.size(); ++i) {
    for (int k = 0; k < rank; ++k) inner[i * rank + k] += sequential_[i].bias[k];
  }
  return inner;
}

std::vector<std::vector<Candidate>> DraftHead::correct(int step, const BestTokens& row,
                                                       std::span<const float> inner,
                                                       std::span<const Token> previous) {
  std::vector<Candidate> of_row;
  for (const TokenLogit& each : row.tokens) {
    of_row.push_back({each.token, each.logit - row.log_sum});
  }
  const Sequential& head = sequential_[step - 1];
  const int d = static_cast<int>(head_.columns());
  const int rank = head.state.outputs();
  const int parents = static_cast<int>(std::min<std::size_t>(previous.size(), kMostParents));
  const int candidates = static_cast<int>(of_row.size());
  token_input_.resize(parents, d);
  inner_input_.resize(parents, rank);
  const auto dequantize_share = [&](const Tensor& matrix, int count, auto token_of, auto row_of,
                                    int thread) {
    const auto [begin, end] = share(count, thread, pool_.running());
    for (int i = begin; i < end; ++i) {
      dequantize_row(matrix, token_of(i), {row_of(i), static_cast<std::size_t>(d)});
    }
  };
  pool_.run_on_free_cores([&](int thread) {
    dequantize_share(
        token_embedding_, parents, [&](int i) { return previous[i]; },
        [&](int i) { return token_input_.values(i); }, thread);
    dequantize_share(
        head_, candidates, [&](int i) { return of_row[i].token; },
        [&](int i) { return candidate_rows_.data() + std::size_t(i) * d; }, thread);
    pool_.barrier(thread);
    multiply(head.token, token_input_, products_.data(), rank, thread);
    pool_.barrier(thread);
    const auto [first, last] = share(parents, thread, pool_.running());
    const float* const of_state = inner.data() + std::size_t(step - 1) * rank;
    for (int i = first; i < last; ++i) {
      for (int k = 0; k < rank; ++k) {
        const float x = products_[std::size_t(i) * rank + k] + of_state[k];
        inner_input_.values(i)[k] = x / (1.0f + std::exp(-x));
      }
    }
    pool_.barrier(thread);
    multiply(head.output, inner_input_, corrections_.data(), d, thread);
    pool_.barrier(thread);
    for (int i = first; i < last; ++i) {
      for (int k = 0; k < candidates; ++k) {
        logits_[std::size_t(i) * kRankedCandidates + k] =
            row.tokens[k].logit + kernels_.dot(corrections_.data() + std::size_t(i) * d,
                                               candidate_rows_.data() + std::size_t(k) * d, d);
      }
    }
  });

  // The candidates share the row's own probability of all of them anew.
  double mass = 0;
  for (const Candidate& candidate : of_row) mass += std::exp(candidate.log_probability);
  std::vector<std::vector<Candidate>> lists(previous.size());
  for (int i = 0; i < parents; ++i) {
    const std::span<const float> logits(logits_.data() + std::size_t(i) * kRankedCandidates,
                                        candidates);
    const float largest = std::ranges::max(logits);
    double sum = 0;
    for (const float logit : logits) sum += std::exp(logit - largest);
    const auto shift = static_cast<float>(std::log(mass) - std::log(sum)) - largest;
    for (int k = 0; k < candidates; ++k) {
      lists[i].push_back({of_row[k].token, logits[k] + shift});
    }
    std::ranges::stable_sort(lists[i], std::greater(), &Candidate::log_probability);
  }
  return lists;
}

}  // namespace firp
