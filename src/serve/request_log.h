#pragma once

#include <optional>
#include <string>
#include <vector>

#include "serve/reply.h"

namespace firp {

enum class LogFormat { kNone, kText, kJson };

/// What the log tells of a request.
struct LoggedRequest {
  std::string method, path, client;  ///< `client`: its address; "unix": it came through a file
  int status = 0;
  double seconds = 0;  ///< from its first byte on
  // Of a request for text, or embeddings:
  std::string id = {};                      ///< of the reply; empty: it came to none
  std::vector<Usage> usages = {};           ///< of its answers, so far
  std::optional<FinishReason> finish = {};  ///< kLength where one of them was cut
  bool streams = false;                     ///< the status was sent before the answer
  bool client_left = false;                 ///< before the answer was complete
  std::string error = {};                   ///< empty: none
};

/// A line of the log, without its end: errors, and what texts took; empty for other requests.
std::string text_line(const LoggedRequest& request);
/// One JSON object. `now`: seconds since 1970. Where the client left the status is 499, as nginx
/// has it.
std::string json_line(const LoggedRequest& request, double now);

}  // namespace firp
