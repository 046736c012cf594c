#pragma once

#include <string>
#include <string_view>

namespace firp {

/// While one lives, what ggml and libllama report as errors on this thread is kept for our own
/// message. From the first one on, nothing they log reaches stderr any more.
class GgmlErrors {
 public:
  GgmlErrors();
  ~GgmlErrors();
  GgmlErrors(const GgmlErrors&) = delete;
  GgmlErrors& operator=(const GgmlErrors&) = delete;

  /// The errors so far, in one line; `otherwise` where there was none.
  std::string text(std::string_view otherwise) const;

 private:
  std::string lines_;
  std::string* outer_;
};

/// Text out of a file, made fit for an error message: one line of printable characters, not long.
std::string one_line(std::string_view text);

}  // namespace firp
