#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace firp {

/// What may be sent of a text that grows token by token: whole UTF-8 characters, and nothing that
/// may turn out to begin a stop string. A byte costs the same, however long the stop strings are.
class OutgoingText {
 public:
  explicit OutgoingText(const std::vector<std::string>& stops);

  /// What can be sent now that `bytes` have come.
  std::string add(std::string_view bytes);
  /// What is left where nothing more comes: a character that was cut is left out.
  std::string finish();
  /// A stop string came: it was not sent, nor will be what follows it.
  bool stopped() const { return stopped_; }
  /// That one; empty: none came.
  const std::string& stop_string() const { return stop_string_; }

 private:
  /// Knuth, Morris and Pratt's search: how much of the stop string the text ends with.
  struct Stop {
    std::string text;
    std::vector<std::size_t> borders;  ///< of its first 1, 2, ... bytes: the longest proper prefix
                                       ///< that they end with
    std::size_t matched = 0;

    void add(char byte);
  };

  std::vector<Stop> stops_;
  std::string held_;
  bool stopped_ = false;
  std::string stop_string_;
};

}  // namespace firp
