#include "engine/context_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <string_view>
#include <system_error>

#include "base/error.h"
#include "model/replaced_file.h"
#include "model/stream_hash.h"

namespace firp {
namespace {

/// The file: this, the form (its bytes), the tokens, the keys and values, and a hash of all that.
struct Header {
  char magic[8];
  std::uint32_t version;
  std::uint32_t form_bytes;
  std::uint64_t tokens;
  std::uint64_t context_bytes;
};
constexpr std::string_view kMagic = "FIRPCTX\n";
/// Of the file's layout, of that of pages, and of the arithmetic that fills them: to be raised
/// where one of them changes.
constexpr std::uint32_t kVersion = 1;
constexpr std::uint32_t kMostFormBytes = 4096;
/// Hashed at once.
constexpr std::size_t kPartBytes = std::size_t{1} << 20;

/// A sequence for as long as a context is written.
class BorrowedSequence {
 public:
  explicit BorrowedSequence(Engine& engine) : engine_(engine), number_(engine.add_sequence()) {}
  ~BorrowedSequence() { engine_.retire_sequence(number_); }
  BorrowedSequence(const BorrowedSequence&) = delete;
  BorrowedSequence& operator=(const BorrowedSequence&) = delete;
  int number() const { return number_; }

 private:
  Engine& engine_;
  const int number_;
};

/// Hashes a stream by parts of kPartBytes, however it comes.
class PartHash {
 public:
  void add(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const std::size_t count = std::min(bytes.size(), kPartBytes - part_.size());
      part_.insert(part_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(count));
      bytes = bytes.subspan(count);
      if (part_.size() == kPartBytes) end_part();
    }
  }
  std::uint64_t value() {
    end_part();
    return hash_.value();
  }

 private:
  void end_part() {
    hash_.add(part_);
    part_.clear();
  }

  StreamHash hash_;
  std::vector<std::byte> part_;
};

template <typename T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

/// A file whose header, size and hash were found to be right.
class ContextFile {
 public:
  ContextFile(const Engine& engine, const std::filesystem::path& path) : path_(path) {
    std::error_code error;
    if (!std::filesystem::is_regular_file(path, error)) refuse("there is no such file");
    bytes_ = std::filesystem::file_size(path, error);
    file_.open(path, std::ios::binary);
    if (!file_ || error) refuse("it cannot be read");
    check_header();
    read_form(engine);
    if (bytes_ != whole_bytes()) refuse("it is damaged: it is shorter or longer than it says");
    check_hash();
    file_.clear();
    file_.seekg(static_cast<std::streamoff>(sizeof header_ + header_.form_bytes));
    read_tokens(engine);
  }

  std::size_t bytes() const { return bytes_; }
  const std::vector<Token>& tokens() const { return tokens_; }
  /// The next ones; at first those of the context.
  void read(std::span<std::byte> to) {
    file_.read(reinterpret_cast<char*>(to.data()), static_cast<std::streamsize>(to.size()));
    if (!file_) refuse("it cannot be read to its end");
  }

 private:
  [[noreturn]] void refuse(std::string_view why) const {
    throw Error(fmt::format("{}: {}", path_.filename().string(), why));
  }

  void check_header() {
    if (bytes_ < sizeof header_) refuse("it is no saved context of FIRP");
    read(std::as_writable_bytes(std::span(&header_, 1)));
    if (std::string_view(header_.magic, kMagic.size()) != kMagic) {
      refuse("it is no saved context of FIRP");
    }
    if (header_.version != kVersion) {
      refuse(fmt::format("it is of version {}, and this FIRP reads version {}: save it again",
                         header_.version, kVersion));
    }
    if (header_.form_bytes > kMostFormBytes) refuse("it is damaged");
  }

  void read_form(const Engine& engine) {
    std::string form(std::min<std::size_t>(header_.form_bytes, bytes_ - sizeof header_), '\0');
    read(std::as_writable_bytes(std::span(form)));
    const std::string own = engine.context_form();
    if (form != own) {
      refuse(fmt::format("it was saved with another model or engine: '{}' there, '{}' here", form,
                         own));
    }
    // Before anything is taken that depends on them.
    if (header_.tokens == 0) refuse("it is damaged: it holds no tokens");
    const auto context = static_cast<std::uint64_t>(engine.options().context);
    if (header_.tokens > context) {
      refuse(fmt::format("it holds {} tokens, more than the context of {} (firp serve -c)",
                         header_.tokens, context));
    }
    if (header_.context_bytes != engine.context_bytes(static_cast<int>(header_.tokens))) {
      refuse("it is damaged: its keys and values are not as many as its tokens");
    }
  }

  std::uint64_t whole_bytes() const {
    return sizeof header_ + header_.form_bytes + header_.tokens * sizeof(Token) +
           header_.context_bytes + sizeof(std::uint64_t);
  }

  void check_hash() {
    file_.seekg(0);
    PartHash hash;
    std::vector<std::byte> part(kPartBytes);
    for (std::uint64_t left = bytes_ - sizeof(std::uint64_t); left > 0;) {
      const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(left, kPartBytes));
      const std::span<std::byte> here = std::span(part).first(count);
      read(here);
      hash.add(here);
      left -= count;
    }
    std::uint64_t expected = 0;
    read(std::as_writable_bytes(std::span(&expected, 1)));
    if (hash.value() != expected) refuse("it is damaged: its hash is another");
  }

  void read_tokens(const Engine& engine) {
    tokens_.resize(header_.tokens);
    read(std::as_writable_bytes(std::span(tokens_)));
    const auto is_wrong = [&](Token token) {
      return token < 0 || token >= engine.config().vocabulary_size;
    };
    if (std::ranges::any_of(tokens_, is_wrong)) refuse("it is damaged: it holds no tokens");
  }

  const std::filesystem::path path_;
  std::uint64_t bytes_ = 0;
  std::ifstream file_;
  Header header_ = {};
  std::vector<Token> tokens_;
};

}  // namespace

SavedContext save_context(Engine& engine, std::span<const Token> tokens,
                          const std::filesystem::path& path) {
  const BorrowedSequence sequence(engine);
  const int length = engine.adopt(sequence.number(), tokens);
  if (length == 0) return {};
  SavedContext saved = {.tokens = {tokens.begin(), tokens.begin() + length}};
  const std::string form = engine.context_form();
  Header header = {.magic = {},
                   .version = kVersion,
                   .form_bytes = static_cast<std::uint32_t>(form.size()),
                   .tokens = static_cast<std::uint64_t>(length),
                   .context_bytes = engine.context_bytes(length)};
  std::ranges::copy(kMagic, header.magic);

  ReplacedFile file(path);
  PartHash hash;
  const auto write = [&](std::span<const std::byte> bytes) {
    file.write(bytes);
    hash.add(bytes);
    saved.bytes += bytes.size();
  };
  write(bytes_of(header));
  write(std::as_bytes(std::span(form)));
  write(std::as_bytes(std::span(saved.tokens)));
  engine.write_context(sequence.number(), write);
  const std::uint64_t sum = hash.value();
  write(bytes_of(sum));
  file.replace();
  return saved;
}

SavedContext restore_context(Engine& engine, const std::filesystem::path& path) {
  ContextFile file(engine, path);
  engine.take_in(file.tokens(), [&](std::span<std::byte> to) { file.read(to); });
  return {.tokens = file.tokens(), .bytes = file.bytes()};
}

}  // namespace firp
