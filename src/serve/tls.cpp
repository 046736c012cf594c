#include "serve/tls.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/err.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <string>

#include "base/error.h"
#include "model/ggml_log.h"
#include "model/text_input.h"

namespace firp {
namespace {

/// What OpenSSL said first, and forgets now.
std::string why() {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  const char* const reason = ERR_reason_error_string(code);
  return reason == nullptr ? "it is not understood" : one_line(reason);
}

void require_readable(const char* what, const std::filesystem::path& path) {
  if (TextInput(what, path).text().empty()) {
    throw Error(fmt::format("{} {} is empty", what, path.string()));
  }
}

}  // namespace

TlsContext tls_context(const std::filesystem::path& key, const std::filesystem::path& certificate) {
  // OpenSSL's own words for a file that is not there are no help.
  require_readable("the certificate", certificate);
  require_readable("the key", key);
  ERR_clear_error();
  TlsContext context(SSL_CTX_new(TLS_server_method()), &SSL_CTX_free);
  if (!context) throw Error(fmt::format("TLS is not to be had: {}", why()));
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_options(context.get(), SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);  // clients keep them
  SSL_CTX_set_mode(context.get(),
                   SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  // A client that sends messages of TLS alone, without an end, must not keep a call from returning.
  SSL_CTX_clear_mode(context.get(), SSL_MODE_AUTO_RETRY);
  // It would ask on the terminal else.
  SSL_CTX_set_default_passwd_cb(context.get(), [](char*, int, int, void*) { return -1; });
  if (SSL_CTX_use_certificate_chain_file(context.get(), certificate.c_str()) != 1) {
    throw Error(fmt::format("{} holds no certificate in PEM that can be used: {} (--ssl-cert-file)",
                            certificate.string(), why()));
  }
  const bool is_key =
      SSL_CTX_use_PrivateKey_file(context.get(), key.c_str(), SSL_FILETYPE_PEM) == 1;
  if (is_key && SSL_CTX_check_private_key(context.get()) == 1) return context;
  // One of the same kind is compared as it is read.
  if (is_key || ERR_GET_LIB(ERR_peek_last_error()) == ERR_LIB_X509) {
    ERR_clear_error();
    throw Error(fmt::format("the key {} does not belong to the certificate {}", key.string(),
                            certificate.string()));
  }
  throw Error(
      fmt::format("{} holds no key in PEM that can be used without a password: {} (--ssl-key-file)",
                  key.string(), why()));
}

Channel::Channel(int socket, SSL_CTX* context) : socket_(socket), has_tls_(context != nullptr) {
  if (!has_tls_) return;
  tls_.reset(SSL_new(context));
  failed_ = !tls_ || SSL_set_fd(tls_.get(), socket) != 1;
  if (failed_) return;
  fcntl(socket, F_SETFL, fcntl(socket, F_GETFL) | O_NONBLOCK);
  SSL_set_accept_state(tls_.get());
}

ssize_t Channel::receive(char* to, std::size_t size) {
  if (has_tls_)
    return through_tls([&](int count) { return SSL_read(tls_.get(), to, count); }, size);
  const ssize_t count = recv(socket_, to, size, MSG_DONTWAIT);
  wants_ = count < 0 && (errno == EAGAIN || errno == EINTR) ? POLLIN : 0;
  return count;
}

ssize_t Channel::send(const char* from, std::size_t size) {
  if (has_tls_)
    return through_tls([&](int count) { return SSL_write(tls_.get(), from, count); }, size);
  const ssize_t count = ::send(socket_, from, size, MSG_NOSIGNAL | MSG_DONTWAIT);
  wants_ = count < 0 && (errno == EAGAIN || errno == EINTR) ? POLLOUT : 0;
  return count;
}

template <typename Call>
ssize_t Channel::through_tls(const Call& call, std::size_t size) {
  wants_ = 0;
  if (failed_) return -1;
  ERR_clear_error();
  const int count = call(static_cast<int>(std::min<std::size_t>(size, INT_MAX)));
  if (count > 0) return count;
  const int reason = SSL_get_error(tls_.get(), count);
  if (reason == SSL_ERROR_ZERO_RETURN) return 0;
  wants_ = reason == SSL_ERROR_WANT_READ ? POLLIN : reason == SSL_ERROR_WANT_WRITE ? POLLOUT : 0;
  failed_ = wants_ == 0;
  return -1;
}

void Channel::end() {
  if (tls_ && !failed_ && SSL_is_init_finished(tls_.get()) == 1) SSL_shutdown(tls_.get());
  ERR_clear_error();
}

}  // namespace firp
