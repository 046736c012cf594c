#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "decode/session.h"
#include "engine/engine.h"
#include "model/model.h"
#include "model/vocabulary.h"

namespace firp {

inline const std::vector<std::string> kDraftNames = {"none", "firp", "ngram", "firp+ngram"};

/// The flags of all verbs that decode. Names and meanings are llama.cpp's where it has them.
struct DecodeFlags {
  std::filesystem::path model;
  std::filesystem::path heads;  ///< empty: looked for
  std::string draft;            ///< one of kDraftNames; empty: all that there is
  std::optional<int> tree;      ///< unset: the planner chooses
  bool chain = false;
  std::string drafting = "deferred";
  std::optional<int> threads;
  std::optional<int> context;
  std::string cache_type_k = "f16", cache_type_v = "f16";
  std::optional<std::uint64_t> seed;
  SamplingOptions sampling;
  std::string colour = "auto";

  void add_model_to(CLI::App& app);
  void add_decoding_to(CLI::App& app);
  void add_draft_to(CLI::App& app);
  void add_colour_to(CLI::App& app);

  /// The size that --tree asks for, or none.
  std::vector<int> trees() const { return tree ? std::vector{*tree} : std::vector<int>{}; }
  /// -t, or one per core. An Error for a number that makes no sense.
  int thread_count() const;
  /// An Error where keys and values are to differ.
  CacheType cache_type() const;
};

/// A model made ready to decode as the flags say.
struct Decoder {
  /// `trees`: the sizes of draft trees that will be asked for; none: the planner chooses.
  Decoder(const DecodeFlags& flags, std::span<const int> trees);
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  DecodeOptions options;
  Model model;
  Vocabulary vocabulary;
  std::filesystem::path heads_path;  ///< empty: no heads
  Engine engine;
  std::optional<Planner> planner;  ///< where it chooses the trees
};

/// The folder of the running program; empty where the system does not tell.
std::filesystem::path program_directory();

/// An Error that names the flag where its value is less.
void require_at_least(int value, int least, const char* flag);

/// "41 tokens, 130.2 tokens/s, 2.13 tokens per forward pass (FIRP, tree of 16); prompt ..."
std::string describe_run(const DecodeStats& stats, const DecodeOptions& options,
                         std::size_t prompt_tokens);

}  // namespace firp
