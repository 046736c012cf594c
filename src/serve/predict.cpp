#include "serve/predict.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <exception>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "model/ggml_log.h"
#include "serve/body.h"
#include "serve/reply.h"

namespace firp {
namespace {

constexpr std::size_t kMostInstances = 128;
constexpr const char* kFormat = "@requestFormat";

/// "/v1/chat/completions" as an instance may name it: "chatCompletions".
std::string format_of(std::string_view path) {
  if (path.starts_with("/v1/")) path.remove_prefix(3);
  std::string format;
  for (std::size_t i = 1; i < path.size(); ++i) {
    const bool is_between = path[i] == '/' || path[i] == '-' || path[i] == '_';
    if (is_between && ++i < path.size()) {
      format += static_cast<char>(std::toupper(static_cast<unsigned char>(path[i])));
    } else if (!is_between) {
      format += path[i];
    }
  }
  return format;
}

/// Of several with the same format the first one.
const Front::Route& route_of(const Front& front, const std::string& format) {
  const auto found = std::ranges::find_if(front.routes, [&](const Front::Route& each) {
    const bool is_text = each.method == "POST" && each.path.find(':') == std::string::npos;
    return is_text && (each.path == format || format_of(each.path) == format);
  });
  if (found != front.routes.end()) return *found;
  throw RequestError(kInvalidValue,
                     fmt::format("there is no '{}' here (as chatCompletions)", one_line(format)),
                     kFormat);
}

/// What the endpoint that the instance names replies.
Json prediction_of(const Front& front, const httplib::Request& request, Json instance,
                   LoggedRequest& logged) {
  if (!instance.is_object() || find(instance, kFormat) == nullptr) {
    throw RequestError(
        kMissing, fmt::format("an instance is an object with '{}', as chatCompletions", kFormat),
        "instances");
  }
  const Front::Route& route = route_of(front, text_of(instance[kFormat], kFormat));
  instance.erase(kFormat);
  instance["stream"] = false;
  const std::string body = to_bytes(instance);
  httplib::Request one;
  one.method = route.method;
  one.path = one.target = route.path;
  one.version = request.version;
  one.remote_addr = request.remote_addr;
  one.set_header("Content-Length", std::to_string(body.size()));
  const httplib::ContentReader read(
      [&body](const httplib::ContentReceiver& receive) {
        return receive(body.data(), body.size());
      },
      nullptr);
  httplib::Response response;
  route.answer(one, response, &read);
  const LoggedRequest& one_logged = *logged_of(one, response);
  logged.usages.insert(logged.usages.end(), one_logged.usages.begin(), one_logged.usages.end());
  return Json::parse(response.body);
}

}  // namespace

void add_vertex_routes(Front& front, const VertexRoutes& vertex) {
  // One that is an endpoint already stays as it is: for Vertex AI's raw predictions.
  const auto add = [&](const std::string& path, const char* variable, Front::Route route) {
    if (!path.starts_with('/') || path.find(':') != std::string::npos) {
      throw Error(
          fmt::format("{} must be a path, as /predict, not '{}'", variable, one_line(path)));
    }
    if (std::ranges::find(front.routes, path, &Front::Route::path) != front.routes.end()) return;
    route.path = path;
    front.add(std::move(route));
  };
  const auto predict = [&front](const httplib::Request& request, httplib::Response& response,
                                const Front::Reader* read) {
    Json instances;
    {
      const BodyBytes body(front.body_bytes, request, response, *read);
      const Json parsed = parse_body(body.text());
      const Json* const member = find(parsed, "instances");
      if (member == nullptr || !member->is_array()) {
        throw RequestError(kMissing, "'instances' must be a list of requests", "instances");
      }
      instances = *member;
    }
    if (instances.size() > kMostInstances) {
      throw RequestError(kTooLarge, fmt::format("'instances' may hold {}", kMostInstances),
                         "instances");
    }
    std::vector<Json> predictions(instances.size());
    std::vector<LoggedRequest> logged(instances.size());
    {
      const HttpServer::CurrentRequest current;
      std::vector<std::jthread> threads;
      for (std::size_t i = 0; i < instances.size(); ++i) {
        threads.emplace_back([&, i] {
          const HttpServer::OnBehalf behalf(current);
          try {
            predictions[i] = prediction_of(front, request, std::move(instances[i]), logged[i]);
          } catch (...) {
            const RequestError error = front.error_of(std::current_exception());
            predictions[i] = error_reply(error);
          }
        });
      }
    }
    LoggedRequest& all = *logged_of(request, response);
    for (const LoggedRequest& each : logged) {
      all.usages.insert(all.usages.end(), each.usages.begin(), each.usages.end());
    }
    reply(response, {{"predictions", predictions}});
  };
  add(vertex.predict, "AIP_PREDICT_ROUTE", {.path = {}, .method = "POST", .answer = predict});
  if (vertex.health.empty()) return;
  add(vertex.health, "AIP_HEALTH_ROUTE",
      *std::ranges::find(front.routes, "/health", &Front::Route::path));
}

}  // namespace firp
