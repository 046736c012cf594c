#pragma once

#include <openssl/ssl.h>
#include <sys/types.h>

#include <cstddef>
#include <filesystem>
#include <memory>

namespace firp {

/// What a server shows to its clients: a certificate, with those that it was signed by, and its
/// key.
using TlsContext = std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)>;

/// From PEM files. An Error where one cannot be read, or the key is another certificate's.
TlsContext tls_context(const std::filesystem::path& key, const std::filesystem::path& certificate);

/// The bytes of a connection, through TLS where there is a context. No call waits. The socket is
/// the caller's.
class Channel {
 public:
  /// `context`: null for none. The first calls make the handshake.
  Channel(int socket, SSL_CTX* context);

  /// Bytes that came or were taken; 0: the other side has ended; less: see wants().
  ssize_t receive(char* to, std::size_t size);
  ssize_t send(const char* from, std::size_t size);
  /// After less than 0: poll's event to wait for before the same call is made again; 0: it failed.
  short wants() const { return wants_; }
  /// Tells the other side that nothing more comes, so that it knows the end for one.
  void end();

 private:
  template <typename Call>
  ssize_t through_tls(const Call& call, std::size_t size);

  const int socket_;
  const bool has_tls_;
  std::unique_ptr<SSL, decltype(&SSL_free)> tls_{nullptr, &SSL_free};
  bool failed_ = false;  ///< nothing more may be asked of it
  short wants_ = 0;
};

}  // namespace firp
