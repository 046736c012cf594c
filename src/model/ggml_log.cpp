#include "model/ggml_log.h"

#include <llama.h>

namespace firp {
namespace {

thread_local std::string* sink = nullptr;

void on_message(ggml_log_level level, const char* text, void*) {
  if (sink == nullptr || level != GGML_LOG_LEVEL_ERROR) {
    return;
  }
  // "function: message\n": the function's name tells our users nothing.
  std::string_view message = text;
  const std::size_t colon = message.find(": ");
  if (colon != std::string_view::npos &&
      message.substr(0, colon).find(' ') == std::string_view::npos) {
    message.remove_prefix(colon + 2);
  }
  while (!message.empty() && message.back() == '\n') {
    message.remove_suffix(1);
  }
  if (!sink->empty()) {
    *sink += "; ";
  }
  *sink += message;
}

}  // namespace

GgmlErrors::GgmlErrors() : outer_(sink) {
  static const bool quiet = [] {
    llama_log_set(on_message, nullptr);
    return true;
  }();
  (void)quiet;
  sink = &lines_;
}

GgmlErrors::~GgmlErrors() { sink = outer_; }

std::string GgmlErrors::text(std::string_view otherwise) const {
  return one_line(lines_.empty() ? otherwise : lines_);
}

std::string one_line(std::string_view text) {
  constexpr std::size_t kLongest = 400;
  std::string line;
  for (const char c : text.substr(0, kLongest)) {
    const auto byte = static_cast<unsigned char>(c);
    line += byte < 0x20 || byte >= 0x7f ? '?' : c;
  }
  if (text.size() > kLongest) {
    line += "...";
  }
  return line;
}

}  // namespace firp
