#pragma once

#include <httplib.h>

#include <functional>
#include <string>
#include <string_view>

namespace firp {

/// A request that goes on to a server of this machine, over a connection of its own, and the reply
/// that comes back.
class ForwardedRequest {
 public:
  /// `key`: the other server's. An Error where it cannot be reached, or closes before it has all.
  ForwardedRequest(int port, const std::string& key, const httplib::Request& request,
                   std::string_view body);
  ~ForwardedRequest();
  ForwardedRequest(const ForwardedRequest&) = delete;
  ForwardedRequest& operator=(const ForwardedRequest&) = delete;

  /// Waits for the reply's head, which is put into `response` as far as it is not about framing.
  /// An Error where the connection ends before; Cancelled when `is_unwanted`, asked now and then.
  void read_head(httplib::Response& response, const std::function<bool()>& is_unwanted);

  /// As read_head() left it: the body has so many bytes; -1: it ends in a way of its own.
  long long content_length() const { return content_length_; }
  const std::string& content_type() const { return content_type_; }
  const std::string& transfer_encoding() const { return transfer_encoding_; }

  /// The next bytes of the body, as they are on the wire; empty: the connection has ended.
  std::string read(const std::function<bool()>& is_unwanted);

 private:
  int socket_ = -1;
  std::string held_;  ///< received, and not yet read
  long long content_length_ = -1;
  std::string content_type_, transfer_encoding_;
};

}  // namespace firp
