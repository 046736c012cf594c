#include "study/plot.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/error.h"
#include "bench/report.h"

namespace firp {
namespace {

constexpr int kWidth = 1600, kHeight = 900;
constexpr double kLeft = 0.08, kBottom = 0.14, kTop = 0.88;  // of the figure
constexpr double kLabelWidth = 0.0103;   // of a character beside a line, in figure widths
constexpr double kLabelHeight = 0.062;   // between two of them, in panel heights
constexpr std::size_t kMostPoints = 20;  // of a line that shows them
// Okabe and Ito's, which colour-blind readers can tell apart.
constexpr const char* kColours[] = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                    "#E69F00", "#56B4E9", "#000000"};
constexpr const char* kGrey = "#777777";

std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) {
    if (c == '\n') continue;
    result += c;
    if (c == '\'') result += c;
  }
  return result + "'";
}

struct Range {
  double low, high;
};

/// From 0, or where that is not possible or leaves the lines flat, around them.
Range range_of(const Panel& panel) {
  double low = INFINITY, high = -INFINITY;
  for (const Line& line : panel.lines) {
    for (const double y : line.y) {
      low = std::min(low, y);
      high = std::max(high, y);
    }
  }
  if (panel.log_y) return {low / 1.3, high * 1.3};
  const double span = std::max(high - low, 1e-9);
  return {low >= 0 && low < 0.6 * high ? 0 : low - 0.15 * span, high + 0.1 * span};
}

/// 1, 2, 5, 10, 20, ... as far as they are in the range.
std::string log_ticks(const Range& range) {
  std::string ticks;
  for (double decade = std::pow(10, std::floor(std::log10(range.low))); decade < range.high;
       decade *= 10) {
    for (const double tick : {decade, 2 * decade, 5 * decade}) {
      if (tick < range.low || tick > range.high) continue;
      ticks += fmt::format("{}{:.6g}", ticks.empty() ? "" : ", ", tick);
    }
  }
  return ticks;
}

/// Where the lines' names stand, in panel heights: at their ends, pushed apart where those are
/// close.
std::vector<double> label_heights(const Panel& panel, const Range& range) {
  const auto scale = [&](double y) { return panel.log_y ? std::log(y) : y; };
  std::vector<double> heights;
  for (const Line& line : panel.lines) {
    heights.push_back((scale(line.y.back()) - scale(range.low)) /
                      (scale(range.high) - scale(range.low)));
  }
  std::vector<int> order(heights.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {}, [&](int i) { return heights[i]; });
  for (std::size_t i = 1; i < order.size(); ++i) {
    heights[order[i]] = std::max(heights[order[i]], heights[order[i - 1]] + kLabelHeight);
  }
  double limit = 1;
  for (std::size_t i = order.size(); i-- > 0; limit -= kLabelHeight) {
    heights[order[i]] = std::min(heights[order[i]], limit);
  }
  return heights;
}

std::string panel_script(const Panel& panel, int index) {
  std::string script;
  for (std::size_t i = 0; i < panel.lines.size(); ++i) {
    script += fmt::format("$data_{}_{} << END\n", index, i);
    for (std::size_t k = 0; k < panel.lines[i].x.size(); ++k) {
      script += fmt::format("{:.6g} {:.6g}\n", panel.lines[i].x[k], panel.lines[i].y[k]);
    }
    script += "END\n";
  }
  const Range range = range_of(panel);
  const std::vector<double> heights = label_heights(panel, range);
  script += fmt::format(
      "set ylabel {} offset 1.2\n{} logscale y\nset yrange [{:.6g}:{:.6g}]\nunset label\n",
      quoted(panel.y_label), panel.log_y ? "set" : "unset", range.low, range.high);
  script += panel.log_y ? fmt::format("set ytics ({})\nunset mytics\n", log_ticks(range))
                        : "set ytics auto\n";
  std::string plot = "plot ";
  for (std::size_t i = 0, colours = 0; i < panel.lines.size(); ++i) {
    const Line& line = panel.lines[i];
    const char* const colour = line.dashed ? kGrey : kColours[colours++ % std::size(kColours)];
    script += fmt::format("set label {} at graph 1.02,{:.4f} left noenhanced tc rgb '{}'\n",
                          quoted(line.name), heights[i], colour);
    plot += fmt::format("{}$data_{}_{} with {} lc rgb '{}' lw {} {}", i == 0 ? "" : ", ", index, i,
                        line.dashed                   ? "lines dt 2"
                        : line.x.size() > kMostPoints ? "lines"
                                                      : "linespoints pt 7 ps 1.2",
                        colour, line.dashed ? 2 : 3, "notitle");
  }
  return script + plot + "\n";
}

/// Its exit status.
int run_gnuplot(std::string argument) {
  char program[] = "gnuplot";
  char* const arguments[] = {program, argument.data(), nullptr};
  // What it prints is no part of our output.
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  pid_t process = 0;
  const int failure = posix_spawnp(&process, program, &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failure == ENOENT) {
    throw Error("gnuplot draws the figures, and is not installed (Debian: gnuplot-nox)");
  }
  int status = 0;
  if (failure != 0 || waitpid(process, &status, 0) != process) return -1;
  return status;
}

}  // namespace

std::string gnuplot_script(const Figure& figure, const std::filesystem::path& stem) {
  std::string head = fmt::format(
      "set border 3 lc rgb '{0}'\nset tics nomirror out textcolor rgb 'black'\n"
      "set grid y lc rgb '#dddddd' lt 1 lw 1\nset xlabel {1}\n",
      kGrey, quoted(figure.x_label));
  double low = INFINITY, high = -INFINITY;
  for (const Panel& panel : figure.panels) {
    for (const Line& line : panel.lines) {
      low = std::min(low, std::ranges::min(line.x));
      high = std::max(high, std::ranges::max(line.x));
    }
  }
  if (figure.log_x) head += "set logscale x 2\n";
  const double beside = 0.02 * (high - low);  // so that the outermost points stand clear
  head += figure.log_x ? fmt::format("set xrange [{:.6g}:{:.6g}]\n", low / 1.05, high * 1.05)
                       : fmt::format("set xrange [{:.6g}:{:.6g}]\n", low - beside, high + beside);
  if (!figure.x_ticks.empty()) {
    head += "set xtics (";
    for (const auto& [name, x] : figure.x_ticks) {
      head += fmt::format("{}{} {:.6g}", head.back() == '(' ? "" : ", ", quoted(name), x);
    }
    head += ")\n";
  }
  std::string panels;
  const int count = static_cast<int>(figure.panels.size());
  for (int i = 0; i < count; ++i) {
    std::size_t longest = 0;
    for (const Line& line : figure.panels[i].lines) longest = std::max(longest, line.name.size());
    const double begin = static_cast<double>(i) / count, width = 1.0 / count;
    panels +=
        fmt::format("set lmargin at screen {:.4f}\nset rmargin at screen {:.4f}\n", begin + kLeft,
                    begin + width - 0.015 - kLabelWidth * static_cast<double>(longest));
    panels += fmt::format("set tmargin at screen {}\nset bmargin at screen {}\n", kTop, kBottom);
    panels += panel_script(figure.panels[i], i);
  }
  std::string script;
  for (const char* const terminal : {"svg", "pngcairo"}) {
    const bool svg = std::strcmp(terminal, "svg") == 0;
    script += fmt::format(
        "reset\nset terminal {} size {},{} font 'DejaVu Sans,{}' background rgb 'white'\n"
        "set output {}\n{}set multiplot title {} font ',{}' noenhanced\n{}unset multiplot\nunset "
        "output\n",
        terminal, kWidth, kHeight, 20, quoted(stem.string() + (svg ? ".svg" : ".png")), head,
        quoted(figure.title), 26, panels);
  }
  return script;
}

void require_gnuplot() {
  if (run_gnuplot("--version") != 0) throw Error("gnuplot does not run; what it said stands above");
}

void draw(const Figure& figure, const std::filesystem::path& stem) {
  const std::string script = stem.string() + ".gnuplot";
  write_text(gnuplot_script(figure, stem), script);
  if (run_gnuplot(script) != 0) {
    throw Error(fmt::format("gnuplot could not draw {}; what it said stands above", script));
  }
}

}  // namespace firp
