#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "chat/chat_template.h"
#include "decode/batch_decoder.h"
#include "serve/embeddings.h"
#include "serve/fields.h"
#include "serve/request_log.h"

namespace firp {

/// Where Vertex AI asks (serve/predict.h).
struct VertexRoutes {
  std::string predict = "/predict";
  std::string health;  ///< empty: as others do
};

struct ServerOptions {
  std::string host = "127.0.0.1";       ///< or the path of a Unix socket, which ends in .sock
  std::vector<std::string> more_hosts;  ///< addresses besides it, at the same port
  int port = 8080;                      ///< 0: any free one
  int parallel = 4;                     ///< answers that are written at once
  int most_waiting = 256;               ///< that wait to begin; more are refused
  std::string model_name;
  std::vector<std::string> aliases, tags;  ///< for /models
  std::string model_path;                  ///< for /props
  int request_seconds = 0;  ///< that a request may take in all; 0: as long as it takes
  std::filesystem::path ssl_key_file, ssl_cert_file;  ///< empty: connections are not encrypted
  // Who may use it (serve/access.h):
  std::vector<std::string> api_keys;  ///< empty: none is asked for
  std::vector<std::string> allowed_origins;
  std::vector<std::string> allowed_hosts;
  // What a page of another origin may do, besides:
  std::string cors_methods = "GET, POST, DELETE, OPTIONS";
  std::string cors_headers;           ///< empty: those that it asks for
  bool cors_credentials = false;      ///< cookies, and what a browser keeps of its own
  int max_tokens;                     ///< of an answer
  std::optional<std::uint64_t> seed;  ///< of requests without; none: another one for each
  // What requests can say otherwise, of a chat template that knows of thinking.
  bool thinks = true;
  ReasoningFormat reasoning = ReasoningFormat::kApart;
  std::map<std::string, Json> template_variables;
  std::filesystem::path slot_folder;           ///< where slots are saved; empty: nowhere
  std::optional<EmbeddingOptions> embeddings;  ///< none are made
  bool tells_slots = true;
  bool tells_metrics = false;
  bool has_page = true;
  bool verbose = false;              ///< replies tell the prompt, as requests can ask for
  LogFormat log = LogFormat::kText;  ///< on standard error
  std::optional<int> idle_seconds;   ///< after which the model sleeps; none: never
  std::optional<VertexRoutes> vertex;

  bool listens_at_file() const { return host.ends_with(".sock"); }
};

/// A model that is loaded. `owner` keeps the others alive, unless they outlive the server anyway;
/// it alone uses the decoder's engine.
struct ServedModel {
  BatchDecoder& decoder;
  const ChatTemplate& chat_template;
  DecodeOptions decoding;
  std::shared_ptr<void> owner = nullptr;
};

/// What a server can be asked for.
struct EndpointName {
  const char* path;
  const char* method;
};

/// An HTTP server with OpenAI's, Anthropic's and llama.cpp's endpoints (docs/serve.md lists them,
/// and its limits).
class Server {
 public:
  /// `load` loads the same model again, where it slept (ServerOptions::idle_seconds); what it
  /// throws is what the request that woke it gets.
  Server(ServedModel model, ServerOptions options, std::function<ServedModel()> load = nullptr);
  ~Server();

  /// Of its model: all but the page and /health.
  static std::vector<EndpointName> endpoints();

  /// Opens the port, which it returns, or the socket's file, for which it returns 0. An Error where
  /// that cannot be had.
  int bind();
  /// Whether, bound so, whoever reaches it over a network may use it.
  bool is_open() const;
  /// Answers requests until stop().
  void run();
  /// Answers that are not complete end with an error, after the running pass. Any thread may call
  /// it, once run() was called.
  void stop();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace firp
