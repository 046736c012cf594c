#include <fmt/format.h>
#include <ggml-backend.h>

#include <algorithm>
#include <csignal>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "cli/decode_flags.h"
#include "cli/verbs.h"
#include "model/message.h"

namespace firp {
namespace {

struct RpcServerFlags {
  std::string host = "127.0.0.1";
  int port = 50052;
  DecodeFlags decode;
};

int run_rpc_server(const RpcServerFlags& flags) {
  const auto threads = static_cast<std::size_t>(flags.decode.thread_count());
  if (flags.port < 1 || flags.port > 65535) throw Error("--port must be 1 to 65535");
  ggml_backend_reg_t const rpc = ggml_backend_reg_by_name("RPC");
  using StartServer = void (*)(const char* endpoint, const char* cache, std::size_t threads,
                               std::size_t device_count, ggml_backend_dev_t* devices);
  const auto start = rpc != nullptr
                         ? reinterpret_cast<StartServer>(ggml_backend_reg_get_proc_address(
                               rpc, "ggml_backend_rpc_start_server"))
                         : nullptr;
  if (start == nullptr) throw Error("this libllama was built without RPC (GGML_RPC)");
  std::vector<ggml_backend_dev_t> devices;
  for (std::size_t i = 0; i < ggml_backend_dev_count(); ++i) {
    ggml_backend_dev_t const device = ggml_backend_dev_get(i);
    const bool wanted =
        flags.decode.llama.devices.empty()
            ? ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU
            : std::ranges::count(flags.decode.llama.devices, ggml_backend_dev_name(device)) > 0;
    if (wanted) devices.push_back(device);
  }
  if (devices.empty() && flags.decode.llama.devices.empty()) {
    devices.push_back(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
  }
  if (devices.empty()) throw Error("--device: there is none of that name (see firp inspect)");
  if (flags.host != "127.0.0.1" && flags.host != "localhost") {
    say("firp: whoever reaches {}:{} may run what they like here: ggml's protocol has no "
        "protection. Only in a network that you trust.\n",
        flags.host, flags.port);
  }
  signal(SIGINT, SIG_DFL);
  const std::string endpoint = fmt::format("{}:{}", flags.host, flags.port);
  start(endpoint.c_str(), nullptr, threads, devices.size(), devices.data());
  throw Error(
      fmt::format("cannot serve at {}: is the port taken?", endpoint));  // it serves for ever
}

}  // namespace

Verb add_rpc_server(CLI::App& program) {
  CLI::App* app = program.add_subcommand("rpc-server", "Lend this machine to firp on another one");
  const auto flags = std::make_shared<RpcServerFlags>();
  app->footer(R"(
ggml's own server: a model that another machine loads with --rpc HOST:PORT runs here, in part or
whole, with its draft maps. Ctrl-C ends it. The protocol has no protection: only in a network that
you trust.

Examples:
  firp rpc-server                                    on this machine alone, port 50052
  firp rpc-server --host 10.0.0.2 --port 50052
  firp generate -m model.gguf --rpc 10.0.0.2:50052,10.0.0.3:50052 -p "Hello"     (elsewhere))");
  app->add_option("-H,--host", flags->host, "Address to listen at")->capture_default_str();
  app->add_option("-p,--port", flags->port, "Port")->capture_default_str();
  flags->decode.add_threads_to(*app);
  app->add_option("--device", flags->decode.llama.devices,
                  "(-dev) Devices to lend (default: all GPUs, else the CPU)")
      ->delimiter(',')
      ->allow_extra_args(false);
  return {app, [flags] { return run_rpc_server(*flags); }};
}

}  // namespace firp
