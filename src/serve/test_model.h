#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>

#include "chat/conversation.h"
#include "decode/batch_decoder.h"
#include "engine/native_engine.h"
#include "model/test_files.h"

namespace firp {

/// The real model, loaded once, and what plain decoding makes of a prompt.
class Loaded {
 public:
  Loaded() : file(std::make_shared<const GgufFile>(real_model())), vocabulary(real_model()) {
    model.emplace(file);
    engine.emplace(*model, EngineOptions{.threads = 2, .context = 512});
    decoder.emplace(*engine);
  }
  static Loaded& get() {
    static Loaded loaded;
    return loaded;
  }

  /// Of no scheduler's engine: a server may run meanwhile. Made for the first test that asks.
  BatchDecoder& plain_decoder() {
    if (!plain_decoder_) {
      plain_engine_.emplace(*model, EngineOptions{.threads = 2, .context = 512});
      plain_decoder_.emplace(*plain_engine_);
    }
    return *plain_decoder_;
  }
  std::string plain(const std::string& question, int tokens, const SamplingOptions& sampling = {}) {
    Session session(plain_decoder(), {.sampling = sampling, .method = DraftMethod::kNone});
    session.append(Conversation(chat_template).user_turn(question));
    std::string text;
    generate(
        session, tokens, [&](Token token) { return vocabulary.is_end_of_generation(token); },
        [&](const DecodedToken& token) {
          text += vocabulary.piece(token.token);
          return true;
        });
    return text;
  }

  std::shared_ptr<const GgufFile> file;
  Vocabulary vocabulary;
  ChatTemplate chat_template{vocabulary};
  std::optional<Model> model;
  std::optional<NativeEngine> engine;
  std::optional<BatchDecoder> decoder;

 private:
  std::optional<NativeEngine> plain_engine_;
  std::optional<BatchDecoder> plain_decoder_;
};

}  // namespace firp
