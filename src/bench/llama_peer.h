#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "bench/bench.h"
#include "chat/chat_template.h"
#include "decode/sampler.h"
#include "kernels/kernels.h"

struct llama_batch;

namespace firp {

/// Decoding through libllama on the CPU, in this process: the peer that our times are held against.
/// Its defaults (flash attention, batch sizes), our number of threads and type of KV cache.
class LlamaPeer {
 public:
  LlamaPeer(const std::filesystem::path& model, int threads, int context, CacheType cache_type);
  ~LlamaPeer();

  /// "llama.cpp", plain decoding, and "llama.cpp+ngram", what its users have to speculate with
  /// where there is no draft model: continuations from the text itself (ours: NgramSource), one
  /// path, in the batch of the token before them. The peer and the template must outlive them.
  std::vector<BenchMethod> methods(const ChatTemplate& chat_template,
                                   const SamplingOptions& sampling);

  /// Forgets all and runs a prompt; returns when its last logits are there.
  void start(std::span<const Token> prompt);
  /// Runs one token behind the prompt, up to its logits, and forgets it again.
  void pass(Token token);

 private:
  struct State;
  BenchRun run(const BenchPrompt& prompt, int max_tokens, const std::atomic<bool>& stop,
               const ChatTemplate& chat_template, const SamplingOptions& sampling, bool ngrams);
  // False where `stop` of run() ended it.
  bool decode(std::span<Token> tokens);
  bool decode_batch(llama_batch batch);

  std::unique_ptr<State> state_;
};

}  // namespace firp
