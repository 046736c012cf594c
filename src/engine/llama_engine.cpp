#include "engine/llama_engine.h"

#include <fmt/format.h>
#include <ggml-backend.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <utility>

#include "base/error.h"
#include "engine/device_maps.h"
#include "engine/draft_head.h"
#include "engine/llama_handles.h"
#include "model/ggml_log.h"
#include "model/part_name.h"

namespace firp {
namespace {

/// Sequences of one libllama context, at most (LLAMA_MAX_SEQ).
constexpr int kMostSequences = 256;
/// Rows that a pass runs again to keep the cache in order, at most.
constexpr std::size_t kMostReplayed = 64;

/// t of "l_out-<t - 1>", the residual stream after t layers; 0 for other tensors.
int residual_layer(const ggml_tensor* tensor) {
  constexpr std::string_view kPrefix = "l_out-";
  const std::string_view name = tensor->name;
  if (!name.starts_with(kPrefix)) return 0;
  int index = -1;
  const auto [end, error] =
      std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), index);
  return error == std::errc() && end == name.data() + name.size() ? index + 1 : 0;
}

/// Makes the devices of RPC servers known to ggml, each server once.
void add_rpc_servers(const std::vector<std::string>& servers) {
  if (servers.empty()) return;
  ggml_backend_reg_t const rpc = ggml_backend_reg_by_name("RPC");
  using AddServer = ggml_backend_reg_t (*)(const char*);
  const auto add = rpc != nullptr ? reinterpret_cast<AddServer>(ggml_backend_reg_get_proc_address(
                                        rpc, "ggml_backend_rpc_add_server"))
                                  : nullptr;
  if (add == nullptr) throw Error("--rpc: this libllama was built without RPC (GGML_RPC)");
  static std::set<std::string> known;
  static std::mutex lock;
  const std::lock_guard hold(lock);
  for (const std::string& server : servers) {
    if (known.contains(server)) continue;
    ggml_backend_reg_t const added = add(server.c_str());
    if (added == nullptr) throw Error(fmt::format("--rpc: no server answers at {}", server));
    ggml_backend_register(added);
    known.insert(server);
  }
}

/// The devices of these names, ended by nullptr as libllama wants it. "none": no device.
std::vector<ggml_backend_dev_t> find_devices(const std::vector<std::string>& names) {
  std::vector<ggml_backend_dev_t> devices;
  for (const std::string& name : names) {
    if (name == "none") continue;
    ggml_backend_dev_t const device = ggml_backend_dev_by_name(name.c_str());
    if (device == nullptr) {
      std::string all = "none";
      for (std::size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        all += fmt::format(", {}", ggml_backend_dev_name(ggml_backend_dev_get(i)));
      }
      throw Error(fmt::format("--device: there is no {} (there are: {})", name, all));
    }
    devices.push_back(device);
  }
  devices.push_back(nullptr);
  return devices;
}

/// llama.cpp takes LongRoPE's long factors where all that it has room for is more than the model's
/// original context. Here that is more than the context that was asked for: what makes it take the
/// short factors where that is not longer, ended as libllama wants it; empty: nothing to say.
std::vector<llama_model_kv_override> short_factors(const GgufFile& file, int context,
                                                   std::uint32_t room) {
  const std::string architecture = file.get_string("general.architecture");
  const std::string key = architecture + ".rope.scaling.original_context_length";
  const std::int64_t original =
      file.find_int(key).value_or(file.find_int(architecture + ".context_length").value_or(0));
  if (file.find_tensor("rope_factors_long.weight") == nullptr || context > original) return {};
  llama_model_kv_override longer = {};
  longer.tag = LLAMA_KV_OVERRIDE_TYPE_INT;
  key.copy(longer.key, sizeof longer.key - 1);
  longer.val_i64 = std::max<std::int64_t>(original, (std::int64_t{room} + 255) / 256 * 256);
  return {longer, llama_model_kv_override{}};
}

/// Rows that are no other's parent.
std::size_t leaves(std::span<const Row> rows) {
  std::set<int> parents;
  for (const Row& row : rows) parents.insert(row.parent);
  return rows.size() - parents.size() + parents.count(kContext);
}

ModelConfig config_of(const llama_model* model, const GgufFile& file) {
  const ModelIdentity sizes = sizes_of(file);
  ModelConfig config;
  config.architecture = sizes.architecture;
  config.name = file.find_string("general.name").value_or(model_name(file.path()));
  config.layers = llama_model_n_layer(model);
  config.hidden_size = llama_model_n_embd(model);
  config.query_heads = llama_model_n_head(model);
  config.kv_heads = llama_model_n_head_kv(model);
  config.vocabulary_size = llama_vocab_n_tokens(llama_model_get_vocab(model));
  config.trained_context = llama_model_n_ctx_train(model);
  config.tied_head = file.find_tensor("output.weight") == nullptr;
  return config;
}

/// What it is about this model that rejected drafts cannot be taken back; empty: nothing.
std::string_view refusal(const llama_model* model) {
  if (llama_model_is_recurrent(model)) {
    return "is recurrent: its state cannot be taken back where a draft is rejected";
  }
  if (llama_model_is_hybrid(model)) {
    return "has recurrent layers: their state cannot be taken back where a draft is rejected";
  }
  if (llama_model_has_encoder(model)) return "has an encoder, which FIRP has no rows for";
  if (llama_model_is_diffusion(model)) return "is a diffusion model: it has no next token";
  return "";
}

/// The `count` best of some tokens, best first, of equal ones the smaller number first.
/// `vocabulary`: those tokens; empty: all.
BestTokens best_of(std::span<const float> logits, std::span<const std::int32_t> vocabulary,
                   int count, bool log_sum) {
  BestTokens best;
  std::vector<TokenLogit>& kept = best.tokens;
  const std::size_t tokens = vocabulary.empty() ? logits.size() : vocabulary.size();
  for (std::size_t i = 0; i < tokens; ++i) {
    const Token token = vocabulary.empty() ? static_cast<Token>(i) : vocabulary[i];
    const TokenLogit each{token, logits[token]};
    if (std::isnan(each.logit)) continue;
    const bool full = static_cast<int>(kept.size()) == count;
    if (full && !likelier(each, kept.back())) continue;
    if (full) kept.pop_back();
    kept.insert(std::ranges::upper_bound(kept, each, likelier), each);
  }
  if (log_sum && !kept.empty()) {
    const float largest = kept.front().logit;
    double sum = 0;
    for (std::size_t i = 0; i < tokens; ++i) {
      sum += std::exp(logits[vocabulary.empty() ? i : vocabulary[i]] - largest);
    }
    best.log_sum = largest + static_cast<float>(std::log(sum));
  }
  return best;
}

}  // namespace

struct LlamaEngine::State {
  State(std::shared_ptr<const GgufFile> f, const EngineOptions& o, const LlamaOptions& llama);

  /// A sequence's numbers in libllama. Its context, and the path of one leaf of the last pass, are
  /// those of `base`; the paths of the other leaves have a number each until the next pass.
  struct Sequence {
    int base;
    int length = 0;
    std::vector<int> branches;
    /// The last tokens of the context, whose keys and values are not in the cache: they were
    /// accepted in cells that lie behind those of others. The next pass runs them again, first.
    std::vector<Token> replayed = {};

    int cached() const { return length - static_cast<int>(replayed.size()); }
  };
  struct InstalledHeads {
    InstalledHeads(const Heads& h, State& state)
        : heads(h),
          maps(heads, state.options.threads),
          draft_head(heads.has_sequential_head()
                         ? std::make_shared<DraftHead>(state.token_embedding(), state.head(), h,
                                                       default_kernels(), state.pool)
                         : nullptr) {}

    const Heads heads;
    DeviceMaps maps;
    const std::shared_ptr<DraftHead> draft_head;  ///< nullptr where none is sequential
  };

  const Tensor& token_embedding() const { return file->get_tensor("token_embd.weight"); }
  const Tensor& head() const {
    const Tensor* const own = file->find_tensor("output.weight");
    return own != nullptr ? *own : token_embedding();
  }
  /// nullopt where all are taken.
  std::optional<int> take_number();
  int number_or_error();
  /// Forgets what the last pass left uncommitted.
  void discard(Sequence& sequence);
  /// The number in libllama of one path through each row, those of branches taken for it.
  void number_paths(std::span<const Row> batch);
  void decode(std::span<const Row> batch, std::span<const int> row_positions);
  void find_residual_streams();

  std::span<const float> logits_of(int row) const;

  static bool is_cancelled(void* state);
  static bool on_tensor(ggml_tensor* tensor, bool ask, void* state);
  /// The residual stream after `layer` layers is there: overwrites and keeps what the pass asks.
  void at_layer(ggml_tensor* stream, int layer);

  const std::shared_ptr<const GgufFile> file;
  const EngineOptions options;
  const bool exact;
  std::string isa;
  ModelConfig config;
  LlamaModelPointer model;
  GgmlThreadpoolPointer threads;
  LlamaContextPointer context;
  std::set<int> residual_layers;  ///< where the stream can be reached
  ThreadPool pool{1};             ///< of the sequential head
  std::optional<InstalledHeads> heads;

  std::map<int, Sequence> sequences;
  std::vector<int> free_numbers;

  // The last pass.
  std::span<const Row> rows;                 ///< while it runs
  int first_row = 0;                         ///< of libllama's batch: those before it were replayed
  std::vector<std::vector<int>> numbers;     ///< of each row: all paths through it
  std::map<int, std::vector<float>> states;  ///< by captured layer: [rows x d]
  bool has_final_states = false;
  int batch_rows = 1;
  std::set<int> stops;  ///< layers that the callback is to see
  std::set<int> captured;
  std::exception_ptr failure;  ///< of the callback, which must not throw through C
  std::vector<float> logits;
  std::vector<BestTokens> best;
};

LlamaEngine::State::State(std::shared_ptr<const GgufFile> f, const EngineOptions& o,
                          const LlamaOptions& llama)
    : file(std::move(f)), options(checked(o)), exact(llama.exact) {
  constexpr int kMostPositions = 1 << 28;  // libllama's numbers have 32 bits
  if (options.positions > kMostPositions) {
    throw Error(fmt::format("a context of {} is more than llama.cpp has", options.positions));
  }
  const GgmlErrors errors;
  const std::string path = file->path().string();
  add_rpc_servers(llama.rpc_servers);
  llama_model_params model_parameters = llama_model_default_params();
  model_parameters.n_gpu_layers = llama.gpu_layers;
  std::vector<ggml_backend_dev_t> devices;
  if (!llama.devices.empty()) {
    devices = find_devices(llama.devices);
    model_parameters.devices = devices.data();
  }
  std::vector<float> split = llama.tensor_split;
  if (split.size() > llama_max_devices()) throw Error("--tensor-split names too many devices");
  split.resize(llama_max_devices());
  if (!llama.tensor_split.empty()) model_parameters.tensor_split = split.data();
  const auto context_size = static_cast<std::uint32_t>(options.positions + options.max_rows) +
                            static_cast<std::uint32_t>(kMostReplayed);
  const std::vector<llama_model_kv_override> overrides =
      short_factors(*file, options.context, context_size);
  if (!overrides.empty()) model_parameters.kv_overrides = overrides.data();
  model.reset(llama_model_load_from_file(path.c_str(), model_parameters));
  if (model == nullptr) {
    throw Error(
        fmt::format("libllama cannot load {}: {}", path, errors.text("it does not say why")));
  }
  config = config_of(model.get(), *file);
  if (const std::string_view why = refusal(model.get()); !why.empty()) {
    throw Error(fmt::format("{}: the architecture {} {}", path, config.architecture, why));
  }

  llama_context_params parameters = llama_context_default_params();
  parameters.n_ctx = context_size;
  parameters.n_batch = static_cast<std::uint32_t>(options.max_rows) + kMostReplayed;
  parameters.n_ubatch = parameters.n_batch;  // sources of pseudo rows must be in the same graph
  parameters.n_seq_max = std::min<std::uint32_t>(kMostSequences, parameters.n_batch);
  parameters.kv_unified = true;
  parameters.swa_full = true;  // or the context of a rejected path could be gone
  parameters.n_threads = options.threads;
  parameters.n_threads_batch = options.threads;
  parameters.type_k = ggml_type_of(options.cache_type);
  parameters.type_v = parameters.type_k;
  parameters.flash_attn_type = static_cast<llama_flash_attn_type>(llama.flash_attention);
  parameters.abort_callback = &State::is_cancelled;
  parameters.abort_callback_data = this;
  parameters.cb_eval = &State::on_tensor;
  parameters.cb_eval_user_data = this;
  context.reset(llama_init_from_model(model.get(), parameters));
  ggml_threadpool_params pool_parameters = ggml_threadpool_params_default(options.threads);
  threads.reset(ggml_threadpool_new(&pool_parameters));
  if (context == nullptr || threads == nullptr) {
    throw Error(
        fmt::format("libllama cannot run {}: {}", path, errors.text("it does not say why")));
  }
  llama_attach_threadpool(context.get(), threads.get(), threads.get());
  for (auto number = static_cast<int>(parameters.n_seq_max); number-- > 0;) {
    free_numbers.push_back(number);
  }

  isa = "llama.cpp";
  for (std::size_t i = 0; i < ggml_backend_dev_count(); ++i) {
    ggml_backend_dev_t const device = ggml_backend_dev_get(i);
    const bool wanted = devices.empty() || std::ranges::count(devices, device) > 0 ||
                        ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
    if (wanted) isa += fmt::format(", {}", ggml_backend_dev_name(device));
  }
  find_residual_streams();
}

/// A pass of one token shows which layers' streams have the name that we know.
void LlamaEngine::State::find_residual_streams() {
  for (int layer = 1; layer <= config.layers; ++layer) stops.insert(layer);
  captured = stops;
  Token token = 0;
  if (llama_decode(context.get(), llama_batch_get_one(&token, 1)) != 0) {
    throw Error(fmt::format("libllama cannot run {}", file->path().string()));
  }
  if (failure == nullptr) {
    for (const auto& [layer, state] : states) residual_layers.insert(layer);
  }
  failure = nullptr;
  states.clear();
  llama_memory_clear(llama_get_memory(context.get()), /*data=*/false);
}

bool LlamaEngine::State::is_cancelled(void* state) {
  const std::atomic<bool>* const cancelled = static_cast<State*>(state)->options.cancelled;
  return cancelled != nullptr && cancelled->load(std::memory_order_relaxed);
}

bool LlamaEngine::State::on_tensor(ggml_tensor* tensor, bool ask, void* state) {
  State& s = *static_cast<State*>(state);
  if (s.stops.empty()) return false;
  const int layer = residual_layer(tensor);
  if (layer == 0 || !s.stops.contains(layer)) return false;
  if (ask) return true;
  try {
    s.at_layer(tensor, layer);
    return true;
  } catch (...) {
    s.failure = std::current_exception();
    return false;
  }
}

void LlamaEngine::State::at_layer(ggml_tensor* stream, int layer) {
  if (stream->type != GGML_TYPE_F32 || stream->ne[0] != config.hidden_size ||
      stream->ne[1] != batch_rows || !ggml_is_contiguous(stream)) {
    throw Error(fmt::format("the residual stream after layer {} of {} is not as it is expected",
                            layer, config.architecture));
  }
  std::vector<DeviceMaps::Entry> entries;
  std::vector<std::vector<float>> embeddings;
  std::vector<int> pseudo_rows;
  for (int i = 0; i < static_cast<int>(rows.size()); ++i) {
    const Row& row = rows[i];
    if (!row.is_pseudo() || heads->heads.steps[row.step - 1].layer > layer) continue;
    pseudo_rows.push_back(first_row + i);
    if (heads->heads.steps[row.step - 1].layer < layer) continue;
    int source = i;
    while (source != kContext && rows[source].is_pseudo()) source = rows[source].parent;
    std::vector<float>& embedding = embeddings.emplace_back();
    if (heads->heads.has_token_input()) {
      embedding.resize(config.hidden_size);
      dequantize_row(token_embedding(), row.token_behind, embedding);
    }
    entries.push_back({.row = first_row + i,
                       .step = row.step,
                       .source_row = source == kContext ? -1 : first_row + source,
                       .source = row.source,
                       .embedding = embedding});
  }
  if (!entries.empty()) heads->maps.enter(stream, entries);
  if (captured.contains(layer)) {
    std::vector<float>& to = states[layer];
    to.resize(ggml_nelements(stream));
    ggml_backend_tensor_get(stream, to.data(), 0, to.size() * sizeof(float));
  }
  if (!pseudo_rows.empty() && layer < config.layers) {
    heads->maps.adapt(stream, layer, pseudo_rows);
  }
}

std::optional<int> LlamaEngine::State::take_number() {
  if (free_numbers.empty()) return std::nullopt;
  const int number = free_numbers.back();
  free_numbers.pop_back();
  return number;
}

int LlamaEngine::State::number_or_error() {
  if (const std::optional<int> number = take_number()) return *number;
  throw Error(fmt::format(
      "libllama has {} sequences; a draft tree needs one for each leaf: ask for smaller trees",
      llama_n_seq_max(context.get())));
}

void LlamaEngine::State::discard(Sequence& sequence) {
  llama_memory_t const memory = llama_get_memory(context.get());
  for (const int number : sequence.branches) {
    llama_memory_seq_rm(memory, number, -1, -1);
    free_numbers.push_back(number);
  }
  sequence.branches.clear();
  llama_memory_seq_rm(memory, sequence.base, sequence.cached(), -1);
}

void LlamaEngine::State::number_paths(std::span<const Row> batch) {
  llama_memory_t const memory = llama_get_memory(context.get());
  std::vector<bool> has_child(batch.size(), false);
  for (const Row& row : batch) {
    if (row.parent != kContext) has_child[row.parent] = true;
  }
  numbers.assign(batch.size(), {});
  std::set<int> taken;  // sequences whose base has its path
  for (std::size_t leaf = 0; leaf < batch.size(); ++leaf) {
    if (has_child[leaf]) continue;
    Sequence& sequence = sequences.at(batch[leaf].sequence);
    int number = sequence.base;
    if (!taken.insert(batch[leaf].sequence).second) {
      number = sequence.branches.emplace_back(number_or_error());
      llama_memory_seq_cp(memory, sequence.base, number, -1, -1);
    }
    for (int row = static_cast<int>(leaf); row != kContext; row = batch[row].parent) {
      numbers[row].push_back(number);
    }
  }
}

/// libllama's batch: first what the sequences have to replay, then the rows.
void LlamaEngine::State::decode(std::span<const Row> batch, std::span<const int> row_positions) {
  std::vector<Token> tokens;
  std::vector<llama_pos> token_positions;
  std::vector<std::int8_t> decoded;
  std::vector<std::vector<llama_seq_id>> number_lists;
  const auto add = [&](Token token, int position, bool output, std::vector<llama_seq_id> list) {
    tokens.push_back(token);
    token_positions.push_back(position);
    decoded.push_back(has_final_states || output ? 1 : 0);
    number_lists.push_back(std::move(list));
  };
  std::map<int, std::vector<llama_seq_id>> all_numbers;  // of each sequence of the batch
  for (const Row& row : batch) {
    Sequence& sequence = sequences.at(row.sequence);
    if (!all_numbers.try_emplace(row.sequence, sequence.branches).second) continue;
    all_numbers[row.sequence].push_back(sequence.base);
  }
  for (const auto& [name, list] : all_numbers) {
    Sequence& sequence = sequences.at(name);
    int position = sequence.cached();
    for (const Token token : sequence.replayed) add(token, position++, false, list);
  }
  first_row = static_cast<int>(tokens.size());
  for (std::size_t i = 0; i < batch.size(); ++i) {
    // A pseudo row's token is overwritten before anything looks at it.
    add(batch[i].is_pseudo() ? 0 : batch[i].token, row_positions[i], batch[i].decoded, numbers[i]);
  }
  if (exact && tokens.size() == 1) {  // a second row of the same, which nothing sees
    Sequence& sequence = sequences.at(batch[0].sequence);
    const int number = sequence.branches.emplace_back(number_or_error());
    llama_memory_seq_cp(llama_get_memory(context.get()), sequence.base, number, -1, -1);
    add(tokens[0], token_positions[0], false, {number});
  }
  batch_rows = static_cast<int>(tokens.size());
  std::vector<std::int32_t> number_counts;
  std::vector<llama_seq_id*> number_pointers;
  for (std::vector<llama_seq_id>& list : number_lists) {
    number_counts.push_back(static_cast<std::int32_t>(list.size()));
    number_pointers.push_back(list.data());
  }
  llama_set_embeddings(context.get(), has_final_states);
  const GgmlErrors errors;
  const int status = llama_decode(context.get(), {.n_tokens = batch_rows,
                                                  .token = tokens.data(),
                                                  .embd = nullptr,
                                                  .pos = token_positions.data(),
                                                  .n_seq_id = number_counts.data(),
                                                  .seq_id = number_pointers.data(),
                                                  .logits = decoded.data()});
  llama_synchronize(context.get());
  ggml_threadpool_pause(threads.get());  // or it would spin beside what comes between passes
  if (failure != nullptr) std::rethrow_exception(std::exchange(failure, nullptr));
  if (status == 2) throw Cancelled();
  if (status == 1) throw Error("llama.cpp's context is full; a larger one (-c) holds more");
  if (status != 0) {
    throw Error(fmt::format("llama.cpp could not run a pass: {}", errors.text("it says no more")));
  }
  // Not before: a pass that failed has left nothing in the cache.
  for (const auto& [name, list] : all_numbers) sequences.at(name).replayed.clear();
}

LlamaEngine::LlamaEngine(std::shared_ptr<const GgufFile> file, const EngineOptions& options,
                         const LlamaOptions& llama)
    : state_(std::make_unique<State>(std::move(file), options, llama)) {}
LlamaEngine::~LlamaEngine() = default;

const ModelConfig& LlamaEngine::config() const { return state_->config; }
const EngineOptions& LlamaEngine::options() const { return state_->options; }
const char* LlamaEngine::isa() const { return state_->isa.c_str(); }
std::size_t LlamaEngine::weight_bytes() const {
  const State& s = *state_;
  // Of an embedding that is not the head, too, a pass reads a row a token.
  std::size_t unread = s.config.tied_head ? 0 : s.token_embedding().data.size();
  // Of a mixture's experts a row reads those that it uses: as many in all layers, or all count.
  const std::string key = fmt::format("{}.expert_used_count", s.config.architecture);
  const std::int64_t used = s.file->is_array(key) ? 0 : s.file->find_int(key).value_or(0);
  for (const Tensor& tensor : s.file->tensors()) {
    const std::int64_t experts = tensor.shape[2];
    if (used <= 0 || experts <= used || tensor.name.find("_exps.") == std::string::npos) continue;
    unread += tensor.data.size() / experts * (experts - used);
  }
  return llama_model_size(s.model.get()) - unread;
}

void LlamaEngine::set_heads(const Heads& heads) {
  State& s = *state_;
  if (heads.method == HeadsMethod::kMedusa) {
    throw Error("Medusa's heads run on the native engine only (--engine native)");
  }
  check_fits(heads);
  for (const DraftMap& map : heads.steps) {
    if (!s.residual_layers.contains(map.layer)) {
      throw Error(
          fmt::format("llama.cpp does not show the residual stream after layer {} of the "
                      "architecture {}: no heads there, but --draft ngram works",
                      map.layer, s.config.architecture));
    }
  }
  // Between the two layers the later step would see what the earlier one's placeholder computes.
  if (!std::ranges::is_sorted(heads.steps, {}, &DraftMap::layer)) {
    throw Error(
        "llama.cpp cannot run heads of which a later step enters at an earlier layer: "
        "this needs --engine native");
  }
  s.heads.emplace(heads, s);
}

int LlamaEngine::draft_steps() const { return state_->heads ? state_->heads->heads.count() : 0; }
bool LlamaEngine::token_input() const {
  return state_->heads && state_->heads->heads.has_token_input();
}
int LlamaEngine::draft_layer(int step) const {
  return state_->heads->heads.steps.at(step - 1).layer;
}

int LlamaEngine::sequences_a_pass() const { return state_->exact ? 1 : kMostSequences; }
bool LlamaEngine::keeps_contexts_apart() const { return state_->exact; }

void LlamaEngine::add_context(int sequence) {
  std::optional<int> number = state_->take_number();
  while (!number && drop_retired()) number = state_->take_number();
  state_->sequences[sequence] = {.base = number ? *number : state_->number_or_error(),
                                 .branches = {}};
}

void LlamaEngine::remove_context(int sequence) {
  State::Sequence& removed = state_->sequences.at(sequence);
  removed.length = 0;
  removed.replayed.clear();
  state_->discard(removed);
  state_->free_numbers.push_back(removed.base);
  state_->sequences.erase(sequence);
}

void LlamaEngine::truncate_context(int sequence, int length) {
  State::Sequence& s = state_->sequences.at(sequence);
  while (s.length > length) {
    if (!s.replayed.empty()) s.replayed.pop_back();
    --s.length;
  }
  state_->discard(s);
}

void LlamaEngine::share_context(int from, int to, int length) {
  const State::Sequence& source = state_->sequences.at(from);
  State::Sequence& target = state_->sequences.at(to);
  const int cached = std::min(length, source.cached());
  llama_memory_seq_cp(llama_get_memory(state_->context.get()), source.base, target.base, 0, cached);
  target.length = length;
  target.replayed.assign(source.replayed.begin(), source.replayed.begin() + (length - cached));
}

void LlamaEngine::run(const Batch& batch) {
  State& s = *state_;
  if (!batch.skipped.empty()) {
    throw Error("llama.cpp cannot leave out parts of a model: this needs --engine native");
  }
  s.stops.clear();
  s.captured.clear();
  for (const int layer : batch.capture_layers) {
    if (!s.residual_layers.contains(layer)) {
      throw Error(
          fmt::format("llama.cpp does not show the residual stream after layer {} of the "
                      "architecture {}",
                      layer, s.config.architecture));
    }
    s.stops.insert(layer);
    s.captured.insert(layer);
  }
  bool has_pseudo_rows = false;
  for (const Row& row : batch.rows) {
    if (!row.is_pseudo()) continue;
    has_pseudo_rows = true;
    if (steps_left_out(row, row.parent == kContext ? nullptr : &batch.rows[row.parent]) > 0) {
      throw Error("llama.cpp needs positions without gaps: this needs --engine native");
    }
    s.stops.insert(draft_layer(row.step));
    for (const Adapter& adapter : s.heads->heads.adapters) s.stops.insert(adapter.layer);
  }
  for (auto& [number, sequence] : s.sequences) s.discard(sequence);
  // Each leaf needs a number; retired sequences keep theirs as long as there are others.
  while (s.free_numbers.size() < leaves(batch.rows) && drop_retired()) {
  }
  s.rows = batch.rows;
  s.states.clear();
  // The last layer's stream has a row for each token only where all of them are decoded.
  s.has_final_states = has_pseudo_rows || !batch.capture_layers.empty();
  s.number_paths(batch.rows);
  s.decode(batch.rows, batch.positions);
}

std::span<const float> LlamaEngine::hidden(int row, int layer) const {
  const auto state = state_->states.find(layer);
  const std::span<const Row> all = rows();
  if (state == state_->states.end() || row < 0 || row >= std::ssize(all) ||
      (all[row].is_pseudo() && layer < draft_layer(all[row].step))) {
    bad_batch("that hidden state was not captured");
  }
  const auto d = static_cast<std::size_t>(config().hidden_size);
  return std::span(state->second).subspan((state_->first_row + row) * d, d);
}

std::span<const float> LlamaEngine::final_state(int row) const {
  const float* const state =
      state_->has_final_states
          ? llama_get_embeddings_ith(state_->context.get(), state_->first_row + row)
          : nullptr;
  if (state == nullptr) bad_batch("the final states of this pass were not kept");
  return {state, static_cast<std::size_t>(config().hidden_size)};
}

std::span<const float> LlamaEngine::State::logits_of(int row) const {
  const float* const values = llama_get_logits_ith(context.get(), first_row + row);
  if (values == nullptr) bad_batch("a row that was not to be decoded");
  return {values, static_cast<std::size_t>(config.vocabulary_size)};
}

std::span<const float> LlamaEngine::logits(std::span<const int> rows) {
  State& s = *state_;
  const auto vocabulary = static_cast<std::size_t>(config().vocabulary_size);
  s.logits.resize(rows.size() * vocabulary);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::ranges::copy(s.logits_of(rows[i]), s.logits.data() + i * vocabulary);
  }
  return s.logits;
}

std::span<const BestTokens> LlamaEngine::best_tokens(std::span<const int> rows, int count,
                                                     bool log_sums) {
  State& s = *state_;
  s.best.clear();
  for (const int row : rows) {
    s.best.push_back(best_of(s.logits_of(row), {}, count, log_sums));
  }
  return s.best;
}

std::vector<Proposal> LlamaEngine::propose(std::span<const std::vector<int>> anchors) {
  State& s = *state_;
  const State::InstalledHeads& heads = *s.heads;
  std::vector<Proposal> proposals;
  for (const std::vector<int>& pseudo_rows : anchors) {
    std::vector<BestTokens> best;
    std::vector<std::span<const float>> states;
    for (const int row : pseudo_rows) {
      best.push_back(best_of(s.logits_of(row), heads.heads.draft_vocabulary, kRankedCandidates,
                             /*log_sum=*/true));
      states.push_back(final_state(row));
    }
    std::vector<float> inner;
    if (heads.draft_head != nullptr) inner = heads.draft_head->take_states(states);
    proposals.emplace_back(std::move(best), heads.draft_head, std::move(inner));
  }
  return proposals;
}

void LlamaEngine::commit(int sequence, std::span<const int> path) {
  State& s = *state_;
  State::Sequence& to = s.sequences.at(sequence);
  // Rows take free cells in their order. What lies behind a gap, which rows before it leave that
  // are not accepted, would be out of order once the gap is filled.
  std::size_t in_order = 0;
  while (in_order < path.size() && path[in_order] == static_cast<int>(in_order)) ++in_order;
  if (!s.exact || path.size() - in_order > kMostReplayed) in_order = path.size();
  if (in_order > 0) {
    const int begin = to.cached();
    const std::vector<int>& through = s.numbers[path[in_order - 1]];
    if (std::ranges::count(through, to.base) == 0) {  // the path is a branch's
      llama_memory_t const memory = llama_get_memory(s.context.get());
      llama_memory_seq_rm(memory, to.base, begin, -1);
      llama_memory_seq_cp(memory, through.front(), to.base, begin,
                          begin + static_cast<int>(in_order));
    }
  }
  for (const int row : path.subspan(in_order)) to.replayed.push_back(rows()[row].token);
  to.length += static_cast<int>(path.size());
  s.discard(to);
}

}  // namespace firp
