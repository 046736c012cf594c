#include "serve/access.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"

namespace firp {
namespace {

TEST(Access, KnowsThisMachine) {
  for (const char* const host : {"localhost", "LocalHost", "app.localhost", "127.0.0.1",
                                 "127.1.2.3", "[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]"}) {
    EXPECT_TRUE(is_loopback(host)) << host;
  }
  for (const char* const host :
       {"localhost.evil.example", "evil-localhost", "128.0.0.1", "0.0.0.0", "[::]", "[::2]", "::1",
        "", "127.0.0.1.evil.example", "127.0.0.1 "}) {
    EXPECT_FALSE(is_loopback(host)) << host;
  }
}

TEST(Access, HostsThatPointHereByStealthAreRefused) {
  const AccessRules rules = {.hosts = {"my.example"}};
  for (const char* const host : {"localhost:8080", "127.0.0.1", "127.0.0.1:80", "[::1]:8080",
                                 "[::1]", "box:8080", "", "MY.example:8080"}) {
    EXPECT_TRUE(host_is_allowed(rules, host)) << host;
  }
  for (const char* const host : {"evil.example:8080", "evil.example", "192.168.1.2:8080",
                                 "localhost.evil.example", "[2001:db8::1]:80", "x.my.example"}) {
    EXPECT_FALSE(host_is_allowed(rules, host)) << host;
    EXPECT_TRUE(host_is_allowed({.on_loopback = false}, host)) << host;
    EXPECT_TRUE(host_is_allowed({.api_keys = {"k"}}, host)) << host;
  }
}

TEST(Access, PagesOfOtherOriginsAreRefusedWithoutAKey) {
  const AccessRules rules = {.origins = {"https://mine.example"}};
  for (const char* const origin : {"http://localhost:3000", "http://127.0.0.1", "http://[::1]:8080",
                                   "https://mine.example", "HTTP://LOCALHOST"}) {
    EXPECT_TRUE(origin_is_allowed(rules, origin, "localhost:8080")) << origin;
  }
  for (const char* const origin :
       {"https://evil.example", "null", "", "http://localhost.evil.example", "localhost:3000",
        "http://mine.example", "https://mine.example.evil.example"}) {
    EXPECT_FALSE(origin_is_allowed(rules, origin, "localhost:8080")) << origin;
    EXPECT_TRUE(origin_is_allowed({.api_keys = {"k"}}, origin, "localhost:8080")) << origin;
    EXPECT_TRUE(origin_is_allowed({.origins = {"*"}}, origin, "localhost:8080")) << origin;
  }
  EXPECT_TRUE(origin_is_allowed({.on_loopback = false}, "http://10.0.0.5:8080", "10.0.0.5:8080"))
      << "the server's own page";
  EXPECT_FALSE(origin_is_allowed({.on_loopback = false}, "http://10.0.0.5:81", "10.0.0.5:8080"));
}

TEST(Access, OriginsThatAreNamedBindAlsoWithAKey) {
  const AccessRules rules = {.api_keys = {"k"}, .origins = {origin_from("localhost")}};
  EXPECT_TRUE(origin_is_allowed(rules, "http://localhost:3000", "a:1"));
  EXPECT_TRUE(origin_is_allowed(rules, "http://[::1]", "a:1"));
  EXPECT_FALSE(origin_is_allowed(rules, "https://evil.example", "a:1"));
  EXPECT_FALSE(origin_is_allowed(rules, "http://notlocalhost", "a:1"));
}

TEST(Access, TakesTheKeyAsClientsSendIt) {
  const AccessRules rules = {.api_keys = {"a%41 b"}};
  for (const char* const header :
       {"Bearer a%41 b", "bearer a%41 b", "BEARER a%41 b", "Bearer   a%41 b"}) {
    EXPECT_TRUE(key_is_right(rules, header, "")) << header;
  }
  EXPECT_TRUE(key_is_right(rules, "", "a%41 b"));
  for (const char* const header :
       {"", "Bearer", "Bearer ", "Bearera%41 b", "Basic a%41 b", "a%41 b", "Bearer aA b",
        "Bearer a%41 bb", "Bearer a%41 ba%41 b"}) {
    EXPECT_FALSE(key_is_right(rules, header, "")) << header;
  }
  EXPECT_FALSE(key_is_right(rules, "", "wrong"));
  EXPECT_TRUE(key_is_right({}, "", "")) << "none is asked for";
}

TEST(Access, TakesAnyOfSeveralKeys) {
  const AccessRules rules = {.api_keys = api_keys_from("one,,three,", "--api-key")};
  ASSERT_EQ(rules.api_keys, (std::vector<std::string>{"one", "three"}));
  EXPECT_TRUE(key_is_right(rules, "Bearer one", ""));
  EXPECT_TRUE(key_is_right(rules, "Bearer three", ""));
  EXPECT_TRUE(key_is_right(rules, "Bearer wrong", "three"));
  for (const char* const wrong : {"", "two", "onethree", "one,three", "oneone"}) {
    EXPECT_FALSE(key_is_right(rules, std::string("Bearer ") + wrong, wrong)) << wrong;
  }
  for (const std::string& wrong : {std::string(), std::string(","), std::string("a, b"),
                                   std::string("a\nb"), std::string(5000, 'k')}) {
    EXPECT_THROW(api_keys_from(wrong, "--api-key"), Error) << wrong;
  }
}

TEST(Access, ReadsKeysFromAFile) {
  const std::string path = testing::TempDir() + "api_keys";
  const auto keys_of = [&](const std::string& text) {
    std::ofstream(path) << text;
    return api_keys_in(path);
  };
  EXPECT_EQ(keys_of("# who\none\r\n\ntwo,2\n"), (std::vector<std::string>{"one", "two,2"}))
      << "as Windows writes it, too; a comma is a part of a key there";
  EXPECT_THROW(keys_of(""), Error) << "it must not open the server";
  EXPECT_THROW(keys_of("# none\n\n"), Error);
  EXPECT_THROW(keys_of("a\tb\n"), Error);
  EXPECT_THROW(api_keys_in(path + "-nothing"), Error);
  EXPECT_THROW(api_keys_in(testing::TempDir()), Error);
  std::filesystem::remove(path);
}

TEST(Access, TakesOriginsAndHostsAsPeopleCopyThem) {
  EXPECT_EQ(origin_from("https://My.Example/"), "https://my.example");
  EXPECT_EQ(origin_from("http://10.0.0.5:3000"), "http://10.0.0.5:3000");
  EXPECT_EQ(origin_from("*"), "*");
  EXPECT_EQ(host_from("My.Example:8080"), "my.example");
  for (const char* const wrong : {"my.example", "https://", "://x", "https://a/b", ""}) {
    EXPECT_THROW(origin_from(wrong), Error) << wrong;
  }
  for (const char* const wrong : {"", "http://x.y", "a/b"}) {
    EXPECT_THROW(host_from(wrong), Error) << wrong;
  }
}

TEST(Access, WritesHostsAsUrlsDo) {
  EXPECT_EQ(url_host("::1"), "[::1]");
  EXPECT_EQ(url_host("[::1]"), "[::1]");
  EXPECT_EQ(url_host("127.0.0.1"), "127.0.0.1");
  EXPECT_EQ(url_host("localhost"), "localhost");
}

}  // namespace
}  // namespace firp
