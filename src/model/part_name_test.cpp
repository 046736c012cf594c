#include "model/part_name.h"

#include <gtest/gtest.h>

namespace firp {
namespace {

TEST(PartName, SaysWhichPartAFileIs) {
  const auto part = part_name("/models/a-b-00002-of-00013.gguf");
  ASSERT_TRUE(part);
  EXPECT_EQ(part->stem, "/models/a-b");
  EXPECT_EQ(part->part, 2);
  EXPECT_EQ(part->parts, 13);
  EXPECT_EQ(part->file_of(13), "/models/a-b-00013-of-00013.gguf");
  EXPECT_EQ(part_name("m-00001-of-00001.gguf")->stem, "m");
}

TEST(PartName, IsOneOfASplitModelOnly) {
  for (const char* const other :
       {"m.gguf", "-00001-of-00002.gguf", "m-00000-of-00002.gguf", "m-00003-of-00002.gguf",
        "m-0001-of-0002.gguf", "m-00001-of-00002.bin", "m-+0001-of-00002.gguf",
        "m-00001-OF-00002.gguf", "m_00001-of-00002.gguf", "m-00001-of-00002", ""}) {
    EXPECT_FALSE(part_name(other)) << other;
  }
}

TEST(ModelStem, NamesTheModelOfAllItsFiles) {
  EXPECT_EQ(model_stem("/a/m-00001-of-00003.gguf"), "/a/m");
  EXPECT_EQ(model_stem("/a/m-00003-of-00003.gguf"), "/a/m");
  EXPECT_EQ(model_stem("/a/m.Q4_0.gguf"), "/a/m.Q4_0");
  EXPECT_EQ(model_stem("m.v2"), "m.v2");
  EXPECT_EQ(model_name("/a/m-00001-of-00003.gguf"), "m");
}

}  // namespace
}  // namespace firp
