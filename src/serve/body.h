#pragma once

#include <fmt/format.h>
#include <httplib.h>

#include <atomic>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include "model/ggml_log.h"
#include "serve/fields.h"
#include "serve/http_server.h"

namespace firp {

/// Of all requests that are being read and understood. Small ones are let in all the same, so that
/// who sends large ones slowly keeps nobody out.
inline constexpr std::size_t kMostBodyBytesTogether = std::size_t{128} << 20;
inline constexpr std::size_t kSmallBodyBytes = std::size_t{256} << 10;

/// The request's body, for as long as it is looked at; all that there are share a bound.
class BodyBytes {
 public:
  BodyBytes(std::atomic<std::size_t>& together, const httplib::Request& request,
            httplib::Response& response, const httplib::ContentReader& read)
      : together_(together) {
    if (request.is_multipart_form_data()) {
      throw RequestError(kWrongEncoding, "the body must be JSON, not a form of several parts");
    }
    if (const std::string coding = request.get_header_value("Content-Encoding");
        !coding.empty() && coding != "identity") {
      throw RequestError(kWrongEncoding,
                         fmt::format("the body must not be packed (it is {})", one_line(coding)));
    }
    if (request.get_header_value_count("Transfer-Encoding") > 1 ||
        request.get_header_value("Transfer-Encoding").find(',') != std::string::npos) {
      throw RequestError(kWrongEncoding, "the body may come in chunks, and packed no further");
    }
    // Without either there is none, whatever comes until the connection is closed.
    if (!request.has_header("Content-Length") && !request.has_header("Transfer-Encoding")) return;
    // Not by the library, which would wait for all of it first.
    if (request.get_header_value_u64("Content-Length") > kMostBodyBytes) refuse_large();
    const bool complete = read([&](const char* part, std::size_t size) {
      const std::size_t all = together_.fetch_add(size) + size;
      counted_ += size;
      full_ = all > kMostBodyBytesTogether && counted_ > kSmallBodyBytes;
      if (full_ || counted_ > kMostBodyBytes) return false;
      bytes_.append(part, size);
      return true;
    });
    if (complete) return;
    const bool large = counted_ > kMostBodyBytes || response.status == kTooLarge.status;
    release();
    if (large) refuse_large();
    if (full_) throw RequestError(kBusy, "other requests fill the memory; ask again later");
    if (HttpServer::bound_hit() == HttpServer::Bound::kTime) {
      throw RequestError(kTooSlow, fmt::format("the request was not there after {} seconds",
                                               HttpServer::kRequestSeconds));
    }
    throw RequestError(kBadRequest, "the body ended early, or its framing is wrong");
  }
  ~BodyBytes() { release(); }
  BodyBytes(const BodyBytes&) = delete;
  BodyBytes& operator=(const BodyBytes&) = delete;

  std::string_view text() const { return bytes_; }

 private:
  [[noreturn]] static void refuse_large() {
    throw RequestError(kTooLarge, fmt::format("the body is larger than {} bytes", kMostBodyBytes));
  }
  void release() { together_ -= std::exchange(counted_, 0); }

  std::atomic<std::size_t>& together_;
  std::size_t counted_ = 0;
  bool full_ = false;
  std::string bytes_;
};

}  // namespace firp
