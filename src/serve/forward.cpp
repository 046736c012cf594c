#include "serve/forward.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <utility>

#include "base/error.h"
#include "serve/http_server.h"

namespace firp {
namespace {

bool is_named(std::string_view name, std::string_view header) {
  return name.size() == header.size() && strncasecmp(name.data(), header.data(), name.size()) == 0;
}

/// What is between two servers only, or said by the first one itself.
bool stays_behind(std::string_view name) {
  constexpr std::string_view kNames[] = {"Connection", "Keep-Alive", "Server", "Accept-Ranges"};
  return std::ranges::any_of(kNames, [&](std::string_view each) { return is_named(name, each); });
}

}  // namespace

ForwardedRequest::ForwardedRequest(int port, const std::string& key,
                                   const httplib::Request& request, std::string_view body)
    : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  const sockaddr_in address = {.sin_family = AF_INET,
                               .sin_port = htons(static_cast<std::uint16_t>(port)),
                               .sin_addr = {htonl(INADDR_LOOPBACK)}};
  const int on = 1;
  setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  const timeval longest = {.tv_sec = HttpServer::kWriteSeconds, .tv_usec = 0};
  setsockopt(socket_, SOL_SOCKET, SO_SNDTIMEO, &longest, sizeof longest);
  // HTTP/1.0 knows no chunks: the client's version is the one that the reply is made for. A HEAD's
  // reply says how long the body would be: it takes the body to say so.
  std::string bytes = fmt::format(
      "{} {} {}\r\nHost: 127.0.0.1:{}\r\nAuthorization: Bearer {}\r\nConnection: close\r\n",
      request.method == "POST" ? "POST" : "GET", request.target, request.version, port, key);
  if (request.method == "POST") {
    bytes += fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n", body.size());
  }
  bytes += "\r\n";
  bytes += body;
  bool sent = connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  for (std::string_view rest = bytes; sent && !rest.empty();) {
    const ssize_t count = send(socket_, rest.data(), rest.size(), MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    sent = count > 0;
    if (sent) rest.remove_prefix(static_cast<std::size_t>(count));
  }
  if (!sent) {
    close(std::exchange(socket_, -1));
    throw Error("it cannot be reached");
  }
}

ForwardedRequest::~ForwardedRequest() { close(socket_); }

std::string ForwardedRequest::read(const std::function<bool()>& is_unwanted) {
  if (!held_.empty()) return std::exchange(held_, {});
  constexpr int kGlanceMilliseconds = 50;
  std::array<char, 16384> bytes;
  for (;;) {
    if (is_unwanted()) throw Cancelled();
    pollfd one = {.fd = socket_, .events = POLLIN, .revents = 0};
    if (poll(&one, 1, kGlanceMilliseconds) <= 0) continue;
    const ssize_t count = recv(socket_, bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    return {bytes.data(), static_cast<std::size_t>(std::max<ssize_t>(count, 0))};
  }
}

void ForwardedRequest::read_head(httplib::Response& response,
                                 const std::function<bool()>& is_unwanted) {
  std::string head;
  std::size_t end = std::string::npos;
  while ((end = head.find("\r\n\r\n")) == std::string::npos) {
    const std::string more = read(is_unwanted);
    if (more.empty() || head.size() > HttpServer::kMostHeadBytes) {
      throw Error("it ended before it replied");
    }
    head += more;
  }
  held_ = head.substr(end + 4);
  head.resize(end + 2);
  const std::string_view status = std::string_view(head).substr(head.find(' ') + 1, 3);
  std::from_chars(status.data(), status.data() + status.size(), response.status);
  for (std::size_t at = head.find("\r\n") + 2; at < head.size();) {
    const std::size_t line_end = head.find("\r\n", at);
    const std::string_view line = std::string_view(head).substr(at, line_end - at);
    at = line_end + 2;
    const std::size_t colon = line.find(':');
    if (colon == std::string_view::npos) continue;
    const std::string_view name = line.substr(0, colon);
    std::string_view value = line.substr(colon + 1);
    value.remove_prefix(std::min(value.find_first_not_of(' '), value.size()));
    if (is_named(name, "Content-Length")) {
      std::from_chars(value.data(), value.data() + value.size(), content_length_);
    } else if (is_named(name, "Content-Type")) {
      content_type_ = value;
    } else if (is_named(name, "Transfer-Encoding")) {
      transfer_encoding_ = value;
    } else if (!stays_behind(name)) {
      response.set_header(std::string(name), std::string(value));
    }
  }
}

}  // namespace firp
