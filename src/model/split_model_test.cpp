// Models in several files: NAME-00001-of-0000N.gguf.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>

#include "model/heads.h"
#include "model/model.h"
#include "model/test_files.h"
#include "model/test_parts.h"
#include "model/tiny_model.h"

namespace firp {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

class SplitModel : public testing::Test {
 protected:
  SplitModel() {
    write_tiny_model(whole_, {.layers = 2, .seed = 5});
    first_ = write_parts(whole_, directory_ / "m", 3);
  }
  std::filesystem::path part(int number) const { return part_name(first_)->file_of(number); }
  /// What opening the first part says.
  std::string message() const {
    return error_of([this] { GgufFile{first_}; });
  }

  const TemporaryDirectory directory_;
  const std::filesystem::path whole_ = directory_ / "whole.gguf";
  std::filesystem::path first_;
};

TEST_F(SplitModel, HasTheTensorsOfAllParts) {
  const GgufFile whole(whole_);
  GgufFile opened(first_);
  const GgufFile split = std::move(opened);
  EXPECT_EQ(split.path(), first_);
  EXPECT_THAT(split.paths(), ElementsAre(part(1), part(2), part(3)));
  EXPECT_EQ(split.bytes(), std::filesystem::file_size(part(1)) +
                               std::filesystem::file_size(part(2)) +
                               std::filesystem::file_size(part(3)));
  EXPECT_EQ(split.get_string("general.name"), "tiny llama 5");
  ASSERT_EQ(split.tensors().size(), whole.tensors().size());
  for (const Tensor& expected : whole.tensors()) {
    const Tensor& tensor = split.get_tensor(expected.name);
    EXPECT_EQ(tensor.shape, expected.shape);
    ASSERT_EQ(tensor.data.size(), expected.data.size());
    split.release(tensor.data);
    EXPECT_EQ(std::memcmp(tensor.data.data(), expected.data.data(), tensor.data.size()), 0);
  }
  EXPECT_EQ(Model(first_).identity(), Model(whole_).identity());
}

TEST_F(SplitModel, HasAnotherStampWhenAnyPartChanges) {
  std::vector<std::string> stamps = {GgufFile(first_).stamp()};
  EXPECT_EQ(GgufFile(first_).stamp(), stamps.front());
  for (const int number : {1, 2, 3}) {
    std::filesystem::last_write_time(
        part(number), std::filesystem::file_time_type::clock::now() - std::chrono::hours(number));
    stamps.push_back(GgufFile(first_).stamp());
    EXPECT_NE(stamps.back(), stamps[stamps.size() - 2]) << number;
  }
}

TEST_F(SplitModel, IsOpenedByItsFirstPart) {
  EXPECT_THAT(error_of([this] { GgufFile{part(2)}; }),
              AllOf(HasSubstr("part 2 of 3"), HasSubstr("name the first, " + first_.string())));
  std::filesystem::rename(first_, directory_ / "model.gguf");
  EXPECT_THAT(error_of([this] { GgufFile{directory_ / "model.gguf"}; }),
              HasSubstr("NAME-00001-of-00003.gguf"));
}

TEST_F(SplitModel, WithAPartMissingIsRefused) {
  std::filesystem::remove(part(3));
  EXPECT_THAT(message(), AllOf(HasSubstr("part 3 of 3"), HasSubstr("missing"),
                               HasSubstr(part(3).filename().string())));
}

TEST_F(SplitModel, WithADamagedPartIsRefused) {
  const std::string bytes = read_bytes(part(2));
  write_bytes(part(2), bytes.substr(0, bytes.size() - 40));
  EXPECT_THAT(message(), AllOf(HasSubstr(part(2).string()), HasSubstr("truncated")));
  write_bytes(part(2), "GGUF");
  EXPECT_THAT(message(), AllOf(HasSubstr(part(2).string()), HasSubstr("too short")));
}

TEST_F(SplitModel, WithAnotherPartInItsPlaceIsRefused) {
  std::filesystem::copy_file(part(3), part(2), std::filesystem::copy_options::overwrite_existing);
  EXPECT_THAT(message(), AllOf(HasSubstr("part 3 of 3"), HasSubstr("not 2 of 3")));
  std::filesystem::copy_file(whole_, part(2), std::filesystem::copy_options::overwrite_existing);
  EXPECT_THAT(message(), HasSubstr("part 1 of 1 of a model (split.no, split.count), not 2 of 3"));
}

TEST_F(SplitModel, WithImpossibleNumbersIsRefused) {
  std::string bytes = read_bytes(first_);
  bytes[bytes.find("split.no") + std::strlen("split.no") + sizeof(std::uint32_t)] = 3;
  write_bytes(first_, bytes);
  EXPECT_THAT(message(), HasSubstr("split.no is 3, split.count 3"));
}

TEST_F(SplitModel, WithAPartOfAnotherModelIsRefused) {
  write_tiny_model(whole_, {.layers = 3});
  write_parts(whole_, directory_ / "other", 3);
  std::filesystem::rename(directory_ / "other-00003-of-00003.gguf", part(3));
  EXPECT_THAT(message(), testing::AnyOf(HasSubstr("split.tensors.count"),
                                        HasSubstr("also in an earlier part")));
  // The second part again, as the third.
  std::string third = read_bytes(part(2));
  third[third.find("split.no") + std::strlen("split.no") + sizeof(std::uint32_t)] = 2;
  write_bytes(part(3), third);
  EXPECT_THAT(message(), HasSubstr("also in an earlier part"));
}

TEST_F(SplitModel, ItsHeadsAreNamedByTheModelNotByAPart) {
  EXPECT_EQ(heads_beside(first_), directory_ / "m.firp.gguf");
  EXPECT_EQ(heads_beside(whole_), directory_ / "whole.firp.gguf");
  const GgufFile file(first_);
  EXPECT_EQ(find_heads(file, {}), std::nullopt);
  write_bytes(directory_ / "m.firp.gguf", "heads");
  EXPECT_EQ(find_heads(file, {}), directory_ / "m.firp.gguf");
}

}  // namespace
}  // namespace firp
