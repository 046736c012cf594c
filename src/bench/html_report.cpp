#include "bench/html_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstring>

#include "base/error.h"
#include "model/text_input.h"

namespace firp {
namespace {

constexpr const char* kHead = R"(<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>FIRP: measured</title>
<style>
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --text: #1c2330; --soft: #667085; --line: #e3e7ee;
  --best: #0b7a4b; --best-back: #e6f5ee; --bad: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12151b; --card: #1a1f28; --text: #e6e9ef; --soft: #98a2b3; --line: #2c3442;
    --best: #5fd6a0; --best-back: #16332a; --bad: #ff8a80;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1rem; font-weight: 600; color: var(--soft); margin: 0 0 1.5rem; }
h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
section { margin-bottom: 3rem; }
.lead { font-size: 1.5rem; line-height: 1.35; margin: 0 0 1.5rem; max-width: 62rem; }
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: .75rem;
  padding: 1rem 1.25rem; margin: 0 0 1rem;
}
.wide { overflow-x: auto; padding: .25rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .9rem; text-align: right; white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; }
thead th { white-space: normal; overflow-wrap: anywhere; min-width: 6.5rem; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
thead th { border-bottom: 2px solid var(--line); }
tbody th { font-weight: 500; vertical-align: top; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody tr.sum > * { border-top: 2px solid var(--line); font-weight: 700; }
td { vertical-align: top; }
td small, th small { display: block; color: var(--soft); font-weight: 400; font-size: .8rem; }
td i { font-style: normal; font-weight: 400; color: var(--soft); font-size: .85rem; }
td.best { background: var(--best-back); }
td.best b { color: var(--best); font-weight: 700; }
td b { font-weight: inherit; }
td small.other { color: var(--bad); }
.bars { display: grid; grid-template-columns: max-content 1fr; gap: .45rem 1rem; }
.bars span { text-align: right; }
.bar { display: flex; align-items: center; gap: .6rem; font-variant-numeric: tabular-nums; }
.bar::before { content: ""; width: var(--share); height: 1.1rem; background: var(--soft); border-radius: .2rem; }
.bar.best::before { background: var(--best); }
.bar b { white-space: nowrap; }
.note { color: var(--soft); font-size: .875rem; max-width: 60rem; margin: 0 0 1.5rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 1rem; }
dl { display: grid; grid-template-columns: auto 1fr; gap: .2rem 1.25rem; margin: 0; font-size: .875rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 0 0 1rem; }
figure img { display: block; width: 100%; height: auto; background: #fff; border-radius: .5rem; }
figcaption { color: var(--soft); font-size: .875rem; margin-top: .75rem; }
</style>
</head>
<body>
<main>
<h1>FIRP: tokens per second, measured</h1>
)";

constexpr const char* kNote =
    "Times the speed of plain decoding, with the standard error over prompts; green: the fastest "
    "of its row. Below it tokens per forward pass, and how many prompts have exactly the text of "
    "plain decoding (in red; no figure: all of them). llama.cpp computes with kernels of its own, "
    "so that its text may differ.";

/// "read_bytes_per_second" and 8e10 as "read" and "80.0 GB/s": keys of the JSON end in their unit.
struct Row {
  std::string name, value;
};
Row row_of(std::string key, const nlohmann::ordered_json& json) {
  struct Unit {
    std::string_view ending;
    double factor;
    std::string_view name;
  };
  constexpr Unit kUnits[] = {{"_bytes_per_second", 1e-9, " GB/s"},
                             {"_per_second", 1e-9, " billion/s"},
                             {"_bytes", 0x1p-20, " MiB"}};
  std::string value = json.is_null()     ? "none"
                      : json.is_string() ? json.get<std::string>()
                                         : json.dump();
  if (json.is_number_float()) value = fmt::format("{:.3g}", json.get<double>());
  if (json.is_structured()) {
    value.clear();
    for (const auto& [name, item] : json.items()) {
      value += value.empty() ? "" : json.is_array() ? ", " : "; ";
      if (json.is_object()) value += name + ": ";
      value += row_of("", item).value;
    }
  }
  for (const Unit& unit : kUnits) {
    if (!key.ends_with(unit.ending)) continue;
    key.resize(key.size() - unit.ending.size());
    if (json.is_number()) {
      value = fmt::format("{:.1f}{}", json.get<double>() * unit.factor, unit.name);
    }
    break;
  }
  std::ranges::replace(key, '_', ' ');
  return {std::move(key), std::move(value)};
}

std::string list_html(const char* title, const nlohmann::ordered_json& object) {
  std::string html = fmt::format("<div class=\"card\"><h2>{}</h2><dl>\n", title);
  for (const auto& [key, value] : object.items()) {
    const Row row = row_of(key, value);
    html += fmt::format("<dt>{}</dt><dd>{}</dd>\n", escape_html(row.name), escape_html(row.value));
  }
  return html + "</dl></div>\n";
}

const BenchResult* find(std::span<const BenchResult> results, std::string_view category,
                        std::string_view method) {
  const auto found = std::ranges::find_if(results, [&](const BenchResult& result) {
    return result.category == category && result.method == method;
  });
  return found == results.end() ? nullptr : &*found;
}

/// The fastest method of a category.
const BenchResult& best_of(std::span<const BenchResult> results, std::string_view category) {
  const BenchResult* best = nullptr;
  for (const BenchResult& result : results) {
    if (result.category != category) continue;
    if (best == nullptr || result.tokens_per_second() > best->tokens_per_second()) best = &result;
  }
  return *best;
}

std::string speedup_html(const BenchResult& result) {
  const std::string error =
      result.speedup_error ? fmt::format(" <i>&plusmn; {:.2f}</i>", *result.speedup_error) : "";
  return fmt::format("<b>{:.2f}&times;</b>{}", result.speedup_over_plain, error);
}

/// What came out, in plain words.
std::string lead(std::span<const BenchResult> results) {
  const BenchResult& best = best_of(results, kAllCategories);
  std::string text = fmt::format(
      "<strong>{}</strong> is the fastest here: {:.0f} tokens per second over {} prompt{}",
      best.method == kPlain ? "Plain decoding" : escape_html(best.method), best.tokens_per_second(),
      best.prompts, best.prompts == 1 ? "" : "s");
  const bool drafted = best.method != kPlain && best.speedup_over_plain > 0;
  if (drafted) {
    text += fmt::format(", {:.2f} times plain decoding", best.speedup_over_plain);
    if (best.speedup_error && best.speedup_over_plain - 1 < 2 * *best.speedup_error) {
      text += " (within the noise)";
    }
  }
  for (const BenchResult& other : results) {
    if (other.category != kAllCategories || !other.method.starts_with("llama.cpp") ||
        &other == &best) {
      continue;
    }
    text += fmt::format(", {:.2f} times {}", best.tokens_per_second() / other.tokens_per_second(),
                        escape_html(other.method));
  }
  text += ".";
  if (drafted && best.identical_to_plain == best.prompts) {
    text += " Its text is exactly that of plain decoding, for every prompt.";
  } else if (drafted) {
    text += fmt::format(" Its text is exactly that of plain decoding for {} of them.",
                        best.identical_to_plain);
  }
  return text;
}

/// A bar for each method, as long as it is fast over all prompts.
std::string bars(std::span<const BenchResult> results) {
  constexpr double kLongest = 75;  // percent: beside it stands the figure
  const BenchResult& best = best_of(results, kAllCategories);
  std::string html = "<div class=\"card bars\">\n";
  for (const BenchResult& result : results) {
    if (result.category != kAllCategories) continue;
    const double share = kLongest * result.tokens_per_second() / best.tokens_per_second();
    html += fmt::format(
        "<span>{}</span><div class=\"bar{}\" style=\"--share:{:.1f}%\"><b>{:.0f} tokens/s</b>"
        "</div>\n",
        escape_html(result.method), &result == &best ? " best" : "", share,
        result.tokens_per_second());
  }
  return html + "</div>\n";
}

std::string cell(const BenchResult& result, bool best) {
  const bool compared = result.speedup_over_plain > 0 && result.method != kPlain;
  std::string html = fmt::format("<td{}>", best ? " class=\"best\"" : "");
  html += compared ? speedup_html(result)
                   : fmt::format("<b>{:.0f}</b> <i>tokens/s</i>", result.tokens_per_second());
  html += fmt::format("<small>{:.2f} a pass</small>", result.tokens_per_forward());
  const bool same = result.identical_to_plain == result.prompts;
  if (compared && (!same || result.category == kAllCategories)) {
    html += fmt::format("<small{}>{}/{} same text</small>", same ? "" : " class=\"other\"",
                        result.identical_to_plain, result.prompts);
  }
  return html + "</td>\n";
}

std::string table(std::span<const BenchResult> results) {
  const std::vector<std::string> methods = values_of(results, &BenchResult::method);
  std::string html = "<div class=\"card wide\"><table>\n<thead><tr><th></th>";
  for (const std::string& method : methods) html += fmt::format("<th>{}</th>", escape_html(method));
  html += "</tr></thead>\n<tbody>\n";
  for (const std::string& category : values_of(results, &BenchResult::category)) {
    const BenchResult& best = best_of(results, category);
    html += fmt::format("<tr{}><th>{}<small>{} prompt{}</small></th>\n",
                        category == kAllCategories ? " class=\"sum\"" : "", escape_html(category),
                        best.prompts, best.prompts == 1 ? "" : "s");
    for (const std::string& method : methods) {
      const BenchResult* const result = find(results, category, method);
      html += result == nullptr ? "<td></td>\n" : cell(*result, result == &best);
    }
    html += "</tr>\n";
  }
  return html + "</tbody></table></div>\n";
}

/// Title of a report's part: what was asked of which model.
std::string title(const BenchReport& report) {
  const auto text = [](const nlohmann::ordered_json& object, const char* key) {
    return object.contains(key) ? row_of("", object.at(key)).value : std::string();
  };
  return escape_html(
      fmt::format("{}, {}", text(report.settings, "prompts"), text(report.machine, "model")));
}

/// As an image of its own: figures that share a page would share their ids and styles.
std::string figure_html(const ReportFigure& figure) {
  std::string source;
  for (const char c : figure.svg) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) || c == ' ' || c == '/' || c == '=' || c == '.' || c == ',') {
      source += c;
    } else {
      source += fmt::format("%{:02X}", byte);
    }
  }
  const std::string caption = escape_html(figure.caption);
  return fmt::format(
      "<figure class=\"card\"><img alt=\"{}\" src=\"data:image/svg+xml,{}\">{}</figure>\n", caption,
      source, caption.empty() ? "" : fmt::format("<figcaption>{}</figcaption>", caption));
}

}  // namespace

std::vector<ReportFigure> read_figures(const std::filesystem::path& folder) {
  std::error_code error;
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.path().extension() == ".svg") paths.push_back(entry.path());
  }
  if (error) throw Error(fmt::format("cannot read {}: {}", folder.string(), error.message()));
  if (paths.empty()) throw Error(fmt::format("{} holds no *.svg", folder.string()));
  std::ranges::sort(paths);
  std::vector<ReportFigure> figures;
  for (std::filesystem::path& path : paths) {
    ReportFigure& figure = figures.emplace_back();
    figure.svg = TextInput("the figure", path).text();
    path.replace_extension(".txt");
    if (std::filesystem::exists(path)) figure.caption = TextInput("the caption", path).text();
  }
  return figures;
}

std::string html_report(std::span<const BenchReport> reports,
                        std::span<const ReportFigure> figures) {
  std::string html = kHead;
  for (const BenchReport& report : reports) {
    const std::vector<BenchResult> results = sum_up(report.records);
    html += fmt::format("<section>\n<h2>{}</h2>\n<p class=\"lead\">{}</p>\n", title(report),
                        lead(results));
    html += bars(results) + table(results);
    html += fmt::format("<p class=\"note\">{}</p>\n<div class=\"pair\">\n", kNote);
    html += list_html("Machine", report.machine) + list_html("Settings", report.settings);
    html += "</div>\n</section>\n";
  }
  for (const ReportFigure& figure : figures) html += figure_html(figure);
  return html + "</main>\n</body>\n</html>\n";
}

std::string escape_html(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

}  // namespace firp
