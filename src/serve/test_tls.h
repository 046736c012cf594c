#pragma once

#include <gtest/gtest.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "serve/test_client.h"

namespace firp {

/// A certificate that signs itself, and its key, in files.
class TestCertificate {
 public:
  explicit TestCertificate(const std::string& name, const char* password = nullptr)
      : key(testing::TempDir() + name + "-key.pem"),
        certificate(testing::TempDir() + name + "-certificate.pem") {
    const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> pair(EVP_EC_gen("P-256"),
                                                                   &EVP_PKEY_free);
    const std::unique_ptr<X509, decltype(&X509_free)> made(X509_new(), &X509_free);
    X509_set_version(made.get(), 2);
    ASN1_INTEGER_set(X509_get_serialNumber(made.get()), 1);
    X509_gmtime_adj(X509_getm_notBefore(made.get()), -60);
    X509_gmtime_adj(X509_getm_notAfter(made.get()), 3600);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(made.get()), "CN", MBSTRING_ASC,
                               reinterpret_cast<const unsigned char*>("localhost"), -1, -1, 0);
    X509_set_issuer_name(made.get(), X509_get_subject_name(made.get()));
    X509_set_pubkey(made.get(), pair.get());
    X509_sign(made.get(), pair.get(), EVP_sha256());
    std::FILE* file = std::fopen(key.c_str(), "w");
    PEM_write_PrivateKey(file, pair.get(), password == nullptr ? nullptr : EVP_aes_128_cbc(),
                         nullptr, 0, nullptr, const_cast<char*>(password));
    std::fclose(file);
    file = std::fopen(certificate.c_str(), "w");
    PEM_write_X509(file, made.get());
    std::fclose(file);
  }
  ~TestCertificate() {
    std::filesystem::remove(key);
    std::filesystem::remove(certificate);
  }
  TestCertificate(const TestCertificate&) = delete;
  TestCertificate& operator=(const TestCertificate&) = delete;

  const std::string key, certificate;
};

/// A connection through TLS, to a server that shows just that certificate.
class TlsClient {
 public:
  TlsClient(int port, const TestCertificate& expected) : client_(port) {
    SSL_CTX_load_verify_file(context_.get(), expected.certificate.c_str());
    SSL_CTX_set_verify(context_.get(), SSL_VERIFY_PEER, nullptr);
    tls_.reset(SSL_new(context_.get()));
    SSL_set_fd(tls_.get(), client_.socket());
    connected_ = client_.connected() && SSL_connect(tls_.get()) == 1;
  }
  bool connected() const { return connected_; }
  void send(std::string_view bytes) {
    for (int count; !bytes.empty(); bytes.remove_prefix(static_cast<std::size_t>(count))) {
      count = SSL_write(tls_.get(), bytes.data(), static_cast<int>(bytes.size()));
      if (count <= 0) return;
    }
  }
  /// What comes until the server ends, or `until` has come.
  std::string receive(std::string_view until = "") {
    std::string all;
    char part[4096];
    for (int count; (count = SSL_read(tls_.get(), part, sizeof part)) > 0;) {
      all.append(part, static_cast<std::size_t>(count));
      if (!until.empty() && all.find(until) != std::string::npos) break;
    }
    return all;
  }
  /// Whether the server said that nothing more comes.
  bool ended() const { return (SSL_get_shutdown(tls_.get()) & SSL_RECEIVED_SHUTDOWN) != 0; }

 private:
  RawClient client_;
  std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context_{SSL_CTX_new(TLS_client_method()),
                                                             &SSL_CTX_free};
  std::unique_ptr<SSL, decltype(&SSL_free)> tls_{nullptr, &SSL_free};
  bool connected_ = false;
};

}  // namespace firp
