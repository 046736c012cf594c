#include "serve/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "serve/test_client.h"

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
    port_ = server_->bind_to_any_port("127.0.0.1");
    running_ = std::thread([this] { server_->listen_after_bind(); });
    server_->wait_until_ready();
  }

  std::unique_ptr<HttpServer> server_;
  std::thread running_;
  int port_ = 0;
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

}  // namespace
}  // namespace firp
