#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "model/model.h"

namespace firp {

/// What a drafted token changes about the next: with n the final state of the step's pseudo row
/// (after the output norm) and e the model's embedding of the token drafted one step before (for
/// step 1: the token that the model itself decoded),
///   c = output SiLU(state n + token e + bias)
/// and the logit of a candidate becomes its head row . (n + c). Only for ranking the row's own best
/// candidates, kRankedCandidates of them, anew: the softmax over them shares the probability that
/// the row gave to all of them. Matrices are [output * columns + input]; values of state, token and
/// output are exact in F16.
struct SequentialHead {
  int rank = 0;               ///< r
  std::vector<float> state;   ///< [r x d]
  std::vector<float> token;   ///< [r x d]
  std::vector<float> bias;    ///< [r]
  std::vector<float> output;  ///< [d x r]
};
inline constexpr int kRankedCandidates = 32;

/// What is added to a pseudo row, and only to pseudo rows, before it enters layer `layer` (`layer`
/// layers done): with x = h / sqrt(mean(h^2) + kAdapterEpsilon), h becomes h + up SiLU(down x).
/// Matrices are [output * columns + input], values exact in F16.
struct Adapter {
  int layer = 0;            ///< t .. layers - 1
  int rank = 0;             ///< r
  std::vector<float> down;  ///< [r x d]
  std::vector<float> up;    ///< [d x r]
};
inline constexpr float kAdapterEpsilon = 1e-5f;

/// W_j, b_j and, optionally, T_j of one step: p_{i,j} = W_j h_i^t + T_j e_{i+1} + b_j enters the
/// residual stream after `layer` layers; e_{i+1} is the model's embedding of the token behind the
/// anchor, the one that the model decodes from it.
struct DraftMap {
  int layer = 0;              ///< t_j, 1 .. layers; after the last, only the output norm follows
  std::vector<float> weight;  ///< [d x d], weight[output * d + input]; values exact in F16
  std::vector<float> bias;    ///< [d]
  /// [d x d], token[output * d + input]; values exact in F16. Empty: none.
  std::vector<float> token = {};
  std::optional<SequentialHead> sequence = {};
};

/// How the maps were made and what they showed; for people, and for `firp inspect`.
struct TrainingRecord {
  std::string command;
  double minutes = 0;
  long long rows = 0;  ///< pseudo rows that the training saw
  /// Held-out agreement per step, 0..1: of the rows, and of the sequential head's ranking behind
  /// the true token (empty without one).
  std::vector<float> top1, top5, sequence_top1 = {};
  /// With the sequential head where there is one.
  float tokens_per_forward_chain = 0;
  float tokens_per_forward_tree32 = 0;
};

/// What the rows of a heads file are. kMedusa (arXiv 2401.10774, "Medusa-1"): with n the final
/// state of the anchor, after the output norm, p_{i,j} = n + SiLU(W_j n + b_j) is what the model's
/// head decodes; all layers are those of the model's end, and there is no token input and no
/// adapter.
enum class HeadsMethod { kFirp, kMedusa };

/// The draft maps of one model (`MODEL.firp.gguf`; docs/heads-format.md).
struct Heads {
  ModelIdentity base;
  HeadsMethod method = HeadsMethod::kFirp;
  /// j = 1 .. K; all of them or none have a token input, and all or none a sequential head.
  std::vector<DraftMap> steps;
  /// None, or one for each layer from the earliest step's on, in this order.
  std::vector<Adapter> adapters = {};
  /// The tokens that pseudo rows may propose, those that the model writes most often first: a
  /// shorter vocabulary is a prefix. Empty: all tokens.
  std::vector<std::int32_t> draft_vocabulary = {};
  TrainingRecord training = {};
  /// Whether the model that they were read for is another file than theirs, of the same shapes.
  bool for_sibling = false;

  int count() const { return static_cast<int>(steps.size()); }
  /// Such rows can be made only when the token behind the anchor is known: by deferred drafting.
  bool has_token_input() const { return !steps.empty() && !steps.front().token.empty(); }
  bool has_sequential_head() const { return !steps.empty() && steps.front().sequence.has_value(); }
};

/// Reads heads, of version 1 (maps alone) to 4. With `model`, an Error where they were made for one
/// of other shapes (says which). Drafts never change the text, so a model that only has other
/// weights may use them.
Heads read_heads(const std::filesystem::path& path, const GgufFile* model);

/// Writes to a temporary file beside `path` and renames it, so that a full disk or Ctrl-C never
/// leaves half a file. Weights are stored as F16, biases as F32.
void write_heads(const Heads& heads, const std::filesystem::path& path);

/// `MODEL.firp.gguf` beside a model's (first) file.
std::filesystem::path heads_beside(const std::filesystem::path& model);

/// The heads that go with a model when the user names none: those beside it, else the
/// file in one of `directories` whose base identity is the model's, else the first one that was
/// made for a model of the same shapes.
std::optional<std::filesystem::path> find_heads(
    const GgufFile& model, const std::vector<std::filesystem::path>& directories);

}  // namespace firp
