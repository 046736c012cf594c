#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "base/error.h"
#include "engine/token_chain.h"
#include "model/usable_cores.h"

namespace firp {

void bad_batch(std::string_view why) {
  throw std::invalid_argument(fmt::format("Engine: {}", why));
}

void refuse_logits() {
  throw Error(
      "the model gives no numbers (NaN or infinite logits): its file is damaged, or its weights "
      "are too large for its types; download it again, or take another quantisation");
}

int steps_left_out(const Row& row, const Row* parent) {
  return row.is_pseudo() ? row.step - 1 - (parent != nullptr ? parent->step : 0) : 0;
}

EngineOptions checked(EngineOptions options) {
  if (options.threads < 0) throw Error("the number of threads must be at least 1");
  if (options.context < 1) throw Error("the context must hold at least 1 position");
  if (options.positions == 0) options.positions = options.context;
  if (options.positions < options.context) {
    throw Error("all sequences together must have room for the context of one");
  }
  if (options.max_rows < 1) throw Error("a pass must hold at least 1 row");
  if (options.threads == 0) options.threads = usable_cores();
  return options;
}

std::vector<int> Engine::draft_layers() const {
  std::vector<int> layers;
  if (medusa()) return layers;
  for (int step = 1; step <= draft_steps(); ++step) {
    if (std::ranges::count(layers, draft_layer(step)) == 0) layers.push_back(draft_layer(step));
  }
  return layers;
}

int Engine::add_sequence() {
  const int sequence = contexts_.add();
  try {
    add_context(sequence);
  } catch (...) {
    contexts_.remove(sequence);
    throw;
  }
  return sequence;
}

void Engine::remove_sequence(int sequence) {
  remove_context(sequence);
  contexts_.remove(sequence);
}

void Engine::retire_sequence(int sequence) {
  while (keeps_contexts_apart() && drop_retired()) {
  }
  if (!contexts_.retire(sequence)) remove_context(sequence);
}

bool Engine::drop_retired() {
  const std::optional<int> oldest = contexts_.oldest_retired();
  if (oldest) remove_sequence(*oldest);
  return oldest.has_value();
}

void Engine::truncate(int sequence, int length) {
  if (length >= contexts_.length(sequence)) return;
  const int kept = keepable_context(sequence, length);
  truncate_context(sequence, kept);
  contexts_.truncate(sequence, kept);
}

int Engine::adopt(int sequence, std::span<const Token> tokens) {
  truncate(sequence, common_prefix(contexts_.tokens(sequence), tokens));
  const Contexts::Match match =
      contexts_.find(tokens, sequence, /*retired_alone=*/keeps_contexts_apart());
  const int found = match.length > 0 ? keepable_context(match.sequence, match.length) : 0;
  if (found > length(sequence)) {
    truncate(sequence, 0);
    share_context(match.sequence, sequence, found);
    contexts_.share(match.sequence, sequence, found);
  }
  while (keeps_contexts_apart() && drop_retired()) {
  }
  return length(sequence);
}

void Engine::forget(std::span<const Token> tokens, int keep) {
  for (const int sequence : contexts_.retired_beginnings(tokens)) {
    if (keepable_context(sequence, keep) == 0) {
      remove_sequence(sequence);
    } else {
      truncate(sequence, keep);
    }
  }
}

void Engine::take_in(std::span<const Token> tokens, const ReadBytes& read) {
  const auto length = static_cast<int>(tokens.size());
  if (length > options().context) {
    throw Error(
        fmt::format("{} tokens do not fit into a context of {}; a larger one (-c) holds more",
                    length, options().context));
  }
  if (length > free_positions()) {
    throw Error(
        fmt::format("there is no room for {} tokens beside what is being answered", length));
  }
  while (held_positions() + length > options().positions && drop_retired()) {
  }
  const int sequence = add_sequence();
  try {
    read_context(sequence, length, read);
    for (const Token token : tokens) contexts_.append(sequence, token);
  } catch (...) {
    remove_sequence(sequence);
    throw;
  }
  retire_sequence(sequence);
}

Pass Engine::forward(std::span<const Row> rows, std::span<const int> capture_layers,
                     std::span<const Sublayer> skipped) {
  complete_ = false;
  ++pass_;
  positions_.clear();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    check_row(rows, static_cast<int>(i));
    const Row& row = rows[i];
    const Row* const parent = row.parent == kContext ? nullptr : &rows[row.parent];
    positions_.push_back((parent != nullptr ? positions_[row.parent] + 1 : length(row.sequence)) +
                         steps_left_out(row, parent));
    if (positions_.back() >= options().context) {
      throw Error(fmt::format("the context of {} positions is full; a larger one (-c) holds more",
                              options().context));
    }
  }
  check_batch(rows, capture_layers, skipped);
  const int wanted = static_cast<int>(rows.size());
  while (held_positions() + wanted > options().positions && drop_retired()) {
  }
  run({.rows = rows,
       .positions = positions_,
       .capture_layers = capture_layers,
       .skipped = skipped});
  rows_.assign(rows.begin(), rows.end());
  for (Row& row : rows_) row.source = {};
  complete_ = skipped.empty();
  return {*this, pass_};
}

void Engine::check_row(std::span<const Row> rows, int i) const {
  const Row& row = rows[i];
  if (!has_sequence(row.sequence)) bad_batch("an unknown sequence");
  if (row.parent != kContext &&
      (row.parent < 0 || row.parent >= i || rows[row.parent].sequence != row.sequence)) {
    bad_batch("a parent that is not an earlier row of the same sequence");
  }
  const Row* const parent = row.parent == kContext ? nullptr : &rows[row.parent];
  if (row.is_pseudo() && parent != nullptr && row.step <= parent->step) {
    bad_batch("a pseudo row whose parent is not of an earlier step");
  }
  const int vocabulary = config().vocabulary_size;
  if (!row.is_pseudo()) {
    if (parent != nullptr && parent->is_pseudo()) bad_batch("a token row below a pseudo row");
    if (row.token < 0 || row.token >= vocabulary) {
      bad_batch(fmt::format("token {} is not in the vocabulary", row.token));
    }
    return;
  }
  if (row.step > draft_steps()) bad_batch("a pseudo row without a draft map");
  if (token_input() && (row.token_behind < 0 || row.token_behind >= vocabulary)) {
    bad_batch("a pseudo row of such maps needs the token behind its anchor");
  }
  int top = i;
  while (rows[top].is_pseudo() && rows[top].parent != kContext) top = rows[top].parent;
  const bool in_batch = !rows[top].is_pseudo();
  if (row.source.size() != (in_batch ? 0 : static_cast<std::size_t>(config().hidden_size))) {
    bad_batch("a pseudo row needs its token in the batch, or else its source");
  }
}

void Engine::check_batch(std::span<const Row> rows, std::span<const int> capture_layers,
                         std::span<const Sublayer> skipped) const {
  if (rows.empty()) bad_batch("an empty batch");
  if (rows.size() > static_cast<std::size_t>(options().max_rows)) {
    bad_batch(fmt::format("{} rows in a pass of at most {}", rows.size(), options().max_rows));
  }
  for (const int layer : capture_layers) {
    if (layer < 1 || layer > config().layers) bad_batch("a capture layer that does not exist");
  }
  for (const Sublayer part : skipped) {
    if (part < 0 || part >= 2 * config().layers) bad_batch("a part to skip that does not exist");
  }
}

void Engine::check_decoded(std::span<const int> rows) const {
  for (const int row : rows) {
    if (!rows_.at(row).decoded) bad_batch("a row that was not to be decoded");
  }
}

void Engine::check_fits(const Heads& heads) const {
  const ModelConfig& model = config();
  const auto d = static_cast<std::size_t>(model.hidden_size);
  for (const DraftMap& map : heads.steps) {
    if (map.layer < 1 || map.layer > model.layers || map.weight.size() != d * d ||
        map.bias.size() != d || map.token.size() != (heads.has_token_input() ? d * d : 0)) {
      throw Error(fmt::format("these heads do not fit the model: a map at layer {} of {}",
                              map.layer, model.layers));
    }
  }
  for (const Adapter& adapter : heads.adapters) {
    if (adapter.rank > model.hidden_size) {
      throw Error("these heads do not fit the model: an adapter is too large");
    }
  }
}

Engine& Pass::engine() const {
  if (engine_->pass_ != number_) throw std::logic_error("Engine: that pass is over");
  return *engine_;
}

int Pass::rows() const { return static_cast<int>(engine().rows_.size()); }

int Pass::position(int row) const { return engine().positions_.at(row); }

std::span<const float> Pass::hidden(int row, int layer) const {
  return engine().hidden(row, layer);
}

std::span<const float> Pass::final_state(int row) const { return engine().final_state(row); }

std::span<const float> Pass::draft_source(int row, int step) const {
  const Engine& of = engine();
  return of.medusa() ? of.final_state(row) : of.hidden(row, of.draft_layer(step));
}

DraftChain Pass::draft_chain(int row, int steps, Token token_behind) const {
  const Engine& of = engine();
  DraftChain chain;
  for (int step = 1; step <= steps; ++step) {
    if (step == 1 || of.draft_layer(step) != of.draft_layer(step - 1)) {
      const std::span<const float> source = draft_source(row, step);
      chain.sources.emplace_back(source.begin(), source.end());
    }
    chain.rows.push_back({.sequence = of.rows_[row].sequence,
                          .parent = step == 1 ? kContext : step - 2,
                          .step = step,
                          .source = chain.sources.back(),
                          .token_behind = token_behind});
  }
  return chain;
}

std::span<const float> Pass::logits(std::span<const int> rows) const {
  engine().check_decoded(rows);
  return engine().logits(rows);
}

std::span<const BestTokens> Pass::best_tokens(std::span<const int> rows, int count,
                                              bool log_sums) const {
  engine().check_decoded(rows);
  const std::span<const BestTokens> best = engine().best_tokens(rows, count, log_sums);
  for (const BestTokens& row : best) {
    if (row.tokens.empty() || !std::isfinite(row.tokens.front().logit)) refuse_logits();
  }
  return best;
}

std::vector<Proposal> Pass::propose(std::span<const std::vector<int>> anchors) const {
  for (const std::vector<int>& pseudo_rows : anchors) engine().check_decoded(pseudo_rows);
  return engine().propose(anchors);
}

Proposal Pass::propose(std::vector<int> pseudo_rows) const {
  return propose(std::span<const std::vector<int>>(&pseudo_rows, 1)).front();
}

void Pass::commit(int sequence, std::span<const int> path) const {
  Engine& to = engine();
  if (!to.complete_) bad_batch("a pass that left parts out cannot be committed");
  int parent = kContext;
  int position = to.length(sequence);
  for (const int i : path) {
    const bool inside = i >= 0 && i < static_cast<int>(to.rows_.size());
    if (!inside || to.rows_[i].sequence != sequence || to.rows_[i].parent != parent ||
        to.rows_[i].is_pseudo() || to.positions_[i] != position) {
      bad_batch("only a path of token rows that hangs on the context can be committed");
    }
    parent = i;
    ++position;
  }
  to.commit(sequence, path);
  for (const int i : path) to.contexts_.append(sequence, to.rows_[i].token);
}

}  // namespace firp
