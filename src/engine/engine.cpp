#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "model/error.h"
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

std::span<const float> Engine::draft_source(int row, int step) const {
  return medusa() ? final_state(row) : hidden(row, draft_layer(step));
}

void Engine::check_batch(std::span<const Row> rows, std::span<const int> capture_layers,
                         std::span<const Sublayer> skipped) const {
  const ModelConfig& model = config();
  if (rows.empty()) bad_batch("an empty batch");
  if (rows.size() > static_cast<std::size_t>(options().max_rows)) {
    bad_batch(fmt::format("{} rows in a pass of at most {}", rows.size(), options().max_rows));
  }
  for (const int layer : capture_layers) {
    if (layer < 1 || layer > model.layers) bad_batch("a capture layer that does not exist");
  }
  for (const Sublayer part : skipped) {
    if (part < 0 || part >= 2 * model.layers) bad_batch("a part to skip that does not exist");
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Row& row = rows[i];
    if (!has_sequence(row.sequence)) bad_batch("an unknown sequence");
    if (row.parent != kContext && (row.parent < 0 || row.parent >= static_cast<int>(i) ||
                                   rows[row.parent].sequence != row.sequence)) {
      bad_batch("a parent that is not an earlier row of the same sequence");
    }
    const Row* const parent = row.parent == kContext ? nullptr : &rows[row.parent];
    if (row.is_pseudo() && parent != nullptr && row.step <= parent->step) {
      bad_batch("a pseudo row whose parent is not of an earlier step");
    }
    const int expected = (parent != nullptr ? parent->position + 1 : length(row.sequence)) +
                         steps_left_out(row, parent);
    if (row.position != expected) {
      bad_batch(fmt::format("a row at position {} instead of {}", row.position, expected));
    }
    if (row.position >= options().context) {
      throw Error(fmt::format("the context of {} positions is full; a larger one (-c) holds more",
                              options().context));
    }
    if (!row.is_pseudo()) {
      if (parent != nullptr && parent->is_pseudo()) bad_batch("a token row below a pseudo row");
      if (row.token < 0 || row.token >= model.vocabulary_size) {
        bad_batch(fmt::format("token {} is not in the vocabulary", row.token));
      }
      continue;
    }
    if (row.step > draft_steps()) bad_batch("a pseudo row without a draft map");
    if (token_input() && (row.token_behind < 0 || row.token_behind >= model.vocabulary_size)) {
      bad_batch("a pseudo row of such maps needs the token behind its anchor");
    }
    int top = static_cast<int>(i);
    while (rows[top].is_pseudo() && rows[top].parent != kContext) top = rows[top].parent;
    const bool in_batch = !rows[top].is_pseudo();
    if (row.source.size() != (in_batch ? 0 : static_cast<std::size_t>(model.hidden_size))) {
      bad_batch("a pseudo row needs its token in the batch, or else its source");
    }
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

void Engine::check_path(int sequence, std::span<const Row> rows, std::span<const int> path) const {
  int parent = kContext;
  int position = length(sequence);
  for (const int row : path) {
    const bool inside = row >= 0 && row < static_cast<int>(rows.size());
    if (!inside || rows[row].sequence != sequence || rows[row].parent != parent ||
        rows[row].is_pseudo() || rows[row].position != position) {
      bad_batch("only a path of token rows that hangs on the context can be committed");
    }
    parent = row;
    ++position;
  }
}

}  // namespace firp
