#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bench/report.h"

namespace firp {

struct ReportFigure {
  std::string svg;
  std::string caption;  ///< empty: none
};

/// All *.svg of a folder by name, each with the text of the *.txt of the same stem, if there is
/// one. An Error where there is no figure.
std::vector<ReportFigure> read_figures(const std::filesystem::path& folder);

/// A page that needs nothing beside it: for each report what came out in a sentence, the table of
/// methods and categories, the machine and the settings; then the figures.
std::string html_report(std::span<const BenchReport> reports,
                        std::span<const ReportFigure> figures);

std::string escape_html(std::string_view text);

}  // namespace firp
