#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <random>
#include <regex>
#include <string>
#include <vector>

#include "model/heads.h"
#include "serve/fields.h"
#include "serve/test_model.h"

namespace firp {
namespace {

constexpr int kSchemas = 24;
constexpr int kMostTokens = 96;

/// JSON schemas whose answers are short. The same number makes the same schema.
class SchemaMaker {
 public:
  explicit SchemaMaker(unsigned number) : random_(number) {}

  Json schema() {
    Json definition = object(/*depth=*/2);
    Json made = object(/*depth=*/0);
    made["$defs"] = {{"shared", std::move(definition)}};
    return made;
  }

 private:
  int below(int bound) { return static_cast<int>(random_() % static_cast<unsigned>(bound)); }
  template <typename T>
  const T& one_of(const std::vector<T>& list) {
    return list[below(static_cast<int>(list.size()))];
  }

  Json value(int depth) {
    const bool nests = depth < 2;
    switch (below(nests ? 12 : 8)) {
      case 0: {
        const int least = below(4);
        return {{"type", "string"}, {"minLength", least}, {"maxLength", least + 1 + below(10)}};
      }
      case 1:
        return {{"type", "string"},
                {"pattern",
                 one_of<std::string>({"^[a-z]{2,6}$", "^[A-Z]{2}-[0-9]{3}$", "^(low|mid|high)est$",
                                      "^#[0-9a-f]{6}$", "^\\+?[1-9][0-9]{1,4}$"})}};
      case 2:
        return {{"enum", one_of<Json>({{"red", "green", "blue"},
                                       {1, 2, 30},
                                       {"a \"quoted\" one", nullptr, true},
                                       {"ein Stra\u00dfenschild", "\u65e5\u672c"}})}};
      case 3: {
        const int least = below(400) - 200;
        return {{"type", "integer"}, {"minimum", least}, {"maximum", least + below(1000)}};
      }
      case 4:
        return {{"type", one_of<std::string>({"number", "boolean", "null"})}};
      case 5:
        return {{"const", one_of<Json>({"always this", 7, false})}};
      case 6:
        return {{"type", "integer"}, {"minimum", below(50)}};
      case 7:
        return {{"type", {"string", "null"}}, {"maxLength", 8}};
      case 8:
        return object(depth + 1);
      case 9:
        return {{"anyOf", {value(depth + 1), value(depth + 1)}}};
      case 10:
        return {{"$ref", "#/$defs/shared"}};
      default: {
        const int least = below(2);
        return {{"type", "array"},
                {"items", value(depth + 1)},
                {"minItems", least},
                {"maxItems", least + 1 + below(2)}};
      }
    }
  }

  Json object(int depth) {
    const std::vector<std::string> names = {"name", "id",    "colour",    "a longer name", "x",
                                            "tags", "state", "\u00fcber", "quote\"d"};
    Json made = {{"type", "object"}, {"properties", Json::object()}, {"required", Json::array()}};
    const int first = below(static_cast<int>(names.size()));
    const int count = 1 + below(depth == 0 ? 4 : 2);
    for (int i = 0; i < count; ++i) {
      const std::string& name = names[(first + i) % names.size()];
      made["properties"][name] = value(depth);
      if (i == 0 || below(4) > 0) made["required"].push_back(name);
    }
    made["additionalProperties"] = false;
    return made;
  }

  std::mt19937 random_;
};

bool is_of_type(const Json& value, const std::string& type) {
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "integer") return value.is_number_integer();
  if (type == "number") return value.is_number();
  if (type == "boolean") return value.is_boolean();
  return type == "null" && value.is_null();
}

/// By what SchemaMaker says in schemas.
bool is_valid(const Json& value, const Json& schema, const Json& root) {
  if (schema.contains("$ref")) return is_valid(value, root["$defs"]["shared"], root);
  if (schema.contains("anyOf")) {
    return std::ranges::any_of(schema["anyOf"],
                               [&](const Json& each) { return is_valid(value, each, root); });
  }
  if (schema.contains("enum")) return std::ranges::count(schema["enum"], value) > 0;
  if (schema.contains("const")) return value == schema["const"];
  const Json types = schema["type"].is_array() ? schema["type"] : Json::array({schema["type"]});
  if (std::ranges::none_of(types, [&](const Json& type) { return is_of_type(value, type); })) {
    return false;
  }
  if (value.is_string()) {
    const std::string text = value;
    if (schema.contains("pattern") &&
        !std::regex_search(text, std::regex(schema["pattern"].get<std::string>()))) {
      return false;
    }
    const auto length = static_cast<int>(std::ranges::count_if(
        text, [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; }));
    return length >= schema.value("minLength", 0) && length <= schema.value("maxLength", length);
  }
  if (value.is_number_integer()) {
    const std::int64_t number = value;
    return number >= schema.value("minimum", number) && number <= schema.value("maximum", number);
  }
  if (value.is_array()) {
    const auto size = static_cast<int>(value.size());
    return size >= schema["minItems"] && size <= schema["maxItems"] &&
           std::ranges::all_of(
               value, [&](const Json& each) { return is_valid(each, schema["items"], root); });
  }
  if (value.is_object()) {
    for (const Json& name : schema["required"]) {
      if (!value.contains(name.get<std::string>())) return false;
    }
    for (const auto& [name, member] : value.items()) {
      if (!schema["properties"].contains(name)) return false;
      if (!is_valid(member, schema["properties"][name], root)) return false;
    }
  }
  return true;
}

struct Question {
  Json schema;
  SamplingOptions sampling;
  WrittenChat chat;
  std::shared_ptr<const Grammar> grammar;
};

struct Written {
  std::string text;
  bool is_complete = false;
  bool operator==(const Written&) const = default;
};

/// All answers side by side. `stats`: of all of them.
std::vector<Written> answers(BatchDecoder& decoder, DecodeOptions options,
                             const std::vector<Question>& questions, DecodeStats& stats) {
  const Vocabulary& vocabulary = Loaded::get().vocabulary;
  std::vector<std::unique_ptr<Session>> sessions;
  for (const Question& each : questions) {
    options.sampling = each.sampling;
    options.grammar = each.grammar;
    sessions.push_back(std::make_unique<Session>(decoder, options));
    sessions.back()->append(vocabulary.tokenize(each.chat.prompt, /*add_bos=*/true));
  }
  std::vector<Written> written(questions.size());
  std::vector<int> tokens(questions.size());
  while (true) {
    std::vector<Session*> running;
    for (const std::unique_ptr<Session>& each : sessions) {
      if (each) running.push_back(each.get());
    }
    if (running.empty()) break;
    decoder.step(running);
    for (std::size_t i = 0; i < sessions.size(); ++i) {
      if (!sessions[i]) continue;
      for (const DecodedToken& each : sessions[i]->decoded()) {
        written[i].is_complete = vocabulary.is_end_of_generation(each.token);
        if (written[i].is_complete || ++tokens[i] > kMostTokens) {
          stats += sessions[i]->stats();
          sessions[i].reset();
          break;
        }
        written[i].text += vocabulary.piece(each.token);
      }
    }
  }
  return written;
}

/// Whatever the schema, greedy and sampled: drafts do not change the answer, and it is valid.
TEST(RandomSchemas, AreFollowedWithAndWithoutDraftsAlike) {
  ASSERT_TRUE(std::filesystem::exists(real_model()))
      << real_model() << " is missing: run the tests by `make test`, which fetches it";
  Loaded& loaded = Loaded::get();
  std::vector<Question> questions;
  for (unsigned number = 1; number <= kSchemas; ++number) {
    const Json schema = SchemaMaker(number).schema();
    for (const float temperature : {0.0f, 0.8f}) {
      Question question = {
          .schema = schema,
          .sampling = {},
          .chat = loaded.chat_template.write(
              {.messages = Json::array({{{"role", "user"}, {"content", "Make up an example."}}}),
               .json_schema = schema.dump()}),
          .grammar = nullptr};
      question.sampling.temperature = temperature;
      question.sampling.seed = number;
      question.grammar = std::make_shared<const Grammar>(loaded.vocabulary, question.chat.grammar);
      questions.push_back(std::move(question));
    }
  }
  NativeEngine engine(*loaded.model, {.threads = 2, .context = 512});
  engine.set_heads(read_heads(FIRP_HEADS, loaded.file.get()));
  BatchDecoder decoder(engine);
  DecodeStats plain_stats, drafted_stats;
  const std::vector<Written> plain =
      answers(decoder, {.method = DraftMethod::kNone}, questions, plain_stats);
  const std::vector<Written> drafted =
      answers(decoder, {.ngrams = true, .tree_nodes = 6}, questions, drafted_stats);
  int complete = 0;
  for (std::size_t i = 0; i < questions.size(); ++i) {
    const Question& question = questions[i];
    const std::string which = fmt::format("schema {}, temperature {}: {}", i / 2 + 1,
                                          question.sampling.temperature, question.schema.dump());
    EXPECT_EQ(drafted[i].text, plain[i].text) << which;
    EXPECT_EQ(drafted[i].is_complete, plain[i].is_complete) << which;
    if (!drafted[i].is_complete) continue;
    ++complete;
    // The model may put it into a block of code, which the reader takes off.
    const std::string text = question.chat.reader.read(drafted[i].text, /*complete=*/true).content;
    const Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    EXPECT_TRUE(!value.is_discarded() && is_valid(value, question.schema, question.schema))
        << text << "\n"
        << which;
  }
  EXPECT_GE(complete, std::ssize(questions) * 3 / 4);
  EXPECT_LT(drafted_stats.forwards, plain_stats.forwards) << "drafts were accepted";
}

}  // namespace
}  // namespace firp
