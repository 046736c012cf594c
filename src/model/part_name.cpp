#include "model/part_name.h"

#include <fmt/format.h>

#include <charconv>
#include <string_view>

namespace firp {
namespace {

constexpr std::size_t kDigits = 5;

/// The number that is all of `text`; 0 where it is none.
int number_of(std::string_view text) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() ? number : 0;
}

}  // namespace

std::filesystem::path PartName::file_of(int other_part) const {
  std::filesystem::path file = stem;
  file += fmt::format("-{:0{}}-of-{:0{}}.gguf", other_part, kDigits, parts, kDigits);
  return file;
}

std::optional<PartName> part_name(const std::filesystem::path& file) {
  const std::string name = file.filename().string();
  constexpr std::size_t kEndSize = std::string_view("-00001-of-00003.gguf").size();
  if (name.size() <= kEndSize) return std::nullopt;
  const std::size_t stem_size = name.size() - kEndSize;
  const std::string_view end = std::string_view(name).substr(stem_size);
  const PartName found = {.stem = file.parent_path() / name.substr(0, stem_size),
                          .part = number_of(end.substr(1, kDigits)),
                          .parts = number_of(end.substr(kEndSize - 10, kDigits))};
  // A number with a sign, or another text between them, would not be written like this.
  const bool is_name =
      found.part >= 1 && found.part <= found.parts && found.file_of(found.part).filename() == name;
  return is_name ? std::optional(found) : std::nullopt;
}

std::filesystem::path model_stem(const std::filesystem::path& file) {
  if (const auto part = part_name(file)) return part->stem;
  std::filesystem::path stem = file;
  if (stem.extension() == ".gguf") stem.replace_extension();
  return stem;
}

std::string model_name(const std::filesystem::path& file) {
  return model_stem(file).filename().string();
}

}  // namespace firp
