#include "serve/model_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

#include "base/error.h"

namespace firp {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;
using testing::ThrowsMessage;

class ModelFiles : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "model-files-XXXXXX";
    folder_ = mkdtemp(name.data());
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void make(const std::vector<std::string>& names) const {
    for (const std::string& name : names) {
      std::filesystem::create_directories((folder_ / name).parent_path());
      std::ofstream(folder_ / name) << "any";
    }
  }

  std::filesystem::path folder_;
};

TEST_F(ModelFiles, AreNamedByTheirFilesOrFolders) {
  make({"a-Q4_0.gguf", "a-Q4_0.firp.gguf", "mmproj-a.gguf", "notes.txt", "big-00001-of-00002.gguf",
        "big-00002-of-00002.gguf", "big.firp.gguf", "b-0001-of-0002.gguf", "c/model.gguf",
        "c/mmproj.gguf", "d/x-00001-of-00010.gguf", "d/x-00010-of-00010.gguf", "empty/readme",
        "deep/er/model.gguf"});
  EXPECT_THAT(find_models(folder_),
              ElementsAre(Pair("a-Q4_0", folder_ / "a-Q4_0.gguf"),
                          Pair("b-0001-of-0002", folder_ / "b-0001-of-0002.gguf"),
                          Pair("big", folder_ / "big-00001-of-00002.gguf"),
                          Pair("c", folder_ / "c/model.gguf"),
                          Pair("d", folder_ / "d/x-00001-of-00010.gguf")));
}

TEST_F(ModelFiles, OfOneNameAreRefused) {
  make({"a.gguf", "a/other.gguf"});
  EXPECT_THAT([this] { find_models(folder_); },
              ThrowsMessage<Error>(HasSubstr("would both be the model 'a'")));
}

TEST_F(ModelFiles, OfNoFolderAreAnError) {
  EXPECT_THAT([this] { find_models(folder_ / "nowhere"); },
              ThrowsMessage<Error>(HasSubstr("(--models-dir)")));
}

TEST_F(ModelFiles, SurviveLinksThatLeadNowhere) {
  std::filesystem::create_symlink("nowhere", folder_ / "link.gguf");
  EXPECT_THAT(find_models(folder_), ElementsAre(Pair("link", folder_ / "link.gguf")));
}

}  // namespace
}  // namespace firp
