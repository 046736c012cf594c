#include "model/gguf_file.h"

#include <fmt/format.h>
#include <gguf.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "model/cut_file.h"
#include "model/heads.h"
#include "model/largest_allocation.h"
#include "model/model.h"
#include "model/test_files.h"
#include "model/tiny_model.h"

namespace firp {
namespace {

using testing::HasSubstr;

TinyModelOptions small_options() {
  TinyModelOptions options;
  options.type = GGML_TYPE_Q8_0;
  options.layers = 2;
  options.hidden_size = 32;
  options.query_heads = 4;
  options.kv_heads = 2;
  options.head_size = 8;
  options.feed_forward_size = 32;
  options.vocabulary_size = 16;
  options.rope_scaling = "yarn";
  options.rope_scaling_factor = 4;
  options.rope_original_context = 512;
  return options;
}

std::string small_model() {
  const TemporaryDirectory directory;
  TinyModelOptions options = small_options();
  options.architecture = "qwen3";
  write_tiny_model(directory / "m.gguf", options);
  return read_bytes(directory / "m.gguf");
}

std::string small_heads() {
  const TemporaryDirectory directory;
  write_tiny_model(directory / "m.gguf", small_options());
  Heads heads;
  heads.base = Model(directory / "m.gguf").identity();
  heads.steps.assign(2, {.layer = 1,
                         .weight = std::vector<float>(32 * 32, 0.5f),
                         .bias = std::vector<float>(32, 0.25f)});
  heads.training.command = "firp train";
  heads.training.top1 = {0.5f, 0.25f};
  write_heads(heads, directory / "h.gguf");
  return read_bytes(directory / "h.gguf");
}

TEST(GgufFile, ABigEndianFileIsToldFromADamagedOne) {
  const TemporaryDirectory directory;
  std::string bytes = small_model();
  std::swap(bytes[4], bytes[7]);
  std::swap(bytes[5], bytes[6]);
  write_bytes(directory / "m.gguf", bytes);
  EXPECT_THAT(error_of([&] { GgufFile(directory / "m.gguf"); }), HasSubstr("big-endian"));
}

TEST(CutFileDeathTest, AFileThatIsCutWhileItIsMappedEndsTheProgramByName) {
  const TemporaryDirectory directory;
  const std::filesystem::path path = directory / "m.gguf";
  EXPECT_EXIT(
      {
        TinyModelOptions options;  // some pages
        write_tiny_model(path, options);
        const GgufFile file(path);
        name_cut_files();
        std::filesystem::resize_file(path, 4096);
        dequantize(file.tensors().back());
      },
      testing::ExitedWithCode(1), "m.gguf was cut or overwritten while it was in use");
}

/// Opens a file in every way that we have. true: it was accepted by one. What is not an Error
/// fails.
bool accepts(const std::filesystem::path& path, const std::string& what) {
  bool accepted = false;
  largest_allocation = 0;
  try {
    try {
      const Model model(path);
      model.identity();
      accepted = true;
    } catch (const Error&) {
    }
    try {
      read_heads(path, nullptr);
      accepted = true;
    } catch (const Error&) {
    }
  } catch (const std::exception& error) {
    ADD_FAILURE() << what << ": not an Error: " << error.what();
  }
  EXPECT_LT(largest_allocation.load(), std::size_t{16} << 20) << what;
  return accepted;
}

bool accepts_bytes(const std::string& bytes, const std::string& what) {
  static const TemporaryDirectory directory;
  write_bytes(directory / "f.gguf", bytes);
  return accepts(directory / "f.gguf", what);
}

std::size_t data_offset(const std::string& bytes) {
  gguf_context* gguf =
      gguf_init_from_buffer(bytes.data(), bytes.size(), {.no_alloc = true, .ctx = nullptr});
  const std::size_t offset = gguf_get_data_offset(gguf);
  gguf_free(gguf);
  return offset;
}

template <typename T>
std::string with(std::string bytes, std::size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof(T));
  return bytes;
}

TEST(DamagedFiles, OriginalsAreAccepted) {
  EXPECT_TRUE(accepts_bytes(small_model(), "model"));
  EXPECT_TRUE(accepts_bytes(small_heads(), "heads"));
}

TEST(DamagedFiles, NoTruncationIsAccepted) {
  for (const std::string& bytes : {small_model(), small_heads()}) {
    const std::size_t header = data_offset(bytes);
    for (std::size_t length = 0; length + GGUF_DEFAULT_ALIGNMENT < bytes.size();
         length += length < header + 64 ? 1 : 61) {
      ASSERT_FALSE(accepts_bytes(bytes.substr(0, length), fmt::format("{} bytes", length)));
    }
  }
}

TEST(DamagedFiles, FlippedHeaderBytesGiveAnErrorOrAFile) {
  std::mt19937 random(7);
  for (const std::string& bytes : {small_model(), small_heads()}) {
    const std::size_t header = data_offset(bytes);
    for (int i = 0; i < 4000; ++i) {
      std::string damaged = bytes;
      const std::size_t offset = random() % header;
      damaged[offset] = static_cast<char>(random());
      accepts_bytes(damaged, fmt::format("byte {} = {}", offset, int{damaged[offset]}));
    }
  }
}

TEST(DamagedFiles, ExtremeNumbersEverywhereInTheHeader) {
  for (const std::string& bytes : {small_model(), small_heads()}) {
    const std::size_t header = data_offset(bytes);
    for (std::size_t offset = 4; offset + 8 < header; ++offset) {
      for (const std::uint64_t value : {std::uint64_t{0}, ~std::uint64_t{0}, std::uint64_t{1} << 63,
                                        std::uint64_t{1} << 40, std::uint64_t{0x7fffffff}}) {
        accepts_bytes(with(bytes, offset, value), fmt::format("{} at {}", value, offset));
      }
      accepts_bytes(with(bytes, offset, std::uint32_t{0xffffffff}),
                    fmt::format("~0 at {}", offset));
    }
  }
}

/// Where the tensor info that follows a name begins: dimensions, shape, type, offset.
std::size_t tensor_info(const std::string& bytes, const std::string& name) {
  return bytes.find(name) + name.size();
}

TEST(DamagedFiles, MessagesNameWhatIsWrong) {
  const TemporaryDirectory directory;
  const std::filesystem::path path = directory / "bad.gguf";
  const std::string good = small_model();
  const auto message = [&](const std::string& bytes) {
    write_bytes(path, bytes);
    const std::string text = error_of([&] { Model model(path); });
    EXPECT_THAT(text, HasSubstr(path.string()));
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    return text;
  };
  EXPECT_THAT(message(""), HasSubstr("too short"));
  EXPECT_THAT(message("GGML" + good.substr(4)), HasSubstr("not a GGUF file"));
  EXPECT_THAT(message(with(good, 4, std::uint32_t{1})), HasSubstr("GGUFv1"));
  EXPECT_THAT(message(with(good, 8, std::uint64_t{1} << 60)), HasSubstr("tensors"));
  EXPECT_THAT(message(with(good, 16, std::uint64_t{1} << 60)), HasSubstr("keys"));
  EXPECT_THAT(message(good.substr(0, good.size() / 2)), HasSubstr("reach beyond its end"));

  const std::size_t info = tensor_info(good, "blk.1.ffn_down.weight");
  EXPECT_THAT(message(with(good, info, std::uint32_t{5})), HasSubstr("dimensions"));
  EXPECT_THAT(message(with(good, info + 4, std::int64_t{-32})), HasSubstr("blk.1.ffn_down.weight"));
  EXPECT_THAT(message(with(good, info + 4, std::int64_t{33})), HasSubstr("block size"));
  EXPECT_THAT(message(with(good, info + 4, std::int64_t{1} << 62)),
              HasSubstr("blk.1.ffn_down.weight"));
  const std::size_t last = tensor_info(good, "blk.1.ffn_norm.weight");
  EXPECT_THAT(message(with(good, last + 4, std::int64_t{0})), HasSubstr("empty"));
  EXPECT_THAT(message(with(good, info + 20, std::uint32_t{4})), HasSubstr("blk.1.ffn_down.weight"));
  EXPECT_THAT(message(with(good, info + 20, std::uint32_t{9999})), HasSubstr("type"));
  // Overlapping, and out of range
  EXPECT_THAT(message(with(good, info + 24, std::uint64_t{0})), HasSubstr("offset"));
  EXPECT_THAT(message(with(good, info + 24, ~std::uint64_t{31})), HasSubstr("offset"));
  // The same name twice
  std::string twice = good;
  twice.replace(good.find("blk.1.ffn_gate.weight"), 21, "blk.0.ffn_gate.weight");
  EXPECT_THAT(message(twice), HasSubstr("duplicate"));
  // A name that would write over the terminal's line
  std::string ugly = good;
  ugly.replace(good.find("blk.1.ffn_gate.weight"), 5, "\x1b[2K\n");
  message(ugly);
}

TEST(GgufFile, RefusesWhatIsNotAFile) {
  const TemporaryDirectory directory;
  EXPECT_THAT(error_of([&] { GgufFile(directory.path()); }), HasSubstr("not a regular file"));
  EXPECT_THAT(error_of([&] { GgufFile(directory / "none"); }), HasSubstr("No such file"));
  EXPECT_THAT(error_of([&] { GgufFile("/dev/zero"); }), HasSubstr("not a regular file"));
}

TEST(GgufFile, ReadsValuesOfEveryType) {
  const TemporaryDirectory directory;
  gguf_context* gguf = gguf_init_empty();
  gguf_set_val_u8(gguf, "u8", 200);
  gguf_set_val_i8(gguf, "i8", -5);
  gguf_set_val_u16(gguf, "u16", 65535);
  gguf_set_val_i64(gguf, "i64", -(std::int64_t{1} << 40));
  gguf_set_val_u64(gguf, "u64", ~std::uint64_t{0});
  gguf_set_val_f32(gguf, "f32", 0.5f);
  gguf_set_val_f64(gguf, "f64", 0.1);
  gguf_set_val_bool(gguf, "bool", true);
  gguf_set_val_str(gguf, "str", "text");
  const std::int16_t integers[] = {1, -2, 3};
  gguf_set_arr_data(gguf, "ints", GGUF_TYPE_INT16, integers, 3);
  const double floats[] = {0.25, -1e300};
  gguf_set_arr_data(gguf, "floats", GGUF_TYPE_FLOAT64, floats, 2);
  gguf_set_arr_data(gguf, "empty", GGUF_TYPE_FLOAT32, floats, 0);
  const char* strings[] = {"a", "", "c"};
  gguf_set_arr_str(gguf, "strings", strings, 3);
  gguf_write_to_file(gguf, (directory / "f.gguf").c_str(), false);
  gguf_free(gguf);

  GgufFile first(directory / "f.gguf");
  const GgufFile file = std::move(first);
  EXPECT_EQ(file.get_int("u8"), 200);
  EXPECT_EQ(file.get_int("i8"), -5);
  EXPECT_EQ(file.get_int("u16"), 65535);
  EXPECT_EQ(file.get_int("i64"), -(std::int64_t{1} << 40));
  EXPECT_EQ(file.get_float("f32"), 0.5);
  EXPECT_EQ(file.get_float("f64"), 0.1);
  EXPECT_EQ(file.find_bool("bool"), true);
  EXPECT_EQ(file.get_string("str"), "text");
  EXPECT_EQ(file.find_int_array("ints"), (std::vector<std::int64_t>{1, -2, 3}));
  EXPECT_EQ(file.find_float_array("floats"), (std::vector<double>{0.25, -1e300}));
  EXPECT_EQ(file.find_float_array("empty"), std::vector<double>());
  EXPECT_EQ(file.find_string_array("strings"), (std::vector<std::string>{"a", "", "c"}));
  EXPECT_EQ(file.find_array_size("strings"), 3u);

  EXPECT_EQ(file.find_int("none"), std::nullopt);
  EXPECT_EQ(file.find_string_array("none"), std::nullopt);
  EXPECT_THAT(error_of([&] { file.get_int("none"); }), HasSubstr("none is missing"));
  EXPECT_THAT(error_of([&] { file.get_tensor("none"); }), HasSubstr("none is missing"));
  EXPECT_THAT(error_of([&] { file.find_int("u64"); }), HasSubstr("u64 does not fit"));
  EXPECT_THAT(error_of([&] { file.find_int("f32"); }), HasSubstr("f32 is of type f32"));
  EXPECT_THAT(error_of([&] { file.find_int("ints"); }), HasSubstr("ints is an array of i16"));
  EXPECT_THAT(error_of([&] { file.find_float("u8"); }), HasSubstr("expected a float"));
  EXPECT_THAT(error_of([&] { file.find_bool("u8"); }), HasSubstr("expected a bool"));
  EXPECT_THAT(error_of([&] { file.find_string("strings"); }), HasSubstr("expected a string"));
  EXPECT_THAT(error_of([&] { file.find_int_array("floats"); }), HasSubstr("array of integers"));
  EXPECT_THAT(error_of([&] { file.find_float_array("str"); }), HasSubstr("expected an array"));
}

TEST(Dequantize, RowsAreTheSameAsTheWhole) {
  const TemporaryDirectory directory;
  for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q4_1,
                               GGML_TYPE_Q3_K, GGML_TYPE_Q6_K, GGML_TYPE_MXFP4}) {
    TinyModelOptions options;
    options.type = type;
    options.layers = 2;
    write_tiny_model(directory / "m.gguf", options);
    const Model model(directory / "m.gguf");
    const Tensor& tensor = *model.layers()[1].down;  // 512 columns
    const std::vector<float> all = dequantize(tensor);
    ASSERT_EQ(all.size(), 512u * 256u);
    std::vector<float> row(512);
    for (const int i : {0, 7, 255}) {
      dequantize_row(tensor, i, row);
      EXPECT_TRUE(std::equal(row.begin(), row.end(), all.begin() + i * 512));
    }
    double squares = 0;
    for (const float value : all) {
      squares += double{value} * value;
    }
    EXPECT_NEAR(squares / static_cast<double>(all.size()) * 512, 1.0, 0.15) << ggml_type_name(type);
    EXPECT_THROW(dequantize_row(tensor, 256, row), Error);
    EXPECT_THROW(dequantize_row(tensor, 0, std::span(row).first(511)), Error);
  }
}

}  // namespace
}  // namespace firp
