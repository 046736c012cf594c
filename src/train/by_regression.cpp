#include "train/by_regression.h"

#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <random>

#include "base/error.h"
#include "decode/batch_decoder.h"
#include "engine/token_chain.h"
#include "train/distillation.h"
#include "train/ridge.h"
#include "train/teacher.h"

namespace firp {
namespace {

constexpr long long kRidgeAnchors = 60000;
constexpr int kSampledTexts = 16;                          // for the standardisation
constexpr std::size_t kStateBytes = std::size_t{3} << 29;  // of final states, at most
constexpr int kAnchorsAnUpdate = 96;
constexpr int kUpdatesOfSequence = 800;
constexpr float kSequenceRate = 2e-3f;  // at its peak; cosine decay
constexpr int kMeasuredTexts = 8;
constexpr int kMeasuredTokens = 64;  // of each

/// The rows of token tensors of the file, as LibTorch has them.
class TokenMatrix {
 public:
  explicit TokenMatrix(const Tensor& tensor) : tensor_(tensor) {}

  torch::Tensor rows(const torch::Tensor& tokens) const {  // int64 [N] to [N, d]
    torch::Tensor out = torch::empty({tokens.size(0), tensor_.columns()});
    for (std::int64_t i = 0; i < tokens.size(0); ++i) {
      dequantize_row(tensor_, tokens.data_ptr<std::int64_t>()[i],
                     {out.data_ptr<float>() + i * tensor_.columns(),
                      static_cast<std::size_t>(tensor_.columns())});
    }
    return out;
  }

 private:
  const Tensor& tensor_;
};

double one_over_rms(const torch::Tensor& values) {
  return 1 / values.square().mean().sqrt().item<double>();
}

/// Where the maps enter unless the user says: the part of the depth that pays on most models
/// (docs/training.md).
int usual_layer(const Engine& engine) { return std::max(1, engine.config().layers * 3 / 5); }

/// Pseudo rows of one text as the engine has run them, and what the model says at their positions.
struct RowStates {
  torch::Tensor states;               // [anchors, K, d]: final states
  torch::Tensor before;               // [anchors, K] int64: the token before each row's target
  torch::Tensor ids, probabilities;   // [anchors, K, 64]: the model's own at the row's position
  std::vector<long long> top1, top5;  // rows of each step whose best (five) hold its token
  long long anchors = 0;
};

class StateReader {
 public:
  StateReader(Engine& engine, int steps) : engine_(engine), steps_(steps) {}

  /// Runs a text with the pseudo rows of its answer's anchors beside it.
  RowStates read(const Text& text) {
    const int positions = static_cast<int>(text.tokens.size()) - 1;
    const int first = std::min(std::max(kSkippedPositions, text.answer_begin - 1), positions - 1);
    const int anchors = positions - steps_ - first;
    RowStates out;
    out.top1.assign(steps_, 0);
    out.top5.assign(steps_, 0);
    if (anchors <= 0) return out;
    const std::int64_t d = engine_.config().hidden_size;
    torch::Tensor teacher_ids = torch::zeros({positions, kTeacherTokens}, torch::kInt64);
    torch::Tensor teacher = torch::zeros({positions, kTeacherTokens});
    out.states = torch::empty({anchors, steps_, d});
    out.anchors = anchors;

    const int sequence = engine_.add_sequence();
    const int chunk = std::max(1, engine_.options().max_rows / (1 + steps_));
    for (int begin = 0; begin < positions; begin += chunk) {
      const int count = std::min(chunk, positions - begin);
      run_chunk(sequence, text, begin, count, first, anchors, out, teacher_ids, teacher);
    }
    engine_.remove_sequence(sequence);

    torch::Tensor at = torch::arange(anchors).unsqueeze(1) + torch::arange(steps_) + (first + 1);
    out.ids = teacher_ids.index_select(0, at.flatten()).view({anchors, steps_, kTeacherTokens});
    out.probabilities = teacher.index_select(0, at.flatten()).view(out.ids.sizes());
    const std::vector<std::int64_t> tokens(text.tokens.begin(), text.tokens.end());
    out.before = torch::tensor(tokens).index_select(0, at.flatten()).view({anchors, steps_});
    return out;
  }

 private:
  void run_chunk(int sequence, const Text& text, int begin, int count, int first, int anchors,
                 RowStates& out, torch::Tensor& teacher_ids, torch::Tensor& teacher) {
    std::vector<Row> rows = token_chain(sequence, std::span(text.tokens).subspan(begin, count));
    std::vector<std::pair<int, int>> pseudo;  // of each pseudo row: anchor, step
    for (int i = 0; i < count; ++i) {
      const int anchor = begin + i - first;
      if (anchor < 0 || anchor >= anchors) continue;
      int parent = i;
      for (int step = 1; step <= steps_; ++step) {
        pseudo.push_back({anchor, step});
        rows.push_back({.sequence = sequence,
                        .parent = parent,
                        .step = step,
                        .token_behind = text.tokens[begin + i + 1]});
        parent = static_cast<int>(rows.size()) - 1;
      }
    }
    const Pass pass = engine_.forward(rows);
    const std::vector<int> all = first_rows(rows.size());
    const std::span<const BestTokens> best =
        pass.best_tokens(all, kTeacherTokens, /*log_sums=*/true);
    for (int i = 0; i < count; ++i) {
      for (std::size_t k = 0; k < best[i].tokens.size(); ++k) {
        const TokenLogit& token = best[i].tokens[k];
        const std::int64_t to = std::int64_t{begin + i} * kTeacherTokens + k;
        teacher_ids.data_ptr<std::int64_t>()[to] = token.token;
        teacher.data_ptr<float>()[to] = std::exp(token.logit - best[i].log_sum);
      }
    }
    for (std::size_t i = 0; i < pseudo.size(); ++i) {
      const auto [anchor, step] = pseudo[i];
      const int row = count + static_cast<int>(i);
      const std::span<const float> state = pass.final_state(row);
      std::ranges::copy(state, out.states.data_ptr<float>() +
                                   (std::int64_t{anchor} * steps_ + step - 1) * out.states.size(2));
      const Token target = text.tokens[first + anchor + step + 1];
      const std::vector<TokenLogit>& candidates = best[row].tokens;
      const auto end = candidates.begin() + std::min<std::size_t>(5, candidates.size());
      const auto found = std::ranges::find(candidates.begin(), end, target, &TokenLogit::token);
      out.top1[step - 1] += found == candidates.begin() ? 1 : 0;
      out.top5[step - 1] += found != end ? 1 : 0;
    }
    pass.commit(sequence, first_rows(count));
  }

  Engine& engine_;
  const int steps_;
};

/// The model's most frequent tokens: those that the loss runs over, and their rows of the head.
struct LossHead {
  LossHead(const Tensor& head, std::span<const RowStates> texts) {
    torch::Tensor mass = torch::zeros({head.rows()}, torch::kFloat64);
    for (const RowStates& text : texts) {
      mass.index_add_(0, text.ids.flatten(), text.probabilities.flatten().to(torch::kFloat64));
    }
    ranked = std::get<1>(mass.sort(/*stable=*/true, 0, /*descending=*/true));
    const torch::Tensor kept =
        ranked.narrow(0, 0, std::min<std::int64_t>(kLossTokens, head.rows())).contiguous();
    rows = TokenMatrix(head).rows(kept);
    row_of = torch::full({head.rows()}, -1, torch::kInt64);
    row_of.index_copy_(0, kept, torch::arange(kept.size(0)));
  }

  torch::Tensor ranked;  // [vocabulary] int64
  torch::Tensor rows;    // [kLossTokens, d]
  torch::Tensor row_of;  // [vocabulary]: -1 for a token that is not among them
};

SequentialHeads train_sequence(std::span<const RowStates> texts, const LossHead& head,
                               const TokenMatrix& embedding, TrainingRun& run) {
  const TrainOptions& options = run.planned();
  Phase phase = run.begin(TrainPhase::kDistillation);
  std::vector<torch::Tensor> states, before, targets, probabilities;
  for (const RowStates& text : texts) {
    states.push_back(text.states);
    before.push_back(text.before);
    const torch::Tensor rows = head.row_of.index_select(0, text.ids.flatten()).view_as(text.ids);
    const torch::Tensor known = text.probabilities * (rows >= 0);
    targets.push_back(rows.clamp_min(0));
    probabilities.push_back(known / known.sum(2, true).clamp_min(1e-9));
  }
  const torch::Tensor all_states = torch::cat(states), all_before = torch::cat(before),
                      all_targets = torch::cat(targets),
                      all_probabilities = torch::cat(probabilities);
  const std::int64_t anchors = all_states.size(0), steps = all_states.size(1),
                     d = all_states.size(2);
  const torch::Tensor some = torch::arange(0, anchors, std::max<std::int64_t>(1, anchors / 512));
  SequentialHeads sequence = SequentialHeads::initial(
      static_cast<int>(steps), options.sequence_rank, d,
      one_over_rms(all_states.index_select(0, some)),
      one_over_rms(embedding.rows(all_before.index_select(0, some).select(1, 0).contiguous())),
      options.seed);
  std::vector<torch::Tensor> parameters = {sequence.state, sequence.token, sequence.bias,
                                           sequence.output};
  for (torch::Tensor& parameter : parameters) parameter.requires_grad_(true);
  const int updates = options.updates > 0 ? options.updates : kUpdatesOfSequence;
  torch::optim::AdamW optimizer(parameters, torch::optim::AdamWOptions(kSequenceRate));
  std::mt19937_64 generator(options.seed);
  const std::int64_t rows = kAnchorsAnUpdate * steps;
  const torch::Tensor weights = torch::full({rows}, 1.0f / static_cast<float>(rows));
  double loss_sum = 0;
  run.report.updates = run.report.planned_updates = updates;
  for (int update = 1; update <= updates && !run.stopped(); ++update) {
    std::vector<std::int64_t> chosen(kAnchorsAnUpdate);
    for (std::int64_t& anchor : chosen) anchor = static_cast<std::int64_t>(generator() % anchors);
    const torch::Tensor at = torch::tensor(chosen);
    const torch::Tensor of_rows = all_states.index_select(0, at);
    const torch::Tensor tokens = all_before.index_select(0, at).flatten().contiguous();
    const torch::Tensor corrected =
        of_rows + sequence.correction(of_rows, embedding.rows(tokens).view({-1, steps, d}));
    const torch::Tensor loss =
        head_loss(corrected.view({-1, d}), head.rows,
                  all_targets.index_select(0, at).view({-1, kTeacherTokens}),
                  all_probabilities.index_select(0, at).view({-1, kTeacherTokens}), weights);
    optimizer.zero_grad();
    loss.backward();
    const double done = static_cast<double>(update) / updates;
    static_cast<torch::optim::AdamWOptions&>(optimizer.param_groups()[0].options())
        .lr(kSequenceRate * (0.01 + 0.99 * 0.5 * (1 + std::cos(std::numbers::pi * done))));
    optimizer.step();
    loss_sum = update == 1 ? loss.item<double>() : 0.95 * loss_sum + 0.05 * loss.item<double>();
    phase.progress().loss = loss_sum;
    phase.update(update, updates);
  }
  for (torch::Tensor& parameter : parameters) parameter.requires_grad_(false);
  return sequence;
}

/// Decoding itself, behind the prompts of some held-out texts.
TokensPerForward decode_texts(Engine& engine, std::span<const Text* const> texts,
                              TrainingRun& run) {
  Phase phase = run.begin(TrainPhase::kEvaluation);
  TokensPerForward result;
  const std::pair<int, float*> trees[] = {
      {0, &result.chain}, {8, &result.tree8}, {16, &result.tree16}, {32, &result.tree32}};
  long long done = 0;
  BatchDecoder decoder(engine);
  for (const auto& [nodes, rate] : trees) {
    DecodeStats stats;
    for (const Text* const text : texts) {
      Session session(decoder, {.drafting = Drafting::kDeferred,
                                .tree_nodes = std::max(nodes, engine.draft_steps()),
                                .chain = nodes == 0});
      session.append(std::span(text->tokens).first(text->answer_begin));
      stats += generate(
          session, kMeasuredTokens, [](Token) { return false; },
          [&](const DecodedToken&) { return !run.stopped(); });
      phase.update(++done, std::ssize(trees) * std::ssize(texts));
    }
    *rate = static_cast<float>(stats.tokens) /
            static_cast<float>(std::max<long long>(1, stats.forwards));
  }
  return result;
}

std::vector<float> shares(const std::vector<long long>& counts, long long of) {
  std::vector<float> result;
  for (const long long count : counts) {
    result.push_back(static_cast<float>(count) / static_cast<float>(std::max<long long>(1, of)));
  }
  return result;
}

/// Ridge regression of hidden states alone.
Maps fit_maps(Engine& engine, const TokenMatrix& embedding, std::span<const Text* const> texts,
              TrainingRun& run) {
  const TrainOptions& planned = run.planned();
  const int layers[] = {run.report.layer};
  Phase phase = run.begin(TrainPhase::kWarmStart);
  std::optional<RidgeRegression> regression;
  std::vector<torch::Tensor> states, behind;  // of the first texts
  const auto begin_regression = [&] {
    regression.emplace(
        run.report.layer, planned.draft_steps, torch::cat(states),
        planned.token_input ? std::optional(one_over_rms(torch::cat(behind))) : std::nullopt);
    for (std::size_t i = 0; i < states.size(); ++i) regression->add(states[i], behind[i]);
  };
  for (const Text* const text : texts) {
    if (run.stopped()) throw Cancelled();
    torch::Tensor hidden = run_hidden(engine, *text, layers).front();
    torch::Tensor embeddings = embedding.rows(tokens_behind(text->tokens, hidden.size(0)));
    if (regression) {
      regression->add(hidden, embeddings);
    } else {
      states.push_back(std::move(hidden));
      behind.push_back(std::move(embeddings));
      if (std::ssize(states) == kSampledTexts) begin_regression();
    }
    const long long anchors = regression ? regression->anchors() : 0;
    phase.update(planned.draft_steps * std::min(anchors, kRidgeAnchors) / kRidgeAnchors,
                 planned.draft_steps);
    if (anchors >= kRidgeAnchors) break;
  }
  if (!regression) begin_regression();
  return regression->solve();
}

/// The rows that the engine's maps make.
struct MeasuredRows {
  std::vector<RowStates> train;
  std::vector<float> top1, top5;  ///< on held-out texts
};

MeasuredRows read_rows(Engine& engine, std::span<const Text* const> fitted,
                       std::span<const Text* const> held_out, TrainingRun& run) {
  const TrainOptions& planned = run.planned();
  const int steps = planned.draft_steps;
  Phase phase = run.begin(TrainPhase::kCapture);
  StateReader reader(engine, steps);
  std::vector<long long> top1(steps), top5(steps);
  long long measured = 0;
  for (const Text* const text : held_out) {
    if (run.stopped()) throw Cancelled();
    const RowStates states = reader.read(*text);
    for (int step = 0; step < steps; ++step) {
      top1[step] += states.top1[step];
      top5[step] += states.top5[step];
    }
    measured += states.anchors;
  }
  MeasuredRows rows = {.train = {}, .top1 = shares(top1, measured), .top5 = shares(top5, measured)};
  const std::size_t bytes_an_anchor =
      sizeof(float) * steps * engine.config().hidden_size +
      (sizeof(float) + sizeof(std::int64_t)) * steps * kTeacherTokens;
  const auto most = static_cast<long long>(kStateBytes / bytes_an_anchor);
  long long done = 0, total = 0, anchors = 0;
  for (const Text* const text : fitted) total += std::ssize(text->tokens);
  for (const Text* const text : fitted) {
    if (run.stopped()) throw Cancelled();
    RowStates states = reader.read(*text);
    if (states.anchors == 0) continue;
    anchors += states.anchors;
    rows.train.push_back(std::move(states));
    done += std::ssize(text->tokens);
    phase.update(done, total);
    if (planned.sequence_rank == 0 || anchors >= most) break;
  }
  if (rows.train.empty()) throw Error("there is too little training text");
  run.report.rows = anchors * steps;
  return rows;
}

}  // namespace

TrainReport train_by_regression(const GgufFile& model, Engine& engine, TrainingRun run) try {
  const TrainOptions& planned = run.planned();
  if (planned.method == HeadsMethod::kMedusa) {
    throw Error("Medusa's heads are trained for the native engine's architectures only");
  }
  run.report.layer = planned.layer > 0 ? planned.layer : usual_layer(engine);
  std::vector<const Text*> fitted, held_out;
  for (const Text& text : run.checkpoint.texts) {
    (text.held_out ? held_out : fitted).push_back(&text);
  }
  const Tensor& token_embedding = model.get_tensor("token_embd.weight");
  const Tensor* const own_head = model.find_tensor("output.weight");
  const Tensor& head = own_head != nullptr ? *own_head : token_embedding;
  const TokenMatrix embedding(token_embedding);

  Maps maps = fit_maps(engine, embedding, fitted, run);
  Heads heads = to_heads(maps, run.checkpoint.base);
  engine.set_heads(heads);
  const MeasuredRows rows = read_rows(engine, fitted, held_out, run);
  const LossHead loss_head(head, rows.train);
  if (planned.sequence_rank > 0) {
    maps.sequence = train_sequence(rows.train, loss_head, embedding, run);
    heads = to_heads(maps, run.checkpoint.base);
  }
  if (head.rows() > static_cast<std::int64_t>(kDraftVocabulary)) {
    const std::int64_t* const ranked = loss_head.ranked.data_ptr<std::int64_t>();
    heads.draft_vocabulary.assign(ranked, ranked + kDraftVocabulary);
  }
  engine.set_heads(heads);
  Evaluation evaluation = {.top1 = rows.top1, .top5 = rows.top5};
  TokensPerForward& decoded = planned.sequence_rank > 0 ? evaluation.sequence : evaluation.maps;
  decoded = decode_texts(
      engine, std::span(held_out).first(std::min<std::size_t>(held_out.size(), kMeasuredTexts)),
      run);
  run.report.stopped = run.stopped();
  return run.end_with(std::move(heads), evaluation);
} catch (const Cancelled&) {
  return run.end_without_heads();
}

}  // namespace firp
