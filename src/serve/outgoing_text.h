#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace firp {

/// What may be sent of a text that grows token by token: whole UTF-8 characters, and nothing that
/// may turn out to begin a stop string.
class OutgoingText {
 public:
  explicit OutgoingText(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  /// What can be sent now that `bytes` have come.
  std::string add(std::string_view bytes);
  /// What is left where nothing more comes.
  std::string finish();
  /// A stop string came: it was not sent, nor will be what follows it.
  bool stopped() const { return stopped_; }

 private:
  const std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace firp
