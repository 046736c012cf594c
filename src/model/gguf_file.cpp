#include "model/gguf_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gguf.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "base/error.h"
#include "model/ggml_log.h"
#include "model/part_name.h"

namespace firp {
namespace {

// Far above any real file (the largest have some thousand tensors), and low enough that a damaged
// header cannot make us allocate more than some hundred megabytes.
constexpr std::uint64_t kMostTensors = 1 << 17;
constexpr std::uint64_t kMostKeys = 1 << 16;
constexpr std::size_t kHeaderBytes = 24;
constexpr std::int64_t kMostParts = 99999;  // five digits in their names

/// A file of a model in several.
struct Part {
  int number, count;  ///< from 1
  bool operator==(const Part&) const = default;
};

bool is_integer(gguf_type type) {
  switch (type) {
    case GGUF_TYPE_UINT8:
    case GGUF_TYPE_INT8:
    case GGUF_TYPE_UINT16:
    case GGUF_TYPE_INT16:
    case GGUF_TYPE_UINT32:
    case GGUF_TYPE_INT32:
    case GGUF_TYPE_UINT64:
    case GGUF_TYPE_INT64:
      return true;
    default:
      return false;
  }
}

template <typename T>
T load(const void* data, std::size_t index) {
  T value;
  std::memcpy(&value, static_cast<const std::byte*>(data) + index * sizeof(T), sizeof(T));
  return value;
}

/// Element `index` of integers of a GGUF type; nullopt if it does not fit.
std::optional<std::int64_t> load_integer(gguf_type type, const void* data, std::size_t index) {
  switch (type) {
    case GGUF_TYPE_UINT8:
    case GGUF_TYPE_BOOL:
      return load<std::uint8_t>(data, index);
    case GGUF_TYPE_INT8:
      return load<std::int8_t>(data, index);
    case GGUF_TYPE_UINT16:
      return load<std::uint16_t>(data, index);
    case GGUF_TYPE_INT16:
      return load<std::int16_t>(data, index);
    case GGUF_TYPE_UINT32:
      return load<std::uint32_t>(data, index);
    case GGUF_TYPE_INT32:
      return load<std::int32_t>(data, index);
    case GGUF_TYPE_INT64:
      return load<std::int64_t>(data, index);
    case GGUF_TYPE_UINT64: {
      const auto value = load<std::uint64_t>(data, index);
      if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        return std::nullopt;
      }
      return static_cast<std::int64_t>(value);
    }
    default:
      return std::nullopt;
  }
}

double load_float(gguf_type type, const void* data, std::size_t index) {
  return type == GGUF_TYPE_FLOAT32 ? load<float>(data, index) : load<double>(data, index);
}

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& reason) {
  throw Error(fmt::format("{}: {}", path.string(), reason));
}

}  // namespace

struct GgufFile::Mapping {
  const std::filesystem::path path;
  const std::byte* data = nullptr;
  std::size_t size = 0;
  std::string stamp;

  explicit Mapping(std::filesystem::path file_path) : path(std::move(file_path)) {
    // O_NONBLOCK: a named pipe must be refused, not waited for.
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) {
      fail(path, fmt::format("cannot open: {}", std::strerror(errno)));
    }
    struct stat status {};
    void* address = MAP_FAILED;
    std::string reason;
    if (fstat(file, &status) != 0) {
      reason = fmt::format("cannot read: {}", std::strerror(errno));
    } else if (!S_ISREG(status.st_mode)) {
      reason = "not a regular file";
    } else if (static_cast<std::size_t>(status.st_size) < kHeaderBytes) {
      reason = "not a GGUF file: too short";
    } else {
      address =
          mmap(nullptr, static_cast<std::size_t>(status.st_size), PROT_READ, MAP_PRIVATE, file, 0);
      if (address == MAP_FAILED) {
        reason = fmt::format("cannot map: {}", std::strerror(errno));
      }
    }
    close(file);
    if (!reason.empty()) {
      fail(path, reason);
    }
    data = static_cast<const std::byte*>(address);
    size = static_cast<std::size_t>(status.st_size);
    // Programs can set the time of modification (mtime) back, but not that of change (ctime).
    stamp = fmt::format("{}:{} {} {}.{} {}.{}", status.st_dev, status.st_ino, status.st_size,
                        status.st_mtim.tv_sec, status.st_mtim.tv_nsec, status.st_ctim.tv_sec,
                        status.st_ctim.tv_nsec);
  }

  ~Mapping() { munmap(const_cast<std::byte*>(data), size); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
};

struct GgufFile::Metadata {
  gguf_context* context;
  std::filesystem::path path;

  Metadata(gguf_context* parsed, std::filesystem::path file_path)
      : context(parsed), path(std::move(file_path)) {}
  ~Metadata() { gguf_free(context); }
  Metadata(const Metadata&) = delete;
  Metadata& operator=(const Metadata&) = delete;

  std::int64_t find(std::string_view key) const {
    return gguf_find_key(context, std::string(key).c_str());
  }

  std::optional<std::int64_t> find_int(std::string_view key) const {
    const std::int64_t id = find(key);
    if (id < 0) return std::nullopt;
    const gguf_type type = gguf_get_kv_type(context, id);
    if (!is_integer(type)) wrong_type(key, "an integer");
    const auto value = load_integer(type, gguf_get_val_data(context, id), 0);
    if (!value) fail(path, fmt::format("{} does not fit into 63 bits", key));
    return value;
  }

  /// Which part of a model in several files this one says it is; 1 of 1: of no such model.
  Part part() const {
    const std::int64_t count = find_int("split.count").value_or(0);
    if (count <= 1) return {1, 1};
    const std::int64_t number = find_int("split.no").value_or(0);
    if (count > kMostParts || number < 0 || number >= count) {
      fail(path, fmt::format("damaged GGUF file: split.no is {}, split.count {}", number, count));
    }
    return {static_cast<int>(number) + 1, static_cast<int>(count)};
  }

  [[noreturn]] void wrong_type(std::string_view key, std::string_view expected) const {
    const std::int64_t id = find(key);
    const bool is_array = gguf_get_kv_type(context, id) == GGUF_TYPE_ARRAY;
    const gguf_type type =
        is_array ? gguf_get_arr_type(context, id) : gguf_get_kv_type(context, id);
    fail(path, fmt::format("{} is {}{}, expected {}", key, is_array ? "an array of " : "of type ",
                           gguf_type_name(type), expected));
  }
};

GgufFile::GgufFile(std::filesystem::path path) : path_(std::move(path)) {
  metadata_ = map_file(path_);
  add_tensors(*metadata_);
  add_other_parts();
}

std::unique_ptr<GgufFile::Metadata> GgufFile::map_file(const std::filesystem::path& path) {
  const Mapping& mapping = *mappings_.emplace_back(std::make_unique<Mapping>(path));
  if (std::memcmp(mapping.data, GGUF_MAGIC, 4) != 0) {
    fail(path, "not a GGUF file");
  }
  // Versions are small numbers: their lower half is 0 where the bytes come the other way round.
  const auto version = load<std::uint32_t>(mapping.data, 1);
  if ((version & 0xffff) == 0 && version != 0) {
    fail(path,
         "the file is big-endian: this program reads little-endian ones only (gguf-py's "
         "gguf_convert_endian.py converts it)");
  }
  const auto tensor_count = load<std::uint64_t>(mapping.data, 1);
  const auto key_count = load<std::uint64_t>(mapping.data, 2);
  if (tensor_count > kMostTensors || key_count > kMostKeys) {
    fail(path, fmt::format("damaged GGUF file: it claims {} tensors and {} keys", tensor_count,
                           key_count));
  }

  const GgmlErrors errors;
  gguf_context* context = nullptr;
  try {
    context = gguf_init_from_buffer(mapping.data, mapping.size, {.no_alloc = true, .ctx = nullptr});
  } catch (const std::exception& error) {
    fail(path, fmt::format("damaged GGUF file: {}", one_line(error.what())));
  }
  if (context == nullptr) {
    fail(path, fmt::format("damaged or unsupported GGUF file: {}",
                           errors.text("its header cannot be read")));
  }
  return std::make_unique<Metadata>(context, path);
}

void GgufFile::add_tensors(const Metadata& metadata) {
  const Mapping& mapping = *mappings_.back();
  const std::filesystem::path& path = metadata.path;
  const gguf_context* const context = metadata.context;
  // Without this a tensor could begin where a block of its type may not be read.
  if (gguf_get_alignment(context) % 8 != 0) {
    fail(path, fmt::format("damaged GGUF file: general.alignment is {}, not a multiple of 8",
                           gguf_get_alignment(context)));
  }
  const std::size_t data_offset = gguf_get_data_offset(context);
  tensors_.reserve(tensors_.size() + static_cast<std::size_t>(gguf_get_n_tensors(context)));
  for (std::int64_t i = 0; i < gguf_get_n_tensors(context); ++i) {
    Tensor tensor{.name = gguf_get_tensor_name(context, i),
                  .type = gguf_get_tensor_type(context, i),
                  .shape = {},
                  .data = {}};
    const std::int64_t* shape = gguf_get_tensor_ne(context, i);
    std::copy(shape, shape + GGML_MAX_DIMS, tensor.shape.begin());
    if (tensor.elements() == 0) {
      fail(path, fmt::format("damaged GGUF file: tensor {} is empty", one_line(tensor.name)));
    }
    const std::size_t offset = gguf_get_tensor_offset(context, i);
    const std::size_t size = gguf_get_tensor_size(context, i);
    const std::size_t available = mapping.size - std::min(mapping.size, data_offset);
    if (offset > available || size > available - offset) {
      fail(path, fmt::format("truncated GGUF file: the {} bytes of tensor {} reach beyond its end "
                             "(download it again)",
                             size, one_line(tensor.name)));
    }
    tensor.data = {mapping.data + data_offset + offset, size};
    if (!tensor_index_.emplace(tensor.name, tensors_.size()).second) {
      fail(path, fmt::format("damaged GGUF file: tensor {} is also in an earlier part",
                             one_line(tensor.name)));
    }
    tensors_.push_back(std::move(tensor));
  }
}

void GgufFile::add_other_parts() {
  const Part first = metadata_->part();
  if (first.count == 1) return;
  const std::optional<PartName> name = part_name(path_);
  if (!name || Part{name->part, name->parts} != first) {
    fail(path_, fmt::format("it is part {} of {} of a model (split.no, split.count), and its name "
                            "does not say so, as NAME-00001-of-00003.gguf does: rename it, and the "
                            "other parts",
                            first.number, first.count));
  }
  if (first.number != 1) {
    fail(path_, fmt::format("it is part {} of {} of a model: name the first, {}", first.number,
                            first.count, name->file_of(1).string()));
  }
  for (int number = 2; number <= first.count; ++number) {
    const std::filesystem::path file = name->file_of(number);
    std::error_code error;
    if (!std::filesystem::exists(file, error)) {
      fail(path_, fmt::format("part {} of {} of the model is missing: {}", number, first.count,
                              file.string()));
    }
    const std::unique_ptr<Metadata> metadata = map_file(file);
    const Part part = metadata->part();
    if (part != Part{number, first.count}) {
      fail(file, fmt::format("it is part {} of {} of a model (split.no, split.count), not {} of {} "
                             "(download it again)",
                             part.number, part.count, number, first.count));
    }
    add_tensors(*metadata);
  }
  const auto expected = metadata_->find_int("split.tensors.count");
  if (expected && *expected != static_cast<std::int64_t>(tensors_.size())) {
    fail(path_, fmt::format("its {} parts hold {} tensors, and the model has {} "
                            "(split.tensors.count): some part is of another model",
                            first.count, tensors_.size(), *expected));
  }
}

GgufFile::~GgufFile() = default;
GgufFile::GgufFile(GgufFile&&) noexcept = default;
GgufFile& GgufFile::operator=(GgufFile&&) noexcept = default;

std::optional<std::int64_t> GgufFile::find_int(std::string_view key) const {
  return metadata_->find_int(key);
}

std::optional<double> GgufFile::find_float(std::string_view key) const {
  const std::int64_t id = metadata_->find(key);
  if (id < 0) {
    return std::nullopt;
  }
  const gguf_type type = gguf_get_kv_type(metadata_->context, id);
  if (type != GGUF_TYPE_FLOAT32 && type != GGUF_TYPE_FLOAT64) {
    metadata_->wrong_type(key, "a float");
  }
  return load_float(type, gguf_get_val_data(metadata_->context, id), 0);
}

std::optional<bool> GgufFile::find_bool(std::string_view key) const {
  const std::int64_t id = metadata_->find(key);
  if (id < 0) {
    return std::nullopt;
  }
  if (gguf_get_kv_type(metadata_->context, id) != GGUF_TYPE_BOOL) {
    metadata_->wrong_type(key, "a bool");
  }
  return load<std::uint8_t>(gguf_get_val_data(metadata_->context, id), 0) != 0;
}

std::optional<std::string> GgufFile::find_string(std::string_view key) const {
  const std::int64_t id = metadata_->find(key);
  if (id < 0) {
    return std::nullopt;
  }
  if (gguf_get_kv_type(metadata_->context, id) != GGUF_TYPE_STRING) {
    metadata_->wrong_type(key, "a string");
  }
  return gguf_get_val_str(metadata_->context, id);
}

bool GgufFile::is_array(std::string_view key) const {
  const std::int64_t id = metadata_->find(key);
  return id >= 0 && gguf_get_kv_type(metadata_->context, id) == GGUF_TYPE_ARRAY;
}

std::optional<std::size_t> GgufFile::find_array_size(std::string_view key) const {
  const std::int64_t id = metadata_->find(key);
  if (id < 0) {
    return std::nullopt;
  }
  if (gguf_get_kv_type(metadata_->context, id) != GGUF_TYPE_ARRAY) {
    metadata_->wrong_type(key, "an array");
  }
  return gguf_get_arr_n(metadata_->context, id);
}

std::optional<std::vector<std::int64_t>> GgufFile::find_int_array(std::string_view key) const {
  const auto size = find_array_size(key);
  if (!size) {
    return std::nullopt;
  }
  const std::int64_t id = metadata_->find(key);
  const gguf_type type = gguf_get_arr_type(metadata_->context, id);
  if (!is_integer(type) && type != GGUF_TYPE_BOOL) {
    metadata_->wrong_type(key, "an array of integers");
  }
  const void* data = gguf_get_arr_data(metadata_->context, id);
  std::vector<std::int64_t> values(*size);
  for (std::size_t i = 0; i < *size; ++i) {
    const auto value = load_integer(type, data, i);
    if (!value) {
      fail(path_, fmt::format("element {} of {} does not fit into 63 bits", i, key));
    }
    values[i] = *value;
  }
  return values;
}

std::optional<std::vector<double>> GgufFile::find_float_array(std::string_view key) const {
  const auto size = find_array_size(key);
  if (!size) {
    return std::nullopt;
  }
  const std::int64_t id = metadata_->find(key);
  const gguf_type type = gguf_get_arr_type(metadata_->context, id);
  if (type != GGUF_TYPE_FLOAT32 && type != GGUF_TYPE_FLOAT64) {
    metadata_->wrong_type(key, "an array of floats");
  }
  const void* data = gguf_get_arr_data(metadata_->context, id);
  std::vector<double> values(*size);
  for (std::size_t i = 0; i < *size; ++i) {
    values[i] = load_float(type, data, i);
  }
  return values;
}

std::optional<std::vector<std::string>> GgufFile::find_string_array(std::string_view key) const {
  const auto size = find_array_size(key);
  if (!size) {
    return std::nullopt;
  }
  const std::int64_t id = metadata_->find(key);
  if (gguf_get_arr_type(metadata_->context, id) != GGUF_TYPE_STRING) {
    metadata_->wrong_type(key, "an array of strings");
  }
  std::vector<std::string> values(*size);
  for (std::size_t i = 0; i < *size; ++i) {
    values[i] = gguf_get_arr_str(metadata_->context, id, i);
  }
  return values;
}

std::int64_t GgufFile::get_int(std::string_view key) const {
  const auto value = find_int(key);
  if (!value) {
    fail(path_, fmt::format("the key {} is missing", key));
  }
  return *value;
}

double GgufFile::get_float(std::string_view key) const {
  const auto value = find_float(key);
  if (!value) {
    fail(path_, fmt::format("the key {} is missing", key));
  }
  return *value;
}

std::string GgufFile::get_string(std::string_view key) const {
  const auto value = find_string(key);
  if (!value) {
    fail(path_, fmt::format("the key {} is missing", key));
  }
  return *value;
}

const Tensor* GgufFile::find_tensor(std::string_view name) const {
  const auto found = tensor_index_.find(std::string(name));
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

const Tensor& GgufFile::get_tensor(std::string_view name) const {
  const Tensor* tensor = find_tensor(name);
  if (tensor == nullptr) {
    fail(path_, fmt::format("the tensor {} is missing", name));
  }
  return *tensor;
}

std::vector<std::filesystem::path> GgufFile::paths() const {
  std::vector<std::filesystem::path> paths;
  for (const auto& mapping : mappings_) paths.push_back(mapping->path);
  return paths;
}

std::size_t GgufFile::bytes() const {
  std::size_t bytes = 0;
  for (const auto& mapping : mappings_) bytes += mapping->size;
  return bytes;
}

std::string GgufFile::stamp() const {
  std::string stamp;
  for (const auto& mapping : mappings_) stamp += (stamp.empty() ? "" : "; ") + mapping->stamp;
  return stamp;
}

void GgufFile::release(std::span<const std::byte> bytes) const {
  const std::byte* const end = bytes.data() + bytes.size();
  const bool is_ours = std::ranges::any_of(mappings_, [&](const auto& mapping) {
    return bytes.data() >= mapping->data && end <= mapping->data + mapping->size;
  });
  if (!is_ours) return;
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGE_SIZE));
  const auto at = reinterpret_cast<std::uintptr_t>(bytes.data());
  const std::size_t skip = (page - at % page) % page;
  if (bytes.size() < skip + page) return;
  const std::size_t whole = (bytes.size() - skip) / page * page;
  madvise(const_cast<std::byte*>(bytes.data()) + skip, whole, MADV_DONTNEED);
}

namespace {

void dequantize_elements(const Tensor& tensor, const std::byte* from, std::span<float> out) {
  if (tensor.type == GGML_TYPE_F32) {
    std::memcpy(out.data(), from, out.size_bytes());
    return;
  }
  const ggml_type_traits* traits = ggml_get_type_traits(tensor.type);
  if (traits->to_float == nullptr) {
    throw Error(fmt::format("tensor {}: its type {} cannot be converted to F32",
                            one_line(tensor.name), ggml_type_name(tensor.type)));
  }
  traits->to_float(from, out.data(), static_cast<std::int64_t>(out.size()));
}

}  // namespace

std::vector<float> dequantize(const Tensor& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
  dequantize_elements(tensor, tensor.data.data(), values);
  return values;
}

void dequantize_row(const Tensor& tensor, std::int64_t row, std::span<float> out) {
  const std::int64_t rows = tensor.elements() / tensor.columns();
  if (row < 0 || row >= rows || out.size() != static_cast<std::size_t>(tensor.columns())) {
    throw Error(fmt::format("tensor {} has {} rows of {} columns: row {} into {} floats asked for",
                            one_line(tensor.name), rows, tensor.columns(), row, out.size()));
  }
  const std::size_t row_bytes = ggml_row_size(tensor.type, tensor.columns());
  dequantize_elements(tensor, tensor.data.data() + static_cast<std::size_t>(row) * row_bytes, out);
}

}  // namespace firp
