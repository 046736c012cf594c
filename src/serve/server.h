#pragma once

#include <memory>
#include <string>
#include <vector>

#include "decode/batch_decoder.h"
#include "model/vocabulary.h"

namespace firp {

struct ServerOptions {
  std::string host = "127.0.0.1";
  int port = 8080;   ///< 0: any free one
  int parallel = 4;  ///< requests that are answered at once
  std::string model_name;
  std::string api_key;  ///< empty: none is asked for
  // Without a key (serve/access.h):
  std::vector<std::string> allowed_origins;  ///< of pages that may use it besides this machine's
  std::vector<std::string> allowed_hosts;    ///< names of it besides this machine's
  int max_tokens;                            ///< of an answer
  bool log = true;                           ///< a line for each request, on standard error
};

/// An HTTP server with OpenAI's endpoints (docs/serve.md lists them, and its limits).
class Server {
 public:
  /// `decoder` and `vocabulary` must outlive the server, which uses the decoder's engine alone.
  Server(BatchDecoder& decoder, const Vocabulary& vocabulary, const DecodeOptions& decoding,
         ServerOptions options);
  ~Server();

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
