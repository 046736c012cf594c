#include "serve/embeddings.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

#include "serve/prepare.h"

namespace firp {
namespace {

/// Of an object {"content": [parts of type text]}, which llama.cpp has, the text; other inputs as
/// they are.
Json without_parts(const Json& input, const char* name) {
  const Json* const parts = input.is_object() ? find(input, "content") : nullptr;
  if (parts == nullptr) return input;
  if (!parts->is_array()) {
    refuse(name, fmt::format("the 'content' of an object in '{}' is a list of parts", name));
  }
  std::string text;
  for (const Json& part : *parts) text += text_of_part(part, name);
  return text;
}

std::vector<Prompt> inputs_of(const Json& input, const char* name, int vocabulary) {
  if (!input.is_array()) return prompts_of(without_parts(input, name), name, 1, vocabulary);
  Json list = Json::array();
  for (const Json& each : input) list.push_back(without_parts(each, name));
  return prompts_of(list, name, kMostInputs, vocabulary);
}

bool wants_base64(const Json& body) {
  const Json* const format = find(body, "encoding_format");
  if (format == nullptr || *format == "float") return false;
  if (*format == "base64") return true;
  refuse("encoding_format", "'encoding_format' is float or base64");
}

/// What a vector is divided by.
double norm_of(std::span<const float> vector, int norm) {
  if (norm == -1) return 1;
  double greatest = 0;
  for (const float value : vector) greatest = std::max(greatest, std::abs(double{value}));
  if (norm == 0) return greatest / 32760;  // so that the numbers fit 16 bits
  if (greatest == 0) return 0;
  double sum = 0;  // of no more than 1 each, whatever the exponent
  for (const float value : vector) sum += std::pow(std::abs(value) / greatest, norm);
  return greatest * std::pow(sum, 1.0 / norm);
}

std::string base64_of(std::span<const float> values) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::vector<unsigned char> bytes(values.size_bytes());
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t count = std::min<std::size_t>(3, bytes.size() - i);
    std::uint32_t bits = 0;
    for (std::size_t k = 0; k < 3; ++k) bits = bits << 8 | (k < count ? bytes[i + k] : 0);
    for (std::size_t k = 0; k < 4; ++k) {
      text += k <= count ? kDigits[bits >> (18 - 6 * k) & 63] : '=';
    }
  }
  return text;
}

Json vector_member(const EmbeddingsRequest& request, std::span<const float> state) {
  std::vector<float> vector(state.begin(), state.begin() + request.dimensions);
  const double norm = norm_of(vector, request.norm);
  const double factor = norm > 0 ? 1 / norm : 0;
  for (float& value : vector) value = static_cast<float>(value * factor);
  if (request.base64) return base64_of(vector);
  return vector;
}

}  // namespace

EmbeddingsRequest parse_embeddings_request(std::string_view text, EmbeddingsForm form,
                                           int vocabulary, int size, int norm) {
  const Json body = parse_body(text);
  const char* name = "input";
  const Json* input = find(body, name);
  if (input == nullptr) {
    name = "content";
    input = find(body, name);
    form = EmbeddingsForm::kLlama;  // a field of its own
  }
  if (input == nullptr) refuse("input", "'input' is missing", kMissing);
  const std::int64_t dimensions = integer(body, "dimensions", 1).value_or(size);
  if (dimensions > size) {
    refuse("dimensions", fmt::format("this model's vectors have {} dimensions", size));
  }
  constexpr int kGreatestNorm = 1000;
  return {
      .form = form,
      .field = name,
      .inputs = inputs_of(*input, name, vocabulary),
      .base64 = wants_base64(body),
      .dimensions = static_cast<int>(dimensions),
      .norm = static_cast<int>(integer(body, "embd_normalize", -1, kGreatestNorm).value_or(norm))};
}

std::vector<std::vector<Token>> embedded_tokens(const EmbeddingsRequest& request,
                                                const Vocabulary& vocabulary, int context,
                                                Pooling pooling) {
  const char* const field = request.field;
  const Token closing = vocabulary.closing_token();
  std::vector<std::vector<Token>> texts;
  std::size_t vectors = 0;
  for (const Prompt& input : request.inputs) {
    std::vector<Token> tokens = tokens_of(field, vocabulary, input, context);
    const bool ends_with_text = !input.empty() && std::holds_alternative<std::string>(input.back());
    if (ends_with_text && closing != kNoToken) tokens.push_back(closing);
    if (tokens.empty()) refuse(field, fmt::format("a text of '{}' is empty", field));
    if (std::ssize(tokens) > context) {
      refuse_length(field, fmt::format("a text of {} tokens is too large", tokens.size()), context,
                    tokens.size());
    }
    vectors += pooling == Pooling::kNone ? tokens.size() : 1;
    texts.push_back(std::move(tokens));
  }
  const std::size_t most = kMostVectorNumbers / static_cast<std::size_t>(request.dimensions);
  if (vectors > most) {
    refuse(field,
           fmt::format("the reply would hold {} vectors, and {} at most fit: ask for fewer at "
                       "once",
                       vectors, most),
           kTooLarge);
  }
  return texts;
}

RerankRequest parse_rerank_request(std::string_view text, int size) {
  const Json body = parse_body(text);
  const Json* const query = find(body, "query");
  if (query == nullptr) refuse("query", "'query' is missing", kMissing);
  const Json* documents = find(body, "documents");
  const bool is_tei = documents == nullptr && find(body, "texts") != nullptr;
  if (is_tei) documents = find(body, "texts");
  const char* const name = is_tei ? "texts" : "documents";
  if (documents == nullptr) refuse(name, fmt::format("'{}' is missing", name), kMissing);
  if (!documents->is_array() || documents->empty() || documents->size() >= kMostInputs) {
    refuse(name, fmt::format("'{}' is a list of 1 to {} texts", name, kMostInputs - 1));
  }
  RerankRequest request = {
      .texts = {.form = EmbeddingsForm::kOpenAi,
                .field = name,
                .inputs = {},
                .dimensions = size,
                .norm = -1},
      .most = static_cast<int>(integer(body, "top_n", 1).value_or(std::ssize(*documents))),
      .is_tei = is_tei,
      .with_text = boolean(body, "return_text").value_or(false) ||
                   boolean(body, "return_documents").value_or(false)};
  const auto add = [&](const Json& value, const char* field) {
    // A document may be an object with its text, as Cohere's clients send them.
    const Json* const inside = value.is_object() ? find(value, "text") : nullptr;
    request.texts.inputs.push_back({text_of(inside == nullptr ? value : *inside, field)});
  };
  add(*query, "query");
  for (const Json& each : *documents) add(each, name);
  return request;
}

Json rerank_reply(const RerankRequest& request, std::span<const Scheduler::Answer> answers,
                  const std::string& model) {
  const std::vector<float>& query = answers.front().embedding;
  const double query_norm = norm_of(query, 2);
  struct Scored {
    int index;
    double score;
  };
  std::vector<Scored> scored;
  int tokens = 0;
  for (const Scheduler::Answer& each : answers.subspan(1)) {
    double product = 0;
    for (std::size_t i = 0; i < query.size(); ++i) {
      product += double{query[i]} * double{each.embedding[i]};
    }
    const double norms = query_norm * norm_of(each.embedding, 2);
    scored.push_back({static_cast<int>(scored.size()), norms > 0 ? product / norms : 0});
  }
  for (const Scheduler::Answer& each : answers) tokens += each.usage.prompt_tokens;
  std::ranges::stable_sort(scored, std::ranges::greater{}, &Scored::score);
  scored.resize(std::min<std::size_t>(scored.size(), request.most));
  Json results = Json::array();
  for (const Scored& each : scored) {
    Json member = {{"index", each.index},
                   {request.is_tei ? "score" : "relevance_score", each.score}};
    if (request.with_text) {
      const std::string& text = std::get<std::string>(request.texts.inputs[each.index + 1].front());
      member[request.is_tei ? "text" : "document"] =
          request.is_tei ? Json(text) : Json{{"text", text}};
    }
    results.push_back(std::move(member));
  }
  if (request.is_tei) return results;
  return {{"model", model},
          {"object", "list"},
          {"usage", {{"prompt_tokens", tokens}, {"total_tokens", tokens}}},
          {"results", std::move(results)}};
}

Json embeddings_reply(const EmbeddingsRequest& request, std::span<const Scheduler::Answer> answers,
                      int size, const std::string& model) {
  Json list = Json::array();
  int tokens = 0;
  for (const Scheduler::Answer& answer : answers) {
    Json vectors = Json::array();
    for (std::span<const float> left = answer.embedding; !left.empty(); left = left.subspan(size)) {
      vectors.push_back(vector_member(request, left.first(size)));
    }
    tokens += answer.usage.prompt_tokens;
    Json each = {{"index", list.size()}};
    if (request.form == EmbeddingsForm::kOpenAi) {
      each["object"] = "embedding";
      each["embedding"] = std::move(vectors[0]);
    } else {
      each["embedding"] = std::move(vectors);
    }
    list.push_back(std::move(each));
  }
  if (request.form == EmbeddingsForm::kLlama) return list;
  return {{"object", "list"},
          {"data", std::move(list)},
          {"model", model},
          {"usage", {{"prompt_tokens", tokens}, {"total_tokens", tokens}}}};
}

}  // namespace firp
