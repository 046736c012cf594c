#include "cli/bench_methods.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <set>
#include <span>

#include "base/error.h"
#include "chat/conversation.h"
#include "cli/cost_cache.h"
#include "draft/lookahead.h"
#include "engine/native_engine.h"

namespace firp {
namespace {

const std::vector<std::string> kMethods = {
    "plain",      "firp", "ngram", "firp+ngram", "lookahead", "early-exit", "self-speculative",
    "draft-model"};

/// A heads file that takes the place of the engine's for the runs of a method.
struct Rival {
  std::string name;
  std::filesystem::path path;
};

Rival parse_rival(const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size()) {
    throw Error(fmt::format("--rivals needs NAME=FILE, not '{}'", text));
  }
  return {text.substr(0, equals), text.substr(equals + 1)};
}

/// Some answers in the model's own words, to choose by what it can do without.
std::vector<Token> own_text(Engine& engine, const ChatTemplate& chat_template) {
  const Vocabulary& vocabulary = chat_template.vocabulary();
  constexpr int kTokens = 128;
  BatchDecoder decoder(engine);
  Session session(decoder, {.method = DraftMethod::kNone});
  Conversation conversation(chat_template);
  for (const char* const question :
       {"What makes a good teacher?", "How does a sailing boat move against the wind?"}) {
    session.append(conversation.user_turn(question));
    generate(
        session, kTokens, [&](Token token) { return vocabulary.is_end_of_generation(token); },
        [](const DecodedToken&) { return true; });
  }
  return session.tokens();
}

class MethodMaker {
 public:
  MethodMaker(const MethodFlags& flags, Decoder& decoder) : flags_(flags), decoder_(decoder) {
    if (!flags.rivals.empty() && !decoder.heads_path.empty()) {
      own_heads_ = std::make_shared<Heads>(read_heads(decoder.heads_path, decoder.file.get()));
    }
  }

  void add(const std::string& name) {
    DecodeOptions options = decoder_.options;
    options.method = DraftMethod::kNone;
    options.ngrams = name.ends_with("ngram");
    PassCosts costs = decoder_.planner ? decoder_.planner->costs() : PassCosts{};
    if (name == kPlain) {
      push(name, options, {});
      return;
    }
    if (name == "lookahead") {  // its rows are in every pass: there is nothing to plan
      options.method = DraftMethod::kLookahead;
      options.tree_nodes = LookaheadSource::kMostNodes;
      push(name, options, {});
      return;
    }
    std::shared_ptr<void> keeps;
    std::string note;
    if (name.starts_with("firp")) {
      options.method = DraftMethod::kFirp;
    } else if (name == "draft-model") {
      auto drafter = std::make_shared<Drafter>(flags_.draft_model, decoder_.engine.options());
      options.method = DraftMethod::kDraftModel;
      options.draft_model = &drafter->engine;
      keeps = std::move(drafter);
    } else if (name != "ngram") {
      if (text_.empty()) text_ = own_text(decoder_.engine, decoder_.chat_template);
      const bool exits = name == "early-exit";
      options.method = DraftMethod::kPartialModel;
      options.partial_model = exits ? choose_exit_layer(decoder_.engine, text_)
                                    : choose_sublayers_to_skip(decoder_.engine, text_);
      const PartialModel& part = options.partial_model;
      note = fmt::format("leaves out {} of {} sublayers{}, agrees in {:.0f} % of tokens, drafts {}",
                         part.skipped.size(), 2 * decoder_.engine.config().layers,
                         exits ? " at the end" : "", 100 * part.agreement, part.steps);
    }
    const bool firp = options.method == DraftMethod::kFirp;
    if (!firp) costs.draft_seconds.clear();  // measured as it goes
    add_trees(name, options, costs, firp ? own_heads_ : nullptr, keeps, note);
  }

  void add_rival(const Rival& rival) {
    const auto heads = std::make_shared<Heads>(read_heads(rival.path, decoder_.file.get()));
    decoder_.engine.set_heads(*heads);
    DecodeOptions options = decoder_.options;
    options.method = DraftMethod::kFirp;
    options.ngrams = false;
    PassCosts costs;
    if (decoder_.planner) {
      costs = cached_costs(decoder_.engine, decoder_.file->path(), rival.path);
    }
    add_trees(rival.name, options, costs, heads, nullptr, rival.path.filename().string());
  }

  std::vector<BenchMethod> methods;

 private:
  void add_trees(const std::string& name, DecodeOptions options, PassCosts costs,
                 const std::shared_ptr<Heads>& heads, const std::shared_ptr<void>& keeps,
                 const std::string& note) {
    if (flags_.free_rows) {
      const double seconds = costs.verify(1, 0);
      costs.verify_seconds = {{1, seconds}, {kMostPlannedNodes + 1, seconds}};
      costs.position_seconds = 0;
      if (!costs.draft_seconds.empty()) {
        std::ranges::fill(costs.draft_seconds, costs.draft_seconds.front());
      }
    }
    for (const int tree : flags_.trees) {
      const bool planned = tree == kPlannedTree;
      options.tree_nodes = planned ? kMostPlannedNodes : tree;
      // None should learn from another's passes.
      std::shared_ptr<Planner> planner;
      if (planned && decoder_.planner) {
        planner = std::make_shared<Planner>(costs, /*follow=*/!flags_.free_rows);
      }
      const bool one = planned || flags_.trees.size() == 1;
      push(one ? name : fmt::format("{}-tree{}", name, tree), options,
           {heads, keeps, std::move(planner)});
      methods.back().note = note;
    }
  }

  struct Kept {
    std::shared_ptr<Heads> heads;
    std::shared_ptr<void> drafter;
    std::shared_ptr<Planner> planner;
  };

  void push(std::string name, const DecodeOptions& options, Kept kept) {
    const auto batch = std::make_shared<BatchDecoder>(decoder_.engine, kept.planner.get());
    BenchMethod method = engine_method(std::move(name), *batch, decoder_.chat_template, options);
    method.run = [run = std::move(method.run), kept = std::move(kept), batch,
                  &engine = decoder_.engine](const BenchPrompt& prompt, int max_tokens,
                                             const std::atomic<bool>& stop) {
      if (kept.heads) engine.set_heads(*kept.heads);
      return run(prompt, max_tokens, stop);
    };
    methods.push_back(std::move(method));
  }

  const MethodFlags& flags_;
  Decoder& decoder_;
  std::shared_ptr<Heads> own_heads_;  ///< to set again after a rival's; empty: no need
  std::vector<Token> text_;
};

}  // namespace

void MethodFlags::add_to(CLI::App& app) {
  app.add_option("--methods", methods,
                 "Methods to run: plain, firp, ngram, firp+ngram, and to compare with lookahead, "
                 "early-exit, self-speculative, draft-model")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::IsMember(kMethods))
      ->default_str("plain,firp");
  app.add_option(
         "--rivals", rivals,
         "Other heads for the model, each a method: NAME=FILE (`firp train --method medusa` "
         "makes some)")
      ->delimiter(',')
      ->allow_extra_args(false);
  app.add_option("--model-draft", draft_model, "(-md) The model of the method draft-model, GGUF");
  CLI::App* const drafted = app.get_option_group("Drafting");
  drafted
      ->add_option(
          "--tree", trees,
          "Sizes of the draft tree; several give several methods. 0: as many as pay (default)")
      ->delimiter(',')
      ->allow_extra_args(false);
  drafted->add_flag(
      "--free-rows", free_rows,
      "Let the planner believe that a pass of many rows costs what one of a single row "
      "costs: what it would choose on a GPU (its seconds mean nothing here)");
}

void MethodFlags::prepare(DecodeFlags& flags) const {
  std::set<std::string> names(methods.begin(), methods.end());
  bool twice =
      names.size() != methods.size() || std::set(trees.begin(), trees.end()).size() != trees.size();
  for (const std::string& rival : rivals) twice |= !names.insert(parse_rival(rival).name).second;
  if (twice) throw Error("a method or tree size is named twice");
  for (const int tree : trees) require_at_least(tree, kPlannedTree, "--tree");
  if (names.contains("draft-model") != !draft_model.empty()) {
    throw Error("the method draft-model and its model (--model-draft FILE) need each other");
  }
  const bool firp = names.contains("firp") || names.contains("firp+ngram");
  const bool plain = names.size() == 1 && names.contains(kPlain);
  flags.draft = firp ? "firp" : plain ? "none" : "ngram";

  const auto need_native = [&](std::string_view what) {
    if (flags.engine == "llama" || offloads(flags.llama)) {
      throw Error(fmt::format("{} needs the native engine (--engine native)", what));
    }
    flags.engine = "native";
  };
  for (const char* const name : {"early-exit", "self-speculative"}) {
    if (names.contains(name)) need_native(fmt::format("the method {}", name));
  }
  if (!draft_model.empty()) Model{draft_model};
  if (rivals.empty()) return;
  const GgufFile model(flags.model);
  for (const std::string& rival : rivals) {
    const Heads heads = read_heads(parse_rival(rival).path, &model);
    if (heads.method == HeadsMethod::kMedusa) need_native("a Medusa rival");
  }
}

std::vector<BenchMethod> make_methods(const MethodFlags& flags, Decoder& decoder,
                                      const std::function<void(const std::string&)>& on_method) {
  MethodMaker maker(flags, decoder);
  for (const std::string& name : flags.methods) {
    on_method(name);
    maker.add(name);
  }
  for (const std::string& text : flags.rivals) {
    const Rival rival = parse_rival(text);
    on_method(rival.name);
    maker.add_rival(rival);
  }
  return std::move(maker.methods);
}

}  // namespace firp
