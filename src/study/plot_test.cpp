#include "study/plot.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <regex>

#include "model/test_files.h"

namespace firp {
namespace {

Figure figure() {
  return {.title = "It's a title",
          .x_label = "rows",
          .panels = {{.y_label = "ms",
                      .lines = {{.name = "ours", .x = {1, 2}, .y = {3, 4}},
                                {.name = "theirs", .x = {1, 2}, .y = {5, 4.01}},
                                {.name = "limit", .x = {1, 2}, .y = {4, 4}, .dashed = true}},
                      .log_y = true}},
          .log_x = true,
          .x_ticks = {{"one", 1}, {"two", 2}}};
}

TEST(Plot, WritesAVectorFigureAndAnImage) {
  const TemporaryDirectory directory;
  draw(figure(), directory / "it's");
  const std::string svg = read_bytes(directory / "it's.svg");
  for (const char* const text : {"a title", "ours", "theirs", "limit", "rows", "ms", "two"}) {
    EXPECT_NE(svg.find(text), std::string::npos) << text;
  }
  EXPECT_EQ(read_bytes(directory / "it's.png").substr(1, 3), "PNG");
}

TEST(Plot, NamesOfLinesThatEndCloseToEachOtherStandApart) {
  const std::string script = gnuplot_script(figure(), "figure");
  const std::regex label("at graph 1.02,([0-9.]+)");
  std::vector<double> heights;
  for (std::sregex_iterator at(script.begin(), script.end(), label), end; at != end; ++at) {
    heights.push_back(std::stod((*at)[1]));
  }
  ASSERT_EQ(heights.size(), 6u);  // of two files
  heights.resize(3);
  std::ranges::sort(heights);
  EXPECT_GE(heights[0], 0);
  EXPECT_GE(heights[1] - heights[0], 0.05);
  EXPECT_GE(heights[2] - heights[1], 0.05);
  EXPECT_LE(heights[2], 1);
}

TEST(Plot, WhatIsMissingIsNamed) {
  const TemporaryDirectory directory;
  EXPECT_NE(error_of([&] { draw(figure(), (directory / "no") / "figure"); }).find("cannot write"),
            std::string::npos);
  const std::string path = std::getenv("PATH");
  setenv("PATH", directory.path().c_str(), 1);
  const std::string message = error_of([] { require_gnuplot(); });
  setenv("PATH", path.c_str(), 1);
  EXPECT_NE(message.find("gnuplot-nox"), std::string::npos) << message;
  require_gnuplot();
}

}  // namespace
}  // namespace firp
