#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "chat/chat_template.h"
#include "decode/batch_decoder.h"
#include "serve/fields.h"

namespace firp {

struct ServerOptions {
  std::string host = "127.0.0.1";
  int port = 8080;         ///< 0: any free one
  int parallel = 4;        ///< answers that are written at once
  int most_waiting = 256;  ///< that wait to begin; more are refused
  std::string model_name;
  std::string model_path;  ///< for /props
  std::string api_key;     ///< empty: none is asked for
  // Without a key (serve/access.h):
  std::vector<std::string> allowed_origins;  ///< of pages that may use it besides this machine's
  std::vector<std::string> allowed_hosts;    ///< names of it besides this machine's
  int max_tokens;                            ///< of an answer
  std::optional<std::uint64_t> seed;         ///< of requests without; none: another one for each
  // What requests can say otherwise, of a chat template that knows of thinking.
  bool thinks = true;
  ReasoningFormat reasoning = ReasoningFormat::kApart;
  std::map<std::string, Json> template_variables;
  bool tells_slots = true;
  bool tells_metrics = false;
  bool has_page = true;
  bool verbose = false;  ///< replies tell the prompt, as requests can ask for
  bool log = true;       ///< a line for each request, on standard error
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
  /// `decoder` and the template must outlive the server, which uses the decoder's engine alone.
  Server(BatchDecoder& decoder, const ChatTemplate& chat_template, const DecodeOptions& decoding,
         ServerOptions options);
  ~Server();

  /// Of its model: all but the page and /health.
  static std::vector<EndpointName> endpoints();

  /// Opens the port, which it returns. An Error where that cannot be had.
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
