#include "study/experiments.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "bench/forward_bench.h"
#include "bench/report.h"
#include "decode/batch_decoder.h"
#include "study/measure.h"
#include "train/training_log.h"

namespace firp {
namespace {

constexpr double kFlat = 1.5;  // times a pass of one row: "hardly more"

/// "FIRP 64.0 % at step 1 and 20.0 % at step 4"
std::string first_and_last(const std::string& name, const Agreement& agreement) {
  return fmt::format("{} {:.1f} % at step 1 and {:.1f} % at step {}", name,
                     100 * agreement.front().top(1), 100 * agreement.back().top(1),
                     agreement.size());
}

std::vector<std::pair<std::string, double>> ticks_of(int first, int last) {
  std::vector<std::pair<std::string, double>> ticks;
  for (int i = first; i <= last; ++i) ticks.emplace_back(std::to_string(i), i);
  return ticks;
}

/// "NAME,step,rows,top1 .. top5"
constexpr const char* kAgreementFields = "step,rows,top1,top2,top3,top4,top5\n";
std::string agreement_lines(const std::string& name, const Agreement& agreement) {
  std::string lines;
  for (std::size_t step = 0; step < agreement.size(); ++step) {
    lines += fmt::format("{},{},{}", name, step + 1, agreement[step].rows);
    for (int k = 1; k <= kTopCandidates; ++k) {
      lines += fmt::format(",{:.4f}", agreement[step].top(k));
    }
    lines += "\n";
  }
  return lines;
}

Line line_of(const std::string& name, const Agreement& agreement, int k) {
  Line line = {.name = name};
  for (std::size_t step = 0; step < agreement.size(); ++step) {
    line.x.push_back(static_cast<double>(step + 1));
    line.y.push_back(100 * agreement[step].top(k));
  }
  return line;
}

/// Of a way to decode, by its name in the CSV.
std::string described(const std::string& name) {
  if (name == "plain") return "no drafts";
  return name == "chain" ? "a chain" : "a tree of " + name;
}

/// "4000 positions of ...": those of step 1.
std::string positions(const Agreement& agreement) {
  return fmt::format("{} positions of the model's own greedy text", agreement.front().rows);
}

}  // namespace

std::vector<NamedHeads> name_heads(std::span<const std::filesystem::path> paths,
                                   const GgufFile& model) {
  std::vector<NamedHeads> all;
  for (const std::filesystem::path& path : paths) {
    Heads heads = read_heads(path, &model);
    const bool paper =
        !heads.has_token_input() && !heads.has_sequential_head() && heads.adapters.empty();
    all.push_back({heads.method == HeadsMethod::kMedusa ? "Medusa"
                   : paper                              ? "the paper's maps"
                                                        : "FIRP",
                   std::move(heads)});
  }
  std::vector<std::string> names;
  for (const NamedHeads& heads : all) names.push_back(heads.name);
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (std::ranges::count(names, names[i]) == 1) continue;
    all[i].name += fmt::format(" ({})", paths[i].stem().stem().string());
  }
  return all;
}

Finding study_rows(Engine& engine, const Model* model, const std::vector<int>& rows) {
  ThreadPool pool(engine.options().threads);
  MachinePeaks peaks = measure_peaks(pool, engine.isa());
  const ForwardBenchOptions options = {.rows = rows};
  const ForwardResult result = bench_forward(engine, model, options, pool, peaks, nullptr);
  peaks.bytes_per_second = result.read_bytes_per_second;
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  MachinePeaks memory = peaks, arithmetic = peaks;
  memory.int8_per_second = memory.f32_per_second = memory.bf16_per_second = kInfinite;
  arithmetic.bytes_per_second = kInfinite;

  Finding finding = {
      .csv = "rows,best_ms,median_ms,memory_limit_ms,arithmetic_limit_ms\n",
      .figure = {.title = fmt::format("Time of a forward pass by its rows ({}, threads: {})",
                                      engine.config().name, engine.options().threads),
                 .x_label = "rows (tokens) in the pass",
                 .log_x = true}};
  Line seconds = {.name = "measured"};
  Line of_memory = {.name = "memory limit", .dashed = true};
  Line of_arithmetic = {.name = "arithmetic limit", .dashed = true};
  int flat_rows = 1;
  for (const PassResult& pass : result.passes) {
    const std::vector<int> in_layers(engine.config().layers, pass.token_rows);
    const auto limit_ms = [&](const MachinePeaks& of) {
      return 1e3 * pass_limit_seconds(*model, in_layers, pass.token_rows, options.context,
                                      engine.options().cache_type, of);
    };
    const double ms = 1e3 * pass.ours.best;
    const auto add = [&](Line& line, double y) {
      line.x.push_back(pass.token_rows);
      line.y.push_back(y);
    };
    add(seconds, ms);
    std::string limits = ",";
    if (model != nullptr) {
      add(of_memory, limit_ms(memory));
      add(of_arithmetic, limit_ms(arithmetic));
      limits = fmt::format("{:.4f},{:.4f}", of_memory.y.back(), of_arithmetic.y.back());
    }
    finding.csv +=
        fmt::format("{},{:.4f},{:.4f},{}\n", pass.token_rows, ms, 1e3 * pass.ours.median, limits);
    if (ms < kFlat * 1e3 * result.passes.front().ours.best) flat_rows = pass.token_rows;
    finding.figure.x_ticks.emplace_back(std::to_string(pass.token_rows), pass.token_rows);
  }
  finding.caption = fmt::format(
      "A forward pass of {} row takes {:.2f} ms, one of {} rows less than {} times as long, and "
      "one of {} rows {:.2f} ms ({}, {} threads, {})",
      rows.front(), seconds.y.front(), flat_rows, kFlat, rows.back(), seconds.y.back(),
      engine.config().name, engine.options().threads, engine.isa());
  finding.figure.panels = {{.y_label = "time of a pass (ms)", .lines = {seconds}, .log_y = true}};
  if (model != nullptr) {
    finding.caption +=
        fmt::format("; reading the weights takes {:.2f} ms at the measured {:.1f} GB/s",
                    of_memory.y.front(), peaks.bytes_per_second / 1e9);
    finding.figure.panels.front().lines.insert(finding.figure.panels.front().lines.end(),
                                               {of_memory, of_arithmetic});
  }
  finding.caption += ".\n";
  return finding;
}

Finding study_agreement(Engine& engine, std::span<const NamedHeads> all,
                        std::span<const Heads> linear, bool early_exit,
                        std::span<const Text> texts) {
  Finding finding = {.csv = std::string("method,") + kAgreementFields,
                     .figure = {.title = "How often a draft is the model's own token",
                                .x_label = "step: tokens ahead",
                                .panels = {{.y_label = "the first candidate (%)"},
                                           {.y_label = "among the first five (%)"}}}};
  std::vector<std::string> parts;
  const auto add = [&](const std::string& name, const Agreement& agreement) {
    finding.csv += agreement_lines(name, agreement);
    finding.figure.panels[0].lines.push_back(line_of(name, agreement, 1));
    finding.figure.panels[1].lines.push_back(line_of(name, agreement, kTopCandidates));
    parts.push_back(first_and_last(name, agreement));
  };
  std::string measured_on;
  int steps = 0, layer = engine.config().layers;
  for (const NamedHeads& each : all) {
    engine.set_heads(each.heads);
    const Agreement agreement = draft_agreement(engine, texts);
    measured_on = positions(agreement);
    layer = std::min(layer, engine.draft_layer(1));
    steps = std::max(steps, engine.draft_steps());
    add(each.name, agreement);
    if (each.heads.has_sequential_head()) {
      add(each.name + " rows alone", row_agreement(engine, texts));
    }
  }
  for (const Heads& maps : linear) {
    engine.set_heads(maps);
    add("linear maps", row_agreement(engine, texts));
  }
  std::string where;
  if (early_exit && layer < engine.config().layers) {
    add("early exit", early_exit_agreement(engine, texts, layer, steps));
    where = fmt::format(" (early exit after layer {})", layer);
  }
  finding.figure.x_ticks = ticks_of(1, steps);
  finding.caption =
      fmt::format("The first candidate is the model's own token: {}{}. Measured on {}.\n",
                  fmt::join(parts, "; "), where, measured_on);
  return finding;
}

Finding study_layer(Engine& engine, std::span<const Heads> maps, std::span<const Text> texts) {
  Finding finding = {.csv = std::string("layer,") + kAgreementFields,
                     .figure = {.title = "Where the pseudo state enters (ridge regression alone)",
                                .x_label = fmt::format("layer after which it enters (of {})",
                                                       engine.config().layers),
                                .panels = {{.y_label = "the first candidate is right (%)"}}}};
  std::vector<Line>& lines = finding.figure.panels[0].lines;
  std::vector<int> best(maps.front().count(), 0);
  std::string measured_on;
  for (const Heads& each : maps) {
    engine.set_heads(each);
    const int layer = engine.draft_layer(1);
    const Agreement agreement = row_agreement(engine, texts);
    finding.csv += agreement_lines(std::to_string(layer), agreement);
    measured_on = positions(agreement);
    lines.resize(agreement.size());
    for (std::size_t step = 0; step < agreement.size(); ++step) {
      lines[step].name = fmt::format("step {}", step + 1);
      lines[step].x.push_back(layer);
      lines[step].y.push_back(100 * agreement[step].top(1));
      const auto at = static_cast<int>(lines[step].y.size()) - 1;
      if (lines[step].y[at] > lines[step].y[best[step]]) best[step] = at;
    }
  }
  std::vector<std::string> parts;
  for (std::size_t step = 0; step < lines.size(); ++step) {
    parts.push_back(fmt::format("step {} {:.1f} % at layer {}", step + 1, lines[step].y[best[step]],
                                lines[step].x[best[step]]));
  }
  finding.caption = fmt::format(
      "Agreement of linear maps from ridge regression is best for {} (of {} layers). Measured on "
      "{}.\n",
      fmt::join(parts, ", "), engine.config().layers, measured_on);
  return finding;
}

Finding study_similarity(Engine& engine, const NamedHeads& heads, std::span<const Text> texts) {
  if (heads.heads.method == HeadsMethod::kMedusa) {
    throw Error("Medusa's heads have no pseudo states to compare; give others first (--heads)");
  }
  engine.set_heads(heads.heads);
  const Similarity similarity = state_similarity(engine, texts);
  Finding finding = {
      .csv = "step,layer,cosine_centred,cosine\n",
      .figure = {.title = fmt::format("Pseudo states beside the real ones ({})", heads.name),
                 .x_label = fmt::format("layers done (of {})", engine.config().layers),
                 .panels = {{.y_label = "cosine similarity, mean taken off"}}}};
  std::vector<std::string> parts;
  for (int step = 1; step <= engine.draft_steps(); ++step) {
    Line line = {.name = fmt::format("step {}", step)};
    for (int layer = engine.draft_layer(step); layer <= engine.config().layers; ++layer) {
      const int at = layer - similarity.first_layer;
      const double centred = similarity.centred[step - 1][at];
      finding.csv += fmt::format("{},{},{:.4f},{:.4f}\n", step, layer, centred,
                                 similarity.plain[step - 1][at]);
      line.x.push_back(layer);
      line.y.push_back(centred);
    }
    parts.push_back(
        fmt::format("from {:.2f} to {:.2f} for step {}", line.y.front(), line.y.back(), step));
    finding.figure.panels[0].lines.push_back(std::move(line));
  }
  finding.caption = fmt::format(
      "The cosine of pseudo and real states, after the layer's mean was taken off, goes from where "
      "the rows enter to the last layer {}.\n",
      fmt::join(parts, ", "));
  return finding;
}

Finding study_mask(Engine& engine, const NamedHeads& heads, std::span<const Text> texts) {
  engine.set_heads(heads.heads);
  const Agreement seen = row_agreement(engine, texts, EarlierSteps::kSeen);
  const Agreement unseen = row_agreement(engine, texts, EarlierSteps::kUnseen);
  const std::string with = "sees the earlier steps", without = "does not see them";
  Finding finding = {
      .csv = std::string("mask,") + kAgreementFields + agreement_lines("seen", seen) +
             agreement_lines("unseen", unseen),
      .figure = {.title = fmt::format("Attention among pseudo rows ({})", heads.name),
                 .x_label = "step: tokens ahead",
                 .panels = {{.y_label = "the first candidate is right (%)",
                             .lines = {line_of(with, seen, 1), line_of(without, unseen, 1)}}},
                 .x_ticks = ticks_of(1, engine.draft_steps())}};
  std::vector<std::string> parts;
  for (std::size_t step = 1; step < seen.size(); ++step) {
    parts.push_back(fmt::format("{:.1f} for {:.1f} % at step {}", 100 * unseen[step].top(1),
                                100 * seen[step].top(1), step + 1));
  }
  finding.caption = fmt::format(
      "Rows that do not see the earlier steps' rows agree less: {} (rows alone, heads trained with "
      "that attention). Measured on {}.\n",
      fmt::join(parts, ", "), positions(seen));
  return finding;
}

Finding study_tree(Engine& engine, const NamedHeads& heads, std::span<const Text> texts,
                   const std::vector<int>& sizes) {
  engine.set_heads(heads.heads);
  std::vector<DecodeOptions> methods = {{.method = DraftMethod::kNone}};
  for (const int size : sizes) {
    methods.push_back({.tree_nodes = std::max(size, 1), .chain = size == 0});
  }
  std::vector<DecodeStats> sums(methods.size());
  BatchDecoder decoder(engine);
  for (std::size_t text = 0; text < texts.size(); ++text) {
    const auto begin = texts[text].tokens.begin();
    const std::vector<Token> prompt(begin, begin + texts[text].answer_begin);
    // All methods see the same machine: prompt by prompt, in another order each time.
    for (std::size_t i = 0; i < methods.size(); ++i) {
      const std::size_t method = (i + text) % methods.size();
      Session session(decoder, methods[method]);
      session.append(prompt);
      sums[method] += generate(
          session, texts[text].answer_tokens(), [](Token) { return false; },
          [](const DecodedToken&) { return true; });
    }
  }
  Finding finding = {
      .csv = "tree,tokens_per_forward,tokens_per_second,speed_over_plain\n",
      .figure = {.title = fmt::format("What a larger draft tree gives ({})", heads.name),
                 .x_label = "drafted tokens in the tree",
                 .panels = {{.y_label = "tokens per forward pass"},
                            {.y_label = "speed (plain decoding: 1)"}},
                 .log_x = true}};
  const std::string tree = "tree";
  std::vector<Line> tokens = {{.name = tree}}, speed = {{.name = tree}};
  std::size_t fastest = 0;
  const auto name_of = [&](std::size_t i) {
    return i == 0 ? "plain" : sizes[i - 1] == 0 ? "chain" : std::to_string(sizes[i - 1]);
  };
  const auto over_plain = [&](std::size_t i) {
    return sums[i].tokens_per_second() / sums[0].tokens_per_second();
  };
  for (std::size_t i = 0; i < methods.size(); ++i) {
    finding.csv +=
        fmt::format("{},{:.4f},{:.2f},{:.4f}\n", name_of(i), sums[i].tokens_per_forward(),
                    sums[i].tokens_per_second(), over_plain(i));
    if (over_plain(i) > over_plain(fastest)) fastest = i;
    if (i > 0 && sizes[i - 1] > 0) {
      finding.figure.x_ticks.emplace_back(name_of(i), sizes[i - 1]);
      tokens.front().x.push_back(sizes[i - 1]);
      tokens.front().y.push_back(sums[i].tokens_per_forward());
      speed.front().y.push_back(over_plain(i));
      continue;
    }
    // References, drawn across.
    const std::vector<double> ends = {1.0, static_cast<double>(std::ranges::max(sizes))};
    const auto across = [&](double y) {
      return Line{.name = name_of(i), .x = ends, .y = {y, y}, .dashed = true};
    };
    tokens.push_back(across(sums[i].tokens_per_forward()));
    speed.push_back(across(over_plain(i)));
  }
  speed.front().x = tokens.front().x;
  finding.caption = fmt::format(
      "Tokens per forward pass: {:.2f} with {} ({}); decoding is fastest with {}, {:.2f} times "
      "plain decoding's {:.0f} tokens a second ({} prompts, {} tokens, {} threads).\n",
      sums.back().tokens_per_forward(), described(name_of(methods.size() - 1)), heads.name,
      described(name_of(fastest)), over_plain(fastest), sums[0].tokens_per_second(), texts.size(),
      sums[0].tokens, engine.options().threads);
  finding.figure.panels[0].lines = tokens;
  finding.figure.panels[1].lines = speed;
  return finding;
}

Finding study_curve(std::span<const std::filesystem::path> logs) {
  Finding finding = {
      .csv = "log,seconds,updates,rows,loss,chain,tree8,tree16,tree32\n",
      .figure = {.title = "Tokens per forward pass, held out, while heads are trained",
                 .x_label = "minutes of training, with texts and hidden states at hand",
                 .panels = {{.y_label = "tokens per forward pass, chain"},
                            {.y_label = "tokens per forward pass, tree of 32"}}}};
  std::vector<std::string> parts;
  for (const std::filesystem::path& path : logs) {
    const std::string name = path.stem().string();
    Line chain = {.name = name}, tree = {.name = name};
    const std::vector<TrainingLogLine> lines = read_training_log(path);
    for (const TrainingLogLine& line : lines) {
      const TokensPerForward& rates = line.tokens_per_forward;
      finding.csv += fmt::format("{},{:.1f},{},{},{:.5f},{:.4f},{:.4f},{:.4f},{:.4f}\n", name,
                                 line.seconds, line.updates, line.rows, line.loss, rates.chain,
                                 rates.tree8, rates.tree16, rates.tree32);
      // One may have written the texts that the others found: only what follows compares.
      const double minutes = (line.seconds - lines.front().seconds) / 60;
      chain.x.push_back(minutes);
      tree.x.push_back(minutes);
      chain.y.push_back(rates.chain);
      tree.y.push_back(rates.tree32);
    }
    parts.push_back(fmt::format(
        "{} goes from {:.2f} to {:.2f} with a chain, and from {:.2f} to "
        "{:.2f} with a tree of 32, in {:.1f} minutes",
        name, chain.y.front(), chain.y.back(), tree.y.front(), tree.y.back(), tree.x.back()));
    finding.figure.panels[0].lines.push_back(std::move(chain));
    finding.figure.panels[1].lines.push_back(std::move(tree));
  }
  finding.caption = fmt::format("Held-out tokens per forward pass: {}.\n", fmt::join(parts, "; "));
  return finding;
}

void write_finding(const std::filesystem::path& folder, const std::string& name,
                   const Finding& finding) {
  const std::filesystem::path stem = folder / name;
  write_text(finding.csv, stem.string() + ".csv");
  write_text(finding.caption, stem.string() + ".txt");
  draw(finding.figure, stem);
}

}  // namespace firp
