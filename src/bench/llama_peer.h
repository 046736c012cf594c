#pragma once

#include <filesystem>
#include <memory>

#include "bench/bench.h"
#include "decode/sampler.h"
#include "kernels/kernels.h"
#include "model/vocabulary.h"

namespace firp {

/// Plain decoding through libllama on the CPU, in this process: the peer that our times are held
/// against. Its defaults (flash attention, batch sizes), our number of threads and type of KV
/// cache.
class LlamaPeer {
 public:
  /// `vocabulary` must outlive the peer.
  LlamaPeer(const std::filesystem::path& model, const Vocabulary& vocabulary, int threads,
            int context, CacheType cache_type, const SamplingOptions& sampling);
  ~LlamaPeer();

  /// The method "llama.cpp"; the peer must outlive it.
  BenchMethod method();

  /// Forgets all and runs a prompt; returns when its last logits are there.
  void start(std::span<const Token> prompt);
  /// Runs one token behind the prompt, up to its logits, and forgets it again.
  void pass(Token token);

 private:
  struct State;
  BenchRun run(const BenchPrompt& prompt, int max_tokens, const std::atomic<bool>& stop);
  void decode(std::span<Token> tokens);

  const Vocabulary& vocabulary_;
  const SamplingOptions sampling_;
  std::unique_ptr<State> state_;
};

}  // namespace firp
