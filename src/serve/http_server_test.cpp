#include "serve/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "model/test_files.h"
#include "serve/test_client.h"
#include "serve/test_tls.h"

namespace firp {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

class HttpServers : public testing::Test {
 protected:
  void TearDown() override {
    if (!server_) return;
    server_->stop_serving();
    running_.join();
  }
  void start(std::size_t most_connections = HttpServer::kMostConnections) {
    server_ = std::make_unique<HttpServer>(most_connections);
    if (certificate_) {
      server_->use_tls(tls_context(certificate_->key, certificate_->certificate));
    }
    server_->Get("/", [](const httplib::Request&, httplib::Response& response) {
      response.set_content("hello", "text/plain");
    });
    server_->Post("/length", [](const httplib::Request&, httplib::Response& response,
                                const httplib::ContentReader& read) {
      std::size_t length = 0;
      read([&](const char*, std::size_t size) {
        length += size;
        return true;
      });
      response.set_content(std::to_string(length), "text/plain");
    });
    server_->Get("/wait", [this](const httplib::Request&, httplib::Response& response) {
      waiting_ = true;
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
      while (!HttpServer::client_has_left() && std::chrono::steady_clock::now() < deadline) {
        std::this_thread::yield();
      }
      saw_it_leave_ = HttpServer::client_has_left();
      waiting_ = false;
      response.set_content("late", "text/plain");
    });
    server_->set_payload_max_length(100000);
    if (file_.empty()) {
      port_ = server_->bind_to_any_port("127.0.0.1");
    } else {
      server_->bind_to_file(file_);
    }
    running_ = std::thread([this] { server_->listen_after_bind(); });
    server_->wait_until_ready();
  }

  std::unique_ptr<HttpServer> server_;
  std::thread running_;
  int port_ = 0;
  std::optional<TestCertificate> certificate_;
  std::string file_;
  std::atomic<bool> waiting_ = false, saw_it_leave_ = false;
};

TEST_F(HttpServers, AnswersRequestsThatCameTogether) {
  start();
  const RawClient client(port_);
  client.send(
      "GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST /length HTTP/1.1\r\nHost: a\r\n"
      "Content-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  const std::string all = client.receive();
  std::size_t replies = 0;
  for (std::size_t at = 0; (at = all.find("HTTP/1.1 200", at)) != std::string::npos; ++at)
    ++replies;
  EXPECT_EQ(replies, 3u) << all;
  EXPECT_THAT(all, HasSubstr("\r\n\r\n3"));
}

TEST_F(HttpServers, RefusesHeadsThatDoNotEnd) {
  start();
  for (const std::string& endless : {std::string("GET /") + std::string(200000, 'a'),
                                     "GET / HTTP/1.1\r\nX: " + std::string(200000, 'a'), [] {
                                       std::string many = "GET / HTTP/1.1\r\n";
                                       for (int i = 0; i < 20000; ++i) many += "X: y\r\n";
                                       return many;
                                     }()}) {
    const RawClient client(port_);
    client.send(endless);
    const std::string reply = client.receive();
    EXPECT_TRUE(reply.empty() || reply.starts_with("HTTP/1.1 4")) << reply.substr(0, 100);
    EXPECT_TRUE(client.closed_by_server());
  }
}

TEST_F(HttpServers, RefusesBodiesOfUnclearLength) {
  start();
  for (const char* const framing :
       {"Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: gzip\r\n"}) {
    const RawClient client(port_);
    client.send(std::string("POST /length HTTP/1.1\r\nHost: a\r\n") + framing +
                "\r\nhelloGET / HTTP/1.1\r\n\r\n");
    const std::string reply = client.receive();
    EXPECT_THAT(reply, StartsWith("HTTP/1.1 4")) << framing;
    EXPECT_THAT(reply, Not(HasSubstr("200"))) << "the body is no next request: " << framing;
  }
}

TEST_F(HttpServers, BoundsBodiesInChunks) {
  start();
  const RawClient client(port_);
  client.send("POST /length HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (int i = 0; i < 30; ++i) client.send("1388\r\n" + std::string(5000, 'a') + "\r\n");
  client.send("0\r\n\r\n");
  EXPECT_THAT(client.receive(), StartsWith("HTTP/1.1 413"));
}

TEST_F(HttpServers, NoticesThatAClientLeft) {
  start();
  {
    const RawClient client(port_);
    client.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\nGET /more HTTP/1.1\r\n");
    while (!waiting_) std::this_thread::yield();
  }
  while (waiting_) std::this_thread::yield();
  EXPECT_TRUE(saw_it_leave_) << "also with bytes of it that nobody read";
}

/// Whoever opens connections and says nothing, or not all, keeps nobody out.
TEST_F(HttpServers, IdleConnectionsMakeRoom) {
  start(/*most_connections=*/36);
  std::vector<RawClient> idle;
  for (int i = 0; i < 120; ++i) {
    idle.emplace_back(port_);
    ASSERT_TRUE(idle.back().connected());
    if (i % 2 == 1) idle.back().send("POST /length HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc");
  }
  const RawClient client(port_);
  client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_THAT(client.receive("hello"), StartsWith("HTTP/1.1 200"));
  EXPECT_TRUE(idle.front().closed_by_server()) << "the one that has waited longest";
}

TEST_F(HttpServers, StopsWithOpenConnections) {
  start();
  const RawClient silent(port_), half(port_), busy(port_);
  half.send("POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc");
  busy.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
  while (!waiting_) std::this_thread::yield();
  server_->stop_serving();
  running_.join();  // or the test would never end
  server_.reset();
  EXPECT_TRUE(silent.closed_by_server());
}

TEST_F(HttpServers, SpeaksTls) {
  certificate_.emplace("http");
  start();
  TlsClient client(port_, *certificate_);
  ASSERT_TRUE(client.connected());
  // More than a record of TLS has, in both directions of one connection.
  const std::string body(99999, 'b');
  client.send("POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n" + body);
  EXPECT_THAT(client.receive("99999"), StartsWith("HTTP/1.1 200"));
  client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(client.receive(), HasSubstr("hello"));
  EXPECT_TRUE(client.ended()) << "or the end could be somebody's who cut it";

  const RawClient plain(port_);
  plain.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_THAT(plain.receive(), Not(HasSubstr("hello")));
  EXPECT_TRUE(plain.closed_by_server());
}

TEST_F(HttpServers, BoundsWhatComesThroughTls) {
  certificate_.emplace("bounds");
  start();
  TlsClient client(port_, *certificate_);
  client.send("GET / HTTP/1.1\r\nX: " + std::string(200000, 'a'));
  const std::string reply = client.receive();
  EXPECT_TRUE(reply.empty() || reply.starts_with("HTTP/1.1 4")) << reply.substr(0, 100);
}

/// A handshake that does not come on is an idle connection.
TEST_F(HttpServers, HandshakesThatDoNotComeMakeRoom) {
  certificate_.emplace("handshakes");
  start(/*most_connections=*/4);
  std::vector<RawClient> silent;
  for (int i = 0; i < 20; ++i) {
    silent.emplace_back(port_);
    if (i % 2 == 1) silent.back().send(std::string("\x16\x03\x01\x02\x00\x01", 6));
  }
  TlsClient client(port_, *certificate_);
  ASSERT_TRUE(client.connected());
  client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_THAT(client.receive("hello"), StartsWith("HTTP/1.1 200"));
  // Which of them went is up to when their threads began.
  EXPECT_TRUE(std::ranges::any_of(
      silent, [](const RawClient& each) { return each.closed_by_server(/*milliseconds=*/100); }));
}

TEST_F(HttpServers, StopsWithHandshakesUnderWay) {
  certificate_.emplace("stop");
  start();
  const RawClient silent(port_), half(port_);
  half.send(std::string("\x16\x03\x01\x02\x00\x01", 6));
  TlsClient idle(port_, *certificate_);
  ASSERT_TRUE(idle.connected());
  server_->stop_serving();
  running_.join();
  server_.reset();
  EXPECT_TRUE(silent.closed_by_server());
  EXPECT_TRUE(half.closed_by_server());
}

TEST_F(HttpServers, ListensAtAFile) {
  file_ = testing::TempDir() + "http-server-test.sock";
  std::filesystem::remove(file_);
  start();
  EXPECT_TRUE(server_->listens_on_loopback());
  const RawClient client(file_);
  client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_THAT(client.receive("hello"), StartsWith("HTTP/1.1 200"));

  HttpServer second;
  EXPECT_THAT(error_of([&] { second.bind_to_file(file_); }), HasSubstr("in use"));
  server_->stop_serving();
  running_.join();
  server_.reset();
  EXPECT_FALSE(std::filesystem::exists(file_));
}

TEST_F(HttpServers, ReplacesASocketThatIsLeftAndNoOtherFile) {
  file_ = testing::TempDir() + "http-server-left.sock";
  std::filesystem::remove(file_);
  const int killed = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address = {.sun_family = AF_UNIX};
  file_.copy(address.sun_path, sizeof address.sun_path - 1);
  ASSERT_EQ(bind(killed, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  close(killed);
  ASSERT_TRUE(std::filesystem::is_socket(file_));
  start();
  const RawClient client(file_);
  client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_THAT(client.receive("hello"), StartsWith("HTTP/1.1 200"));

  const std::string other = testing::TempDir() + "http-server-other.sock";
  std::ofstream(other) << "letter";
  HttpServer second;
  EXPECT_THAT(error_of([&] { second.bind_to_file(other); }), HasSubstr("no socket"));
  EXPECT_EQ(std::filesystem::file_size(other), 6u);
  std::filesystem::remove(other);
  EXPECT_THAT(error_of([&] { second.bind_to_file(std::string(200, 'x') + ".sock"); }),
              HasSubstr("at most 107 bytes"));
  EXPECT_THAT(error_of([&] { second.bind_to_file("/nonexistent/x.sock"); }),
              HasSubstr("No such file"));
}

TEST(TlsFiles, SayWhatIsWrongWithThem) {
  const TestCertificate one("one"), other("other"), locked("locked", "secret");
  EXPECT_NE(tls_context(one.key, one.certificate), nullptr);
  const auto error = [](const std::string& key, const std::string& certificate) {
    return error_of([&] { tls_context(key, certificate); });
  };
  EXPECT_THAT(error(one.key, "/nonexistent"), HasSubstr("cannot read the certificate"));
  EXPECT_THAT(error("/nonexistent", one.certificate), HasSubstr("cannot read the key"));
  EXPECT_THAT(error(one.key, testing::TempDir()), HasSubstr("cannot read the certificate"));
  EXPECT_THAT(error("/dev/null", one.certificate), HasSubstr("is empty"));
  EXPECT_THAT(error(one.key, one.key), HasSubstr("holds no certificate"));
  EXPECT_THAT(error(one.certificate, one.certificate), HasSubstr("holds no key"));
  EXPECT_THAT(error(locked.key, locked.certificate), HasSubstr("without a password"));
  EXPECT_THAT(error(other.key, one.certificate), HasSubstr("does not belong"));
}

}  // namespace
}  // namespace firp
