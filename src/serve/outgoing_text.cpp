#include "serve/outgoing_text.h"

#include <algorithm>
#include <utility>

#include "model/vocabulary.h"

namespace firp {

std::string OutgoingText::add(std::string_view bytes) {
  if (stopped_) return {};
  held_ += bytes;
  std::size_t end = held_.size();
  for (const std::string& stop : stops_) {
    const std::size_t at = held_.find(stop);
    if (at >= end) continue;  // npos, too
    end = at;
    stopped_ = true;
  }
  if (stopped_) {
    held_.resize(end);
    return std::exchange(held_, {});
  }
  std::size_t kept = unfinished_utf8(held_);
  for (const std::string& stop : stops_) {
    for (std::size_t size = std::min(stop.size() - 1, held_.size()); size > kept; --size) {
      if (held_.ends_with(std::string_view(stop).substr(0, size))) kept = size;
    }
  }
  std::string sent = held_.substr(0, held_.size() - kept);
  held_.erase(0, sent.size());
  return sent;
}

std::string OutgoingText::finish() { return std::exchange(held_, {}); }

}  // namespace firp
