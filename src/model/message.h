#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <string>
#include <utility>

namespace firp {

/// A message on standard error. One that cannot be written (the terminal is gone, the disk is full)
/// is lost, and nothing else with it: fmt::print() would throw.
template <typename... Values>
void say(fmt::format_string<Values...> format, Values&&... values) {
  const std::string text = fmt::format(format, std::forward<Values>(values)...);
  std::fwrite(text.data(), 1, text.size(), stderr);
}

}  // namespace firp
