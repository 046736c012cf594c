#include "bench/simulation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <random>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "chat/conversation.h"
#include "draft/firp.h"
#include "engine/token_chain.h"
#include "model/text_input.h"
#include "plan/measuring.h"
#include "plan/planner.h"

namespace firp {
namespace {

/// The nodes that drafting so many steps ahead would have given.
VerifiedTree first_steps(const VerifiedTree& all, int steps) {
  VerifiedTree cut;
  std::vector<int> number(all.tree.size(), kRoot);
  for (std::size_t i = 0; i < all.tree.size(); ++i) {
    DraftNode node = all.tree[i];
    if (node.depth > steps) continue;
    if (node.parent != kRoot) node.parent = number[node.parent];
    number[i] = static_cast<int>(cut.tree.size());
    cut.tree.push_back(node);
  }
  for (const int node : all.accepted) {
    if (all.tree[node].depth <= steps) cut.accepted.push_back(number[node]);
  }
  return cut;
}

/// Its first nodes: a tree of its own, since parents stand before their children.
VerifiedTree first_nodes(VerifiedTree tree, int nodes) {
  tree.tree.resize(std::min<std::size_t>(tree.tree.size(), nodes));
  std::erase_if(tree.accepted, [nodes](int node) { return node >= nodes; });
  return tree;
}

/// Decodes on the sequence's context, again and again.
class Simulation {
 public:
  Simulation(Engine& engine, const Acceptance& acceptance)
      : engine_(engine),
        acceptance_(acceptance),
        source_(engine, Drafting::kDeferred),
        sequence_(engine.add_sequence()) {}
  ~Simulation() { engine_.remove_sequence(sequence_); }
  Simulation(const Simulation&) = delete;
  Simulation& operator=(const Simulation&) = delete;

  void read(int count) {
    for (int i = 0; i < count; ++i) tokens_.push_back(any_token());
    append_tokens(engine_, sequence_, tokens_);
  }

  /// Adds what it does to `method`. `planner`: nullptr for trees of `nodes`, 0 without drafts.
  void decode(int count, int nodes, Planner* planner, SimulatedMethod& method) {
    const int context = engine_.length(sequence_);
    const std::size_t kept = tokens_.size();
    tokens_.push_back(any_token());
    std::optional<Plan> plan;
    if (planner != nullptr) plan = planner->begin();
    VerifiedTree next;
    for (int done = 0; done < count;) {
      const Stopwatch watch;
      const int length = engine_.length(sequence_);
      if (planner != nullptr) {
        const Planner::Candidate candidate = {*plan, next.tree, length};
        nodes = planner->nodes_worth_verifying({&candidate, 1}, {}, kMostPlannedNodes).front();
      }
      const VerifiedTree verified = first_nodes(next, nodes);
      const Pass pass = verify(verified);
      const double verify_seconds = watch.seconds();
      method.forwards += 1;
      method.nodes += std::ssize(verified.tree);
      method.tokens += 1 + std::ssize(verified.accepted);
      done += 1 + static_cast<int>(verified.accepted.size());
      if (planner != nullptr) {
        const Planner::Verified seen[] = {{*plan, verified.tree, verified.accepted, length}};
        planner->observe_pass(seen, {}, verify_seconds);
      }
      next = draft(pass, verified, length, nodes, planner, plan);
      if (!next.tree.empty()) method.drafting_passes += 1;
      method.seconds += watch.seconds();
    }
    engine_.truncate(sequence_, context);
    tokens_.resize(kept);
  }

 private:
  Token any_token() { return static_cast<Token>(random_() % engine_.config().vocabulary_size); }

  /// Runs the last token and the tree, and commits what is accepted.
  Pass verify(const VerifiedTree& verified) {
    std::vector<Row> rows = {{.sequence = sequence_, .token = tokens_.back()}};
    for (const DraftNode& node : verified.tree) {
      rows.push_back({.sequence = sequence_, .parent = node.parent + 1, .token = any_token()});
    }
    const Pass pass = engine_.forward(rows, source_.captured_layers());
    pass.best_tokens(first_rows(rows.size()), 1);
    std::vector<int> path = {0};
    for (const int node : verified.accepted) {
      path.push_back(node + 1);
      tokens_.push_back(rows[node + 1].token);
    }
    tokens_.push_back(any_token());  // the model's own behind the path
    pass.commit(sequence_, path);
    return pass;
  }

  /// Runs the drafting pass, and takes a drawn tree for what it gave.
  VerifiedTree draft(const Pass& pass, const VerifiedTree& verified, int context, int nodes,
                     Planner* planner, std::optional<Plan>& plan) {
    const Stopwatch watch;
    if (planner == nullptr && nodes == 0) return {};
    if (planner != nullptr) {
      const DraftTree at_hand;
      const Planner::Draftable draftable = {*plan, at_hand, context};
      if (!planner->decide({&draftable, 1}).front()) return {};
    }
    const int steps = planner != nullptr ? planner->steps(*plan) : engine_.draft_steps();
    const int last = verified.accepted.empty() ? 0 : verified.accepted.back() + 1;
    const DraftPoint point = {.sequence = sequence_,
                              .tokens = tokens_,
                              .row = last,
                              .most_nodes = planner != nullptr ? kMostPlannedNodes : nodes,
                              .chain = false,
                              .most_steps = steps};
    const std::vector<Row> rows = source_.prepare(pass, point);
    const Proposal proposal = engine_.forward(rows).propose(first_rows(rows.size()));
    source_.draft(point, &proposal);
    if (planner != nullptr) {
      Plan* const plans[] = {&*plan};
      planner->observe_drafting(plans, watch.seconds());
    }
    const auto& passes = acceptance_.passes;
    return first_steps(passes[random_() % passes.size()], steps);
  }

  Engine& engine_;
  const Acceptance& acceptance_;
  FirpSource source_;
  std::mt19937 random_{1};
  const int sequence_;
  std::vector<Token> tokens_;
};

[[noreturn]] void refuse_line(int number, std::string_view why) {
  throw Error(fmt::format("line {} of the acceptance file: {} (`firp bench --record` writes one)",
                          number, why));
}

/// The problem with a pass; empty: none.
std::string parse_pass(const nlohmann::json& line, VerifiedTree& pass) {
  const auto is_list = [&line](const char* key, auto is_value) {
    return line.is_object() && line.contains(key) && line[key].is_array() &&
           std::all_of(line[key].begin(), line[key].end(), is_value);
  };
  const auto integer = [](const nlohmann::json& value) { return value.is_number_integer(); };
  const auto number = [](const nlohmann::json& value) { return value.is_number(); };
  if (!is_list("parents", integer) || !is_list("log_probabilities", number) ||
      !is_list("accepted", integer)) {
    return "it needs the lists \"parents\", \"log_probabilities\" and \"accepted\"";
  }
  const auto parents = line["parents"].get<std::vector<long long>>();
  const auto probabilities = line["log_probabilities"].get<std::vector<float>>();
  if (parents.empty() || parents.size() > kMostPlannedNodes ||
      parents.size() != probabilities.size()) {
    return fmt::format("a tree has 1 to {} nodes, each with a parent and a probability",
                       kMostPlannedNodes);
  }
  for (std::size_t i = 0; i < parents.size(); ++i) {
    if (parents[i] < kRoot || parents[i] >= static_cast<long long>(i)) {
      return "a node's parent stands before it";
    }
    if (!(probabilities[i] <= 0)) return "the logarithm of a probability is not above 0";
    const auto parent = static_cast<int>(parents[i]);
    pass.tree.push_back({.token = 0,
                         .parent = parent,
                         .depth = parent == kRoot ? 1 : pass.tree[parent].depth + 1,
                         .log_probability = probabilities[i]});
  }
  int last = kRoot;
  for (const long long node : line["accepted"].get<std::vector<long long>>()) {
    if (node < 0 || node >= std::ssize(pass.tree) || pass.tree[node].parent != last) {
      return "\"accepted\" is a path from the root";
    }
    pass.accepted.push_back(last = static_cast<int>(node));
  }
  return "";
}

}  // namespace

Acceptance record_acceptance(BatchDecoder& decoder, const ChatTemplate& chat_template,
                             const DecodeOptions& options, std::span<const BenchPrompt> prompts,
                             int max_tokens,
                             const std::function<void(int done, int total)>& on_progress,
                             const std::atomic<bool>& stop) {
  Acceptance acceptance = {.model = decoder.engine().config().name, .passes = {}};
  DecodeOptions drafted = options;
  drafted.method = DraftMethod::kFirp;
  drafted.tree_nodes = kMostPlannedNodes;
  const Vocabulary& vocabulary = chat_template.vocabulary();
  const auto is_end = [&vocabulary](const DecodedToken& each) {
    return vocabulary.is_end_of_generation(each.token);
  };
  for (std::size_t i = 0; i < prompts.size() && !stop; ++i) {
    on_progress(static_cast<int>(i), static_cast<int>(prompts.size()));
    Session session(decoder, drafted);
    session.append(Conversation(chat_template).user_turn(prompts[i].turns.front()));
    while (session.stats().tokens < max_tokens && !stop) {
      const bool ended = std::ranges::any_of(session.step(), is_end);
      if (!session.verified().tree.empty()) acceptance.passes.push_back(session.verified());
      if (ended) break;
    }
  }
  return acceptance;
}

std::string acceptance_text(const Acceptance& acceptance) {
  std::string text =
      nlohmann::ordered_json({{"firp_acceptance", 1}, {"model", acceptance.model}}).dump() + "\n";
  for (const VerifiedTree& pass : acceptance.passes) {
    std::vector<int> parents;
    std::vector<double> probabilities;
    for (const DraftNode& node : pass.tree) {
      parents.push_back(node.parent);
      probabilities.push_back(std::round(1e3 * std::min(node.log_probability, 0.0f)) / 1e3);
    }
    text += nlohmann::ordered_json({{"parents", parents},
                                    {"log_probabilities", probabilities},
                                    {"accepted", pass.accepted}})
                .dump() +
            "\n";
  }
  return text;
}

Acceptance read_acceptance(const std::filesystem::path& path) {
  TextInput file("the acceptance file", path);
  Acceptance acceptance;
  std::string text;
  for (int number = 1; file.next_line(text); ++number) {
    const nlohmann::json line = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (number == 1) {
      if (!line.is_object() || line.value("firp_acceptance", nlohmann::json()) != 1 ||
          !line.value("model", nlohmann::json()).is_string()) {
        refuse_line(1, "it is no acceptance file of version 1");
      }
      acceptance.model = line["model"].get<std::string>();
      continue;
    }
    if (const std::string problem = parse_pass(line, acceptance.passes.emplace_back());
        !problem.empty()) {
      refuse_line(number, problem);
    }
  }
  if (acceptance.passes.empty()) throw Error("the acceptance file has no passes");
  return acceptance;
}

Heads random_heads_of(const ModelConfig& config) {
  constexpr int kSteps = 4, kSequenceRank = 64, kAdapterRank = 16, kDraftVocabulary = 24576;
  const int d = config.hidden_size;
  std::minstd_rand random(1);
  const auto values = [&random](std::size_t count, int inputs) {
    std::vector<float> all(count);
    const float scale = 1 / (4 * std::sqrt(static_cast<float>(inputs)));
    for (float& value : all) value = scale * static_cast<float>(static_cast<int>(random() % 9) - 4);
    return all;
  };
  const auto matrix = [&](int outputs, int inputs) {
    return values(static_cast<std::size_t>(outputs) * inputs, inputs);
  };
  Heads heads;
  const int layer = 3 * config.layers / 5;
  for (int step = 0; step < kSteps; ++step) {
    heads.steps.push_back({.layer = layer,
                           .weight = matrix(d, d),
                           .bias = values(d, d),
                           .token = matrix(d, d),
                           .sequence = SequentialHead{.rank = kSequenceRank,
                                                      .state = matrix(kSequenceRank, d),
                                                      .token = matrix(kSequenceRank, d),
                                                      .bias = values(kSequenceRank, d),
                                                      .output = matrix(d, kSequenceRank)}});
  }
  for (int i = layer; i < config.layers; ++i) {
    heads.adapters.push_back({.layer = i,
                              .rank = kAdapterRank,
                              .down = matrix(kAdapterRank, d),
                              .up = matrix(d, kAdapterRank)});
  }
  heads.draft_vocabulary.resize(std::min(kDraftVocabulary, config.vocabulary_size));
  std::iota(heads.draft_vocabulary.begin(), heads.draft_vocabulary.end(), 0);
  return heads;
}

SimulationResult simulate_drafts(Engine& engine, const Acceptance& acceptance,
                                 const SimulationOptions& options,
                                 const std::function<void(int done, int total)>& on_progress,
                                 const std::atomic<bool>& stop) {
  SimulationResult result;
  result.costs = measure_costs(engine);
  result.best = best_fixed_tree(result.costs, acceptance.passes, options.context);
  std::vector<std::unique_ptr<Planner>> planners(1);  // of each method; nullptr: fixed trees
  std::vector<int> trees = {0};
  result.methods = {{.name = kPlain}};
  for (const int tree : options.trees) {
    const bool planned = tree == kPlannedTree;
    trees.push_back(tree);
    planners.push_back(planned ? std::make_unique<Planner>(result.costs) : nullptr);
    result.methods.push_back({.name = planned ? "firp" : fmt::format("firp, tree of {}", tree)});
  }
  Simulation simulation(engine, acceptance);
  simulation.read(options.context);
  const int total = options.rounds * static_cast<int>(trees.size());
  for (int run = 0; run < total; ++run) {
    if (stop) return {};
    on_progress(run, total);
    const std::size_t method = run % trees.size();
    simulation.decode(options.tokens, trees[method], planners[method].get(),
                      result.methods[method]);
  }
  return result;
}

BestFixed best_fixed_tree(const PassCosts& costs, std::span<const VerifiedTree> passes,
                          int context) {
  const double plain_seconds = costs.verify(1, context);
  BestFixed best;
  for (int steps = 1; steps <= std::ssize(costs.draft_seconds); ++steps) {
    std::vector<double> accepted(kMostPlannedNodes + 1);  // [nodes], in all passes
    for (const VerifiedTree& pass : passes) {
      for (const int node : first_steps(pass, steps).accepted) accepted[node + 1] += 1;
    }
    double tokens = 1;
    for (int nodes = 1; nodes <= kMostPlannedNodes; ++nodes) {
      tokens += accepted[nodes] / static_cast<double>(passes.size());
      const double seconds = costs.verify(nodes + 1, context) + costs.draft_seconds[steps - 1];
      const double speedup = tokens * plain_seconds / seconds;
      if (speedup > best.speedup) best = {nodes, steps, tokens, speedup};
    }
  }
  return best;
}

std::string simulation_table(const SimulationResult& result) {
  const PassCosts& costs = result.costs;
  const double plain_seconds = costs.verify(1, 0);
  std::string text = fmt::format("a pass of one row {:.2f} ms; T(R)/T(1):", 1e3 * plain_seconds);
  for (const int rows : {2, 3, 4, 6, 8, 16}) {
    text += fmt::format(" {} rows {:.2f}", rows, costs.verify(rows, 0) / plain_seconds);
  }
  text += "; drafting";
  for (std::size_t i = 0; i < costs.draft_seconds.size(); ++i) {
    text += fmt::format(" {} {:.2f}", i + 1, costs.draft_seconds[i] / plain_seconds);
  }
  text += fmt::format("\n{:<18} {:>9} {:>9} {:>14} {:>13} {:>16}\n", "method", "tokens/s",
                      "of plain", "tokens a pass", "nodes a pass", "drafting passes");
  const double plain = result.methods.front().tokens_per_second();
  for (const SimulatedMethod& each : result.methods) {
    const auto forwards = static_cast<double>(std::max(each.forwards, 1LL));
    text += fmt::format("{:<18} {:>9.2f} {:>8.2f}x {:>14.2f} {:>13.1f} {:>14.0f} %\n", each.name,
                        each.tokens_per_second(), each.tokens_per_second() / plain,
                        each.tokens / forwards, each.nodes / forwards,
                        100 * each.drafting_passes / forwards);
  }
  const BestFixed& best = result.best;
  text += best.nodes == 0
              ? std::string("By these costs no fixed tree is faster than plain decoding.\n")
              : fmt::format(
                    "By these costs the best fixed tree has {} nodes, drafted {} "
                    "steps ahead: {:.2f} tokens a pass, {:.2f}x.\n",
                    best.nodes, best.steps, best.tokens_per_forward, best.speedup);
  return text;
}

nlohmann::ordered_json simulation_json(nlohmann::ordered_json machine,
                                       const SimulationResult& result,
                                       const Acceptance& acceptance) {
  nlohmann::ordered_json methods = nlohmann::ordered_json::array();
  for (const SimulatedMethod& each : result.methods) {
    methods.push_back({{"method", each.name},
                       {"tokens", each.tokens},
                       {"forwards", each.forwards},
                       {"nodes", each.nodes},
                       {"drafting_passes", each.drafting_passes},
                       {"seconds", each.seconds}});
  }
  const BestFixed& best = result.best;
  return {{"mode", "simulation"},
          {"machine", std::move(machine)},
          {"acceptance", {{"model", acceptance.model}, {"passes", acceptance.passes.size()}}},
          {"results", std::move(methods)},
          {"best_fixed_tree",
           {{"nodes", best.nodes},
            {"steps", best.steps},
            {"tokens_per_forward", best.tokens_per_forward},
            {"speedup", best.speedup}}}};
}

}  // namespace firp
