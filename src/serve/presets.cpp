#include "serve/presets.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "base/error.h"
#include "model/ggml_log.h"
#include "model/text_input.h"

namespace firp {
namespace {

constexpr std::string_view kForAll = "*";
/// llama.cpp's names that have one dash; all others of several letters have two.
constexpr std::string_view kShortNames[] = {"ctk", "ctv", "dev", "fa", "kvu",
                                            "md",  "ngl", "np",  "ts", "no-kvu"};
/// That the router decides, or that make no sense for one of its models.
constexpr std::string_view kRouters[] = {"host",          "port",          "api-key",
                                         "api-key-file",  "alias",         "a",
                                         "models-dir",    "models-max",    "ssl-key-file",
                                         "models-preset", "ssl-cert-file", "no-models-autoload"};
/// Which have nothing to do here: processes end at once, and there is no cache of downloads.
constexpr std::string_view kOfNoUse[] = {"stop-timeout", "dedup-cache-models", "version"};

bool is_among(const auto& names, std::string_view name) {
  return std::ranges::find(names, name) != std::end(names);
}

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r";
  const std::size_t begin = text.find_first_not_of(kBlanks);
  if (begin == text.npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlanks) + 1 - begin);
}

bool is_true(const std::string& value) {
  return value == "true" || value == "1" || value == "on" || value == "enabled";
}

void set(Preset& preset, const std::string& key, const std::string& value) {
  if (is_among(kOfNoUse, key)) return;
  if (is_among(kRouters, key)) {
    throw Error(fmt::format("{} is the server's, and not one model's", key));
  }
  if (key.starts_with("hf-") || key.starts_with("LLAMA_ARG_")) {
    throw Error(
        fmt::format("{} is not done here: models are files (model = PATH), and keys are flags "
                    "without dashes",
                    one_line(key)));
  }
  if (key == "model" || key == "m") {
    preset.model = value;
  } else if (key == "load-on-startup") {
    preset.loads_at_start = is_true(value);
  } else if (key.size() == 1 || is_among(kShortNames, key)) {
    preset.arguments.insert(preset.arguments.end(), {"-" + key, value});
  } else {
    preset.arguments.push_back(fmt::format("--{}={}", key, value));
  }
}

}  // namespace

std::map<std::string, Preset> read_presets(const std::filesystem::path& file) {
  TextInput input("the presets", file);
  std::map<std::string, Preset> presets;
  Preset for_all, before;  // what stands before all sections is about none
  Preset* section = &before;
  int number = 0;
  for (std::string read; input.next_line(read);) {
    ++number;
    const std::string_view line = trimmed(read);
    if (line.empty() || line.front() == ';' || line.front() == '#') continue;
    try {
      const std::size_t equals = line.find('=');
      if (line.front() == '[' && line.back() == ']') {
        const std::string name(trimmed(line.substr(1, line.size() - 2)));
        if (name.empty()) throw Error("a section has a name");
        section = name == kForAll ? &for_all : &presets[name];
      } else if (equals == line.npos || equals == 0) {
        throw Error("that is neither [NAME] nor KEY = VALUE");
      } else {
        set(*section, std::string(trimmed(line.substr(0, equals))),
            std::string(trimmed(line.substr(equals + 1))));
      }
    } catch (const Error& error) {
      throw Error(fmt::format("{}:{}: {}", file.string(), number, error.what()));
    }
  }
  if (!for_all.model.empty()) {
    throw Error(fmt::format("{}: [*] is about all models, and has none", file.string()));
  }
  // Of a flag that is given twice the last one holds.
  for (auto& [name, preset] : presets) {
    preset.arguments.insert(preset.arguments.begin(), for_all.arguments.begin(),
                            for_all.arguments.end());
    preset.loads_at_start = preset.loads_at_start || for_all.loads_at_start;
  }
  presets[std::string(kForAll)] = std::move(for_all);
  return presets;
}

}  // namespace firp
