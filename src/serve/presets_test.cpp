#include "serve/presets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "model/test_files.h"

namespace firp {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class PresetsTest : public testing::Test {
 protected:
  std::map<std::string, Preset> read(const std::string& text) {
    std::ofstream(folder_ / "presets.ini") << text;
    return read_presets(folder_ / "presets.ini");
  }
  std::string error_of(const std::string& text) {
    try {
      read(text);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
  const TemporaryDirectory folder_;
};

TEST_F(PresetsTest, KeysAreFlagsOfAModelBehindThoseOfAll) {
  const auto presets = read(
      "version = 1\r\n\n; of all\n[*]\nc = 512\nngl=8\n"
      "[one]\n model = a = b.gguf \nload-on-startup = true\nchat-template = chatml\nc = 256\n"
      "[folder/two]\njinja = true\nstop-timeout = 3\n");
  EXPECT_EQ(presets.at("one").model, "a = b.gguf");
  EXPECT_TRUE(presets.at("one").loads_at_start);
  EXPECT_THAT(presets.at("one").arguments,
              ElementsAre("-c", "512", "-ngl", "8", "--chat-template=chatml", "-c", "256"));
  EXPECT_TRUE(presets.at("folder/two").model.empty());
  EXPECT_FALSE(presets.at("folder/two").loads_at_start);
  EXPECT_THAT(presets.at("folder/two").arguments,
              ElementsAre("-c", "512", "-ngl", "8", "--jinja=true"));
  EXPECT_THAT(presets.at("*").arguments, ElementsAre("-c", "512", "-ngl", "8"));
}

TEST_F(PresetsTest, SaysWhichLineIsNone) {
  EXPECT_THAT(error_of("[a]\nc\n"), HasSubstr("presets.ini:2: that is neither"));
  EXPECT_THAT(error_of("[]\n"), HasSubstr("presets.ini:1: a section has a name"));
  EXPECT_THAT(error_of("[a]\n\nport = 80\n"), HasSubstr("presets.ini:3: port is the server's"));
  EXPECT_THAT(error_of("[a]\nhf-repo = b/c\n"), HasSubstr("models are files"));
  EXPECT_THAT(error_of("[*]\nmodel = b.gguf\n"), HasSubstr("[*] is about all"));
  EXPECT_THROW(read_presets(folder_ / "none.ini"), Error);
}

}  // namespace
}  // namespace firp
