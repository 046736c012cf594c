#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace firp {

struct Line {
  std::string name;  ///< written at its end
  std::vector<double> x, y;
  bool dashed = false;  ///< a limit or a reference: without points
};

/// One pair of axes; those of a figure lie side by side.
struct Panel {
  std::string y_label;
  std::vector<Line> lines;
  bool log_y = false;
};

struct Figure {
  std::string title;
  std::string x_label;
  std::vector<Panel> panels;
  bool log_x = false;                                   ///< of base 2
  std::vector<std::pair<std::string, double>> x_ticks;  ///< empty: gnuplot's choice
};

/// The script that makes gnuplot draw a figure as `stem`.svg and `stem`.png.
std::string gnuplot_script(const Figure& figure, const std::filesystem::path& stem);

/// An Error where gnuplot is missing.
void require_gnuplot();

/// Writes `stem`.gnuplot and runs it. An Error where gnuplot is missing or fails.
void draw(const Figure& figure, const std::filesystem::path& stem);

}  // namespace firp
