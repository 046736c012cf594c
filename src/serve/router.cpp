#include "serve/router.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "model/ggml_log.h"
#include "serve/body.h"
#include "serve/fields.h"
#include "serve/forward.h"
#include "serve/front.h"
#include "serve/model_files.h"
#include "serve/model_process.h"
#include "serve/presets.h"
#include "serve/reply.h"

namespace firp {
namespace {

using Clock = std::chrono::steady_clock;

/// How long a request waits for a place among the models that run.
constexpr auto kMostWait = std::chrono::seconds(60);

constexpr ErrorKind kNoSuchModel = {404, "not_found_error", "model_not_found"};
constexpr ErrorKind kNotLoaded = {400, "invalid_request_error", "model_not_loaded"};

std::string new_key() {
  std::random_device random;
  std::string key;
  for (int i = 0; i < 8; ++i) key += fmt::format("{:08x}", random());
  return key;
}

/// This process's, with the key that the model's process asks for.
std::vector<std::string> environment_with(const std::string& key) {
  constexpr std::string_view kName = "FIRP_API_KEY=";
  std::vector<std::string> variables;
  for (char** each = environ; *each != nullptr; ++each) {
    // Vertex AI's words are for the router: the models' processes have ports of their own.
    const std::string_view variable = *each;
    if (!variable.starts_with(kName) && !variable.starts_with("AIP_")) {
      variables.emplace_back(variable);
    }
  }
  variables.push_back(std::string(kName) + key);
  return variables;
}

}  // namespace

struct Router::State : Front {
  State(ServerOptions server, RouterOptions o);
  ~State() { end_all(); }

  enum class Stage { kUnloaded, kLoading, kLoaded, kUnloading };
  struct Model {
    std::filesystem::path path;
    std::vector<std::string> arguments;  ///< its preset's
    bool loads_at_start = false;
    Stage stage = Stage::kUnloaded;
    std::string key;  ///< that the process asks for
    int port = 0;
    int answering = 0;  ///< requests that wait for it, or are being answered
    std::uint64_t last_used = 0;
    // How it ended, if nobody asked it to.
    std::optional<int> exit_code;
    std::string last_line;
    std::unique_ptr<ModelProcess> process;  ///< last: until it is gone its thread uses the others
  };
  using Models = std::map<std::string, Model>;

  /// While it lives, its model is not ended to make room. Made and ended with the lock.
  struct Hold {
    explicit Hold(Model& m) : model(m) { ++model.answering; }
    ~Hold() { --model.answering; }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;
    Model& model;
  };
  /// A request that a model's process answers.
  struct Forwarded {
    Forwarded(State& s, std::string n) : state(s), name(std::move(n)) {}
    ~Forwarded() {
      const std::lock_guard lock(state.mutex);
      hold.reset();
      state.changed.notify_all();
    }
    Forwarded(const Forwarded&) = delete;
    Forwarded& operator=(const Forwarded&) = delete;

    State& state;
    const std::string name;
    std::optional<Hold> hold;
    std::optional<ForwardedRequest> request;
  };

  void read_files();
  /// Those that presets want, as far as there is room.
  void load_first_ones();
  Model& model_of(const std::string& name);
  std::string names() const;
  std::vector<std::string> arguments_of(const std::string& name, const Model& model) const;
  void start(const std::string& name, Model& model);
  void end(Model& model);
  void end_all();
  /// For a change, or a moment. Cancelled when the client leaves, or the server ends.
  void wait(std::unique_lock<std::mutex>& lock);
  /// Starts the model as soon as there is room for it.
  void begin_loading(std::unique_lock<std::mutex>& lock, const std::string& name);
  /// Until the model is loaded: the process's port and key.
  std::pair<int, std::string> wait_for(Forwarded& forwarded, bool autoload);

  Json member_of(const std::string& name, const Model& model) const;
  void list(const httplib::Request& request, httplib::Response& response, const Reader*);
  void load(const httplib::Request& request, httplib::Response& response, const Reader* read);
  void unload(const httplib::Request& request, httplib::Response& response, const Reader* read);
  void props(const httplib::Request& request, httplib::Response& response, const Reader*);
  void forward(const httplib::Request& request, httplib::Response& response, const Reader* read);

  const RouterOptions options_of_models;
  std::mutex mutex;  ///< of all that follows
  std::condition_variable changed;
  Models models;
  std::list<std::string> waiting;  ///< names of models that wait for room, first come first
  std::uint64_t uses = 0;
};

Router::State::State(ServerOptions server, RouterOptions o)
    : Front(std::move(server)), options_of_models(std::move(o)) {
  read_files();
  if (models.empty()) {
    const RouterOptions& from = options_of_models;
    throw Error(
        from.models_dir.empty()
            ? fmt::format("{} has no model ([NAME] with model = PATH)", from.presets.string())
            : fmt::format("there is no model (NAME.gguf, or a folder with one) in {}",
                          from.models_dir.string()));
  }
  add({"/models", "GET", std::bind_front(&State::list, this)});
  add({"/v1/models", "GET", std::bind_front(&State::list, this)});
  add({"/models/load", "POST", std::bind_front(&State::load, this)});
  add({"/models/unload", "POST", std::bind_front(&State::unload, this)});
  add({"/props", "GET", std::bind_front(&State::props, this)});
  for (const EndpointName& each : Server::endpoints()) {
    if (std::ranges::find(routes, each.path, &Route::path) != routes.end()) continue;
    add({each.path, each.method, std::bind_front(&State::forward, this)});
  }
}

/// Models that run stay, whatever became of their files.
void Router::State::read_files() {
  const RouterOptions& o = options_of_models;
  std::map<std::string, Preset> presets;
  if (!o.presets.empty()) presets = read_presets(o.presets);
  const Preset for_all = presets.empty() ? Preset() : std::move(presets.extract("*").mapped());
  std::map<std::string, std::filesystem::path> files;
  if (!o.models_dir.empty()) files = find_models(o.models_dir);
  for (const auto& [name, preset] : presets) {
    if (!preset.model.empty()) files[name] = preset.model;
    if (!files.contains(name)) {
      throw Error(fmt::format("{}: the model [{}] needs model = PATH: no folder has it",
                              o.presets.string(), one_line(name)));
    }
  }
  std::erase_if(models, [&](const auto& each) {
    const Model& model = each.second;
    return !files.contains(each.first) && model.stage == Stage::kUnloaded && model.answering == 0;
  });
  for (auto& [name, path] : files) {
    Model& model = models[name];
    if (model.stage != Stage::kUnloaded) continue;
    const auto own = presets.find(name);
    const Preset& preset = own == presets.end() ? for_all : own->second;
    model.path = std::move(path);
    model.arguments = preset.arguments;
    model.loads_at_start = preset.loads_at_start;
  }
}

void Router::State::load_first_ones() {
  const std::lock_guard lock(mutex);
  int room = options_of_models.models_max == 0 ? INT_MAX : options_of_models.models_max;
  for (auto& [name, model] : models) {
    if (model.loads_at_start && room-- > 0) start(name, model);
  }
}

std::string Router::State::names() const {
  constexpr std::size_t kMost = 20;
  std::string text;
  std::size_t count = 0;
  for (const auto& [name, model] : models) {
    if (++count > kMost) return text + ", ...";
    text += (text.empty() ? "" : ", ") + one_line(name);
  }
  return text;
}

Router::State::Model& Router::State::model_of(const std::string& name) {
  const auto found = models.find(name);
  if (found != models.end()) return found->second;
  throw name.empty()
      ? RequestError(kMissing, fmt::format("say which model: {}", names()), "model")
      : RequestError(kNoSuchModel,
                     fmt::format("there is no model '{}'; there are {}", one_line(name), names()),
                     "model");
}

std::vector<std::string> Router::State::arguments_of(const std::string& name,
                                                     const Model& model) const {
  std::vector<std::string> arguments = {"firp", "serve"};
  arguments.insert(arguments.end(), model.arguments.begin(), model.arguments.end());
  arguments.insert(arguments.end(), options_of_models.arguments.begin(),
                   options_of_models.arguments.end());
  // Of a flag that is given twice the last one holds.
  for (const std::string& each : {"--model=" + model.path.string(), "--alias=" + name,
                                  std::string("--host=127.0.0.1"), std::string("--port=0")}) {
    arguments.push_back(each);
  }
  return arguments;
}

void Router::State::start(const std::string& name, Model& model) {
  model.process.reset();  // the last one, which has ended
  model.key = new_key();
  model.exit_code.reset();
  model.last_line.clear();
  model.last_used = ++uses;
  model.process = std::make_unique<ModelProcess>(
      arguments_of(name, model), environment_with(model.key),
      ModelProcess::Listener{
          .on_ready =
              [this, &model](int port) {
                const std::lock_guard lock(mutex);
                if (model.stage != Stage::kLoading) return;
                model.port = port;
                model.stage = Stage::kLoaded;
                changed.notify_all();
              },
          .on_line = [this, name](const std::string& line) { log_line(name, line); },
          .on_end =
              [this, name, &model](int exit_code, const std::string& last_line) {
                const std::lock_guard lock(mutex);
                if (model.stage != Stage::kUnloading) {
                  model.exit_code = exit_code;
                  model.last_line = last_line;
                  log_line(name, fmt::format("ended with status {}", exit_code));
                }
                model.stage = Stage::kUnloaded;
                changed.notify_all();
              }});
  model.stage = Stage::kLoading;
}

void Router::State::end(Model& model) {
  model.stage = Stage::kUnloading;
  model.process->end();
  changed.notify_all();
}

void Router::State::end_all() {
  const std::lock_guard lock(mutex);
  for (auto& [name, model] : models) {
    if (model.stage == Stage::kLoading || model.stage == Stage::kLoaded) end(model);
  }
}

void Router::State::wait(std::unique_lock<std::mutex>& lock) {
  constexpr auto kGlance = std::chrono::milliseconds(50);
  changed.wait_for(lock, kGlance);
  if (is_unwanted()) throw Cancelled();
}

void Router::State::begin_loading(std::unique_lock<std::mutex>& lock, const std::string& name) {
  if (stopping) throw Cancelled();
  Model& model = models.at(name);
  const auto place = waiting.insert(waiting.end(), name);
  struct Leave {
    State& state;
    std::list<std::string>::iterator place;
    ~Leave() {
      state.waiting.erase(place);
      state.changed.notify_all();
    }
  } const leave{*this, place};
  const auto deadline = Clock::now() + kMostWait;
  const auto runs = [](const Models::value_type& each) {
    return each.second.stage != Stage::kUnloaded;
  };
  while (model.stage == Stage::kUnloaded || model.stage == Stage::kUnloading) {
    // Of several requests for a model the first one acts for all.
    if (waiting.front() == name && model.stage == Stage::kUnloaded) {
      const auto most = static_cast<std::ptrdiff_t>(options_of_models.models_max);
      if (most == 0 || std::ranges::count_if(models, runs) < most) return start(name, model);
      const bool room_is_made = std::ranges::any_of(
          models, [](const auto& each) { return each.second.stage == Stage::kUnloading; });
      Model* oldest = nullptr;
      for (auto& [other_name, other] : models) {
        if (other.stage != Stage::kLoaded || other.answering > 0) continue;
        if (oldest == nullptr || other.last_used < oldest->last_used) oldest = &other;
      }
      if (!room_is_made && oldest != nullptr) end(*oldest);
    }
    if (Clock::now() > deadline) {
      throw RequestError(kBusy, fmt::format("all of the {} models that may run at once are "
                                            "answering; ask again later (firp serve --models-max)",
                                            options_of_models.models_max));
    }
    wait(lock);
  }
}

std::pair<int, std::string> Router::State::wait_for(Forwarded& forwarded, bool autoload) {
  const std::string& name = forwarded.name;
  std::unique_lock lock(mutex);
  Model& model = model_of(name);
  const auto runs = [&] { return model.stage == Stage::kLoading || model.stage == Stage::kLoaded; };
  if (!runs() && !autoload) {
    throw RequestError(
        kNotLoaded, fmt::format("the model '{}' is not loaded (POST /models/load)", name), "model");
  }
  forwarded.hold.emplace(model);  // now, so that it is not ended again before it is used
  if (!runs()) begin_loading(lock, name);
  while (model.stage == Stage::kLoading) wait(lock);
  if (model.stage != Stage::kLoaded) {
    throw RequestError(
        kModelFailed,
        model.exit_code
            ? fmt::format("the model '{}' did not load: {}", name,
                          model.last_line.empty()
                              ? fmt::format("its process ended with status {}", *model.exit_code)
                              : one_line(model.last_line))
            : fmt::format("the model '{}' was unloaded", name));
  }
  model.last_used = ++uses;
  return {model.port, model.key};
}

Json Router::State::member_of(const std::string& name, const Model& model) const {
  Json status = {{"value", model.stage == Stage::kLoading  ? "loading"
                           : model.stage == Stage::kLoaded ? "loaded"
                                                           : "unloaded"}};
  status["args"] = arguments_of(name, model);
  if (model.exit_code) {
    status["failed"] = true;
    status["exit_code"] = *model.exit_code;
    status["message"] = model.last_line;
  }
  return {{"id", name},
          {"object", "model"},
          {"created", start_seconds},
          {"owned_by", "firp"},
          {"in_cache", false},
          {"path", model.path.string()},
          {"status", std::move(status)}};
}

void Router::State::list(const httplib::Request& request, httplib::Response& response,
                         const Reader*) {
  Json all = Json::array();
  {
    const std::lock_guard lock(mutex);
    if (request.has_param("reload")) read_files();
    for (const auto& [name, model] : models) all.push_back(member_of(name, model));
  }
  reply(response, {{"object", "list"}, {"data", std::move(all)}});
}

void Router::State::load(const httplib::Request& request, httplib::Response& response,
                         const Reader* read) {
  const BodyBytes body(body_bytes, request, response, *read);
  const std::string name = optional_text(parse_body(body.text()), "model");
  std::unique_lock lock(mutex);
  Model& model = model_of(name);
  if (model.stage == Stage::kLoading || model.stage == Stage::kLoaded) {
    throw RequestError(kBadRequest, fmt::format("the model '{}' is already running", name));
  }
  const Hold hold(model);
  begin_loading(lock, name);
  reply(response, {{"success", true}});
}

void Router::State::unload(const httplib::Request& request, httplib::Response& response,
                           const Reader* read) {
  const BodyBytes body(body_bytes, request, response, *read);
  const std::string name = optional_text(parse_body(body.text()), "model");
  const std::lock_guard lock(mutex);
  Model& model = model_of(name);
  if (model.stage != Stage::kLoading && model.stage != Stage::kLoaded) {
    throw RequestError(kNotLoaded, fmt::format("the model '{}' is not running", name), "model");
  }
  end(model);
  reply(response, {{"success", true}});
}

void Router::State::props(const httplib::Request& request, httplib::Response& response,
                          const Reader* read) {
  if (request.has_param("model")) return forward(request, response, read);
  reply(response,
        {{"role", "router"},
         {"max_instances", options_of_models.models_max},
         {"models_autoload", options_of_models.autoload},
         {"model_alias", "firp"},
         {"model_path", (options_of_models.models_dir.empty() ? options_of_models.presets
                                                              : options_of_models.models_dir)
                            .string()},
         {"default_generation_settings", {{"params", Json::object()}, {"n_ctx", 0}}},
         {"build_info", "b-firp"}});
}

void Router::State::forward(const httplib::Request& request, httplib::Response& response,
                            const Reader* read) {
  std::optional<BodyBytes> body;
  if (read != nullptr) body.emplace(body_bytes, request, response, *read);
  const bool in_body = body && !request.has_param("model");
  const auto forwarded =
      std::make_shared<Forwarded>(*this, in_body ? optional_text(parse_body(body->text()), "model")
                                                 : request.get_param_value("model"));
  const std::string autoload = request.get_param_value("autoload");
  const auto [port, key] =
      wait_for(*forwarded, autoload.empty() ? options_of_models.autoload
                                            : autoload == "true" || autoload == "1");
  // While this server ends, the model's process tells its clients.
  const auto has_left = [] { return HttpServer::client_has_left(); };
  try {
    ForwardedRequest& sent =
        forwarded->request.emplace(port, key, request, body ? body->text() : std::string_view());
    body.reset();
    sent.read_head(response, has_left);
    if (sent.content_length() >= 0) {
      std::string whole;
      while (std::ssize(whole) < sent.content_length()) {
        const std::string more = sent.read(has_left);
        if (more.empty()) throw Error("it ended before its reply was complete");
        whole += more;
      }
      return response.set_content(std::move(whole), sent.content_type());
    }
  } catch (const Cancelled&) {
    throw;
  } catch (const Error& error) {
    throw RequestError(kModelFailed, fmt::format("the process of the model '{}' is gone: {}",
                                                 forwarded->name, error.what()));
  }
  // The bytes as they come, chunks and all: what is cut there is cut here.
  if (!forwarded->request->transfer_encoding().empty()) {
    response.set_header("Transfer-Encoding", forwarded->request->transfer_encoding());
  }
  response.set_header("Connection", "close");
  response.set_content_provider(forwarded->request->content_type(),
                                [forwarded, has_left](std::size_t, httplib::DataSink& sink) {
                                  try {
                                    for (;;) {
                                      const std::string more = forwarded->request->read(has_left);
                                      if (more.empty()) break;
                                      if (!sink.write(more.data(), more.size())) return false;
                                    }
                                  } catch (const Cancelled&) {
                                    return false;
                                  }
                                  sink.done();
                                  return true;
                                });
}

Router::Router(ServerOptions server, RouterOptions options)
    : state_(std::make_unique<State>(std::move(server), std::move(options))) {}
Router::~Router() = default;

int Router::bind() { return state_->bind(); }

bool Router::is_open() const { return state_->is_open(); }

void Router::run() {
  state_->load_first_ones();
  state_->run();
}

void Router::stop() {
  state_->stopping = true;
  state_->end_all();
  state_->stop();
}

}  // namespace firp
