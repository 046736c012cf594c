#include "bench/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <map>
#include <span>
#include <string_view>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "bench/statistics.h"

namespace firp {
namespace {

/// Of Student's distribution, two-sided, 99 %: one figure in a hundred is beyond it by chance.
double quantile_99(std::size_t degrees_of_freedom) {
  constexpr std::array<double, 10> kFew = {63.7, 9.92, 5.84, 4.60, 4.03,
                                           3.71, 3.50, 3.36, 3.25, 3.17};
  if (degrees_of_freedom <= kFew.size()) return kFew[degrees_of_freedom - 1];
  return degrees_of_freedom <= 30 ? 3.11 : 2.75;
}

using Figure = double(std::span<const double, 5>);

/// `before` and `after`: of the same prompts in the same order.
Change change_of(Figure& figure, std::span<const PromptSums> before,
                 std::span<const PromptSums> after) {
  std::vector<Summands<10>> pairs(before.size());
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    std::ranges::copy(before[i], pairs[i].begin());
    std::ranges::copy(after[i], pairs[i].begin() + 5);
  }
  const auto ratio = [&](std::span<const double, 10> sums) {
    return figure(sums.last<5>()) / figure(sums.first<5>());
  };
  Change change{.before = figure(sum(before)), .after = figure(sum(after))};
  const auto error = jackknife_error(std::span<const Summands<10>>(pairs), ratio);
  if (error) change.noise = quantile_99(pairs.size() - 1) * *error;
  return change;
}

/// The records of what both results have, in the order of the second.
struct Common {
  std::vector<BenchRecord> before, after;
};

Common common_records(const BenchReport& before, const BenchReport& after) {
  const auto key = [](const BenchRecord& record) {
    return std::tie(record.method, record.category, record.question_id);
  };
  using Key = std::tuple<std::string, std::string, std::string>;
  std::map<Key, const BenchRecord*> known;
  for (const BenchRecord& record : before.records) known[Key(key(record))] = &record;
  Common common;
  for (const BenchRecord& record : after.records) {
    const auto same = known.find(Key(key(record)));
    if (same == known.end()) continue;
    common.before.push_back(*same->second);
    common.after.push_back(record);
  }
  return common;
}

void add_repeats(Change& change, const BenchResult& before, const BenchResult& after) {
  if (!change.noise) return;
  for (const BenchResult* result : {&before, &after}) {
    const double spread = result->tokens_per_second_spread.value_or(0);
    change.noise = std::hypot(*change.noise, 2 * spread / result->tokens_per_second());
  }
}

std::string change_text(const Change& change) {
  const std::string noise =
      change.noise ? fmt::format("{:.1f}", 100 * *change.noise) : std::string("?");
  return fmt::format("{:+.1f} +-{} %{}", 100 * change.relative(), noise,
                     change.beyond_noise() ? "*" : " ");
}

/// The fields whose values are not the same; but not numbers that were `measured`, which never are.
std::string differences(const nlohmann::ordered_json& before, const nlohmann::ordered_json& after,
                        bool measured) {
  std::string text;
  for (const auto& [key, value] : after.items()) {
    if ((measured && value.is_number_float()) || (before.contains(key) && before.at(key) == value))
      continue;
    fmt::format_to(std::back_inserter(text), "  {}: {}, then {}\n", key,
                   before.contains(key) ? before.at(key).dump() : "not told", value.dump());
  }
  return text;
}

}  // namespace

std::vector<Comparison> compare_reports(const BenchReport& before, const BenchReport& after) {
  const Common common = common_records(before, after);
  if (common.after.empty()) {
    throw Error("the two results have no prompt of the same method in common");
  }
  const std::vector<BenchResult> results_before = sum_up(common.before);
  const std::vector<BenchResult> results_after = sum_up(common.after);

  std::vector<Comparison> comparisons;
  for (std::size_t i = 0; i < results_after.size(); ++i) {
    const BenchResult& result = results_after[i];
    const auto old_sums = prompt_sums(common.before, result.category, result.method);
    const auto new_sums = prompt_sums(common.after, result.category, result.method);
    Comparison comparison = {
        .category = result.category,
        .method = result.method,
        .prompts = result.prompts,
        .tokens_per_second = change_of(tokens_per_second, old_sums, new_sums),
        .tokens_per_forward = change_of(tokens_per_forward, old_sums, new_sums)};
    add_repeats(comparison.tokens_per_second, results_before[i], result);
    if (result.speedup_over_plain > 0 && result.method != kPlain) {
      comparison.speedup_over_plain = change_of(speedup_over_plain, old_sums, new_sums);
    }
    comparisons.push_back(std::move(comparison));
  }
  return comparisons;
}

std::string comparison_text(const BenchReport& before, const BenchReport& after) {
  const std::vector<Comparison> comparisons = compare_reports(before, after);
  std::size_t category_width = std::string_view("category").size();
  std::size_t method_width = std::string_view("method").size();
  for (const Comparison& comparison : comparisons) {
    category_width = std::max(category_width, comparison.category.size());
    method_width = std::max(method_width, comparison.method.size());
  }
  std::string text =
      fmt::format("{:<{}}  {:<{}}  {:>7}  {:>16}  {:>16}  {:>13}  {:>16}  {:>13}  {:>16}\n",
                  "category", category_width, "method", method_width, "prompts", "tokens/s",
                  "change", "tokens/pass", "change", "speed-up", "change");
  std::string found;
  std::string last_category;
  for (const Comparison& comparison : comparisons) {
    const Change& speed = comparison.tokens_per_second;
    const Change& per_forward = comparison.tokens_per_forward;
    const std::optional<Change>& over_plain = comparison.speedup_over_plain;
    fmt::format_to(
        std::back_inserter(text),
        "{:<{}}  {:<{}}  {:>7}  {:>16}  {:>16}  {:>13}  {:>16}  {:>13}  {:>16}\n",
        comparison.category == last_category ? "" : comparison.category, category_width,
        comparison.method, method_width, comparison.prompts,
        fmt::format("{:.1f} {:.1f}", speed.before, speed.after), change_text(speed),
        fmt::format("{:.2f} {:.2f}", per_forward.before, per_forward.after),
        change_text(per_forward),
        over_plain ? fmt::format("{:.2f} {:.2f}", over_plain->before, over_plain->after) : "-",
        over_plain ? change_text(*over_plain) : "- ");
    last_category = comparison.category;
    const auto tell = [&](const char* figure, const Change& change) {
      if (!change.beyond_noise()) return;
      fmt::format_to(std::back_inserter(found), "  {} of {}, {}: {:+.1f} %\n", figure,
                     comparison.method, comparison.category, 100 * change.relative());
    };
    tell("tokens/s", speed);
    tell("tokens/pass", per_forward);
    if (over_plain) tell("speed-up", *over_plain);
  }
  text +=
      found.empty() ? "\nNothing differs beyond the noise.\n" : "\nBeyond the noise (*):\n" + found;
  const std::string others = differences(before.machine, after.machine, /*measured=*/true) +
                             differences(before.settings, after.settings, /*measured=*/false);
  if (!others.empty()) text += "\nThe runs were not the same:\n" + others;
  return text;
}

}  // namespace firp
