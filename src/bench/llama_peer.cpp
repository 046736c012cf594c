#include "bench/llama_peer.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "base/error.h"
#include "bench/timing.h"
#include "chat/conversation.h"
#include "draft/ngram.h"
#include "engine/llama_handles.h"
#include "model/ggml_log.h"

namespace firp {
namespace {

/// While it lives, `stop` ends passes of the context between two nodes of their graph.
class AbortedBy {
 public:
  AbortedBy(llama_context& context, const std::atomic<bool>& stop) : context_(context) {
    llama_set_abort_callback(
        &context, [](void* flag) { return static_cast<std::atomic<bool>*>(flag)->load(); },
        const_cast<std::atomic<bool>*>(&stop));
  }
  ~AbortedBy() { llama_set_abort_callback(&context_, nullptr, nullptr); }
  AbortedBy(const AbortedBy&) = delete;
  AbortedBy& operator=(const AbortedBy&) = delete;

 private:
  llama_context& context_;
};

}  // namespace

struct LlamaPeer::State {
  LlamaModelPointer model;
  GgmlThreadpoolPointer threads;
  LlamaContextPointer context;
};

LlamaPeer::LlamaPeer(const std::filesystem::path& model, int threads, int context,
                     CacheType cache_type)
    : state_(std::make_unique<State>()) {
  const GgmlErrors errors;
  llama_model_params model_parameters = llama_model_default_params();
  model_parameters.n_gpu_layers = 0;
  state_->model.reset(llama_model_load_from_file(model.c_str(), model_parameters));
  if (state_->model == nullptr) {
    throw Error(fmt::format("libllama cannot load {}: {}", model.string(),
                            errors.text("it does not say why")));
  }
  llama_context_params parameters = llama_context_default_params();
  parameters.n_ctx = static_cast<std::uint32_t>(context);
  parameters.n_threads = threads;
  parameters.n_threads_batch = threads;
  parameters.type_k = ggml_type_of(cache_type);
  parameters.type_v = parameters.type_k;
  state_->context.reset(llama_init_from_model(state_->model.get(), parameters));
  // A pool that lives as long as the context, as llama.cpp's own programs have it: without one,
  // builds without OpenMP start their threads anew for each token.
  ggml_threadpool_params pool = ggml_threadpool_params_default(threads);
  state_->threads.reset(ggml_threadpool_new(&pool));
  if (state_->context == nullptr || state_->threads == nullptr) {
    throw Error(fmt::format("libllama cannot run {}: {}", model.string(),
                            errors.text("it does not say why")));
  }
  llama_attach_threadpool(state_->context.get(), state_->threads.get(), state_->threads.get());
}

LlamaPeer::~LlamaPeer() = default;

std::vector<BenchMethod> LlamaPeer::methods(const ChatTemplate& chat_template,
                                            const SamplingOptions& sampling) {
  const auto method = [&](const char* name, bool ngrams, std::string note) -> BenchMethod {
    return {name,
            [this, &chat_template, sampling, ngrams](const BenchPrompt& prompt, int max_tokens,
                                                     const std::atomic<bool>& stop) {
              return run(prompt, max_tokens, stop, chat_template, sampling, ngrams);
            },
            std::move(note)};
  };
  return {method("llama.cpp", false, ""),
          method("llama.cpp+ngram", true,
                 fmt::format("drafts what the text had before, up to {} tokens a pass",
                             NgramSource::kMostTokens))};
}

bool LlamaPeer::decode_batch(llama_batch batch) {
  constexpr int kAborted = 2;
  const int status = llama_decode(state_->context.get(), batch);
  if (status == kAborted) return false;
  if (status != 0) throw Error("llama.cpp's context is full; a larger one (-c) holds more");
  return true;
}

bool LlamaPeer::decode(std::span<Token> tokens) {
  const std::size_t most = llama_n_batch(state_->context.get());
  while (!tokens.empty()) {
    const std::size_t count = std::min(tokens.size(), most);
    if (!decode_batch(llama_batch_get_one(tokens.data(), static_cast<std::int32_t>(count)))) {
      return false;
    }
    tokens = tokens.subspan(count);
  }
  return true;
}

void LlamaPeer::start(std::span<const Token> prompt) {
  llama_memory_clear(llama_get_memory(state_->context.get()), /*data=*/false);
  std::vector<Token> tokens(prompt.begin(), prompt.end());
  decode(tokens);
  llama_synchronize(state_->context.get());
  ggml_threadpool_pause(state_->threads.get());  // or it would spin beside what is measured next
}

void LlamaPeer::pass(Token token) {
  llama_memory_t const memory = llama_get_memory(state_->context.get());
  const llama_pos end = llama_memory_seq_pos_max(memory, 0) + 1;
  decode({&token, 1});
  llama_synchronize(state_->context.get());
  llama_memory_seq_rm(memory, 0, end, -1);
  ggml_threadpool_pause(state_->threads.get());
}

BenchRun LlamaPeer::run(const BenchPrompt& prompt, int max_tokens, const std::atomic<bool>& stop,
                        const ChatTemplate& chat_template, const SamplingOptions& sampling,
                        bool ngrams) {
  const GgmlErrors errors;
  BenchRun result;
  llama_context* const context = state_->context.get();
  const AbortedBy aborted_by(*context, stop);
  llama_memory_t const memory = llama_get_memory(context);
  llama_memory_clear(memory, /*data=*/false);
  const Vocabulary& vocabulary = chat_template.vocabulary();
  Conversation conversation(chat_template);
  NgramSource source;
  std::vector<std::int8_t> all_logits(1 + NgramSource::kMostTokens, 1);
  std::vector<Token> tokens;  // the last one is always still to be decoded
  SamplerState state(sampling);
  for (const std::string& turn : prompt.turns) {
    // As Session does: the prompt but for its last token is prefill.
    const std::size_t done = tokens.empty() ? 0 : tokens.size() - 1;
    const std::vector<Token> given = conversation.user_turn(turn);
    tokens.insert(tokens.end(), given.begin(), given.end());
    const Stopwatch prefill_watch;
    if (!decode(std::span(tokens).subspan(done, tokens.size() - 1 - done))) break;
    llama_synchronize(context);
    result.prefill_seconds += prefill_watch.seconds();

    const Stopwatch watch;
    bool ended = false;
    for (int left = max_tokens; left > 0 && !ended && !stop;) {
      const DraftTree draft = ngrams ? source.draft(tokens, left - 1) : DraftTree();
      std::vector<Token> rows = {tokens.back()};
      for (const DraftNode& node : draft) rows.push_back(node.token);
      llama_batch batch = llama_batch_get_one(rows.data(), static_cast<std::int32_t>(rows.size()));
      batch.logits = all_logits.data();
      if (!decode_batch(batch)) break;

      const std::size_t before = tokens.size();
      bool foreseen = true;
      for (std::size_t row = 0; row < rows.size() && foreseen; ++row) {
        const std::span<const float> logits(
            llama_get_logits_ith(context, static_cast<std::int32_t>(row)),
            static_cast<std::size_t>(vocabulary.size()));
        const Token token =
            sample_token(logits, tokens, static_cast<int>(tokens.size()), sampling, state);
        result.decoded += 1;
        left -= 1;
        ended = vocabulary.is_end_of_generation(token);
        if (ended) break;
        tokens.push_back(token);
        result.tokens.push_back(token);
        foreseen = row + 1 < rows.size() && rows[row + 1] == token;
      }
      result.forwards += 1;
      result.plan.nodes += static_cast<long long>(draft.size());
      if (ngrams) source.observe(std::span(tokens).subspan(before));
      llama_memory_seq_rm(memory, 0, static_cast<llama_pos>(tokens.size() - 1), -1);
    }
    result.seconds += watch.seconds();
    result.tokens.push_back(kNoToken);
    if (stop) break;
  }
  ggml_threadpool_pause(state_->threads.get());
  return result;
}

}  // namespace firp
