#include "bench/html_report.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "model/test_files.h"

namespace firp {
namespace {

BenchRecord record(const char* category, const char* id, const char* method, double seconds) {
  return {.question_id = id,
          .category = category,
          .method = method,
          .tokens = 100,
          .forwards = 50,
          .seconds = seconds,
          .identical_to_plain = true,
          .repeat_seconds = {seconds}};
}

/// firp is the fastest of "<qa>", plain decoding of "chat", firp of all.
BenchReport report() {
  return {{{"model", "m & n.gguf"}, {"read_bytes_per_second", 8e10}, {"heads", nullptr}},
          {{"prompts", "<b>.jsonl"},
           {"tree", {0, 8}},
           {"notes", {{"firp", "layer 18"}, {"other", "5"}}}},
          {record("<qa>", "1", "plain", 2), record("<qa>", "1", "firp", 1),
           record("<qa>", "1", "llama.cpp", 4), record("chat", "2", "plain", 2),
           record("chat", "2", "firp", 2.5), record("chat", "2", "llama.cpp", 4)}};
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string page_of(const BenchReport& report) { return html_report({&report, 1}, {}); }

TEST(HtmlReport, EscapesWhatComesFromFiles) {
  EXPECT_EQ(escape_html("a<b> & \"c\""), "a&lt;b&gt; &amp; &quot;c&quot;");
  const std::string page = page_of(report());
  EXPECT_FALSE(has(page, "<qa>")) << page;
  EXPECT_FALSE(has(page, "<b>.jsonl")) << page;
  EXPECT_TRUE(has(page, "m &amp; n.gguf")) << page;
}

TEST(HtmlReport, SaysTheResultAndMarksTheBestOfEachRow) {
  const std::string page = page_of(report());
  // 200 tokens in 3.5, 4 and 8 seconds.
  EXPECT_TRUE(has(page,
                  "<strong>firp</strong> is the fastest here: 57 tokens per second over 2 "
                  "prompts, 1.14 times plain decoding"))
      << page;
  EXPECT_TRUE(has(page, "2.29 times llama.cpp")) << page;
  EXPECT_TRUE(has(page, "exactly that of plain decoding, for every prompt")) << page;
  EXPECT_TRUE(has(page, "<td class=\"best\"><b>2.00&times;</b>")) << page;
  EXPECT_TRUE(has(page, "<td class=\"best\"><b>50</b>")) << page;  // plain, of chat
  EXPECT_TRUE(has(page, "<dt>read</dt><dd>80.0 GB/s</dd>")) << page;
  EXPECT_TRUE(has(page, "<dt>heads</dt><dd>none</dd>")) << page;
  EXPECT_TRUE(has(page, "<dt>notes</dt><dd>firp: layer 18; other: 5</dd>")) << page;
  EXPECT_TRUE(has(page, "<dt>tree</dt><dd>0, 8</dd>")) << page;
}

TEST(HtmlReport, DrawsABarForEachMethodAsLongAsItIsFast) {
  const std::string page = page_of(report());
  // All prompts: firp 200 tokens in 3.5 seconds, plain in 4, llama.cpp in 8.
  for (const char* const bar :
       {"<span>firp</span><div class=\"bar best\" style=\"--share:75.0%\">",
        "<span>plain</span><div class=\"bar\" style=\"--share:65.6%\">",
        "<span>llama.cpp</span><div class=\"bar\" style=\"--share:32.8%\">"}) {
    EXPECT_TRUE(has(page, bar)) << bar << '\n' << page;
  }
}

TEST(HtmlReport, SaysWhereTextsDifferAndWhereDraftsDoNotPay) {
  BenchReport other = report();
  other.records[1].identical_to_plain = false;
  EXPECT_TRUE(has(page_of(other), "<small class=\"other\">0/1 same text</small>"));
  EXPECT_TRUE(has(page_of(other), "exactly that of plain decoding for 1 of them"));
  other.records[1].seconds = 3;
  EXPECT_TRUE(has(page_of(other), "<strong>Plain decoding</strong> is the fastest here"));
}

TEST(HtmlReport, IsTheSameFromTheJson) {
  const TemporaryDirectory directory;
  write_json(bench_json(report()), directory / "result.json");
  EXPECT_EQ(page_of(read_bench_report(directory / "result.json")), page_of(report()));
}

TEST(HtmlReport, TakesTheFiguresOfAFolderByName) {
  const TemporaryDirectory directory;
  EXPECT_THROW(read_figures(directory.path()), Error);
  EXPECT_THROW(read_figures(directory / "nothing"), Error);
  std::ofstream(directory / "b.svg") << "<svg>\"#b\"</svg>";
  std::ofstream(directory / "a.svg") << "<svg>a</svg>";
  std::ofstream(directory / "a.txt") << "Rows < 8";
  const auto figures = read_figures(directory.path());
  ASSERT_EQ(figures.size(), 2u);
  EXPECT_EQ(figures[0].caption, "Rows < 8");
  EXPECT_EQ(figures[1].svg, "<svg>\"#b\"</svg>");
  const std::string page = html_report({}, figures);
  EXPECT_TRUE(has(page, "src=\"data:image/svg+xml,%3Csvg%3Ea%3C/svg%3E\"")) << page;
  EXPECT_TRUE(has(page, "%3Csvg%3E%22%23b%22%3C/svg%3E")) << page;
  EXPECT_TRUE(has(page, "<figcaption>Rows &lt; 8</figcaption>")) << page;
}

}  // namespace
}  // namespace firp
