#include "train/distillation.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <random>

namespace firp {
namespace {

// Texts of like length share an update: sorted within windows of so many updates.
constexpr int kLengthWindow = 8;
constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kAdamEpsilon = 1e-8, kWeightDecay = 0.01;

// Rows of the logits that are worked on at a time: they stay in the cache.
constexpr std::int64_t kRowsAChunk = 64;

struct HeadLoss : torch::autograd::Function<HeadLoss> {
  static torch::Tensor forward(torch::autograd::AutogradContext* context,
                               const torch::Tensor& states, const torch::Tensor& head,
                               const torch::Tensor& targets, const torch::Tensor& probabilities,
                               const torch::Tensor& weights) {
    torch::Tensor loss = torch::zeros({}, states.options().dtype(torch::kFloat64));
    torch::Tensor gradient = torch::empty_like(states);
    for (std::int64_t begin = 0; begin < states.size(0); begin += kRowsAChunk) {
      const std::int64_t count = std::min(kRowsAChunk, states.size(0) - begin);
      const auto chunk = [&](const torch::Tensor& x) { return x.narrow(0, begin, count); };
      torch::Tensor logits = torch::linear(chunk(states), head).to(torch::kFloat32);
      const torch::Tensor log_sum = logits.logsumexp(1, true);
      const torch::Tensor teacher = chunk(probabilities), weight = chunk(weights);
      const torch::Tensor log_probabilities = logits.gather(1, chunk(targets)) - log_sum;
      const torch::Tensor divergence =
          (torch::xlogy(teacher, teacher) - teacher * log_probabilities).sum(1);
      loss += (divergence * weight).sum().to(torch::kFloat64);
      // d KL / d logits = own probability - teacher's.
      logits.sub_(log_sum).exp_().scatter_add_(1, chunk(targets), -teacher);
      logits.mul_(weight.unsqueeze(1));
      gradient.narrow(0, begin, count).copy_(torch::mm(logits.to(head.scalar_type()), head));
    }
    context->save_for_backward({gradient});
    return loss.to(torch::kFloat32);
  }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* context,
                                               const torch::autograd::tensor_list& gradients) {
    const torch::Tensor gradient = context->get_saved_variables()[0];
    return {gradient * gradients[0].to(gradient.scalar_type()), {}, {}, {}, {}};
  }
};

void shuffle(std::vector<int>& items, std::mt19937_64& generator) {
  for (std::size_t i = items.size(); i > 1; --i) {
    std::swap(items[i - 1], items[generator() % i]);
  }
}

// A generator for one purpose: the seed mixed with two numbers.
std::mt19937_64 generator_for(std::uint64_t seed, std::uint64_t purpose, std::uint64_t number) {
  std::seed_seq sequence{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32),
                         static_cast<std::uint32_t>(purpose), static_cast<std::uint32_t>(number)};
  return std::mt19937_64(sequence);
}

}  // namespace

torch::Tensor head_loss(const torch::Tensor& states, const torch::Tensor& head,
                        const torch::Tensor& targets, const torch::Tensor& probabilities,
                        const torch::Tensor& weights) {
  return HeadLoss::apply(states, head, targets, probabilities, weights);
}

AnchorBatch anchor_batch(std::span<const TeacherText> texts, std::uint64_t seed, int update) {
  const int count = static_cast<int>(texts.size());
  const int batches = std::max(1, count / kSequencesAnUpdate);
  const int epoch = update / batches;

  std::mt19937_64 of_epoch = generator_for(seed, 1, epoch);
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  shuffle(order, of_epoch);
  while (static_cast<int>(order.size()) < kSequencesAnUpdate) {  // tests; a tiny set of texts
    order.push_back(order[order.size() - count]);
  }
  for (std::size_t begin = 0; begin < order.size(); begin += kSequencesAnUpdate * kLengthWindow) {
    const std::size_t end = std::min(order.size(), begin + kSequencesAnUpdate * kLengthWindow);
    std::sort(order.begin() + begin, order.begin() + end, [&](int a, int b) {
      return std::pair(texts[a].tokens.size(), a) < std::pair(texts[b].tokens.size(), b);
    });
  }
  std::vector<int> batch_order(batches);
  std::iota(batch_order.begin(), batch_order.end(), 0);
  shuffle(batch_order, of_epoch);

  AnchorBatch batch;
  const int begin = batch_order[update % batches] * kSequencesAnUpdate;
  batch.texts.assign(order.begin() + begin, order.begin() + begin + kSequencesAnUpdate);
  std::mt19937_64 of_update = generator_for(seed, 2, update);
  for (const int text : batch.texts) {
    std::vector<int> anchors(texts[text].anchors());
    std::iota(anchors.begin(), anchors.end(), texts[text].first_anchor);
    shuffle(anchors, of_update);
    while (static_cast<int>(anchors.size()) < kAnchorsASequence) {  // a short answer: some twice
      anchors.push_back(anchors[of_update() % texts[text].anchors()]);
    }
    anchors.resize(kAnchorsASequence);
    batch.anchors.push_back(std::move(anchors));
  }
  return batch;
}

Distillation::State Distillation::initial_state(Maps maps) {
  State state;
  for (const torch::Tensor* const parameter : maps.parameters()) {
    state.means.push_back(torch::zeros_like(*parameter));
    state.squares.push_back(torch::zeros_like(*parameter));
  }
  state.maps = std::move(maps);
  return state;
}

Distillation::Distillation(const UpperLayers& upper, std::span<const TeacherText> texts,
                           State state, float learning_rate, std::uint64_t seed)
    : upper_(upper),
      texts_(texts),
      state_(std::move(state)),
      learning_rate_(learning_rate),
      seed_(seed) {
  const torch::Device device = upper.device();
  state_.maps = state_.maps.to(device);
  for (std::vector<torch::Tensor>* const moments : {&state_.means, &state_.squares}) {
    for (torch::Tensor& moment : *moments) {
      moment = moment.to(device);
    }
  }

  const std::int64_t vocabulary = upper.head().size(0);
  const std::int64_t size = std::min(kLossTokens, vocabulary);
  const std::vector<std::int32_t> ranked = tokens_by_frequency(texts, static_cast<int>(vocabulary));
  const torch::Tensor kept = std::get<0>(
      torch::tensor(std::vector<std::int64_t>(ranked.begin(), ranked.begin() + size)).sort());
  head_ = upper.head().index_select(0, kept.to(device)).contiguous();
  torch::Tensor row_of = torch::full({vocabulary}, -1, torch::kInt64);
  row_of.index_copy_(0, kept, torch::arange(size));
  for (const TeacherText& text : texts) {
    const torch::Tensor rows =
        row_of.index_select(0, text.top_ids.flatten().to(torch::kInt64)).view(text.top_ids.sizes());
    const torch::Tensor known = text.top_probabilities * (rows >= 0);
    targets_.push_back(rows.clamp_min(0).to(torch::kInt32));
    probabilities_.push_back(known / known.sum(1, true).clamp_min(1e-9));
  }
}

double Distillation::update(int planned_updates) {
  const torch::Device device = upper_.device();
  const AnchorBatch batch = anchor_batch(texts_, seed_, state_.updates);
  const int steps = state_.maps.steps();
  const int rows = kSequencesAnUpdate * kAnchorsASequence * steps;
  const std::int64_t d = state_.maps.mean.size(0);

  int length = 0;  // of the longest context
  for (const std::vector<int>& anchors : batch.anchors) {
    length = std::max(length, *std::ranges::max_element(anchors) + 1);
  }
  const torch::Tensor& some = texts_[batch.texts.front()].context;
  torch::Tensor context = torch::zeros(
      {some.size(0), 2, kSequencesAnUpdate, some.size(2), length, some.size(4)}, some.options());
  std::vector<torch::Tensor> hidden, targets, probabilities;
  torch::Tensor weights = torch::zeros({rows});
  std::vector<std::int64_t> tokens_before;  // each row's: the token at its position i + j
  std::vector<std::int64_t> behind;         // each anchor's: the token at i + 1
  for (int b = 0; b < kSequencesAnUpdate; ++b) {
    const int index = batch.texts[b];
    const TeacherText& text = texts_[index];
    const std::int64_t seen = std::min<std::int64_t>(length, text.context.size(3));
    context.select(2, b).narrow(3, 0, seen).copy_(text.context.narrow(3, 0, seen));
    std::vector<std::int64_t> anchor_rows, target_rows;
    for (const int anchor : batch.anchors[b]) {
      anchor_rows.push_back(anchor - text.first_anchor);
      behind.push_back(text.tokens[anchor + 1]);
      for (int step = 1; step <= steps; ++step) {
        const std::int64_t target = anchor - text.first_anchor + step;
        const bool exists = target < text.hidden.size(0);
        weights[(b * kAnchorsASequence * steps) + static_cast<std::int64_t>(target_rows.size())] =
            exists ? 1.0f : 0.0f;
        target_rows.push_back(exists ? target : 0);
        tokens_before.push_back(exists ? text.tokens[anchor + step] : 0);
      }
    }
    hidden.push_back(text.hidden.index_select(0, torch::tensor(anchor_rows)));
    const torch::Tensor at = torch::tensor(target_rows);
    targets.push_back(targets_[index].index_select(0, at));
    probabilities.push_back(probabilities_[index].index_select(0, at));
  }
  weights = (weights / weights.sum().clamp_min(1)).to(device);
  const torch::Tensor batch_targets = torch::cat(targets).to(device).to(torch::kInt64);
  const torch::Tensor batch_probabilities = torch::cat(probabilities).to(device);
  std::vector<int> flat_anchors;
  for (const std::vector<int>& anchors : batch.anchors) {
    flat_anchors.insert(flat_anchors.end(), anchors.begin(), anchors.end());
  }
  const torch::Tensor anchors = torch::tensor(flat_anchors, torch::kInt64)
                                    .view({kSequencesAnUpdate, kAnchorsASequence})
                                    .to(device);

  Maps& maps = state_.maps;
  std::vector<torch::Tensor> parameters;
  for (torch::Tensor* const parameter : maps.parameters()) {
    parameters.push_back(parameter->requires_grad_(true));
  }
  const torch::Tensor embeddings_behind = upper_.embeddings(torch::tensor(behind));
  const torch::Tensor states =
      upper_.final_states(maps, torch::cat(hidden), embeddings_behind, anchors, context.to(device))
          .flatten(0, 2);
  const auto loss_of = [&](const torch::Tensor& final_states) {
    return head_loss(final_states, head_, batch_targets, batch_probabilities, weights);
  };
  torch::Tensor loss = loss_of(states);
  double shown = loss.item<double>();
  if (maps.sequence) {
    const torch::Tensor before = upper_.embeddings(torch::tensor(tokens_before));
    const torch::Tensor correction =
        maps.sequence->correction(states.view({-1, steps, d}), before.view({-1, steps, d}));
    const torch::Tensor corrected = (states + correction.reshape({-1, d})).to(states.scalar_type());
    const torch::Tensor sequence_loss = loss_of(corrected);
    shown = sequence_loss.item<double>();
    loss = loss + sequence_loss;
  }
  const std::vector<torch::Tensor> gradients = torch::autograd::grad({loss}, parameters);
  for (torch::Tensor& parameter : parameters) {
    parameter.requires_grad_(false);
  }

  const torch::NoGradGuard no_gradient;
  const int number = ++state_.updates;
  const double progress = std::min(1.0, static_cast<double>(number) / planned_updates);
  const double rate = learning_rate_ * std::min(1.0, static_cast<double>(number) / kWarmUpUpdates) *
                      (0.01 + 0.99 * 0.5 * (1 + std::cos(std::numbers::pi * progress)));
  const auto adam_w = [&](torch::Tensor& value, const torch::Tensor& gradient, torch::Tensor& mean,
                          torch::Tensor& square) {
    mean.mul_(kBeta1).add_(gradient, 1 - kBeta1);
    square.mul_(kBeta2).addcmul_(gradient, gradient, 1 - kBeta2);
    const torch::Tensor scale =
        (square / (1 - std::pow(kBeta2, number))).sqrt_().add_(kAdamEpsilon);
    value.mul_(1 - rate * kWeightDecay);
    value.addcdiv_(mean, scale, -rate / (1 - std::pow(kBeta1, number)));
  };
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    adam_w(parameters[i], gradients[i], state_.means[i], state_.squares[i]);
  }
  return shown;
}

}  // namespace firp
