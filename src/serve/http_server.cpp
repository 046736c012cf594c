#include "serve/http_server.h"

#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "base/error.h"

namespace firp {
namespace {

using Clock = std::chrono::steady_clock;

/// What else the program has open: the model, a log, the listening socket.
constexpr std::size_t kOtherFiles = 16;

/// As many as there may be, and there can be file descriptors for.
std::size_t affordable_connections() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return HttpServer::kMostConnections;
  constexpr rlim_t kWanted = HttpServer::kMostConnections + kOtherFiles;
  if (limit.rlim_cur < kWanted) {
    const rlim_t before = std::exchange(limit.rlim_cur, std::min(kWanted, limit.rlim_max));
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) limit.rlim_cur = before;
  }
  const auto files = static_cast<std::size_t>(limit.rlim_cur);
  return std::clamp<std::size_t>(files > kOtherFiles ? files - kOtherFiles : 1, 1,
                                 HttpServer::kMostConnections);
}

/// Waits for events of a socket until `deadline`; what came, 0: nothing in time.
int wait_for(int socket, int events, Clock::time_point deadline) {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd one = {.fd = socket, .events = static_cast<short>(events), .revents = 0};
    const int count = poll(&one, 1, static_cast<int>(std::max<long long>(left, 0)));
    if (count > 0) return one.revents;
    if (count == 0 || errno != EINTR) return 0;
  }
}

/// Of a client that still sends when it is refused: it would lose the answer if its bytes were not
/// read before the connection is closed.
void read_what_still_comes(int socket) {
  constexpr std::size_t kMostBytes = std::size_t{64} << 20;
  constexpr auto kMostTime = std::chrono::seconds(1);
  shutdown(socket, SHUT_WR);
  std::array<char, 16384> ignored;
  const Clock::time_point deadline = Clock::now() + kMostTime;
  for (std::size_t bytes = 0; bytes < kMostBytes && wait_for(socket, POLLIN, deadline) != 0;) {
    const ssize_t count = recv(socket, ignored.data(), ignored.size(), MSG_DONTWAIT);
    if (count <= 0) break;
    bytes += static_cast<std::size_t>(count);
  }
}

/// The address alone; "unix" where there is none.
std::string address_of_client(int socket) {
  sockaddr_storage address = {};
  socklen_t size = sizeof address;
  char text[NI_MAXHOST] = "";
  if (getpeername(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0) return "";
  if (address.ss_family == AF_UNIX) return "unix";
  getnameinfo(reinterpret_cast<const sockaddr*>(&address), size, text, sizeof text, nullptr, 0,
              NI_NUMERICHOST);
  return text;
}

/// Makes room for a socket at `path`, where one is left that nobody listens at. An Error where
/// something else is there.
void remove_stale_socket(const std::string& path) {
  sockaddr_un address = {.sun_family = AF_UNIX};
  if (path.size() >= sizeof address.sun_path) {
    throw Error(fmt::format("cannot listen at {}: the path of a socket has at most {} bytes", path,
                            sizeof address.sun_path - 1));
  }
  struct stat file = {};
  if (lstat(path.c_str(), &file) != 0) return;
  if (!S_ISSOCK(file.st_mode)) {
    throw Error(fmt::format("cannot listen at {}: there is a file, which is no socket", path));
  }
  path.copy(address.sun_path, path.size());
  const int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  const bool refused =
      connect(probe, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 &&
      errno == ECONNREFUSED;
  if (probe >= 0) close(probe);
  if (!refused) throw Error(fmt::format("cannot listen at {}: the socket is in use", path));
  unlink(path.c_str());
}

}  // namespace

struct HttpServer::Connection {
  const socket_t socket;
  Channel channel;
  std::atomic<bool> waits = true;  ///< for its client: there is no request, or it is not all there
  std::atomic<bool> closing = false;     ///< the server stops, or
  std::atomic<bool> makes_room = false;  ///< it is closed for another one, and no longer counted
  Clock::time_point began = {};          ///< of the request
  bool closes_after_answer = false;
  Bound bound = Bound::kNone;

  /// Of the calling thread; each serves one connection.
  static thread_local Connection* current;
};
thread_local HttpServer::Connection* HttpServer::Connection::current = nullptr;

/// A connection's bytes, with the bounds of a request.
class HttpServer::RequestStream final : public httplib::Stream {
 public:
  explicit RequestStream(Connection& connection) : connection_(connection) {}

  /// Waits for the first byte of the next request; false where none comes.
  bool wait_for_request() {
    connection_.waits = true;
    connection_.bound = Bound::kNone;
    head_bytes_ = kMostHeadBytes;
    deadline_ = Clock::now() + std::chrono::seconds(kIdleSeconds);
    if (begin_ == end_ && !fill()) return false;
    connection_.began = Clock::now();
    deadline_ = connection_.began + std::chrono::seconds(kHeadSeconds);
    return true;
  }
  void end_head() {
    head_bytes_ = std::numeric_limits<std::size_t>::max();
    deadline_ = connection_.began + std::chrono::seconds(kRequestSeconds);
    // Only reading the body, if it is read, waits for the client from here on.
    connection_.waits = false;
  }

  bool is_readable() const override { return begin_ < end_; }
  bool wait_readable() const override {
    return is_readable() || wait_for(connection_.socket, POLLIN, deadline_) != 0;
  }
  bool wait_writable() const override {
    const auto deadline = Clock::now() + std::chrono::seconds(kWriteSeconds);
    return (wait_for(connection_.socket, POLLOUT, deadline) & POLLOUT) != 0;
  }
  bool is_peer_alive() const override { return !client_has_left() && wait_writable(); }

  ssize_t read(char* to, std::size_t size) override {
    if (begin_ == end_ && !fill()) return -1;
    const std::size_t count = std::min(size, end_ - begin_);
    if (!may_take(count)) return -1;
    std::copy_n(bytes_.data() + begin_, count, to);
    begin_ += count;
    return static_cast<ssize_t>(count);
  }
  const char* buffered_data(std::size_t& size) const override {
    size = std::min(end_ - begin_, head_bytes_);
    return size > 0 ? bytes_.data() + begin_ : nullptr;
  }
  void consume_buffered(std::size_t size) override {
    if (may_take(size)) begin_ += size;
  }

  ssize_t write(const char* from, std::size_t size) override {
    const auto deadline = Clock::now() + std::chrono::seconds(kWriteSeconds);
    Channel& channel = connection_.channel;
    for (;;) {
      const ssize_t count = channel.send(from, size);
      if (count >= 0 || channel.wants() == 0) return count;
      if (wait_for(connection_.socket, channel.wants(), deadline) == 0) return -1;
    }
  }

  void get_remote_ip_and_port(std::string&, int&) const override {}
  void get_local_ip_and_port(std::string&, int&) const override {}
  socket_t socket() const override { return connection_.socket; }
  time_t duration() const override {
    return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - connection_.began)
        .count();
  }

 private:
  bool may_take(std::size_t count) {
    if (count > head_bytes_) {
      connection_.bound = Bound::kHeadBytes;
      return false;
    }
    if (head_bytes_ != std::numeric_limits<std::size_t>::max()) head_bytes_ -= count;
    return true;
  }
  bool fill() {
    if (head_bytes_ == 0) {
      connection_.bound = Bound::kHeadBytes;
      return false;
    }
    const bool waited = connection_.waits.exchange(true);
    Channel& channel = connection_.channel;
    ssize_t count;
    while ((count = channel.receive(bytes_.data(), bytes_.size())) < 0 && channel.wants() != 0) {
      // Bytes that came may be TLS's own: they are no reason to wait for longer.
      if (Clock::now() >= deadline_ ||
          wait_for(connection_.socket, channel.wants(), deadline_) == 0) {
        connection_.bound = Bound::kTime;
        return false;
      }
    }
    if (count <= 0 || connection_.closing) return false;
    begin_ = 0;
    end_ = static_cast<std::size_t>(count);
    connection_.waits = waited;
    return true;
  }

  Connection& connection_;
  std::array<char, 16384> bytes_;    ///< as many as TLS has in a record, of which it keeps none so
  std::size_t begin_ = 0, end_ = 0;  ///< of what was received and not yet read
  std::size_t head_bytes_ = 0;       ///< that the request's head may still take
  Clock::time_point deadline_;
};

/// A thread for each connection, as cpp-httplib asks for them.
class HttpServer::Threads final : public httplib::TaskQueue {
 public:
  explicit Threads(HttpServer& server) : server_(server) {}

  bool enqueue(std::function<void()> serve) override {
    {
      const std::lock_guard lock(server_.mutex_);
      // Those whose thread has not come so far yet are not among them, and soon will be.
      if (server_.counted_ >= server_.most_connections_ && !server_.close_one_that_waits()) {
        return false;
      }
      ++server_.threads_;
    }
    try {
      std::thread(std::move(serve)).detach();
    } catch (const std::system_error&) {  // no more threads: the connection is closed at once
      const std::lock_guard lock(server_.mutex_);
      --server_.threads_;
      return false;
    }
    return true;
  }

  void shutdown() override {
    std::unique_lock lock(server_.mutex_);
    const auto all_ended = [this] { return server_.threads_ == 0; };
    if (server_.ended_.wait_for(lock, kGrace, all_ended)) return;
    server_.shut_down(/*all=*/true);
    server_.ended_.wait(lock, all_ended);
  }

 private:
  HttpServer& server_;
};

HttpServer::HttpServer(std::size_t most_connections)
    : most_connections_(std::min(most_connections, affordable_connections())) {
  new_task_queue = [this] { return new Threads(*this); };
  set_keep_alive_timeout(kIdleSeconds);  // what clients are told
  set_keep_alive_max_count(1000);
  // The library says so to the client, and would take what it still sends for a next request.
  set_post_routing_handler([](const httplib::Request&, httplib::Response& response) {
    if (response.get_header_value("Connection") == "close") close_after_answer();
  });
  set_tcp_nodelay(true);  // a token is a small packet
  // Without SO_REUSEPORT, which is the library's default: two servers would share a port unnoticed.
  set_socket_options([](socket_t socket) {
    const int yes = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  });
}

HttpServer::~HttpServer() {
  remove_file();
  for (const int socket : more_sockets_) close(socket);
}

void HttpServer::remove_file() {
  if (!file_.empty()) unlink(std::exchange(file_, "").c_str());
}

void HttpServer::bind_to_file(const std::string& path) {
  remove_stale_socket(path);
  set_address_family(AF_UNIX);
  constexpr int kAnyPort = 1;  // which means nothing there
  if (!bind_to_port(path, kAnyPort)) {
    throw Error(fmt::format("cannot listen at {}: {}", path, std::strerror(errno)));
  }
  file_ = path;
}

bool HttpServer::also_bind_to(const std::string& host, int port) {
  const addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM};
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return false;
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, &freeaddrinfo);
  for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
    const int listening = ::socket(each->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listening < 0) continue;
    const int yes = 1;
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    // :: beside 0.0.0.0: each for its own kind of addresses.
    if (each->ai_family == AF_INET6) {
      setsockopt(listening, IPPROTO_IPV6, IPV6_V6ONLY, &yes, sizeof yes);
    }
    if (::bind(listening, each->ai_addr, each->ai_addrlen) == 0 &&
        ::listen(listening, CPPHTTPLIB_LISTEN_BACKLOG) == 0) {
      more_sockets_.push_back(listening);
      return true;
    }
    close(listening);
  }
  return false;
}

void HttpServer::serve() {
  {
    std::vector<std::jthread> threads;
    for (const int each : more_sockets_) threads.emplace_back([this, each] { accept_at(each); });
    listen_after_bind();
    for (const int each : more_sockets_) shutdown(each, SHUT_RDWR);  // whose accept() then fails
  }
  Threads(*this).shutdown();  // what they took while the library waited for its own
}

void HttpServer::accept_at(int listening) {
  constexpr auto kPause = std::chrono::milliseconds(10);
  for (;;) {
    const int socket = accept4(listening, nullptr, nullptr, SOCK_CLOEXEC);
    if (socket < 0 && errno == EINVAL) return;
    if (socket < 0) {  // no more files, or a client that left at once
      std::this_thread::sleep_for(kPause);
      continue;
    }
    const int yes = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (!Threads(*this).enqueue([this, socket] { process_and_close_socket(socket); })) {
      close(socket);
    }
  }
}

namespace {

bool is_of_loopback(int socket) {
  sockaddr_storage address = {};
  socklen_t size = sizeof address;
  if (getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0) return false;
  if (address.ss_family == AF_UNIX) return true;
  if (address.ss_family == AF_INET) {
    const auto& ipv4 = reinterpret_cast<const sockaddr_in&>(address);
    return ntohl(ipv4.sin_addr.s_addr) >> 24 == 127;
  }
  return address.ss_family == AF_INET6 &&
         IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr);
}

}  // namespace

bool HttpServer::listens_on_loopback() const {
  return is_of_loopback(svr_sock_) && std::ranges::all_of(more_sockets_, is_of_loopback);
}

void HttpServer::stop_serving() {
  remove_file();  // while nobody else can have taken it over
  stop();
  for (const int each : more_sockets_) shutdown(each, SHUT_RDWR);
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  shut_down(/*all=*/false);
}

void HttpServer::shut_down(bool all) {
  for (Connection* const each : connections_) {
    each->closing = true;
    if (all) {
      shutdown(each->socket, SHUT_RDWR);
    } else if (each->waits) {
      shutdown(each->socket, SHUT_RD);
    }
  }
}

bool HttpServer::close_one_that_waits() {
  for (Connection* const each : connections_) {
    if (!each->waits || each->closing) continue;
    each->closing = each->makes_room = true;
    shutdown(each->socket, SHUT_RDWR);
    --counted_;
    return true;
  }
  return false;
}

bool HttpServer::process_and_close_socket(socket_t socket) {
  Connection connection = {.socket = socket, .channel = {socket, tls_.get()}};
  Connection::current = &connection;
  std::list<Connection*>::iterator place;
  {
    const std::lock_guard lock(mutex_);
    place = connections_.insert(connections_.end(), &connection);
    ++counted_;
    connection.closing = stopping_;
  }
  // A client that vanished without a word (its machine is gone) is noticed, too.
  const int on = 1, idle_seconds = 30, interval_seconds = 10, probes = 3;
  setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(socket, IPPROTO_TCP, TCP_KEEPIDLE, &idle_seconds, sizeof idle_seconds);
  setsockopt(socket, IPPROTO_TCP, TCP_KEEPINTVL, &interval_seconds, sizeof interval_seconds);
  setsockopt(socket, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
  const std::string client = address_of_client(socket);
  RequestStream stream(connection);
  std::size_t served = 0;
  while (served < keep_alive_max_count_ && !connection.closing && stream.wait_for_request()) {
    bool closed = ++served == keep_alive_max_count_;
    const bool answered = serve_guarded([&] {
      return process_request(
          stream, client, 0, "", 0, closed, closed, [&](httplib::Request& request) {
            stream.end_head();
            request.ranges.clear();  // no reply here is a file that can be asked for in parts
          });
    });
    if (!answered || closed || connection.closes_after_answer) break;
    const std::lock_guard lock(mutex_);
    connections_.splice(connections_.end(), connections_, place);  // the last one that was used
  }
  if (!connection.makes_room) {
    connection.channel.end();
    read_what_still_comes(socket);
  }
  Connection::current = nullptr;
  // All in one: once no connection is left, the server may be gone.
  const std::lock_guard lock(mutex_);
  connections_.erase(place);
  close(socket);
  if (!connection.makes_room) --counted_;
  --threads_;
  ended_.notify_all();
  return true;
}

bool HttpServer::client_has_left() {
  const int came = wait_for(Connection::current->socket, POLLRDHUP, Clock::now());
  return (came & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0;
}

Clock::time_point HttpServer::request_began() { return Connection::current->began; }

void HttpServer::close_after_answer() { Connection::current->closes_after_answer = true; }

HttpServer::CurrentRequest::CurrentRequest() : connection_(Connection::current) {}

HttpServer::OnBehalf::OnBehalf(const CurrentRequest& request) {
  Connection::current = request.connection_;
}
HttpServer::OnBehalf::~OnBehalf() { Connection::current = nullptr; }

HttpServer::Bound HttpServer::bound_hit() { return Connection::current->bound; }

}  // namespace firp
