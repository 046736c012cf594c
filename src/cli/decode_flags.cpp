#include "cli/decode_flags.h"

#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <charconv>
#include <climits>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "base/error.h"
#include "cli/cost_cache.h"
#include "cli/interrupt.h"
#include "model/ggml_log.h"
#include "model/message.h"
#include "model/text_input.h"
#include "model/usable_cores.h"

namespace firp {
namespace {

constexpr int kLargestTree = 256;
constexpr int kMostThreads = 1024;
constexpr int kLlamaContext = 8192;  ///< unless -c says otherwise

void require_between(float value, float least, float most, const char* flag) {
  if (!(value >= least && value <= most)) {
    throw Error(fmt::format("{} must be between {} and {}", flag, least, most));
  }
}

/// The result; an Error is told with the flag's name before it.
auto naming(const char* flag, const auto& parse) {
  try {
    return parse();
  } catch (const Error& error) {
    throw Error(fmt::format("{}: {}", flag, error.what()));
  }
}

/// llama.cpp's name for drafts of a draft model.
constexpr const char* kDraftSimple = "draft-simple";

bool drafts_with_model(const DecodeFlags& flags) {
  return !flags.draft_model.empty() &&
         (flags.spec_types.empty() || std::ranges::count(flags.spec_types, kDraftSimple) > 0);
}

/// Empty where none are asked for, or none are there.
std::filesystem::path choose_heads(const DecodeFlags& flags, const GgufFile& model) {
  const bool asked = flags.draft.starts_with("firp");
  const bool others = !flags.draft_model.empty() || !flags.spec_types.empty();
  if (others || (!flags.draft.empty() && !asked)) return {};
  if (!flags.heads.empty()) return flags.heads;
  if (const auto found = find_heads(model, heads_directories())) return *found;
  const std::string path = flags.model.string();
  if (asked) {
    throw Error(
        fmt::format("there are no heads for {}; `firp train -m {}` makes them", path, path));
  }
  say("firp: no heads for this model, so only n-grams are drafted; `firp train -m {}` makes "
      "them\n",
      path);
  return {};
}

bool drafts_ngrams(const DecodeFlags& flags) {
  if (!flags.spec_types.empty()) {
    return std::ranges::any_of(flags.spec_types,
                               [](const std::string& each) { return each.starts_with("ngram"); });
  }
  return flags.draft.empty() || flags.draft.ends_with("ngram");
}

bool planned(std::span<const int> trees) { return std::ranges::count(trees, kPlannedTree) > 0; }

int largest(std::span<const int> trees) {
  return std::max(std::ranges::max(trees), planned(trees) ? kMostPlannedNodes : 0);
}

std::vector<Sampler> parse_samplers(const DecodeFlags& flags) {
  if (!flags.samplers.empty()) {
    return naming("--samplers", [&] { return samplers_of_names(flags.samplers); });
  }
  if (!flags.sampler_seq.empty()) {
    return naming("--sampler-seq", [&] { return samplers_of_letters(flags.sampler_seq); });
  }
  return flags.sampling.samplers;
}

/// As in llama.cpp "none" takes away those before it.
std::vector<std::string> parse_breakers(const DecodeFlags& flags) {
  if (flags.dry_sequence_breakers.empty()) return flags.sampling.dry.sequence_breakers;
  const std::vector<std::string>& given = flags.dry_sequence_breakers;
  const auto first = std::find(given.rbegin(), given.rend(), "none").base();
  return {first, given.end()};
}

/// Refuses what can be refused before the model is read.
DecodeOptions decode_options(const DecodeFlags& flags, int largest_tree) {
  flags.thread_count();
  flags.cache_type();
  flags.context_size();
  require_at_least(largest_tree, 1, "--tree");
  if (largest_tree > kLargestTree) {
    throw Error(fmt::format("--tree must be at most {}", kLargestTree));
  }
  if (flags.draft_model.empty() && std::ranges::count(flags.spec_types, kDraftSimple) > 0) {
    throw Error(fmt::format("--spec-type {} needs --model-draft", kDraftSimple));
  }
  SamplingOptions sampling = flags.sampling;
  sampling.samplers = parse_samplers(flags);
  sampling.dry.sequence_breakers = parse_breakers(flags);
  if (flags.exact && tokens_to_sample_from(sampling) != 1) {
    throw Error("--exact is for greedy decoding: it goes without --temp and penalties");
  }
  constexpr float kAnyPositive = 1e30f;
  require_between(sampling.temperature, -kAnyPositive, kAnyPositive, "--temp");
  require_between(sampling.top_p, 0, 1, "--top-p");
  require_between(sampling.min_p, -kAnyPositive, 1, "--min-p");
  require_between(sampling.repeat_penalty, 1e-3f, kAnyPositive, "--repeat-penalty");
  require_at_least(sampling.repeat_last_n, -1, "--repeat-last-n");
  require_between(sampling.presence_penalty, -kAnyPositive, kAnyPositive, "--presence-penalty");
  require_between(sampling.frequency_penalty, -kAnyPositive, kAnyPositive, "--frequency-penalty");
  require_between(sampling.typical_p, 0, 1, "--typical");
  require_between(sampling.top_n_sigma, -kAnyPositive, kAnyPositive, "--top-nsigma");
  require_between(sampling.xtc_probability, 0, 1, "--xtc-probability");
  require_between(sampling.xtc_threshold, 0, 1, "--xtc-threshold");
  require_between(sampling.dynatemp_range, 0, kAnyPositive, "--dynatemp-range");
  require_between(sampling.dynatemp_exponent, 0, kAnyPositive, "--dynatemp-exp");
  require_between(sampling.dry.multiplier, 0, kAnyPositive, "--dry-multiplier");
  require_between(sampling.dry.base, 1, kAnyPositive, "--dry-base");
  require_at_least(sampling.dry.allowed_length, 0, "--dry-allowed-length");
  require_at_least(sampling.dry.penalty_last_n, -1, "--dry-penalty-last-n");
  require_at_least(sampling.mirostat.version, 0, "--mirostat");
  if (sampling.mirostat.version > 2) throw Error("--mirostat must be 0, 1 or 2");
  require_between(sampling.mirostat.tau, 0, kAnyPositive, "--mirostat-ent");
  require_between(sampling.mirostat.eta, 0, kAnyPositive, "--mirostat-lr");
  require_between(sampling.adaptive.target, -kAnyPositive, 1, "--adaptive-target");
  require_between(sampling.adaptive.decay, 0, 0.99f, "--adaptive-decay");
  sampling.seed = seed_of(flags.seed.value_or(kRandomSeed));
  return {.sampling = sampling,
          .drafting = flags.drafting == "in-pass" ? Drafting::kInPass : Drafting::kDeferred,
          .tree_nodes = largest_tree,
          .chain = flags.chain};
}

/// TOKEN+BIAS or TOKEN-BIAS.
TokenLogit parse_logit_bias(const std::string& text, int vocabulary) {
  const std::size_t sign = text.find_first_of("+-");
  const std::string bias = sign == std::string::npos ? "" : text.substr(sign);
  int token = -1;
  float value = NAN;
  const auto [token_end, token_error] =
      std::from_chars(text.data(), text.data() + text.size() - bias.size(), token);
  const std::size_t skipped = bias.starts_with('+') ? 1 : 0;  // from_chars knows no plus
  const auto [bias_end, bias_error] =
      std::from_chars(bias.data() + skipped, bias.data() + bias.size(), value);
  const bool whole = token_error == std::errc() && bias_error == std::errc() &&
                     token_end == text.data() + text.size() - bias.size() &&
                     bias_end == bias.data() + bias.size();
  if (!whole || token < 0 || token >= vocabulary || std::isnan(value) || value == INFINITY) {
    throw Error(fmt::format("--logit-bias needs TOKEN+BIAS or TOKEN-BIAS, TOKEN 0 to {}, not '{}'",
                            vocabulary - 1, one_line(text)));
  }
  return {token, value};
}

/// Room for a chunk of the prompt, and for a tree with the pseudo rows of every node.
int rows_a_pass(const DecodeFlags& flags, int largest_tree, int draft_steps) {
  const int branches = flags.drafting == "in-pass" ? 1 + draft_steps : 1;
  return std::max(EngineOptions().max_rows, (1 + largest_tree) * branches);
}

/// Positions that the model was trained for.
int trained_context(const GgufFile& file) {
  const std::string architecture = file.get_string("general.architecture");
  return static_cast<int>(std::clamp<std::int64_t>(
      file.find_int(architecture + ".context_length").value_or(INT_MAX), 1, INT_MAX));
}

LoadedModel load_for_decoding(const DecodeFlags& flags, int largest_tree,
                              const std::shared_ptr<const GgufFile>& file,
                              const std::filesystem::path& heads_path) {
  const int trained = trained_context(*file);
  const int context = flags.context_size().value_or(trained);
  if (context > trained && !flags.context_is_shared) {
    say("firp: the model was trained for a context of {}; beyond it text gets worse\n", trained);
  }
  std::optional<Heads> heads;
  if (!heads_path.empty()) heads = read_heads(heads_path, file.get());
  if (heads && heads->for_sibling) {
    say("firp: the heads {} were made with another file of the same shapes; the text is the same, "
        "but "
        "more drafts may be wrong than with heads of its own (`firp train`)\n",
        heads_path.string());
  }
  if (context < flags.context_parts) {
    throw Error(fmt::format("-c {} leaves none of {} slots a token; ask for more", context,
                            flags.context_parts));
  }
  LoadedModel loaded = load_model(
      flags, file,
      {.threads = flags.thread_count(),
       .context =
           flags.context_is_shared ? std::min(context / flags.context_parts, trained) : context,
       .positions = context,
       .max_rows = rows_a_pass(flags, largest_tree, heads ? heads->count() : 0),
       .cache_type = flags.cache_type(),
       .rough_drafts = flags.draft_weights == "rounded"});
  if (heads) loaded.engine->set_heads(*heads);
  return loaded;
}

}  // namespace

std::filesystem::path program_directory() {
  std::error_code error;
  return std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
}

std::vector<std::filesystem::path> heads_directories() {
  std::vector<std::filesystem::path> directories = {"heads"};
  if (const std::filesystem::path beside = program_directory(); !beside.empty()) {
    directories.push_back(beside / "heads");
    directories.push_back(beside.parent_path() / "heads");
    directories.push_back(beside.parent_path() / "share" / "firp" / "heads");
  }
  return directories;
}

void require_at_least(int value, int least, const char* flag) {
  if (value < least) throw Error(fmt::format("{} must be at least {}", flag, least));
}

int most_tokens(int predict, int least) {
  if (predict == -1 || predict == -2) return INT_MAX;
  if (predict < least) throw Error(fmt::format("-n must be at least {}, or -1: no limit", least));
  return predict;
}

bool is_random(std::int64_t seed) {
  constexpr std::int64_t kLlamaRandomSeed = 0xFFFFFFFF;  // -1 in the 32 bits that llama.cpp keeps
  return seed == kRandomSeed || seed == kLlamaRandomSeed;
}

std::uint64_t seed_of(std::int64_t seed) {
  return is_random(seed) ? std::random_device()() : static_cast<std::uint64_t>(seed);
}

int DecodeFlags::thread_count() const {
  const int count = threads.value_or(0);
  if (count > kMostThreads) throw Error(fmt::format("-t must be at most {}", kMostThreads));
  return count > 0 ? count : usable_cores();
}

std::optional<int> DecodeFlags::context_size() const {
  require_at_least(context.value_or(0), 0, "-c");
  return context == 0 ? std::nullopt : context;
}

CacheType DecodeFlags::cache_type() const {
  if (cache_type_k != cache_type_v) {
    throw Error("-ctk and -ctv must be the same: keys and values are kept in one type");
  }
  return cache_type_k == "q8_0" ? CacheType::kQ8_0 : CacheType::kF16;
}

void DecodeFlags::add_model_to(CLI::App& app) {
  app.add_option("-m,--model,model", model, "The model, a GGUF file")->required();
  add_threads_to(app);
}

void DecodeFlags::add_threads_to(CLI::App& app) {
  app.add_option("-t,--threads", threads,
                 "Threads at most; 0: one per core that this program may use, by its affinity and "
                 "its container's CPU quota (default). While other programs take cores, fewer run");
}

void DecodeFlags::add_template_to(CLI::App& app) {
  app.add_option(
      "--chat-template", chat_template,
      "Chat template in Jinja, or the name of one (chatml, llama3, ...), in place of the "
      "file's own");
  app.add_option("--chat-template-file", chat_template_file, "The same from a file");
  app.add_flag("--jinja", jinja,
               "What --chat-template has is Jinja, also where nothing in it looks like that");
}

void DecodeFlags::add_decoding_to(CLI::App& app, const std::string& context_help) {
  app.add_option("-c,--ctx-size", context, context_help);
  app.add_option("--cache-type-k", cache_type_k,
                 "(-ctk) What keys are kept as: f16, or q8_0, in about half the memory")
      ->check(CLI::IsMember({"f16", "q8_0"}))
      ->capture_default_str();
  app.add_option("--cache-type-v", cache_type_v, "(-ctv) The same of values; as for the keys")
      ->check(CLI::IsMember({"f16", "q8_0"}))
      ->capture_default_str();

  CLI::App* sampled = app.add_option_group("Sampling");
  sampled
      ->add_option("--temp,--temperature", sampling.temperature,
                   "Temperature; 0: always the likeliest token")
      ->capture_default_str();
  sampled->add_option("--top-k", sampling.top_k, "Only the K likeliest tokens; 0 or -1: all")
      ->capture_default_str();
  sampled->add_option("--top-p", sampling.top_p, "Only the likeliest tokens that sum to P; 1: all")
      ->capture_default_str();
  sampled
      ->add_option("--min-p", sampling.min_p,
                   "No token less likely than P times the likeliest; 0: off")
      ->capture_default_str();
  sampled->add_option("--repeat-penalty", sampling.repeat_penalty, "Above 1: repeats less; 1: off")
      ->capture_default_str();
  sampled
      ->add_option("--repeat-last-n", sampling.repeat_last_n,
                   "Tokens that count as repeated; 0: none, -1: the whole context")
      ->capture_default_str();
  sampled
      ->add_option("--presence-penalty", sampling.presence_penalty,
                   "Taken from the logit of a token that has occurred; 0: off")
      ->capture_default_str();
  sampled
      ->add_option("--frequency-penalty", sampling.frequency_penalty,
                   "The same, as often as it has; 0: off")
      ->capture_default_str();
  sampled
      ->add_option("--typical,--typical-p", sampling.typical_p,
                   "Only the tokens that surprise as much as is to be expected and sum to P; 1: "
                   "off")
      ->capture_default_str();
  sampled
      ->add_option("--top-nsigma,--top-n-sigma", sampling.top_n_sigma,
                   "No logit more than N standard deviations below the greatest; -1: off")
      ->capture_default_str();
  sampled
      ->add_option("--xtc-probability", sampling.xtc_probability,
                   "How often to leave out all likely tokens but the least likely of them; 0: off")
      ->capture_default_str();
  sampled
      ->add_option("--xtc-threshold", sampling.xtc_threshold,
                   "From what probability on a token is likely, for that; above 0.5: off")
      ->capture_default_str();
  sampled
      ->add_option("--dynatemp-range", sampling.dynatemp_range,
                   "By how much the temperature follows how many tokens are likely; 0: off")
      ->capture_default_str();
  sampled->add_option("--dynatemp-exp", sampling.dynatemp_exponent, "And with which exponent")
      ->capture_default_str();
  sampled
      ->add_option("--dry-multiplier", sampling.dry.multiplier,
                   "Taken from the logit of a token that would prolong a repetition; 0: off")
      ->capture_default_str();
  sampled
      ->add_option("--dry-base", sampling.dry.base,
                   "And so many times as much for each token that it is longer")
      ->capture_default_str();
  sampled
      ->add_option("--dry-allowed-length", sampling.dry.allowed_length,
                   "Tokens that may be repeated for the single price")
      ->capture_default_str();
  sampled
      ->add_option("--dry-penalty-last-n", sampling.dry.penalty_last_n,
                   "Tokens in which repetitions are looked for; 0: none, -1: the whole context")
      ->capture_default_str();
  sampled
      ->add_option("--dry-sequence-breaker", dry_sequence_breakers,
                   "A text that no repetition reaches over, in place of the default ones (a line "
                   "break, :, \" and *); none: no such text")
      ->allow_extra_args(false);
  sampled
      ->add_option(
          "--mirostat", sampling.mirostat.version,
          "Keep the surprise of tokens even, by mirostat 1 or 2; of the other samplers the "
          "temperature alone applies; 0: off")
      ->capture_default_str();
  sampled->add_option("--mirostat-lr", sampling.mirostat.eta, "How fast it learns (eta)")
      ->capture_default_str();
  sampled->add_option("--mirostat-ent", sampling.mirostat.tau, "The surprise, in bits (tau)")
      ->capture_default_str();
  sampled
      ->add_option("--adaptive-target", sampling.adaptive.target,
                   "Prefer tokens near this probability, where adaptive_p is among the samplers; "
                   "less than 0: off")
      ->capture_default_str();
  sampled
      ->add_option("--adaptive-decay", sampling.adaptive.decay,
                   "How much it keeps in mind of the tokens before; at most 0.99")
      ->capture_default_str();
  CLI::Option* const names =
      sampled
          ->add_option("--samplers", samplers,
                       "The samplers in their order, with ; between (default: "
                       "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature); others "
                       "are off")
          ->delimiter(';')
          ->allow_extra_args(false)
          ->trigger_on_parse();
  sampled
      ->add_option("--sampler-seq,--sampling-seq", sampler_seq,
                   "The same by letters (default: edskypmxt)")
      ->excludes(names);
  sampled->add_option("-l,--logit-bias", logit_bias,
                      "TOKEN+BIAS or TOKEN-BIAS: added to the logit of a token, by its number");
  sampled->add_flag("--ignore-eos", ignore_eos, "Never end before -n tokens");
  sampled->add_option("-s,--seed", seed, "Seed; -1: another one each time (default)");

  CLI::App* drafted = app.add_option_group("Drafting");
  drafted->add_option("--heads", heads,
                      "Heads (default: MODEL.firp.gguf, else those in heads/ that fit the model)");
  drafted->add_flag("--chain", chain, "Draft one path instead of a tree");
  drafted
      ->add_option("--drafting", drafting, "In a short pass of its own, or in the verifying pass")
      ->check(CLI::IsMember({"deferred", "in-pass"}))
      ->capture_default_str();
  drafted
      ->add_option("--draft-weights", draft_weights,
                   "What drafting passes read: large weights rounded to some 5 bits, which takes "
                   "memory for a copy, or the model's own (native engine)")
      ->check(CLI::IsMember({"rounded", "model"}))
      ->capture_default_str();
}

void DecodeFlags::add_engine_to(CLI::App& app) {
  CLI::App* engines = app.add_option_group("Engine");
  engines
      ->add_option("--engine", engine,
                   "native (this program's, for CPUs), llama (llama.cpp: its devices and "
                   "architectures), or auto: native where it can")
      ->check(CLI::IsMember({"auto", "native", "llama"}))
      ->capture_default_str();
  engines->add_flag("--packed-cache", packed_cache,
                    "Keep the weights as the native engine packs them, in ~/.cache/firp (as much "
                    "disk as the model): the next start maps them and is ready at once");
  engines->add_flag("--exact", exact,
                    "With llama.cpp, whose rounding depends on what else is in a pass: decide near "
                    "ties in a pass of one row, so that the text is plain decoding's (greedy)");
  // Any number below 0 but -1 stands for all layers, to libllama too.
  engines
      ->add_option("--gpu-layers,--n-gpu-layers", llama.gpu_layers,
                   "(-ngl) Layers on the GPU, a number, auto (as many as fit) or all (llama.cpp)")
      ->transform(CLI::Transformer({{"auto", "-1"}, {"all", "-2"}}).description(""))
      ->default_str("auto");
  // trigger_on_parse: a list that is given again stands in the place of the first.
  engines
      ->add_option("--device", llama.devices, "(-dev) Devices to offload to, none: the CPU alone")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->trigger_on_parse();
  engines->add_option("--tensor-split", llama.tensor_split, "(-ts) Shares of the devices: 3,1")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->trigger_on_parse();
  engines->add_option("--flash-attn", flash_attention, "(-fa) on, off or auto")
      ->transform(CLI::Transformer({{"1", "on"},
                                    {"enabled", "on"},
                                    {"true", "on"},
                                    {"0", "off"},
                                    {"disabled", "off"},
                                    {"false", "off"},
                                    {"-1", "auto"}})
                      .description(""))
      ->check(CLI::IsMember({"auto", "on", "off"}))
      ->capture_default_str();
  engines->add_option("--rpc", llama.rpc_servers, "Servers of firp rpc-server: HOST:PORT,...")
      ->delimiter(',')
      ->allow_extra_args(false)
      // libllama writes to a server that may be gone: an error with a message, not the end of us.
      ->each([](const std::string&) { signal(SIGPIPE, SIG_IGN); });
}

void DecodeFlags::add_draft_to(CLI::App& app) {
  CLI::App* drafted = app.get_option_group("Drafting");
  CLI::Option* const sources =
      drafted
          ->add_option(
              "--draft", draft,
              "none, firp, ngram (from the text itself), or firp+ngram (default; without heads "
              "ngram)")
          ->check(CLI::IsMember(kDraftNames));
  drafted
      ->add_option("--model-draft,--spec-draft-model", draft_model,
                   "(-md) A smaller model of the same vocabulary that drafts in place of heads, "
                   "beside the text itself (native engine)")
      ->excludes(sources);
  drafted
      ->add_option("--spec-type", spec_types,
                   "llama.cpp's words for --draft, with commas: none, draft-simple (-md alone), "
                   "ngram-... (from the text itself, all the same here)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->trigger_on_parse()
      ->excludes(sources)
      ->check([](const std::string& name) -> std::string {
        if (name == "none" || name == kDraftSimple || name.starts_with("ngram-")) return "";
        return fmt::format("'{}' is not done here: none, draft-simple or ngram-...",
                           one_line(name));
      });
  CLI::Option* const nodes = drafted->add_option(
      "--tree", tree, "Drafted tokens that one forward pass verifies; 0: as many as pay (default)");
  drafted->add_option("--spec-draft-n-max", tree, "llama.cpp's name for --tree N, N above 0")
      ->check(CLI::Range(1, kLargestTree))
      ->excludes(nodes);
}

void DecodeFlags::add_colour_to(CLI::App& app) {
  app.add_option("--colour,--color", colour, "Show drafted tokens in colour: auto, always, never")
      ->check(CLI::IsMember({"auto", "always", "never"}))
      ->capture_default_str();
}

bool offloads(const LlamaOptions& llama) {
  const bool devices = !llama.devices.empty() && llama.devices != std::vector<std::string>{"none"};
  const bool layers = llama.gpu_layers > 0 || llama.gpu_layers < -1;
  return layers || devices || !llama.rpc_servers.empty() || !llama.tensor_split.empty();
}

LoadedModel load_model(const DecodeFlags& flags, std::shared_ptr<const GgufFile> file,
                       EngineOptions options) {
  LoadedModel loaded{.file = std::move(file)};
  options.cancelled = &interrupted;
  options.packed_cache = flags.packed_cache;
  std::string why_not_native;
  if (flags.engine == "native" || (flags.engine == "auto" && !offloads(flags.llama))) {
    try {
      loaded.model.emplace(loaded.file);
      loaded.engine = std::make_unique<NativeEngine>(*loaded.model, options);
      return loaded;
    } catch (const Unsupported& error) {
      if (flags.engine == "native") throw;
      why_not_native = error.what();
    }
  }
  LlamaOptions llama = flags.llama;
  llama.exact = flags.exact;
  llama.flash_attention =
      flags.flash_attention == "auto" ? -1 : static_cast<int>(flags.flash_attention == "on");
  // libllama takes the memory of its whole context at once.
  if (!flags.context_size()) {
    const int positions = options.positions > 0 ? options.positions : options.context;
    options.positions = std::min(positions, kLlamaContext);
    options.context = std::min(options.context, options.positions / flags.context_parts);
  }
  try {
    loaded.engine = std::make_unique<LlamaEngine>(loaded.file, options, llama);
  } catch (const Error& error) {
    if (why_not_native.empty()) throw;
    throw Error(fmt::format("{}; nor does llama.cpp run it: {}", why_not_native, error.what()));
  }
  if (!why_not_native.empty()) {
    say("firp: {}; llama.cpp runs this model\n", why_not_native);
  }
  return loaded;
}

namespace {

/// Empty: the file's own.
std::string chat_template_of(const DecodeFlags& flags) {
  if (flags.chat_template_file.empty()) {
    const std::string& text = flags.chat_template;
    // Other words would be written as they stand, in place of each conversation.
    const std::vector<std::string> names = ChatTemplate::names();
    const bool is_template = text.empty() || flags.jinja || std::ranges::count(names, text) > 0 ||
                             text.find("{{") != text.npos || text.find("{%") != text.npos;
    if (is_template) return text;
    throw Error(
        fmt::format("--chat-template: '{}' is no Jinja template (--chat-template-file reads one "
                    "from a file; with --jinja any text is one), and none of these names: {}",
                    one_line(text), fmt::join(names, ", ")));
  }
  if (!flags.chat_template.empty()) {
    throw Error("give --chat-template or --chat-template-file, not both");
  }
  std::string text = TextInput("the chat template", flags.chat_template_file).text();
  if (text.empty()) throw Error(fmt::format("{} is empty", flags.chat_template_file.string()));
  return text;
}

}  // namespace

Decoder::Decoder(const DecodeFlags& flags, std::span<const int> trees,
                 const std::function<void(const ChatTemplate&, int context)>& check)
    : options(decode_options(flags, largest(trees))),
      file(std::make_shared<const GgufFile>(flags.model)),
      vocabulary(flags.model),
      chat_template([&] {
        ChatTemplate read(vocabulary, chat_template_of(flags));
        if (!flags.chat_template.empty() || !flags.chat_template_file.empty()) {
          if (!read.problem().empty()) throw Error(read.problem());
        }
        if (check) check(read, flags.context_size().value_or(trained_context(*file)));
        return read;
      }()),
      heads_path(choose_heads(flags, *file)),
      loaded(load_for_decoding(flags, largest(trees), file, heads_path)),
      engine(*loaded.engine),
      drafter(drafts_with_model(flags)
                  ? std::make_unique<Drafter>(flags.draft_model, engine.options())
                  : nullptr),
      planner([&]() -> std::unique_ptr<Planner> {
        const bool drafts = drafts_ngrams(flags) || drafter || !heads_path.empty();
        const bool own_passes = !options.chain && options.drafting == Drafting::kDeferred;
        if (!drafts || !planned(trees) || !own_passes) return nullptr;
        PassCosts costs = cached_costs(engine, flags.model, heads_path);
        if (drafter) costs.draft_seconds.clear();  // measured as it goes
        return std::make_unique<Planner>(costs);
      }()),
      batch(engine, planner.get()) {
  for (const std::string& text : flags.logit_bias) {
    options.sampling.logit_bias.push_back(parse_logit_bias(text, vocabulary.size()));
  }
  if (options.sampling.dry.is_on()) options.sampling.dry.texts = token_texts(vocabulary);
  if (flags.ignore_eos) forbid(options.sampling, vocabulary.end_tokens());
  options.method = heads_path.empty() ? DraftMethod::kNone : DraftMethod::kFirp;
  if (drafter) {
    options.method = DraftMethod::kDraftModel;
    options.draft_model = &drafter->engine;
  }
  options.ngrams = drafts_ngrams(flags);
  if (flags.exact && !loaded.model) {
    options.tie_margin = cached_tie_margin(engine, flags.model, flags.llama, flags.flash_attention);
  }
}

std::string describe_run(const DecodeStats& stats, const Decoder& decoder,
                         std::size_t prompt_tokens) {
  const DecodeOptions& options = decoder.options;
  std::string method = "plain";
  if (options.method == DraftMethod::kFirp) method = options.ngrams ? "FIRP and n-grams" : "FIRP";
  if (options.method == DraftMethod::kDraftModel) {
    method = options.ngrams ? "a draft model and n-grams" : "a draft model";
  }
  if (options.method == DraftMethod::kNone && options.ngrams) method = "n-grams";
  if (method != "plain") {
    method += options.chain     ? ", chain"
              : decoder.planner ? ", as much as pays"
                                : fmt::format(", tree of {}", options.tree_nodes);
  }
  if (options.tie_margin > 0) {
    method += fmt::format("; {} passes for ties nearer than {:.3g}", stats.tie_passes,
                          options.tie_margin);
  }
  std::string seed;
  if (options.sampling.temperature > 0) seed = fmt::format("; seed {}", options.sampling.seed);
  return fmt::format(
      "{} tokens, {:.1f} tokens/s, {:.2f} tokens per forward pass ({}); prompt: {} tokens, {:.2f} "
      "s{}",
      stats.tokens, stats.tokens_per_second(), stats.tokens_per_forward(), method, prompt_tokens,
      stats.prefill_seconds, seed);
}

}  // namespace firp
