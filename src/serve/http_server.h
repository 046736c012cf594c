#pragma once

#include <httplib.h>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <list>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "serve/tls.h"

namespace firp {

/// cpp-httplib's server, with bounds on what strangers may take of it: connections, and the bytes
/// and the time of a request before anything is done with it. A connection has a thread for as long
/// as it is open.
///
/// When all kMostConnections are open, one more closes that which has waited longest for its client
/// (an idle one, or a request that does not come on), so that whoever holds connections open keeps
/// nobody out.
class HttpServer final : public httplib::Server {
 public:
  static constexpr std::size_t kMostConnections = 512;
  static constexpr std::size_t kMostHeadBytes = std::size_t{64} << 10;  ///< request line, headers
  static constexpr int kHeadSeconds = 10;     ///< from a request's first byte to its last header
  static constexpr int kRequestSeconds = 60;  ///< to the last byte of its body
  static constexpr int kIdleSeconds = 30;     ///< between two requests of a connection
  static constexpr int kWriteSeconds = 20;    ///< that a client may take to make room for bytes

  /// `most_connections`: or as many as there can be file descriptors for.
  explicit HttpServer(std::size_t most_connections = kMostConnections);
  ~HttpServer() override;

  /// From now on all connections are encrypted.
  void use_tls(TlsContext context) { tls_ = std::move(context); }

  /// Listens at a Unix socket, whose file goes when the server stops. One that is left of a program
  /// that is gone is replaced. An Error where it cannot.
  void bind_to_file(const std::string& path);

  /// Once it is bound to one address: listens at another one, too. False where it cannot.
  bool also_bind_to(const std::string& host, int port);

  /// Once it is bound: answers requests, at all addresses, until stop_serving().
  void serve();

  /// Once it is bound: whether programs of this machine alone can reach it.
  bool listens_on_loopback() const;

  /// Takes no more connections or requests. Those being answered have kGrace to end; then their
  /// connections are cut.
  void stop_serving();

  // Of the request that the calling thread answers:

  /// Whether its client has closed the connection.
  static bool client_has_left();
  /// When its first byte was there.
  static std::chrono::steady_clock::time_point request_began();
  /// Ends the connection after the answer: HTTP/1.0's way to end a body of unknown length.
  static void close_after_answer();
  /// What bound the request ran into before it was all there.
  enum class Bound { kNone, kHeadBytes, kTime };
  static Bound bound_hit();

 private:
  struct Connection;

 public:
  /// That request, for other threads that work for it while the calling one waits.
  class CurrentRequest {
   public:
    CurrentRequest();

   private:
    friend HttpServer;
    Connection* const connection_;
  };
  /// While it lives, the calling thread answers that request, too.
  class OnBehalf {
   public:
    explicit OnBehalf(const CurrentRequest& request);
    ~OnBehalf();
    OnBehalf(const OnBehalf&) = delete;
    OnBehalf& operator=(const OnBehalf&) = delete;
  };

 private:
  static constexpr std::chrono::milliseconds kGrace{600};

  class RequestStream;
  class Threads;

  bool process_and_close_socket(socket_t socket) override;
  /// The oldest of the connections that wait for their client is closed; false where all are busy.
  bool close_one_that_waits();
  void remove_file();
  void accept_at(int listening);
  /// Wakes whoever waits for a client, or, with `all`, for anything of a connection.
  void shut_down(bool all);

  std::mutex mutex_;
  std::condition_variable ended_;
  TlsContext tls_{nullptr, &SSL_CTX_free};
  std::vector<int> more_sockets_;  ///< that it listens at, besides the library's
  std::string file_;               ///< of the socket that it listens at; empty: there is none
  std::size_t most_connections_;
  std::size_t threads_ = 0;
  std::size_t counted_ = 0;             ///< connections that do not make room for another one
  std::list<Connection*> connections_;  ///< oldest first
  bool stopping_ = false;
};

}  // namespace firp
