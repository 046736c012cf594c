#include "bench/sessions_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "base/clock.h"
#include "bench/timing.h"
#include "engine/token_chain.h"

namespace firp {
namespace {

struct Run {
  double seconds = 0;
  long long tokens = 0;
  double tokens_per_forward = 0;
  std::vector<std::vector<Token>> texts;  ///< of each session, as far as all have them
};

/// Until each session has decoded `tokens`.
Run run_sessions(BatchDecoder& decoder, const DecodeOptions& options,
                 const std::vector<std::vector<Token>>& prompts, int sessions, int tokens) {
  std::vector<std::unique_ptr<Session>> owned;
  std::vector<Session*> all, reading;
  for (int i = 0; i < sessions; ++i) {
    owned.push_back(std::make_unique<Session>(decoder, options));
    all.push_back(owned.back().get());
    all.back()->append(prompts[i % prompts.size()]);
  }
  do {  // all prompts, so that none decodes earlier
    reading.clear();
    for (Session* const each : all) {
      if (each->is_reading()) reading.push_back(each);
    }
    if (!reading.empty()) decoder.step(reading);
  } while (!reading.empty());

  Run run;
  const auto decoded = [](const Session* session) { return session->stats().tokens; };
  const Stopwatch watch;
  while (std::ranges::min(all, {}, decoded)->stats().tokens < tokens) decoder.step(all);
  run.seconds = watch.seconds();
  DecodeStats stats;
  for (const Session* const each : all) {
    stats += each->stats();
    const auto end = each->tokens().end();
    const auto begin = end - each->stats().tokens;
    run.texts.emplace_back(begin, begin + tokens);
  }
  run.tokens = stats.tokens;
  run.tokens_per_forward = stats.tokens_per_forward();
  return run;
}

/// A pass of one row of each of so many sequences, with its head, when half of the `tokens` are
/// there.
double pass_seconds(Engine& engine, const std::vector<std::vector<Token>>& prompts, int sessions,
                    int tokens) {
  std::vector<int> sequences;
  std::vector<Row> rows;
  for (int i = 0; i < sessions; ++i) {
    sequences.push_back(engine.add_sequence());
    append_tokens(engine, sequences.back(), prompts[i % prompts.size()]);
    append_tokens(engine, sequences.back(), std::vector<Token>(tokens / 2, prompts[0].front()));
    rows.push_back({.sequence = sequences.back(), .token = prompts[0].front()});
  }
  const std::vector<int> all = first_rows(rows.size());
  std::vector<double> seconds;
  constexpr int kPasses = 40;
  for (int pass = 0; pass < kPasses; ++pass) {
    const Stopwatch watch;
    engine.forward(rows).best_tokens(all, 1);
    seconds.push_back(watch.seconds());
  }
  for (const int sequence : sequences) engine.remove_sequence(sequence);
  return timing_of(std::move(seconds)).median;
}

double median(std::vector<double> values) { return timing_of(std::move(values)).median; }

}  // namespace

std::vector<SessionsResult> bench_sessions(BatchDecoder& plain, BatchDecoder& drafted,
                                           const DecodeOptions& options,
                                           const std::vector<std::vector<Token>>& prompts,
                                           const SessionsBenchOptions& bench,
                                           const std::function<bool(int done, int total)>& go_on) {
  DecodeOptions plain_options = options;
  plain_options.method = DraftMethod::kNone;
  plain_options.ngrams = false;
  const bool drafts = options.method != DraftMethod::kNone || options.ngrams;
  struct OfSessions {
    std::vector<double> pass, plain, drafted, per_forward;
  };
  std::vector<OfSessions> samples(bench.sessions.size());
  std::vector<SessionsResult> results(bench.sessions.size());
  std::vector<std::vector<Token>> alone;  // the text of each prompt by itself
  for (const std::vector<Token>& prompt : prompts) {
    alone.push_back(run_sessions(plain, plain_options, {prompt}, 1, bench.tokens).texts.front());
  }
  const auto check = [&](const Run& run, SessionsResult& result) {
    for (std::size_t i = 0; i < run.texts.size(); ++i) {
      result.same_text = result.same_text && run.texts[i] == alone[i % alone.size()];
    }
  };
  int done = 0;
  for (int round = 0; round < bench.rounds; ++round) {
    for (std::size_t i = 0; i < bench.sessions.size(); ++i) {
      const int sessions = bench.sessions[i];
      if (!go_on(done++, bench.rounds * static_cast<int>(bench.sessions.size()))) return {};
      OfSessions& to = samples[i];
      const Run without = run_sessions(plain, plain_options, prompts, sessions, bench.tokens);
      check(without, results[i]);
      to.plain.push_back(without.tokens / without.seconds);
      to.pass.push_back(pass_seconds(plain.engine(), prompts, sessions, bench.tokens));
      if (!drafts) continue;
      const Run with = run_sessions(drafted, options, prompts, sessions, bench.tokens);
      check(with, results[i]);
      to.drafted.push_back(with.tokens / with.seconds);
      to.per_forward.push_back(with.tokens_per_forward);
    }
  }
  for (std::size_t i = 0; i < results.size(); ++i) {
    SessionsResult& result = results[i];
    result.sessions = bench.sessions[i];
    result.pass_seconds = median(samples[i].pass);
    result.plain_tokens_per_second = median(samples[i].plain);
    if (!drafts) continue;
    result.drafted_tokens_per_second = median(samples[i].drafted);
    result.tokens_per_forward = median(samples[i].per_forward);
  }
  return results;
}

std::string sessions_table(const std::vector<SessionsResult>& results) {
  const SessionsResult& first = results.front();
  const bool from_one = first.sessions == 1;
  std::string table =
      fmt::format("{:>8} {:>9} {:>10} {:>15} {:>8} {:>9} {:>17} {:>10} {:>10}  {}\n", "sessions",
                  "pass ms", "T(n)/T(1)", "plain tokens/s", "of one", "of limit",
                  "drafted tokens/s", "of plain", "a pass", "text");
  for (const SessionsResult& each : results) {
    const double growth = each.pass_seconds / first.pass_seconds;
    const double gain = each.plain_tokens_per_second / first.plain_tokens_per_second;
    table +=
        fmt::format("{:>8} {:>9.2f} {:>10} {:>15.1f} {:>8} {:>9}", each.sessions,
                    1e3 * each.pass_seconds, from_one ? fmt::format("{:.2f}", growth) : "-",
                    each.plain_tokens_per_second, from_one ? fmt::format("{:.2f}x", gain) : "-",
                    from_one ? fmt::format("{:.0f} %", 100 * gain * growth / each.sessions) : "-");
    table += each.drafted_tokens_per_second == 0
                 ? fmt::format(" {:>17} {:>10} {:>10}", "-", "-", "-")
                 : fmt::format(" {:>17.1f} {:>9.2f}x {:>10.2f}", each.drafted_tokens_per_second,
                               each.drafted_tokens_per_second / each.plain_tokens_per_second,
                               each.tokens_per_forward);
    table += fmt::format("  {}\n", each.same_text ? "the same" : "DIFFERENT");
  }
  return table;
}

nlohmann::ordered_json sessions_json(nlohmann::ordered_json machine,
                                     const std::vector<SessionsResult>& results) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const SessionsResult& each : results) {
    rows.push_back({{"sessions", each.sessions},
                    {"pass_seconds", each.pass_seconds},
                    {"plain_tokens_per_second", each.plain_tokens_per_second},
                    {"drafted_tokens_per_second", each.drafted_tokens_per_second},
                    {"tokens_per_forward", each.tokens_per_forward},
                    {"same_text", each.same_text}});
  }
  return {{"mode", "sessions"}, {"machine", std::move(machine)}, {"results", std::move(rows)}};
}

}  // namespace firp
