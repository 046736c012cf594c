#include "bench/forward_bench.h"

#include <fmt/format.h>

#include <algorithm>

#include "bench/kernel_bench.h"
#include "bench/llama_peer.h"
#include "engine/token_chain.h"
#include "engine/weights.h"

namespace firp {
namespace {

/// Any tokens will do: the time does not depend on them.
Token token_at(int position, int vocabulary) {
  return static_cast<Token>((position * 7919LL + 17) % vocabulary);
}

/// Runs `tokens` tokens as prompts are run.
void run_prompt(Engine& engine, int sequence, int tokens) {
  std::vector<Token> prompt;
  for (int i = 0; i < tokens; ++i) prompt.push_back(token_at(i, engine.config().vocabulary_size));
  const std::optional<Pass> pass = append_tokens(engine, sequence, prompt);
  const int last = pass->rows() - 1;
  pass->logits(std::span(&last, 1));
}

/// One batch, ready to be run again and again.
struct Batch {
  std::vector<Row> rows;
  std::vector<int> indices;  ///< of all rows: whose logits, or proposals, are asked for
};

Batch make_batch(const Engine& engine, int sequence, int token_rows, int pseudo_rows,
                 const DraftChain& drafts) {
  Batch batch;
  if (token_rows == 0) {
    batch.rows.assign(drafts.rows.begin(), drafts.rows.begin() + pseudo_rows);
    batch.indices = first_rows(batch.rows.size());
    return batch;
  }
  for (int i = 0; i < token_rows; ++i) {
    batch.rows.push_back({.sequence = sequence,
                          .parent = i == 0 ? kContext : (i - 1) / 2,
                          .token = token_at(i, engine.config().vocabulary_size)});
  }
  for (int step = 1; step <= pseudo_rows; ++step) {
    batch.rows.push_back({.sequence = sequence,
                          .parent = step == 1 ? 0 : token_rows + step - 2,
                          .step = step,
                          .token_behind = 0});
  }
  batch.indices = first_rows(batch.rows.size());
  return batch;
}

void run(Engine& engine, const Batch& batch) {
  const Pass pass = engine.forward(batch.rows);
  if (batch.rows.front().is_pseudo()) {  // a drafting pass
    pass.propose({&batch.indices, 1});
  } else {
    pass.logits(batch.indices);
  }
}

std::vector<int> rows_of_layers(const Engine& engine, int token_rows, int pseudo_rows) {
  std::vector<int> rows(engine.config().layers, token_rows);
  for (int step = 1; step <= pseudo_rows; ++step) {
    for (int layer = engine.draft_layer(step); layer < engine.config().layers; ++layer) {
      rows[layer] += 1;
    }
  }
  return rows;
}

/// The mean seconds of each phase of a pass. Apart from the timed samples: looking at the clock
/// between phases takes time.
std::vector<PhaseTime> profile_pass(Engine& engine, const Batch& batch) {
  constexpr int kRuns = 7;
  run(engine, batch);  // wakes the threads
  engine.profile(true);
  for (int i = 0; i < kRuns; ++i) run(engine, batch);
  engine.profile(false);
  std::vector<PhaseTime> times = engine.phase_times();
  for (PhaseTime& phase : times) phase.seconds /= kRuns;
  return times;
}

/// `read`: of the matrix's outputs, where experts are chosen.
double least_seconds(const Tensor& matrix, int rows, const MachinePeaks& peaks, double read = 1) {
  if (rows == 0) return 0;
  const MatrixShape shape = {.outputs = static_cast<int>(static_cast<double>(matrix.rows()) * read),
                             .inputs = static_cast<int>(matrix.columns())};
  return product_limit(matrix.type, shape, rows, peaks).seconds();
}

double prefill_limit_seconds(const Engine& engine, const Model& model, int tokens,
                             const MachinePeaks& peaks) {
  double seconds = 0;
  for (int done = 0; done < tokens;) {
    const int count = std::min(tokens - done, engine.options().max_rows);
    const std::vector<int> rows(engine.config().layers, count);
    seconds += pass_limit_seconds(model, rows, done + count == tokens ? 1 : 0, done,
                                  engine.options().cache_type, peaks);
    done += count;
  }
  return seconds;
}

}  // namespace

double pass_limit_seconds(const Model& model, const std::vector<int>& rows_of_layer, int head_rows,
                          int context, CacheType cache_type, const MachinePeaks& peaks) {
  const ModelConfig& config = model.config();
  const PagePart part = {.type = cache_type, .head_size = config.head_size};
  const double position_bytes = 1.0 * config.kv_heads * part.bytes() / kPagePositions;
  double seconds = least_seconds(model.head(), head_rows, peaks);
  for (int layer = 0; layer < config.layers; ++layer) {
    const int rows = rows_of_layer[layer];
    if (rows == 0) continue;
    for (const Tensor* const* const matrix : model.layers()[layer].matrices()) {
      if (*matrix == nullptr) continue;
      seconds +=
          least_seconds(**matrix, rows, peaks, share_read(config, model.layers()[layer], matrix));
    }
    const int window = config.by_layer[layer].window;
    const int seen = window > 0 ? std::min(context, window) : context;
    seconds += seen * position_bytes / peaks.bytes_per_second;
  }
  return seconds;
}

ForwardResult bench_forward(Engine& engine, const Model* model, const ForwardBenchOptions& options,
                            ThreadPool& pool, const MachinePeaks& peaks, LlamaPeer* peer) {
  const int vocabulary = engine.config().vocabulary_size;
  const int sequence = engine.add_sequence();
  run_prompt(engine, sequence, options.context - 1);
  // The last token of the context, with the states that deferred drafting starts from.
  const Row last = {.sequence = sequence, .token = token_at(options.context - 1, vocabulary)};
  const Pass of_last = engine.forward({&last, 1}, engine.draft_layers());
  const DraftChain drafts = of_last.draft_chain(0, engine.draft_steps(), /*token_behind=*/0);
  constexpr int kFirst[] = {0};
  of_last.commit(sequence, kFirst);

  ForwardResult result;
  result.weight_bytes = engine.weight_bytes();
  std::vector<Batch> batches;
  const auto add_pass = [&](int token_rows, int pseudo_rows) {
    result.passes.push_back({.token_rows = token_rows, .pseudo_rows = pseudo_rows});
    batches.push_back(make_batch(engine, sequence, token_rows, pseudo_rows, drafts));
  };
  for (const int rows : options.rows) add_pass(rows, 0);
  if (engine.draft_steps() > 0) {
    add_pass(0, engine.draft_steps());
    for (const int rows : options.rows) add_pass(rows, engine.draft_steps());
  }

  MachinePeaks peaks_now = peaks;
  peaks_now.bytes_per_second = 0;
  MemoryReader reader(pool);
  const auto read_memory = [&] {
    peaks_now.bytes_per_second = std::max(peaks_now.bytes_per_second, reader.bytes_per_second());
  };

  const std::size_t count = batches.size();
  Samples samples(count + (peer != nullptr ? 1 : 0));
  for (const Batch& batch : batches) run(engine, batch);  // warms up
  if (peer != nullptr) {
    std::vector<Token> prompt(options.context);
    for (int i = 0; i < options.context; ++i) prompt[i] = token_at(i, vocabulary);
    peer->start(prompt);
    peer->pass(token_at(0, vocabulary));
  }
  while (!samples.enough()) {
    read_memory();
    run(engine, batches.front());  // wakes the threads that slept meanwhile
    for (std::size_t i = 0; i < count; ++i) {
      samples.measure(i, [&] { run(engine, batches[i]); });
    }
    if (peer != nullptr) {
      samples.measure(count, [&] { peer->pass(token_at(0, vocabulary)); });
    }
  }
  for (std::size_t i = 0; i < count; ++i) {
    PassResult& pass = result.passes[i];
    pass.ours = samples.timing(i);
    if (peer != nullptr && pass.token_rows == 1 && pass.pseudo_rows == 0) {
      pass.peer = samples.timing(count);
    }
  }

  for (std::size_t i = 0; i < options.rows.size(); ++i) {
    const std::vector<PhaseTime> times = profile_pass(engine, batches[i]);
    result.phases.resize(times.size());
    for (std::size_t phase = 0; phase < times.size(); ++phase) {
      result.phases[phase].name = times[phase].name;
      result.phases[phase].weight_bytes = times[phase].weight_bytes;
      result.phases[phase].seconds.push_back(times[phase].seconds);
    }
  }
  if (engine.draft_steps() > 0) {
    const std::vector<PhaseTime> times = profile_pass(engine, batches[options.rows.size()]);
    for (std::size_t phase = 0; phase < times.size(); ++phase) {
      result.phases[phase].drafting_seconds = times[phase].seconds;
    }
  }

  Samples prefills(1 + (peer != nullptr ? 1 : 0));
  std::vector<Token> prompt(options.prefill_tokens);
  for (int i = 0; i < options.prefill_tokens; ++i) prompt[i] = token_at(i, vocabulary);
  while (!prefills.enough()) {
    read_memory();
    const int fresh = engine.add_sequence();
    prefills.measure(0, [&] { run_prompt(engine, fresh, options.prefill_tokens); });
    engine.remove_sequence(fresh);
    if (peer != nullptr) prefills.measure(1, [&] { peer->start(prompt); });
  }
  engine.remove_sequence(sequence);

  result.read_bytes_per_second = peaks_now.bytes_per_second;
  for (PassResult& pass : result.passes) {
    // A drafting pass reads weights of its own.
    if (model == nullptr || pass.token_rows == 0) continue;
    pass.limit_seconds =
        pass_limit_seconds(*model, rows_of_layers(engine, pass.token_rows, pass.pseudo_rows),
                           pass.token_rows + pass.pseudo_rows, options.context,
                           engine.options().cache_type, peaks_now);
  }
  result.prefill = {.tokens = options.prefill_tokens,
                    .ours = prefills.timing(0),
                    .limit_seconds = model == nullptr
                                         ? 0
                                         : prefill_limit_seconds(
                                               engine, *model, options.prefill_tokens, peaks_now)};
  if (peer != nullptr) result.prefill.peer = prefills.timing(1);
  return result;
}

std::string forward_table(const ForwardResult& result, const MachinePeaks& peaks) {
  std::string table = fmt::format(
      "{} threads read {:.1f} GB/s; 8-bit multiply-adds {:.0f} G/s ({}); {:.1f} of them a byte\n"
      "{:.1f} MB of packed weights a pass: {:.2f} ms at that bandwidth\n"
      "{:>6} {:>6} {:>9} {:>9} {:>6} {:>9} {:>6} {:>9}\n",
      peaks.threads, result.read_bytes_per_second / 1e9, peaks.int8_per_second / 1e9,
      peaks.instruction, peaks.int8_per_second / result.read_bytes_per_second,
      static_cast<double>(result.weight_bytes) / 1e6,
      1e3 * static_cast<double>(result.weight_bytes) / result.read_bytes_per_second, "rows",
      "pseudo", "best ms", "median", "T/T(1)", "limit ms", "of it", "tokens/s");
  double one_row = 0;
  for (const PassResult& pass : result.passes) {
    if (pass.token_rows == 1 && pass.pseudo_rows == 0) one_row = pass.ours.best;
  }
  const PassResult* compared = nullptr;
  for (const PassResult& pass : result.passes) {
    const bool plain = pass.token_rows == 1 && pass.pseudo_rows == 0;
    if (pass.peer) compared = &pass;
    const std::string limit = pass.limit_seconds > 0
                                  ? fmt::format("{:>9.2f} {:>4.0f} %", 1e3 * pass.limit_seconds,
                                                100 * pass.limit_seconds / pass.ours.best)
                                  : fmt::format("{:>9} {:>6}", "-", "");
    table += fmt::format("{:>6} {:>6} {:>9.2f} {:>9.2f} {:>6} {} {:>9}\n", pass.token_rows,
                         pass.pseudo_rows, 1e3 * pass.ours.best, 1e3 * pass.ours.median,
                         one_row > 0 ? fmt::format("{:.2f}", pass.ours.best / one_row) : "-", limit,
                         plain ? fmt::format("{:.1f}", 1 / pass.ours.best) : "");
  }
  const auto line = [&](std::string_view what, double tokens, const Timing& ours,
                        const std::optional<Timing>& peer, double limit) {
    table += fmt::format("{}: {:.1f} tokens/s (median {:.1f})", what, tokens / ours.best,
                         tokens / ours.median);
    if (limit > 0) table += fmt::format(", limit {:.1f}", tokens / limit);
    if (peer) {
      table += fmt::format("; llama.cpp {:.1f} (median {:.1f}): {:.2f}x", tokens / peer->best,
                           tokens / peer->median, peer->best / ours.best);
    }
    table += '\n';
  };
  if (compared != nullptr) {
    line("plain decoding", 1, compared->ours, compared->peer, compared->limit_seconds);
  }
  const PrefillResult& prefill = result.prefill;
  line(fmt::format("prefill of {} tokens", prefill.tokens), prefill.tokens, prefill.ours,
       prefill.peer, prefill.limit_seconds);
  if (result.phases.empty()) return table;
  table += fmt::format("{:<20} {:>8} {:>9}  ms at rows", "phase", "MB", "limit ms");
  for (std::size_t i = 0; i < result.phases.front().seconds.size(); ++i) {
    table += fmt::format(" {:>8}", result.passes[i].token_rows);
  }
  if (result.phases.front().drafting_seconds) table += " drafting";
  table += '\n';
  for (const PhaseResult& phase : result.phases) {
    const auto bytes = static_cast<double>(phase.weight_bytes);
    table += fmt::format("{:<20} {:>8.1f} {:>9.3f}            ", phase.name, bytes / 1e6,
                         1e3 * bytes / result.read_bytes_per_second);
    for (const double seconds : phase.seconds) table += fmt::format(" {:>8.3f}", 1e3 * seconds);
    if (phase.drafting_seconds) table += fmt::format(" {:>8.3f}", 1e3 * *phase.drafting_seconds);
    table += '\n';
  }
  return table;
}

nlohmann::ordered_json forward_json(nlohmann::ordered_json machine, const ForwardResult& result,
                                    const ForwardBenchOptions& options) {
  const auto add_peer = [](nlohmann::ordered_json& entry, const std::optional<Timing>& peer) {
    entry["llama_cpp_best_seconds"] = nullptr;
    entry["llama_cpp_median_seconds"] = nullptr;
    if (peer) {
      entry["llama_cpp_best_seconds"] = peer->best;
      entry["llama_cpp_median_seconds"] = peer->median;
    }
  };
  const auto known = [](double limit_seconds) {
    return limit_seconds > 0 ? nlohmann::ordered_json(limit_seconds) : nlohmann::ordered_json();
  };
  nlohmann::ordered_json passes = nlohmann::ordered_json::array();
  for (const PassResult& pass : result.passes) {
    nlohmann::ordered_json entry = {{"token_rows", pass.token_rows},
                                    {"pseudo_rows", pass.pseudo_rows},
                                    {"best_seconds", pass.ours.best},
                                    {"median_seconds", pass.ours.median},
                                    {"limit_seconds", known(pass.limit_seconds)}};
    add_peer(entry, pass.peer);
    passes.push_back(std::move(entry));
  }
  nlohmann::ordered_json phases = nlohmann::ordered_json::array();
  for (const PhaseResult& phase : result.phases) {
    nlohmann::ordered_json drafting;
    if (phase.drafting_seconds) drafting = *phase.drafting_seconds;
    phases.push_back({{"phase", phase.name},
                      {"weight_bytes", phase.weight_bytes},
                      {"rows", options.rows},
                      {"mean_seconds", phase.seconds},
                      {"drafting_mean_seconds", drafting}});
  }
  nlohmann::ordered_json prefill = {{"tokens", result.prefill.tokens},
                                    {"best_seconds", result.prefill.ours.best},
                                    {"median_seconds", result.prefill.ours.median},
                                    {"limit_seconds", known(result.prefill.limit_seconds)}};
  add_peer(prefill, result.prefill.peer);
  return {{"mode", "forward"},
          {"machine", std::move(machine)},
          {"settings", {{"context", options.context}}},
          {"weight_bytes", result.weight_bytes},
          {"read_bytes_per_second", result.read_bytes_per_second},
          {"passes", std::move(passes)},
          {"prefill", std::move(prefill)},
          {"phases", std::move(phases)}};
}

}  // namespace firp
