#include "serve/outgoing_text.h"

#include <algorithm>
#include <utility>

#include "model/vocabulary.h"

namespace firp {

OutgoingText::OutgoingText(const std::vector<std::string>& stops) {
  for (const std::string& text : stops) {
    Stop stop = {.text = text, .borders = {0}};
    for (std::size_t i = 1; i < text.size(); ++i) {
      stop.add(text[i]);
      stop.borders.push_back(stop.matched);
    }
    stop.matched = 0;
    stops_.push_back(std::move(stop));
  }
}

void OutgoingText::Stop::add(char byte) {
  if (matched == text.size()) matched = borders[matched - 1];
  while (matched > 0 && text[matched] != byte) matched = borders[matched - 1];
  if (text[matched] == byte) ++matched;
}

std::string OutgoingText::add(std::string_view bytes) {
  if (stopped_) return {};
  for (const char byte : bytes) {
    held_ += byte;
    std::size_t end = held_.size();
    for (Stop& stop : stops_) {
      stop.add(byte);
      if (stop.matched < stop.text.size()) continue;
      stopped_ = true;
      if (held_.size() - stop.text.size() >= end) continue;
      end = held_.size() - stop.text.size();
      stop_string_ = stop.text;
    }
    if (!stopped_) continue;
    held_.resize(end);
    return std::exchange(held_, {});
  }
  std::size_t kept = unfinished_utf8(held_);
  for (const Stop& stop : stops_) kept = std::max(kept, stop.matched);
  std::string sent = held_.substr(0, held_.size() - kept);
  held_.erase(0, sent.size());
  return sent;
}

std::string OutgoingText::finish() {
  held_.resize(held_.size() - unfinished_utf8(held_));
  return std::exchange(held_, {});
}

}  // namespace firp
