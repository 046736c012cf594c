#include "bench/simulation.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>

#include "base/error.h"
#include "decode/test_model.h"
#include "model/test_files.h"

namespace firp {
namespace {

using testing::HasSubstr;

/// A chain of two beside a sibling of its first node; of each pass as much is accepted.
Acceptance three_passes() {
  const DraftTree tree = {{.token = 0, .parent = kRoot, .depth = 1, .log_probability = -0.5f},
                          {.token = 0, .parent = kRoot, .depth = 1, .log_probability = -1},
                          {.token = 0, .parent = 0, .depth = 2, .log_probability = -1.5f}};
  return {.model = "small", .passes = {{tree, {0, 2}}, {tree, {0}}, {tree, {1}}}};
}

Acceptance read_text(const std::string& text) {
  const TemporaryDirectory directory;
  std::ofstream(directory / "drafts.jsonl") << text;
  return read_acceptance(directory / "drafts.jsonl");
}

TEST(Acceptance, IsReadAsItWasWritten) {
  const Acceptance written = three_passes();
  const Acceptance read = read_text(acceptance_text(written));
  EXPECT_EQ(read.model, "small");
  ASSERT_EQ(read.passes.size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(read.passes[i].accepted, written.passes[i].accepted);
    ASSERT_EQ(read.passes[i].tree.size(), 3u);
    for (std::size_t node = 0; node < 3; ++node) {
      EXPECT_EQ(read.passes[i].tree[node].parent, written.passes[i].tree[node].parent);
      EXPECT_EQ(read.passes[i].tree[node].depth, written.passes[i].tree[node].depth);
      EXPECT_EQ(read.passes[i].tree[node].log_probability,
                written.passes[i].tree[node].log_probability);
    }
  }
}

TEST(Acceptance, BadFilesAreRefusedByLine) {
  const std::string head = R"({"firp_acceptance":1,"model":"m"})"
                           "\n";
  const auto problem = [](const std::string& text) -> std::string {
    try {
      read_text(text);
    } catch (const Error& error) {
      return error.what();
    }
    return "none";
  };
  const auto pass = [&](const char* parents, const char* probabilities, const char* accepted) {
    return problem(head + fmt::format(R"({{"parents":{},"log_probabilities":{},"accepted":{}}})",
                                      parents, probabilities, accepted));
  };
  EXPECT_EQ(pass("[-1,0]", "[-1,-2]", "[0,1]"), "none");
  EXPECT_THAT(problem(""), HasSubstr("no passes"));
  EXPECT_THAT(problem(head), HasSubstr("no passes"));
  EXPECT_THAT(problem("{}"), HasSubstr("line 1"));
  EXPECT_THAT(problem("\xff"), HasSubstr("line 1"));
  EXPECT_THAT(problem(head + "[]"), HasSubstr("line 2"));
  EXPECT_THAT(pass("[]", "[]", "[]"), HasSubstr("1 to 32 nodes"));
  EXPECT_THAT(pass("[-1]", "[-1,-2]", "[]"), HasSubstr("1 to 32 nodes"));
  EXPECT_THAT(pass("[0]", "[-1]", "[]"), HasSubstr("before it"));
  EXPECT_THAT(pass("[-2]", "[-1]", "[]"), HasSubstr("before it"));
  EXPECT_THAT(pass("[-1]", "[0.5]", "[]"), HasSubstr("not above 0"));
  EXPECT_THAT(pass("[-1,-1]", "[-1,-2]", "[0,1]"), HasSubstr("path"));
  EXPECT_THAT(pass("[-1]", "[-1]", "[1]"), HasSubstr("path"));
  EXPECT_THAT(pass("[-1]", "[-1]", "[0.5]"), HasSubstr("lists"));
}

TEST(Simulation, TheBestFixedTreeFollowsFromCostsAndTrees) {
  const std::vector<VerifiedTree> passes = three_passes().passes;
  // Rows for nothing: all three nodes, both steps. 1 + 4 accepted / 3 passes.
  PassCosts costs = {.verify_seconds = {{1, 1.0}, {33, 1.0}}, .draft_seconds = {0.0, 0.0}};
  const BestFixed all = best_fixed_tree(costs, passes, 0);
  EXPECT_EQ(all.nodes, 3);
  EXPECT_EQ(all.steps, 2);
  EXPECT_NEAR(all.tokens_per_forward, 7.0 / 3, 1e-9);
  EXPECT_NEAR(all.speedup, 7.0 / 3, 1e-9);
  // A second step that costs as much as a pass: one step, 1 + 3 / 3 tokens for 1.25.
  costs.draft_seconds = {0.25, 1.25};
  const BestFixed near = best_fixed_tree(costs, passes, 0);
  EXPECT_EQ(near.nodes, 2);
  EXPECT_EQ(near.steps, 1);
  EXPECT_NEAR(near.speedup, 1.6, 1e-9);
  // Drafts that cost more than they give.
  costs.draft_seconds = {2, 3};
  EXPECT_EQ(best_fixed_tree(costs, passes, 0).nodes, 0);
  EXPECT_EQ(best_fixed_tree(costs, passes, 0).speedup, 1);
}

TEST(Simulation, AcceptsWhatWasAcceptedOfTheVerifiedNodes) {
  const TestModel test;
  NativeEngine engine(*test.model, {.threads = 2, .context = 128});
  engine.set_heads(random_heads_of(engine.config()));
  Acceptance acceptance = three_passes();
  acceptance.passes.resize(1);  // both tokens of the chain, the second by the third node
  const std::atomic<bool> stop{false};
  SimulationOptions options = {.context = 16, .tokens = 24, .rounds = 2, .trees = {1, 2, 3, 0}};
  const SimulationResult result = simulate_drafts(
      engine, acceptance, options, [](int, int) {}, stop);
  ASSERT_EQ(result.methods.size(), 5u);
  const auto tokens_a_pass = [&](int method) {
    const SimulatedMethod& each = result.methods[method];
    return static_cast<double>(each.tokens - 2) / static_cast<double>(each.forwards - 2);
  };
  EXPECT_EQ(tokens_a_pass(0), 1);  // each run's first pass has no draft
  EXPECT_EQ(result.methods[0].drafting_passes, 0);
  EXPECT_EQ(tokens_a_pass(1), 2);
  EXPECT_EQ(tokens_a_pass(2), 2);
  EXPECT_EQ(tokens_a_pass(3), 3);
  EXPECT_GE(result.methods[4].tokens, 48);
  EXPECT_THAT(simulation_table(result), HasSubstr("firp, tree of 3"));
  EXPECT_EQ(simulation_json({}, result, acceptance)["results"].size(), 5u);

  const std::atomic<bool> stopped{true};
  EXPECT_TRUE(simulate_drafts(
                  engine, acceptance, options, [](int, int) {}, stopped)
                  .methods.empty());
}

}  // namespace
}  // namespace firp
