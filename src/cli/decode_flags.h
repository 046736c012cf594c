#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "chat/chat_template.h"
#include "decode/batch_decoder.h"
#include "decode/session.h"
#include "engine/engine.h"
#include "engine/llama_engine.h"
#include "engine/native_engine.h"
#include "model/model.h"
#include "model/vocabulary.h"

namespace firp {

inline const std::vector<std::string> kDraftNames = {"none", "firp", "ngram", "firp+ngram"};

/// A --seed that stands for another one each time.
inline constexpr std::int64_t kRandomSeed = -1;
bool is_random(std::int64_t seed);
/// What a --seed stands for: for a random one, where it is_random().
std::uint64_t seed_of(std::int64_t seed);

/// What -n allows: -1 and -2 stand for no limit but the context's. An Error for less than `least`.
int most_tokens(int predict, int least = 1);

inline constexpr const char* kContextHelp =
    "Tokens that prompt and answers may take together; 0: the model's own limit (default)";
inline constexpr const char* kPredictHelp =
    "Tokens to write at most; -1: until the context is full";

/// The flags of all verbs that decode. Names and meanings are llama.cpp's where it has them
/// (docs/flags.md).
struct DecodeFlags {
  std::filesystem::path model;
  std::filesystem::path heads;          ///< empty: looked for
  std::string draft;                    ///< one of kDraftNames; empty: all that there is
  std::filesystem::path draft_model;    ///< that drafts in place of heads; empty: none
  std::vector<std::string> spec_types;  ///< llama.cpp's words for `draft`
  int tree = kPlannedTree;
  bool chain = false;
  std::string drafting = "deferred";
  std::string draft_weights = "rounded";
  std::optional<int> threads;
  std::optional<int> context;
  bool context_is_shared = false;  ///< among the sequences of a server
  int context_parts = 1;           ///< a sequence of a server has one of them at most
  std::string cache_type_k = "f16", cache_type_v = "f16";
  std::optional<std::int64_t> seed;
  SamplingOptions sampling;
  std::vector<std::string> logit_bias;             ///< TOKEN+BIAS or TOKEN-BIAS
  std::vector<std::string> dry_sequence_breakers;  ///< in place of the default ones; "none"
  std::vector<std::string> samplers;               ///< their names, in order
  std::string sampler_seq;                         ///< the same by letters
  bool ignore_eos = false;
  std::string colour = "auto";
  std::string chat_template;  ///< in place of the file's own
  std::filesystem::path chat_template_file;
  bool jinja = false;  ///< `chat_template` is a template, whatever it looks like

  std::string engine = "auto";  ///< or native, llama
  LlamaOptions llama;
  std::string flash_attention = "auto";
  bool exact = false;
  bool packed_cache = false;

  void add_threads_to(CLI::App& app);
  void add_model_to(CLI::App& app);  ///< with the threads
  void add_decoding_to(CLI::App& app, const std::string& context_help = kContextHelp);
  void add_draft_to(CLI::App& app);
  void add_colour_to(CLI::App& app);
  void add_template_to(CLI::App& app);
  void add_engine_to(CLI::App& app);

  /// -t; one per usable core where it is 0 or less, or not given. An Error for too many.
  int thread_count() const;
  /// -c; nullopt: the model's own limit. An Error for a number that makes no sense.
  std::optional<int> context_size() const;
  /// An Error where keys and values are to differ.
  CacheType cache_type() const;
};

/// Whether something is to run elsewhere than on this machine's CPU.
bool offloads(const LlamaOptions& llama);

/// A model file, and an engine for it.
struct LoadedModel {
  std::shared_ptr<const GgufFile> file;
  std::optional<Model> model;  ///< of the native engine, and only of that
  std::unique_ptr<Engine> engine;
};

/// The engine that the flags ask for; `auto` is the native one where it has the architecture and
/// the types, and nothing is to be offloaded.
LoadedModel load_model(const DecodeFlags& flags, std::shared_ptr<const GgufFile> file,
                       EngineOptions options);

/// A smaller model of the same vocabulary that drafts for another one.
struct Drafter {
  Drafter(const std::filesystem::path& path, const EngineOptions& options)
      : model(path), engine(model, options) {}

  Model model;
  NativeEngine engine;
};

/// A model made ready to decode as the flags say.
struct Decoder {
  /// `trees`: the sizes of draft trees that will be asked for. `check` may refuse, by the
  /// chat template with its vocabulary and the context, what it takes no engine to refuse: it is
  /// called before one is made.
  Decoder(const DecodeFlags& flags, std::span<const int> trees,
          const std::function<void(const ChatTemplate&, int context)>& check = nullptr);
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  DecodeOptions options;
  std::shared_ptr<const GgufFile> file;
  Vocabulary vocabulary;
  ChatTemplate chat_template;
  std::filesystem::path heads_path;  ///< empty: no heads
  LoadedModel loaded;
  Engine& engine;
  std::unique_ptr<Drafter> drafter;  ///< where a draft model is asked for
  std::unique_ptr<Planner> planner;  ///< where kPlannedTree is among the trees
  BatchDecoder batch;
};

/// The folder of the running program; empty where the system does not tell.
std::filesystem::path program_directory();

/// Where heads that come with the program lie: in the working directory, or by the program.
std::vector<std::filesystem::path> heads_directories();

/// An Error that names the flag where its value is less.
void require_at_least(int value, int least, const char* flag);

/// "41 tokens, 130.2 tokens/s, 2.13 tokens per forward pass (FIRP, tree of 16); prompt ..."
std::string describe_run(const DecodeStats& stats, const Decoder& decoder,
                         std::size_t prompt_tokens);

}  // namespace firp
