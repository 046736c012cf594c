#pragma once

#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "study/plot.h"
#include "train/synthesis.h"

namespace firp {

/// What an experiment found.
struct Finding {
  std::string csv;  ///< with a header
  Figure figure;
  std::string caption;  ///< one or two sentences with the numbers that matter
};

/// Heads, and what a figure calls them.
struct NamedHeads {
  std::string name;
  Heads heads;
};

/// "FIRP", "the paper's maps" or "Medusa", by what they are; with the file's name behind it where
/// several would have the same name.
std::vector<NamedHeads> name_heads(std::span<const std::filesystem::path> paths,
                                   const GgufFile& model);

/// Seconds of a pass by its rows, between the limits of memory and of arithmetic (without a
/// `model`, whose matrices they are summed over, alone). The engine has no heads, and room for the
/// rows.
Finding study_rows(Engine& engine, const Model* model, const std::vector<int>& rows);

/// Agreement of each step for all heads; for linear maps to the end of the model, unless `linear`
/// is empty; and, where the engine can leave out layers, for `early_exit` at the layer where the
/// first heads enter.
Finding study_agreement(Engine& engine, std::span<const NamedHeads> all,
                        std::span<const Heads> linear, bool early_exit,
                        std::span<const Text> texts);

/// Agreement of each step for maps of which all steps of one enter after the same layer.
Finding study_layer(Engine& engine, std::span<const Heads> maps, std::span<const Text> texts);

/// Pseudo states beside real ones, layer by layer. An Error for Medusa's heads, which have none.
Finding study_similarity(Engine& engine, const NamedHeads& heads, std::span<const Text> texts);

/// Agreement of each step with and without attention to the earlier steps.
Finding study_mask(Engine& engine, const NamedHeads& heads, std::span<const Text> texts);

/// Tokens per forward pass and speed beside plain decoding, by the size of the draft tree (0: a
/// chain). Decodes as many tokens as each text's answer has, behind its prompt.
Finding study_tree(Engine& engine, const NamedHeads& heads, std::span<const Text> texts,
                   const std::vector<int>& sizes);

/// Held-out tokens per forward pass over the time of training: a line for each log of `firp train
/// --log`, by the name of its file.
Finding study_curve(std::span<const std::filesystem::path> logs);

/// Writes NAME.csv, NAME.txt (the caption), NAME.svg and NAME.png.
void write_finding(const std::filesystem::path& folder, const std::string& name,
                   const Finding& finding);

}  // namespace firp
