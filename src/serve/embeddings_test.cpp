#include "serve/embeddings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>

namespace firp {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr int kVocabulary = 100, kSize = 3;

EmbeddingsRequest parse(const std::string& body, EmbeddingsForm form = EmbeddingsForm::kOpenAi) {
  return parse_embeddings_request(body, form, kVocabulary, kSize, 2);
}
std::string refusal(const std::string& body) {
  try {
    parse(body);
  } catch (const RequestError& error) {
    EXPECT_TRUE(error.kind.status == 400 || error.kind.status == 413);
    return error.what();
  }
  ADD_FAILURE() << body << " was not refused";
  return "";
}
Prompt text(const std::string& words) { return {words}; }

/// The numbers that the reply has for a state.
std::vector<float> vector_of(const std::string& body, const std::vector<float>& state) {
  const std::vector<Scheduler::Answer> answers = {{.embedding = state}};
  return embeddings_reply(parse(body), answers, kSize, "m")["data"][0]["embedding"];
}

TEST(Embeddings, ReadsEveryFormOfInput) {
  using Tokens = std::vector<Token>;
  EXPECT_THAT(parse(R"({"input": "a"})").inputs, ElementsAre(text("a")));
  EXPECT_THAT(parse(R"({"input": ["a", "b"]})").inputs, ElementsAre(text("a"), text("b")));
  EXPECT_THAT(parse(R"({"input": [1, 2]})").inputs, ElementsAre(Prompt{Tokens{1, 2}}));
  EXPECT_THAT(parse(R"({"input": [[1, 2], [3]]})").inputs,
              ElementsAre(Prompt{Tokens{1, 2}}, Prompt{Tokens{3}}));
  EXPECT_THAT(parse(R"({"input": [1, "a", 2]})").inputs,
              ElementsAre(Prompt{Tokens{1}, std::string("a"), Tokens{2}}));
  EXPECT_THAT(parse(R"({"input": {"prompt_string": "a"}})").inputs, ElementsAre(text("a")));
  EXPECT_THAT(parse(R"({"input": ["x", {"content": [{"type": "text", "text": "a "},
                                                    {"type": "text", "text": "b"}]}]})")
                  .inputs,
              ElementsAre(text("x"), text("a b")));
  const EmbeddingsRequest own = parse(R"({"content": "a"})");
  EXPECT_THAT(own.inputs, ElementsAre(text("a")));
  EXPECT_EQ(own.form, EmbeddingsForm::kLlama);
  EXPECT_STREQ(own.field, "content");
}

TEST(Embeddings, RanksDocumentsByTheirCosine) {
  const auto ranked = [](const std::string& fields) {
    const RerankRequest request = parse_rerank_request(R"({"query": "q", )" + fields + "}", 2);
    const std::vector<Scheduler::Answer> answers = {
        {.embedding = {2, 0}, .usage = {.prompt_tokens = 1}},
        {.embedding = {0, 3}, .usage = {.prompt_tokens = 2}},
        {.embedding = {5, 0}, .usage = {.prompt_tokens = 3}},
        {.embedding = {-1, 1}, .usage = {.prompt_tokens = 4}}};
    return rerank_reply(request, answers, "m");
  };
  const Json jina = ranked(R"("documents": ["a", {"text": "b"}, "c"], "return_documents": true)");
  ASSERT_EQ(jina["results"].size(), 3u);
  EXPECT_EQ(jina["results"][0],
            Json({{"index", 1}, {"relevance_score", 1.0}, {"document", {{"text", "b"}}}}));
  EXPECT_EQ(jina["results"][1]["index"], 0);
  EXPECT_EQ(jina["results"][2]["index"], 2);
  EXPECT_NEAR(jina["results"][2]["relevance_score"], -std::sqrt(0.5), 1e-6);
  EXPECT_EQ(jina["usage"]["prompt_tokens"], 10);
  const Json tei = ranked(R"("texts": ["a", "b", "c"], "top_n": 1)");
  EXPECT_EQ(tei, Json::array({{{"index", 1}, {"score", 1.0}}}));
  for (const char* const wrong : {R"("documents": [])", R"("documents": 3)", R"("documents": [3])",
                                  R"("documents": null)", R"("documents": ["a"], "top_n": 0)"}) {
    EXPECT_THROW(ranked(wrong), RequestError) << wrong;
  }
}

TEST(Embeddings, RefusesWhatIsWrong) {
  EXPECT_THAT(refusal("{}"), HasSubstr("'input' is missing"));
  EXPECT_THAT(refusal(R"({"input": 1})"), HasSubstr("'input' must be a string"));
  EXPECT_THAT(refusal(R"({"input": [100]})"), HasSubstr("0 to 99"));
  EXPECT_THAT(refusal(R"({"input": {"content": "a"}})"), HasSubstr("list of parts"));
  EXPECT_THAT(refusal(R"({"input": {"content": [{"type": "image_url"}]}})"),
              HasSubstr("parts of type text"));
  EXPECT_THAT(refusal(R"({"input": {"prompt_string": "a", "multimodal_data": ["AA"]}})"),
              HasSubstr("multimodal_data"));
  EXPECT_THAT(refusal(R"({"input": "a", "encoding_format": "hex"})"), HasSubstr("float or base64"));
  EXPECT_THAT(refusal(R"({"input": "a", "dimensions": 4})"), HasSubstr("3 dimensions"));
  EXPECT_THAT(refusal(R"({"input": "a", "dimensions": 0})"), HasSubstr("at least 1"));
  EXPECT_THAT(refusal(R"({"input": "a", "embd_normalize": -2})"), HasSubstr("at least -1"));
  std::string many = R"({"input": ["a")";
  for (std::size_t i = 0; i < kMostInputs; ++i) many += R"(, "a")";
  EXPECT_THAT(refusal(many + "]}"), HasSubstr("2048 texts"));
}

TEST(Embeddings, DividesByTheNormThatIsAskedFor) {
  const std::vector<float> state = {3, -4, 0};
  EXPECT_THAT(vector_of(R"({"input": "a"})", state), ElementsAre(0.6f, -0.8f, 0.0f));
  EXPECT_EQ(vector_of(R"({"input": "a", "embd_normalize": -1})", state), state);
  EXPECT_THAT(vector_of(R"({"input": "a", "embd_normalize": 0})", state),
              ElementsAre(24570.0f, -32760.0f, 0.0f));
  EXPECT_THAT(vector_of(R"({"input": "a", "embd_normalize": 1})", state),
              ElementsAre(3.0f / 7, -4.0f / 7, 0.0f));
  EXPECT_THAT(vector_of(R"({"input": "a", "embd_normalize": 3})", state),
              ElementsAre(testing::FloatNear(3 / 4.49794f, 1e-5f),
                          testing::FloatNear(-4 / 4.49794f, 1e-5f), 0.0f));
  // Where the powers of the numbers themselves would be 0.
  EXPECT_THAT(vector_of(R"({"input": "a", "embd_normalize": 1000})", {1e-30f, 0, 0}),
              ElementsAre(1.0f, 0.0f, 0.0f));
  EXPECT_THAT(vector_of(R"({"input": "a"})", {0, 0, 0}), ElementsAre(0.0f, 0.0f, 0.0f));
}

TEST(Embeddings, TakesTheNormOfTheDimensionsThatAreAskedFor) {
  EXPECT_THAT(vector_of(R"({"input": "a", "dimensions": 2})", {3, 4, 100}),
              ElementsAre(0.6f, 0.8f));
}

TEST(Embeddings, WritesBase64) {
  const std::vector<Scheduler::Answer> answers = {{.embedding = {1, -2, 0.5f}}};
  // Three floats are twelve bytes; of two, eight, two signs are missing to the end.
  EXPECT_EQ(embeddings_reply(
                parse(R"({"input": "a", "encoding_format": "base64", "embd_normalize": -1})"),
                answers, kSize, "m")["data"][0]["embedding"],
            "AACAPwAAAMAAAAA/");
  EXPECT_EQ(embeddings_reply(parse(R"({"input": "a", "encoding_format": "base64",
                                       "embd_normalize": -1, "dimensions": 2})"),
                             answers, kSize, "m")["data"][0]["embedding"],
            "AACAPwAAAMA=");
  EXPECT_EQ(embeddings_reply(parse(R"({"input": "a", "encoding_format": "base64",
                                       "embd_normalize": -1, "dimensions": 1})"),
                             answers, kSize, "m")["data"][0]["embedding"],
            "AACAPw==");
}

TEST(Embeddings, RepliesInBothForms) {
  std::vector<Scheduler::Answer> answers = {{.embedding = {0, 1, 0}}, {.embedding = {1, 0, 0}}};
  answers[0].usage.prompt_tokens = 4;
  answers[1].usage.prompt_tokens = 5;
  const std::string body = R"({"input": ["a", "b"]})";
  EXPECT_EQ(
      embeddings_reply(parse(body), answers, kSize, "m").dump(),
      R"({"object":"list","data":[{"index":0,"object":"embedding","embedding":[0.0,1.0,0.0]},)"
      R"({"index":1,"object":"embedding","embedding":[1.0,0.0,0.0]}],"model":"m",)"
      R"("usage":{"prompt_tokens":9,"total_tokens":9}})");
  // Of a text whose tokens have a vector each.
  answers[1].embedding = {1, 0, 0, 0, 0, 1};
  EXPECT_EQ(embeddings_reply(parse(body, EmbeddingsForm::kLlama), answers, kSize, "m").dump(),
            R"([{"index":0,"embedding":[[0.0,1.0,0.0]]},)"
            R"({"index":1,"embedding":[[1.0,0.0,0.0],[0.0,0.0,1.0]]}])");
}

}  // namespace
}  // namespace firp
