#include "serve/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <iterator>
#include <utility>

#include "base/error.h"
#include "serve/outgoing_text.h"

namespace firp {
namespace {

/// How often who waits looks whether its client still does.
constexpr std::chrono::milliseconds kGlance{50};

bool begins_character(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; }

}  // namespace

/// An answer, from the request to its end. What is not marked belongs to the thread that runs the
/// passes.
struct Scheduler::Job {
  Job(std::span<const Token> p, const CompletionRequest& r)
      : prompt(p.begin(), p.end()), request(r) {}

  const std::vector<Token> prompt;
  const CompletionRequest request;
  OutgoingText text{request.stops};
  std::unique_ptr<Session> session;  ///< while it runs
  int written = 0;                   ///< tokens
  int characters = 0;                ///< of them
  bool stopped = false;              ///< the text came to its end

  // Shared, under the scheduler's mutex.
  std::condition_variable changed;  ///< there is text, or it is done
  ReplyPart ready;                  ///< that nobody has taken yet
  bool unwanted = false;
  bool done = false;
  std::exception_ptr error;
  Answer answer;
};

Scheduler::Scheduler(BatchDecoder& decoder, const Vocabulary& vocabulary,
                     const DecodeOptions& options, int most_running)
    : decoder_(decoder), vocabulary_(vocabulary), options_(options), most_running_(most_running) {
  Session(decoder, options);  // which says what is wrong before a request does
  thread_ = std::jthread([this](const std::stop_token& ended) { run(ended); });
}

Scheduler::~Scheduler() = default;

void Scheduler::refuse_if_full(const std::unique_lock<std::mutex>&) const {
  if (std::ssize(waiting_) < kMostWaiting) return;
  throw RequestError(kBusy, fmt::format("{} requests wait already; ask again later", kMostWaiting));
}
void Scheduler::refuse_if_full() { refuse_if_full(std::unique_lock(mutex_)); }

Scheduler::Answer Scheduler::complete(std::span<const Token> prompt,
                                      const CompletionRequest& request,
                                      const std::function<void(const ReplyPart& part)>& on_part,
                                      const std::function<bool()>& is_unwanted) {
  const auto job = std::make_shared<Job>(prompt, request);
  std::unique_lock lock(mutex_);
  refuse_if_full(lock);
  waiting_.push_back(job);
  work_.notify_all();
  while (true) {
    job->changed.wait_for(lock, kGlance, [&] { return job->done || !job->ready.text.empty(); });
    const bool done = job->done;
    ReplyPart part;
    if (done || !job->ready.text.empty()) part = std::exchange(job->ready, {});
    lock.unlock();
    try {
      if (!part.text.empty() || !part.tokens.empty()) on_part(part);
      if (!done && is_unwanted()) throw Cancelled();
    } catch (...) {
      lock.lock();
      job->unwanted = true;
      work_.notify_all();
      throw;
    }
    lock.lock();
    if (done) break;
  }
  if (job->error) std::rethrow_exception(job->error);
  return job->answer;
}

void Scheduler::run(const std::stop_token& ended) {
  while (!ended.stop_requested()) {
    admit(ended);
    if (const std::vector<Job*> jobs = with_room(); !jobs.empty()) step(jobs);
  }
  for (const std::shared_ptr<Job>& job : running_) {
    if (!job->done) finish(*job, std::make_exception_ptr(Cancelled()));
  }
}

void Scheduler::admit(const std::stop_token& ended) {
  std::unique_lock lock(mutex_);
  const auto is_over = [](const std::shared_ptr<Job>& job) {
    if (job->unwanted) job->session.reset();  // by this thread, whoever lets go of the job last
    return job->done || job->unwanted;
  };
  std::erase_if(waiting_, is_over);
  std::erase_if(running_, is_over);
  work_.wait(lock, ended, [&] { return !running_.empty() || !waiting_.empty(); });
  while (std::ssize(running_) < most_running_ && !waiting_.empty()) {
    running_.splice(running_.end(), waiting_, waiting_.begin());
    const std::shared_ptr<Job> job = running_.back();
    lock.unlock();
    begin(*job);
    lock.lock();
  }
}

void Scheduler::begin(Job& job) {
  try {
    DecodeOptions options = options_;
    options.sampling = job.request.sampling;
    options.likeliest = job.request.likeliest;
    job.session = std::make_unique<Session>(decoder_, options);
    job.session->append(job.prompt);
    if (job.request.max_tokens < 1 || std::ssize(job.prompt) >= job.session->context()) finish(job);
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
    for (Job* const job : jobs) finish(*job, error);
    return;
  }
  // One of them is the reason: each by itself, so that it fails alone.
  for (Job* const& job : jobs) {
    if (!job->done) step({&job, 1});
  }
}

WrittenToken Scheduler::written(const TokenProbability& probability, const std::string& piece,
                                int offset, bool drafted) const {
  WrittenToken token = {.token = {piece, probability.log_probability},
                        .likeliest = {},
                        .offset = offset,
                        .drafted = drafted};
  for (const TokenLogit& other : probability.likeliest) {
    token.likeliest.push_back({vocabulary_.piece(other.token), other.logit});
  }
  return token;
}

void Scheduler::take_tokens(Job& job) {
  if (!job.session) return;
  Session& session = *job.session;
  const std::span<const DecodedToken> decoded = session.decoded();
  if (decoded.empty()) return;
  const auto length = static_cast<int>(session.tokens().size() - decoded.size());
  ReplyPart part;
  std::size_t used = 0;
  for (; used < decoded.size() && job.written < job.request.max_tokens && !job.stopped; ++used) {
    if (vocabulary_.is_end_of_generation(decoded[used].token)) {
      job.stopped = true;
      break;
    }
    const std::string piece = vocabulary_.piece(decoded[used].token);
    if (job.request.likeliest >= 0) {
      part.tokens.push_back(
          written(session.probabilities()[used], piece, job.characters, decoded[used].drafted));
    }
    part.text += job.text.add(piece);
    job.characters += static_cast<int>(std::ranges::count_if(piece, begins_character));
    ++job.written;
    job.stopped = job.text.stopped();
  }
  session.truncate(length + static_cast<int>(used));
  {
    const std::lock_guard lock(mutex_);
    job.ready.text += part.text;
    std::ranges::move(part.tokens, std::back_inserter(job.ready.tokens));
    if (!part.text.empty()) job.changed.notify_all();
  }
  const bool full = std::ssize(session.tokens()) >= session.context();
  if (job.stopped || job.written >= job.request.max_tokens || full) finish(job);
}

/// What the session holds stays with the engine, to be found by the next request.
void Scheduler::finish(Job& job, std::exception_ptr error) {
  Answer answer;
  if (job.session) {
    answer.finish = job.stopped ? FinishReason::kStop : FinishReason::kLength;
    answer.usage.prompt_tokens = static_cast<int>(job.prompt.size());
    answer.usage.completion_tokens = job.written;
    answer.usage.cached_tokens = std::min<int>(job.session->adopted(), std::ssize(job.prompt));
    answer.usage.stats = job.session->stats();
    answer.usage.stats.tokens = job.written;
    job.session.reset();
  }
  const std::string rest = error ? "" : job.text.finish();
  const std::lock_guard lock(mutex_);
  job.ready.text += rest;
  job.answer = answer;
  job.error = std::move(error);
  job.done = true;
  job.changed.notify_all();
}

}  // namespace firp
