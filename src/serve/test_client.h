#pragma once

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <string>
#include <string_view>
#include <utility>

namespace firp {

/// A connection to this machine, for bytes that no HTTP library would send.
class RawClient {
 public:
  explicit RawClient(int port) : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {.sin_family = AF_INET,
                           .sin_port = htons(static_cast<std::uint16_t>(port)),
                           .sin_addr = {htonl(INADDR_LOOPBACK)}};
    connected_ = connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }
  /// Of a Unix socket.
  explicit RawClient(const std::string& path)
      : socket_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address = {.sun_family = AF_UNIX};
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    connected_ = connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }
  RawClient(RawClient&& other) noexcept
      : socket_(std::exchange(other.socket_, -1)), connected_(other.connected_) {}
  ~RawClient() {
    if (socket_ >= 0) close(socket_);
  }

  int socket() const { return socket_; }
  bool connected() const { return connected_; }
  /// As much of it as is taken.
  void send(std::string_view bytes) const {
    while (!bytes.empty()) {
      const ssize_t count = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (count <= 0) return;
      bytes.remove_prefix(static_cast<std::size_t>(count));
    }
  }
  /// What comes until the server closes, `until` has come, or nothing for so long.
  std::string receive(std::string_view until = "", int milliseconds = 20000) const {
    std::string all;
    char part[4096];
    pollfd one = {.fd = socket_, .events = POLLIN, .revents = 0};
    while (poll(&one, 1, milliseconds) > 0) {
      const ssize_t count = recv(socket_, part, sizeof part, 0);
      if (count <= 0) break;
      all.append(part, static_cast<std::size_t>(count));
      if (!until.empty() && all.find(until) != std::string::npos) break;
    }
    return all;
  }
  bool closed_by_server(int milliseconds = 20000) const {
    pollfd one = {.fd = socket_, .events = POLLRDHUP, .revents = 0};
    return poll(&one, 1, milliseconds) > 0;
  }

 private:
  int socket_;
  bool connected_;
};

}  // namespace firp
