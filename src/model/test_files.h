#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace firp {

/// Whether tests that take long are to end soon, with fewer cases of the same kind:
/// FIRP_TEST_SIZE=quick.
inline bool quick_tests() {
  const char* const size = std::getenv("FIRP_TEST_SIZE");
  return size != nullptr && std::string(size) == "quick";
}

/// A fresh directory that goes away with the test.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "firp-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) {
      throw std::runtime_error("mkdtemp failed");
    }
    path_ = name;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

/// While it lives, cache_directory() is this one.
class TemporaryCache {
 public:
  TemporaryCache() {
    if (const char* const value = std::getenv("FIRP_CACHE")) before_ = value;
    setenv("FIRP_CACHE", directory_.path().c_str(), 1);
  }
  ~TemporaryCache() {
    before_ ? setenv("FIRP_CACHE", before_->c_str(), 1) : unsetenv("FIRP_CACHE");
  }
  TemporaryCache(const TemporaryCache&) = delete;
  TemporaryCache& operator=(const TemporaryCache&) = delete;

  /// All files in it.
  std::vector<std::filesystem::path> files() const {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(directory_.path())) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
    return files;
  }

 private:
  TemporaryDirectory directory_;
  std::optional<std::string> before_;
};

inline std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

/// SmolLM2-135M-Instruct.Q4_1.gguf, as `make test` fetches it: in FIRP_CACHE or ~/.cache/firp.
/// FIRP_TEST_MODEL names another place.
inline std::filesystem::path real_model() {
  if (const char* const path = std::getenv("FIRP_TEST_MODEL")) return path;
  const char* const cache = std::getenv("FIRP_CACHE");
  const std::filesystem::path base =
      cache != nullptr && *cache != '\0'
          ? std::filesystem::path(cache)
          : std::filesystem::path(std::getenv("HOME")) / ".cache" / "firp";
  return base / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf";
}

/// The message of the firp::Error that `action` must throw.
template <typename Action>
std::string error_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "no firp::Error was thrown";
  return "";
}

}  // namespace firp
