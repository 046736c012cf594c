#pragma once

#include <ggml.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace firp {

/// A tensor in a mapped file. `shape` is ggml's `ne`: shape[0] is contiguous (a matrix's columns,
/// that is, inputs), shape[1] its rows (outputs).
struct Tensor {
  std::string name;
  ggml_type type;
  std::array<std::int64_t, 4> shape;
  std::span<const std::byte> data;

  std::int64_t columns() const { return shape[0]; }
  std::int64_t rows() const { return shape[1]; }
  std::int64_t elements() const { return shape[0] * shape[1] * shape[2] * shape[3]; }
};

/// A GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), mapped read-only.
/// Every length and offset is checked when it is opened: a damaged file is an Error, never a crash.
/// What is split into several files (PartName) is opened by the first, which has the metadata, and
/// holds the tensors of all.
class GgufFile {
 public:
  explicit GgufFile(std::filesystem::path path);
  ~GgufFile();
  GgufFile(GgufFile&&) noexcept;
  GgufFile& operator=(GgufFile&&) noexcept;

  const std::filesystem::path& path() const { return path_; }  ///< of the first file
  std::vector<std::filesystem::path> paths() const;            ///< of all
  std::size_t bytes() const;                                   ///< of all files
  /// Changes whenever a file does: their places on the disk, sizes and times when they were opened.
  std::string stamp() const;

  /// Metadata by key. nullopt where the key is missing; an Error where it has another type.
  /// Integers of any width are accepted if the value fits.
  std::optional<std::int64_t> find_int(std::string_view key) const;
  std::optional<double> find_float(std::string_view key) const;
  std::optional<bool> find_bool(std::string_view key) const;
  std::optional<std::string> find_string(std::string_view key) const;
  bool is_array(std::string_view key) const;
  /// Number of elements of an array; nullopt where the key is missing.
  std::optional<std::size_t> find_array_size(std::string_view key) const;
  /// Of booleans, too: 0 and 1.
  std::optional<std::vector<std::int64_t>> find_int_array(std::string_view key) const;
  std::optional<std::vector<double>> find_float_array(std::string_view key) const;
  std::optional<std::vector<std::string>> find_string_array(std::string_view key) const;

  /// The same, where a missing key is an Error that names it.
  std::int64_t get_int(std::string_view key) const;
  double get_float(std::string_view key) const;
  std::string get_string(std::string_view key) const;

  std::span<const Tensor> tensors() const { return tensors_; }
  const Tensor* find_tensor(std::string_view name) const;
  const Tensor& get_tensor(std::string_view name) const;

  /// Says that these bytes of a file are not needed for now: the whole pages among them leave the
  /// process's memory, and come back from the file when they are read again. Bytes that are in none
  /// of the files are left alone.
  void release(std::span<const std::byte> bytes) const;

 private:
  struct Mapping;
  struct Metadata;
  std::unique_ptr<Metadata> map_file(const std::filesystem::path& path);
  void add_tensors(const Metadata& metadata);  ///< of the file that was mapped last
  void add_other_parts();

  std::filesystem::path path_;
  std::vector<std::unique_ptr<Mapping>> mappings_;
  std::unique_ptr<Metadata> metadata_;  // the first file's
  std::vector<Tensor> tensors_;
  std::unordered_map<std::string, std::size_t> tensor_index_;
};

/// All elements of a tensor, or `rows` whole rows from `first_row`, as F32 (row-major, shape[0]
/// contiguous), through ggml's own dequantisation.
std::vector<float> dequantize(const Tensor& tensor);
void dequantize_row(const Tensor& tensor, std::int64_t row, std::span<float> out);

}  // namespace firp
