#include "train/layer_scan.h"

#include <algorithm>

#include "engine/weights.h"
#include "train/evaluation.h"
#include "train/ridge.h"
#include "train/teacher.h"
#include "train/upper_layers.h"

namespace firp {
namespace {

constexpr long long kAnchors = 36000;  // more change nothing (docs/training.md)
constexpr int kMeasuredTexts = 6;
constexpr int kSampledTexts = 8;                         // for the standardisation
constexpr std::size_t kMaxBytes = std::size_t{3} << 30;  // of all normal equations

std::vector<int> candidate_layers(const ModelConfig& config, int draft_steps, bool token_input) {
  const std::size_t inputs = static_cast<std::size_t>(config.hidden_size) * (token_input ? 2 : 1);
  const std::size_t bytes = sizeof(double) * inputs *
                            (inputs + static_cast<std::size_t>(config.hidden_size) * draft_steps);
  const int first = std::max(1, config.layers / 3);
  const int last = std::max(first, std::min(config.layers - 1, config.layers * 9 / 10 - 1));
  int stride = std::max(1, config.layers / 15);
  while ((last - first) / stride > 2 && ((last - first) / stride + 1) * bytes > kMaxBytes) {
    ++stride;
  }
  std::vector<int> layers;
  for (int layer = first; layer <= last; layer += stride) {
    layers.push_back(layer);
  }
  return layers;
}

/// What a drafting pass of rows that enter after `layer` reads, over what a verifying pass does.
double drafting_cost(const Model& model, int layer, bool token_input) {
  std::size_t drafting = 0, verifying = model.head().data.size();
  for (int i = 0; i < model.config().layers; ++i) {
    verifying += layer_bytes(model.config(), model.layers()[i], /*rough=*/false);
    if (i >= layer)
      drafting += layer_bytes(model.config(), model.layers()[i], /*rough=*/token_input);
  }
  return static_cast<double>(drafting) / static_cast<double>(verifying);
}

/// Ridge regressions of all `layers` over texts that are not held out, some anchors of them, with
/// the token input of `upper` (nullptr: none). Empty where `on_progress` (anchors, of) ended it.
std::vector<RidgeRegression> regress(Engine& engine, const UpperLayers* upper,
                                     std::span<const Text> texts, std::span<const int> layers,
                                     int draft_steps,
                                     const std::function<bool(long long, long long)>& on_progress) {
  std::vector<RidgeRegression> regressions;
  // The first texts' states, [text][layer], and the embeddings behind them.
  std::vector<std::vector<torch::Tensor>> sample;
  std::vector<torch::Tensor> sample_embeddings;
  const auto embeddings_behind = [&](const Text& text, std::int64_t rows) {
    return upper == nullptr ? torch::Tensor()
                            : upper->embeddings(tokens_behind(text.tokens, rows)).cpu();
  };
  const std::optional<double> token_scale =
      upper == nullptr ? std::nullopt : std::optional(upper->embedding_scale());
  const auto begin_regressions = [&] {
    for (std::size_t i = 0; i < layers.size(); ++i) {
      std::vector<torch::Tensor> states;
      for (const std::vector<torch::Tensor>& text : sample) {
        states.push_back(text[i]);
      }
      regressions.emplace_back(layers[i], draft_steps, torch::cat(states), token_scale);
      for (std::size_t text = 0; text < states.size(); ++text) {
        regressions.back().add(states[text], sample_embeddings[text]);
      }
    }
    sample.clear();
    sample_embeddings.clear();
  };
  for (const Text& text : texts) {
    if (text.held_out) {
      continue;
    }
    std::vector<torch::Tensor> states = run_hidden(engine, text, layers);
    const torch::Tensor embeddings = embeddings_behind(text, states.front().size(0));
    if (regressions.empty()) {
      sample.push_back(std::move(states));
      sample_embeddings.push_back(embeddings);
      if (sample.size() == kSampledTexts) {
        begin_regressions();
      }
      continue;
    }
    for (std::size_t i = 0; i < layers.size(); ++i) {
      regressions[i].add(states[i], embeddings);
    }
    const long long anchors = regressions.front().anchors();
    if (!on_progress(std::min(anchors, kAnchors), kAnchors)) {
      return {};
    }
    if (anchors >= kAnchors) {
      break;
    }
  }
  if (regressions.empty()) {
    begin_regressions();
  }
  return regressions;
}

}  // namespace

std::vector<Heads> ridge_heads(Engine& engine, const ModelIdentity& base,
                               std::span<const Text> texts, std::span<const int> layers,
                               int draft_steps) {
  at::set_num_threads(engine.options().threads);
  std::vector<Heads> all;
  for (const RidgeRegression& regression :
       regress(engine, /*upper=*/nullptr, texts, layers, draft_steps,
               [](long long, long long) { return true; })) {
    all.push_back(to_heads(regression.solve(), base));
  }
  return all;
}

int choose_layer(Engine& engine, const Model& model, std::span<const Text> texts, int draft_steps,
                 bool token_input, const std::function<bool(int, int)>& on_progress) {
  const std::vector<int> layers = candidate_layers(model.config(), draft_steps, token_input);
  const int total = static_cast<int>(layers.size()) * 2;  // half of the work is the regression's
  if (layers.size() == 1) {
    return layers.front();
  }
  const torch::Device device = fast_device();
  const UpperLayers upper(model, layers.front(), device, fast_type(device));
  const std::vector<RidgeRegression> regressions =
      regress(engine, token_input ? &upper : nullptr, texts, layers, draft_steps,
              [&](long long anchors, long long of) {
                return on_progress(static_cast<int>(total / 2 * anchors / of), total);
              });
  if (regressions.empty()) {
    return 0;
  }

  std::vector<TeacherText> measured;
  for (const Text& text : texts) {
    if (text.held_out && text.greedy && static_cast<int>(measured.size()) < kMeasuredTexts) {
      measured.push_back(run_teacher(engine, upper, text, layers));
    }
  }
  int best_layer = layers.back();
  double best = 0;
  for (int i = static_cast<int>(layers.size()) - 1; i >= 0; --i) {
    const Evaluation result = evaluate(
        upper, regressions[i].solve().to(device), measured,
        [&](const TeacherText& text) -> const torch::Tensor& { return text.extra_hidden[i]; });
    const double score = result.maps.chain / (1 + drafting_cost(model, layers[i], token_input));
    if (score > best) {
      best = score;
      best_layer = layers[i];
    }
    if (!on_progress(total - i - 1, total)) {
      return 0;
    }
  }
  return best_layer;
}

}  // namespace firp
