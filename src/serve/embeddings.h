#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "decode/pooling.h"
#include "serve/request.h"
#include "serve/scheduler.h"

// Embeddings: OpenAI's (https://platform.openai.com/docs/api-reference/embeddings) and llama.cpp's
// own (its tools/server/README.md).

namespace firp {

inline constexpr std::size_t kMostInputs = 2048;
/// Of all vectors of a reply.
inline constexpr std::size_t kMostVectorNumbers = std::size_t{4} << 20;

/// What the flags say.
struct EmbeddingOptions {
  Pooling pooling = Pooling::kMean;
  int norm = 2;  ///< as in EmbeddingsRequest
};

enum class EmbeddingsForm { kOpenAi, kLlama };

struct EmbeddingsRequest {
  EmbeddingsForm form;  ///< of the reply
  const char* field;    ///< that the inputs came in
  std::vector<Prompt> inputs;
  bool base64 = false;  ///< of little-endian 32-bit floats, in place of a list of numbers
  int dimensions;       ///< so many of each vector's first numbers, before its norm is taken
  /// What vectors are divided by: -1 nothing, 0 the greatest absolute value over 32760, p >= 1
  /// their p-norm.
  int norm;
};

/// `size`: numbers of a vector. `norm`: where the request does not say. A RequestError as of
/// parse_request().
EmbeddingsRequest parse_embeddings_request(std::string_view body, EmbeddingsForm form,
                                           int vocabulary, int size, int norm);

/// The tokens of each input, with the BOS and EOS that the file asks for. A RequestError where one
/// has no tokens or more than the context, or where the reply would be too large.
std::vector<std::vector<Token>> embedded_tokens(const EmbeddingsRequest& request,
                                                const Vocabulary& vocabulary, int context,
                                                Pooling pooling);

/// Documents by how near their embeddings are to that of a query: Jina's form
/// (https://jina.ai/reranker), or that of text-embeddings-inference (TEI), which calls them texts.
struct RerankRequest {
  EmbeddingsRequest texts;  ///< the query, then the documents
  int most;                 ///< that the reply names
  bool is_tei;
  bool with_text;
};
/// `size`: numbers of a state. A RequestError as of parse_request().
RerankRequest parse_rerank_request(std::string_view body, int size);

/// `answers`: of the texts. A score is the cosine, of 0 where a vector has no length.
Json rerank_reply(const RerankRequest& request, std::span<const Scheduler::Answer> answers,
                  const std::string& model);

/// `size`: numbers of a state. What a vector is divided by may be 0, as it is then.
Json embeddings_reply(const EmbeddingsRequest& request, std::span<const Scheduler::Answer> answers,
                      int size, const std::string& model);

}  // namespace firp
