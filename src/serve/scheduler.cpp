#include "serve/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <iterator>
#include <limits>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "engine/context_file.h"
#include "engine/token_chain.h"
#include "serve/outgoing_text.h"

namespace firp {
namespace {

/// How often who waits looks whether its client still does.
constexpr std::chrono::milliseconds kGlance{50};

int characters_of(std::string_view text) {
  return static_cast<int>(std::ssize(text) - std::ranges::count_if(text, continues_utf8));
}

}  // namespace

/// The answers of one request. Shared, under the scheduler's mutex.
struct Scheduler::Group {
  std::condition_variable changed;  ///< there is news of one
  bool unwanted = false;
};

/// An answer, from the request to its end. What is not marked belongs to the thread that runs the
/// passes.
struct Scheduler::Job {
  Job(Generation g, std::shared_ptr<Group> of) : generation(std::move(g)), group(std::move(of)) {}

  const Generation generation;
  const std::shared_ptr<Group> group;
  OutgoingText text{generation.stops};
  const Stopwatch since_asked;
  double queue_seconds = 0;
  std::unique_ptr<Session> session;  ///< while it runs
  int written = 0;                   ///< tokens
  int characters = 0;                ///< of them, and of a prompt that is told
  bool stopped = false;              ///< the text came to its end
  int slot = -1;                     ///< while it runs; changed under the scheduler's mutex
  std::vector<float> embedding;      ///< of the prompt, once it is read

  // Shared, under the scheduler's mutex.
  ReplyPart ready;    ///< that nobody has taken yet
  Usage usage;        ///< so far
  bool news = false;  ///< nobody knows of some of that
  bool done = false;
  bool told = false;  ///< that it is done
  std::exception_ptr error;
  Answer answer;
};

/// Something that is to be done at a slot. Shared, under the scheduler's mutex; in the scheduler's
/// list until it begins.
struct Scheduler::Errand {
  const int slot;
  const std::function<void(Memory&)>& act;
  std::condition_variable changed = {};
  bool began = false;
  bool done = false;
  std::exception_ptr error = nullptr;
};

Scheduler::Scheduler(BatchDecoder& decoder, const Vocabulary& vocabulary,
                     const DecodeOptions& options, int most_running, int most_waiting,
                     Status before)
    : decoder_(decoder),
      vocabulary_(vocabulary),
      options_(options),
      most_running_(most_running),
      most_waiting_(most_waiting),
      slots_(most_running),
      memories_(most_running),
      done_(std::move(before)) {
  done_.free_positions = decoder.engine().free_positions();
  done_.pass_seconds = pass_seconds();
  Session(decoder, options);  // which says what is wrong before a request does
  thread_ = std::jthread([this](const std::stop_token& ended) { run(ended); });
}

Scheduler::~Scheduler() = default;

void Scheduler::refuse_if_full(const std::unique_lock<std::mutex>&, std::size_t answers) const {
  // A request of many answers is not refused where it could never be let in.
  const bool room = waiting_.empty() || waiting_.size() + answers <= std::size_t(most_waiting_);
  if (room && most_waiting_ > 0) return;
  if (most_waiting_ == 0 && std::ssize(running_) < most_running_ && waiting_.empty()) return;
  throw RequestError(kBusy,
                     fmt::format("{} requests wait already; ask again later", waiting_.size()));
}
void Scheduler::refuse_if_full(std::size_t answers) {
  refuse_if_full(std::unique_lock(mutex_), answers);
}

std::vector<Scheduler::Answer> Scheduler::complete(std::vector<Generation> generations,
                                                   const Listener& listener) {
  std::unique_lock lock(mutex_);
  refuse_if_full(lock, generations.size());
  return wait_for(lock, std::move(generations), listener);
}

std::vector<Scheduler::Answer> Scheduler::embed(std::vector<std::vector<Token>> texts,
                                                Pooling pooling,
                                                const std::function<bool()>& is_unwanted) {
  const Listener listener = {.on_part = [](int, const ReplyPart&, const Usage&) {},
                             .is_unwanted = is_unwanted};
  const auto at_once = static_cast<std::size_t>(most_running_);
  std::vector<Answer> answers;
  std::unique_lock lock(mutex_);
  refuse_if_full(lock, std::min(texts.size(), at_once));
  while (answers.size() < texts.size()) {
    std::vector<Generation> next;
    for (std::size_t i = answers.size(); i < texts.size() && next.size() < at_once; ++i) {
      next.push_back({.prompt = std::move(texts[i]), .max_tokens = 0, .pooling = pooling});
    }
    std::ranges::move(wait_for(lock, std::move(next), listener), std::back_inserter(answers));
  }
  return answers;
}

std::vector<Scheduler::Answer> Scheduler::wait_for(std::unique_lock<std::mutex>& lock,
                                                   std::vector<Generation> generations,
                                                   const Listener& listener) {
  const auto group = std::make_shared<Group>();
  std::vector<std::shared_ptr<Job>> jobs;
  for (Generation& each : generations) {
    jobs.push_back(std::make_shared<Job>(std::move(each), group));
  }
  waiting_.insert(waiting_.end(), jobs.begin(), jobs.end());
  work_.notify_all();
  const auto has_news = [](const std::shared_ptr<Job>& job) {
    return job->news || (job->done && !job->told);
  };
  struct News {
    int answer;
    ReplyPart part;
    Usage usage;
  };
  bool all_done = false;
  while (!all_done) {
    group->changed.wait_for(lock, kGlance, [&] { return std::ranges::any_of(jobs, has_news); });
    std::vector<News> news;
    std::exception_ptr error;
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      Job& job = *jobs[i];
      if (!has_news(jobs[i])) continue;
      news.push_back({static_cast<int>(i), std::exchange(job.ready, {}), job.usage});
      job.news = false;
      job.told = job.done;
      if (job.error && !error) error = job.error;
    }
    all_done = std::ranges::all_of(jobs, [](const auto& job) { return job->told; });
    lock.unlock();
    try {
      for (const News& each : news) {
        if (listener.on_reading) listener.on_reading(each.answer, each.usage);
        const ReplyPart& part = each.part;
        if (!part.text.empty() || !part.tokens.empty() || !part.probabilities.empty()) {
          listener.on_part(each.answer, part, each.usage);
        }
      }
      if (error) std::rethrow_exception(error);
      if (!all_done && listener.is_unwanted()) throw Cancelled();
    } catch (...) {
      lock.lock();
      group->unwanted = true;
      work_.notify_all();
      throw;
    }
    lock.lock();
  }
  std::vector<Answer> answers;
  for (const std::shared_ptr<Job>& job : jobs) answers.push_back(job->answer);
  return answers;
}

Scheduler::Status Scheduler::status() {
  const std::lock_guard lock(mutex_);
  Status status = done_;
  status.waiting = static_cast<int>(waiting_.size());
  status.slots = slots_;
  for (const Slot& slot : slots_) {
    if (slot.is_busy) status.all += slot.usage;
  }
  return status;
}

namespace {

void require_context_form(const Engine& engine) {
  if (!engine.context_form().empty()) return;
  throw RequestError(kNotImplemented,
                     "slots are kept on disk by the native engine only (--engine native)");
}

}  // namespace

void Scheduler::at_slot(int slot, const std::function<void(Memory&)>& act,
                        const std::function<bool()>& is_unwanted) {
  Errand errand = {.slot = slot, .act = act};
  std::unique_lock lock(mutex_);
  errands_.push_back(&errand);
  work_.notify_all();
  while (!errand.done) {
    errand.changed.wait_for(lock, kGlance, [&] { return errand.done; });
    if (errand.began) continue;
    lock.unlock();
    std::exception_ptr leaves;
    try {
      if (is_unwanted()) throw Cancelled();
    } catch (...) {
      leaves = std::current_exception();
    }
    lock.lock();
    if (leaves && !errand.began) {
      errands_.remove(&errand);
      std::rethrow_exception(leaves);
    }
  }
  if (errand.error) std::rethrow_exception(errand.error);
}

Scheduler::SlotFile Scheduler::save(int slot, const std::filesystem::path& path,
                                    const std::function<bool()>& is_unwanted) {
  SavedContext saved;
  double seconds = 0;
  const auto act = [&](Memory& memory) {
    require_context_form(decoder_.engine());
    const Stopwatch watch;
    saved = save_context(decoder_.engine(), memory.tokens, path);
    seconds = watch.seconds();
  };
  at_slot(slot, act, is_unwanted);
  if (saved.tokens.empty()) {
    throw RequestError(kInvalidValue,
                       fmt::format("slot {} holds nothing: no answer ran there, or what it left "
                                   "made way for others",
                                   slot));
  }
  return {static_cast<int>(saved.tokens.size()), saved.bytes, seconds};
}

Scheduler::SlotFile Scheduler::restore(int slot, const std::filesystem::path& path,
                                       const std::function<bool()>& is_unwanted) {
  SavedContext restored;
  double seconds = 0;
  const auto act = [&](Memory& memory) {
    require_context_form(decoder_.engine());
    const Stopwatch watch;
    try {
      restored = restore_context(decoder_.engine(), path);
    } catch (const Error& error) {
      throw RequestError(kInvalidValue, error.what(), "filename");
    }
    memory = {.tokens = restored.tokens, .used = ++uses_};
    seconds = watch.seconds();
  };
  at_slot(slot, act, is_unwanted);
  return {static_cast<int>(restored.tokens.size()), restored.bytes, seconds};
}

int Scheduler::erase(int slot, const std::function<bool()>& is_unwanted) {
  int erased = 0;
  const auto act = [&](Memory& memory) {
    const std::vector<Token> tokens = std::exchange(memory, {}).tokens;
    erased = static_cast<int>(tokens.size());
    int kept = 0;
    for (const Memory& other : memories_) {
      kept = std::max(kept, common_prefix(other.tokens, tokens));
    }
    decoder_.engine().forget(tokens, kept);
  };
  at_slot(slot, act, is_unwanted);
  return erased;
}

void Scheduler::run(const std::stop_token& ended) {
  while (!ended.stop_requested()) {
    admit(ended);
    const std::vector<Job*> jobs = with_room();
    if (jobs.empty()) continue;
    const Stopwatch watch;
    step(jobs);
    const std::lock_guard lock(mutex_);
    done_.busy_seconds += watch.seconds();
    ++done_.passes;
    done_.free_positions = decoder_.engine().free_positions();
  }
  for (const std::shared_ptr<Job>& job : running_) {
    if (!job->done) finish(*job, std::make_exception_ptr(Cancelled()));
  }
}

std::map<int, double> Scheduler::pass_seconds() const {
  const Planner* const planner = decoder_.planner();
  std::map<int, double> seconds;
  if (planner == nullptr) return seconds;
  for (const int rows : {1, 2, 4, 8, 16, 32}) {
    seconds[rows] = planner->verify_seconds({.rows = rows}, /*drafted=*/rows > 1);
  }
  return seconds;
}

void Scheduler::admit(const std::stop_token& ended) {
  std::unique_lock lock(mutex_);
  const auto is_over = [this](const std::shared_ptr<Job>& job) {
    const bool unwanted = job->group->unwanted;
    if (unwanted) leave(*job);  // by this thread, whoever lets go of the job last
    return job->done || unwanted;
  };
  std::erase_if(waiting_, is_over);
  std::erase_if(running_, is_over);
  work_.wait(lock, ended,
             [&] { return !running_.empty() || !waiting_.empty() || !errands_.empty(); });
  run_errands(lock);
  // Others only append to the list.
  for (auto next = waiting_.begin(); next != waiting_.end();) {
    const auto here = next++;
    const std::shared_ptr<Job> job = *here;
    const Generation& g = job->generation;
    job->slot = free_slot_for(g);
    if (job->slot < 0) continue;
    slots_[job->slot] = {.is_busy = true,
                         .answer = begun_++,
                         .prompt_tokens = static_cast<int>(g.prompt.size()),
                         .max_tokens = g.max_tokens,
                         .sampling = g.sampling};
    memories_[job->slot].used = ++uses_;
    running_.splice(running_.end(), waiting_, here);
    lock.unlock();
    begin(*job);
    lock.lock();
  }
}

void Scheduler::run_errands(std::unique_lock<std::mutex>& held) {
  for (auto next = errands_.begin(); next != errands_.end();) {
    Errand& errand = **next;
    if (slots_[errand.slot].is_busy) {
      ++next;
      continue;
    }
    errands_.erase(next);
    errand.began = true;
    held.unlock();
    std::exception_ptr error;
    try {
      errand.act(memories_[errand.slot]);
    } catch (...) {
      error = std::current_exception();
    }
    held.lock();
    errand.error = error;
    errand.done = true;
    errand.changed.notify_all();
    next = errands_.begin();  // the list was another's meanwhile
  }
}

/// A conversation goes on where it was; else the slot is taken that was not for longest.
int Scheduler::free_slot_for(const Generation& generation) const {
  if (generation.slot >= 0) return slots_[generation.slot].is_busy ? -1 : generation.slot;
  int best = -1, best_common = 0;
  for (int i = 0; i < most_running_; ++i) {
    if (slots_[i].is_busy) continue;
    const Memory& memory = memories_[i];
    int common = common_prefix(memory.tokens, generation.prompt);
    if (2 * common <= std::ssize(memory.tokens)) common = 0;
    const bool is_better = best < 0 || common > best_common ||
                           (common == best_common && memory.used < memories_[best].used);
    if (is_better) {
      best = i;
      best_common = common;
    }
  }
  return best;
}

void Scheduler::leave(Job& job) {
  if (job.slot < 0) return;
  if (job.session && job.generation.pooling) {
    job.session.reset();  // which leaves nothing to go on with
  } else if (job.session) {
    const std::vector<Token>& tokens = job.session->tokens();
    memories_[job.slot].tokens.assign(tokens.begin(), tokens.begin() + job.session->seen());
    job.session.reset();
  }
  slots_[job.slot].is_busy = false;
  job.slot = -1;
}

void Scheduler::begin(Job& job) {
  job.queue_seconds = job.since_asked.seconds();
  try {
    const Generation& g = job.generation;
    DecodeOptions options = g.pooling ? DecodeOptions{.method = DraftMethod::kNone} : options_;
    options.pooling = g.pooling;
    options.sampling = g.sampling;
    options.grammar = g.grammar;
    options.likeliest = g.likeliest;
    options.after_sampling = g.after_sampling;
    options.tells_prompt = g.tells_prompt;
    options.adopts = options.adopts && !g.tells_prompt;
    options.min_tokens = g.min_tokens;
    const std::span<const Token> ends = vocabulary_.end_tokens();
    if (g.min_tokens > 0) options.end_tokens.assign(ends.begin(), ends.end());
    job.session = std::make_unique<Session>(decoder_, options);
    job.session->append(g.prompt);
    if (g.tells_prompt) {
      for (const Token token : g.prompt) {
        job.characters += characters_of(vocabulary_.piece(token, /*show_special=*/true));
      }
    }
    const bool writes = g.max_tokens > 0 && std::ssize(g.prompt) < job.session->context();
    if (!writes && !g.tells_prompt && !g.pooling) finish(job);
  } catch (...) {
    finish(job, std::current_exception());
  }
}

std::vector<Scheduler::Job*> Scheduler::with_room() {
  const Engine& engine = decoder_.engine();
  std::vector<Job*> jobs;
  for (const std::shared_ptr<Job>& job : running_) {
    if (job->session) jobs.push_back(job.get());
  }
  int reserved = 0;  // for those that take part
  std::size_t taking_part = 0;
  for (; taking_part < jobs.size(); ++taking_part) {
    const Session& session = *jobs[taking_part]->session;
    const auto length = static_cast<int>(session.tokens().size());
    const int most = std::min(length + session.most_decoded(), session.context()) - session.seen();
    const int wanted = std::min(most, engine.options().max_rows);
    // The answer that began last gives up its place first.
    for (std::size_t last = jobs.size();
         engine.free_positions() - reserved < wanted && --last > taking_part;) {
      jobs[last]->session->release();
    }
    if (engine.free_positions() - reserved < wanted) break;
    reserved += wanted;
  }
  jobs.resize(taking_part);
  return jobs;
}

void Scheduler::step(std::span<Job* const> jobs) {
  std::vector<Session*> sessions;
  for (Job* const job : jobs) sessions.push_back(job->session.get());
  std::exception_ptr error;
  bool cancelled = false;
  try {
    decoder_.step(sessions);
  } catch (const Cancelled&) {
    error = std::current_exception();
    cancelled = true;
  } catch (...) {
    error = std::current_exception();
  }
  // What a pass decoded before its drafting failed is there all the same.
  for (Job* const job : jobs) take_tokens(*job);
  if (!error) return;
  if (cancelled || jobs.size() == 1) {
    for (Job* const job : jobs) {
      if (!job->done) finish(*job, error);
    }
    return;
  }
  // One of them is the reason: each by itself, so that it fails alone.
  for (Job* const& job : jobs) {
    if (!job->done) step({&job, 1});
  }
}

std::string Scheduler::piece_of(const Job& job, Token token) const {
  const bool shown = std::ranges::count(job.generation.shown_tokens, token) > 0;
  return vocabulary_.piece(token, /*show_special=*/shown);
}

WrittenToken Scheduler::written(const DecodedToken& token, const TokenProbability& probability,
                                const std::string& piece, int offset) const {
  WrittenToken written = {.token = {token.token, piece, probability.log_probability},
                          .likeliest = {},
                          .offset = offset,
                          .drafted = token.drafted};
  for (const TokenLogit& other : probability.likeliest) {
    written.likeliest.push_back({other.token, vocabulary_.piece(other.token), other.logit});
  }
  return written;
}

std::vector<WrittenToken> Scheduler::prompt_of(const Job& job) const {
  const std::span<const TokenProbability> probabilities = job.session->prompt_probabilities();
  std::vector<WrittenToken> prompt;
  int characters = 0;
  for (std::size_t i = 0; i < job.generation.prompt.size() && i <= probabilities.size(); ++i) {
    const Token token = job.generation.prompt[i];
    const std::string piece = vocabulary_.piece(token, /*show_special=*/true);
    const TokenProbability none = {.log_probability = std::numeric_limits<float>::quiet_NaN()};
    prompt.push_back(
        written({token, false}, i == 0 ? none : probabilities[i - 1], piece, characters));
    characters += characters_of(piece);
  }
  return prompt;
}

Usage Scheduler::usage_of(const Job& job) const {
  const auto prompt = static_cast<int>(job.generation.prompt.size());
  Usage usage = {.prompt_tokens = prompt,
                 .cached_tokens = std::min(job.session->adopted(), prompt),
                 .read_tokens = std::min(job.session->seen(), prompt),
                 .completion_tokens = job.written,
                 .queue_seconds = job.queue_seconds,
                 .slot = job.slot,
                 .stats = job.session->stats()};
  usage.stats.tokens = job.written;
  return usage;
}

void Scheduler::take_tokens(Job& job) {
  if (!job.session) return;
  Session& session = *job.session;
  const std::span<const DecodedToken> decoded = session.decoded();
  const auto length = static_cast<int>(session.tokens().size() - decoded.size());
  const Generation& g = job.generation;
  ReplyPart part;
  std::size_t used = 0;
  for (; used < decoded.size() && job.written < g.max_tokens && !job.stopped; ++used) {
    const Token token = decoded[used].token;
    if (vocabulary_.is_end_of_generation(token)) {
      job.stopped = true;
      if (g.tells_prompt) {
        part.probabilities.push_back(written(decoded[used], session.probabilities()[used],
                                             vocabulary_.piece(token, /*show_special=*/true),
                                             job.characters));
      }
      break;
    }
    const std::string piece = piece_of(job, token);
    part.tokens.push_back(token);
    if (g.likeliest >= 0) {
      part.probabilities.push_back(
          written(decoded[used], session.probabilities()[used], piece, job.characters));
    }
    part.text += job.text.add(piece);
    job.characters += characters_of(piece);
    ++job.written;
    job.stopped = job.text.stopped();
  }
  session.truncate(length + static_cast<int>(used));
  {
    const std::lock_guard lock(mutex_);
    job.ready.text += part.text;
    std::ranges::move(part.tokens, std::back_inserter(job.ready.tokens));
    std::ranges::move(part.probabilities, std::back_inserter(job.ready.probabilities));
    job.usage = usage_of(job);
    slots_[job.slot].usage = job.usage;
    job.news = job.news || decoded.empty() || !part.text.empty();
    if (job.news) job.group->changed.notify_all();
  }
  if (session.is_reading()) return;
  if (g.pooling) return finish_embedding(job);
  const bool full = std::ssize(session.tokens()) >= session.context();
  if (job.stopped || job.written >= g.max_tokens || full) finish(job);
}

void Scheduler::finish_embedding(Job& job) {
  try {
    job.embedding = job.session->embedding();
    finish(job);
  } catch (...) {
    finish(job, std::current_exception());
  }
}

/// What the session holds stays with the engine, to be found by the next request.
void Scheduler::finish(Job& job, std::exception_ptr error) {
  Answer answer;
  if (job.session) {
    answer.finish = job.text.stopped() ? FinishReason::kStopString
                    : job.stopped      ? FinishReason::kEnd
                                       : FinishReason::kLength;
    answer.stop_string = job.text.stop_string();
    answer.embedding = std::move(job.embedding);
    if (job.generation.tells_prompt) answer.prompt = prompt_of(job);
    answer.usage = usage_of(job);
  }
  const std::string rest = error ? "" : job.text.finish();
  std::map<int, double> seconds = pass_seconds();
  const std::lock_guard lock(mutex_);
  done_.pass_seconds = std::move(seconds);
  slots_[job.slot].usage = answer.usage;
  leave(job);
  ++done_.answers;
  done_.all += answer.usage;
  done_.longest =
      std::max(done_.longest, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  job.ready.text += rest;
  job.usage = answer.usage;
  job.answer = std::move(answer);
  job.error = std::move(error);
  job.done = true;
  job.group->changed.notify_all();
}

}  // namespace firp
