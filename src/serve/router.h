#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "serve/server.h"

namespace firp {

struct RouterOptions {
  std::filesystem::path models_dir;    ///< may be empty, where there are
  std::filesystem::path presets;       ///< of models (serve/presets.h); empty: none
  int models_max = 4;                  ///< that run at once; 0: no bound
  bool autoload = true;                ///< a request for a model that does not run starts it
  std::vector<std::string> arguments;  ///< of every model's `firp serve`, but for those of where
};

/// A server of several models: each runs in a process of its own, and requests go to the one that
/// they name (docs/serve.md).
class Router {
 public:
  /// Of the server's options those of the front count. An Error where there are no models.
  Router(ServerOptions server, RouterOptions options);
  ~Router();

  // As Server has them.
  int bind();
  bool is_open() const;
  void run();
  void stop();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace firp
