#include "decode/batch_decoder.h"

#include <algorithm>
#include <climits>
#include <set>
#include <utility>

#include "base/clock.h"
#include "engine/token_chain.h"

namespace firp {
namespace {

/// Tokens that another session must be about to read for this one to wait for them.
constexpr int kWorthWaiting = 32;

/// Rows whose logits, one for each token of the vocabulary, are there at once: but all of a
/// session's.
constexpr int kMostRowsOfLogits = 32;

}  // namespace

void BatchDecoder::step(std::span<Session* const> sessions) {
  const Stopwatch watch;
  std::vector<Part> parts = schedule(sessions);
  std::set<int> captured;
  for (const Part& part : parts) {
    // Engines keep the final states of passes that capture a layer.
    if (part.session->pooled_) captured.insert(engine_.config().layers);
    if (part.reads || !part.session->source_) continue;
    for (const int layer : part.session->source_->captured_layers()) captured.insert(layer);
  }
  const Pass pass = engine_.forward(rows_, std::vector<int>(captured.begin(), captured.end()));
  choose(pass, parts);
  commit(pass, parts);
  absorb(pass, parts, watch.seconds());
  draft(pass, parts);
  const double seconds = watch.seconds();
  for (const Part& part : parts) {
    if (!part.reads) part.session->stats_.decode_seconds += seconds;
  }
}

/// Chooses who takes part, and puts the rows of each into rows_.
std::vector<BatchDecoder::Part> BatchDecoder::schedule(std::span<Session* const> sessions) {
  rows_.clear();
  ++passes_;
  std::vector<Session*> order(sessions.begin(), sessions.end());
  for (Session* const session : order) {
    session->decoded_.clear();
    session->probabilities_.clear();
  }
  for (Session* const session : order) session->begin_pass();
  std::ranges::stable_sort(order, {}, &Session::last_pass_);
  if (order.front()->alone_) {
    order.resize(1);
  } else {
    std::erase_if(order, [](const Session* session) { return session->alone_; });
  }
  if (static_cast<int>(order.size()) > engine_.sequences_a_pass()) {
    order.resize(engine_.sequences_a_pass());
  }

  // A row at least for each, as far as there are rows; what is left goes to prompts, then to trees.
  int room = engine_.options().max_rows;
  std::vector<Session*> readers, decoders;
  for (Session* const session : order) {
    const int rows = session->is_reading() ? 1 : session->rows_with(0);
    if (rows > room) break;
    room -= rows;
    (session->is_reading() ? readers : decoders).push_back(session);
  }
  std::vector<Part> parts;
  schedule_reading(readers, static_cast<int>(decoders.size()), room, parts);
  room += static_cast<int>(readers.size()) - static_cast<int>(rows_.size());
  schedule_verifying(decoders, room, parts);
  for (const Part& part : parts) part.session->last_pass_ = passes_;
  return parts;
}

/// `room`: rows beyond one for each reader.
void BatchDecoder::schedule_reading(std::span<Session* const> readers, int decoders, int room,
                                    std::vector<Part>& parts) {
  int left = room + static_cast<int>(readers.size());
  if (decoders > 0 && someone_waits_) left = std::min(left, pace_.rows());
  const auto waits = [&](const Session& session) {
    return std::ranges::any_of(parts, [&](const Part& part) {
      const int read = part.context + part.token_rows;
      const int common = common_prefix(session.tokens_, part.session->tokens_);
      return session.adopts() && part.session->adopts() &&
             std::min(common, read) - session.seen() >= kWorthWaiting;
    });
  };
  for (Session* const session : readers) {
    if (left == 0) break;
    if (waits(*session)) continue;
    const int tokens = std::min(session->unread(), left);
    parts.push_back(session->plan_reading(tokens, rows_));
    left -= tokens;
  }
}

/// `room`: rows beyond those of the roots.
void BatchDecoder::schedule_verifying(std::span<Session* const> decoders, int room,
                                      std::vector<Part>& parts) {
  std::vector<int> nodes;
  if (planner_ != nullptr) {
    PassSize reading;
    for (const Part& part : parts) reading.add(part.token_rows, part.context);
    std::vector<Planner::Candidate> candidates;
    for (Session* const session : decoders) {
      // What is known by now is a better beginning than what was when the session was made.
      if (!session->plan_) session->plan_ = planner_->begin();
      if (session->alone_) session->tree_.clear();
      candidates.push_back({*session->plan_, session->tree_, session->seen()});
    }
    nodes = planner_->nodes_worth_verifying(candidates, reading, room);
  } else {
    for (const Session* const session : decoders) {
      int here = session->alone_ ? 0 : static_cast<int>(session->tree_.size());
      while (session->rows_with(here) - session->rows_with(0) > room) --here;
      nodes.push_back(here);
      room -= session->rows_with(here) - session->rows_with(0);
    }
  }
  for (std::size_t i = 0; i < decoders.size(); ++i) {
    parts.push_back(decoders[i]->plan_verifying(nodes[i], rows_));
  }
}

/// The sessions' next tokens, and what is told of those that they read. Their rows go through the
/// head together: it is read once for all of them.
void BatchDecoder::choose(const Pass& pass, std::span<Part> parts) const {
  std::vector<int> rows;
  const auto add_rows = [&rows](const Part& part) {
    for (int row = 0; row < part.token_rows; ++row) rows.push_back(part.first_row + row);
  };
  int most = 1;  // tokens that any of them chooses from, or tells of
  bool sums = false;
  const auto by_best = [](const Part& part) {
    return !part.reads && !part.session->needs_logits();
  };
  for (const Part& part : parts) {
    if (!by_best(part)) continue;
    add_rows(part);
    most = std::max(most, part.session->best_tokens_needed(pass));
    sums = sums || part.session->options_.likeliest >= 0;
  }
  if (!rows.empty()) {
    std::span<const BestTokens> best = pass.best_tokens(rows, most, sums);
    for (Part& part : parts) {
      if (!by_best(part)) continue;
      part.session->choose(part, pass, best.first(part.token_rows));
      best = best.subspan(part.token_rows);
    }
  }
  std::vector<Part*> by_logits;
  for (Part& part : parts) {
    if (!part.reads && !by_best(part)) by_logits.push_back(&part);
  }
  const std::size_t vocabulary = engine_.config().vocabulary_size;
  for (auto part = by_logits.begin(); part != by_logits.end();) {
    rows.clear();
    auto end = part;
    do add_rows(**end++);
    while (end != by_logits.end() && std::ssize(rows) + (*end)->token_rows <= kMostRowsOfLogits);
    std::span<const float> logits = pass.logits(rows);
    for (; part != end; ++part) {
      (*part)->session->choose(**part, logits.first((*part)->token_rows * vocabulary));
      logits = logits.subspan((*part)->token_rows * vocabulary);
    }
  }
  for (Part& part : parts) {
    if (part.reads && part.session->options_.tells_prompt) part.session->tell_prompt(part, pass);
  }
}

/// All paths, or none.
void BatchDecoder::commit(const Pass& pass, std::span<const Part> parts) {
  std::size_t committed = 0;
  try {
    for (; committed < parts.size(); ++committed) {
      pass.commit(parts[committed].session->sequence_, parts[committed].path);
    }
  } catch (...) {
    for (const Part& part : parts.first(committed)) {
      engine_.truncate(part.session->sequence_, part.context);
    }
    throw;
  }
}

void BatchDecoder::absorb(const Pass& pass, std::span<Part> parts, double seconds) {
  PassSize reading;
  for (Part& part : parts) {
    if (part.reads) {
      reading.add(part.token_rows, part.context);
      part.session->stats_.prefill_seconds += seconds;
      part.session->absorb_reading(part, pass);
    } else {
      part.session->absorb(part);
    }
  }
  pace_.observe(pass.rows(), reading.rows, seconds);
  if (planner_ == nullptr) return;

  // What left a root undecided is part of that session's next pass.
  double before = 0;
  for (const Part& part : parts) {
    double& undecided = part.session->undecided_seconds_;
    if (part.is_undecided()) {
      undecided += seconds;
    } else {
      before = std::max(before, std::exchange(undecided, 0.0));
    }
  }
  std::vector<Planner::Verified> verified;
  for (const Part& part : parts) {
    if (part.reads || part.is_undecided()) continue;
    Session& session = *part.session;
    session.stats_.expected_tokens += session.plan_->calibration.expected_tokens(part.tree);
    verified.push_back({*session.plan_, part.tree, session.verified_.accepted, part.context});
  }
  const double expected_seconds = planner_->observe_pass(verified, reading, before + seconds);
  for (const Part& part : parts) {
    if (!part.reads && !part.is_undecided()) {
      part.session->stats_.expected_seconds += expected_seconds;
    }
  }
}

/// What a session's source drafts for its next pass.
struct BatchDecoder::Draft {
  Session* session;
  const Part* part;
  DraftTree match;  ///< of the text itself
  DraftPoint point = {};
  std::vector<Row> rows = {};                       ///< pseudo rows
  std::optional<Proposal> proposal = std::nullopt;  ///< theirs
};

void BatchDecoder::draft(const Pass& pass, std::span<Part> parts) {
  const Stopwatch watch;
  std::vector<Draft> drafts;
  for (const Part& part : parts) {
    if (part.reads || part.path.empty()) continue;
    Session& session = *part.session;
    DraftTree match = session.match_text();
    if (DraftTree forced = session.forced_text(); !forced.empty()) {
      session.take_draft(std::move(forced), {});
    } else if (session.can_draft(part)) {
      drafts.push_back({&session, &part, std::move(match)});
    } else {
      session.take_draft({}, match);
    }
  }
  std::vector<Plan*> plans;
  if (planner_ != nullptr) {
    std::vector<Planner::Draftable> undecided;
    for (const Draft& each : drafts) {
      undecided.push_back({*each.session->plan_, each.match, each.part->context});
    }
    const std::vector<bool> decided = planner_->decide(undecided);
    std::size_t next = 0;
    std::erase_if(drafts, [&](const Draft& each) {
      if (decided[next++]) return false;
      each.session->take_draft({}, each.match);
      return true;
    });
    for (const Draft& each : drafts) plans.push_back(&*each.session->plan_);
  }
  if (drafts.empty()) return;
  for (Draft& each : drafts) {
    Session& session = *each.session;
    each.point = {.sequence = session.sequence_,
                  .tokens = session.tokens_,
                  .row = each.part->path.back(),
                  .most_nodes = session.most_decoded() - 1,
                  .chain = session.options_.chain,
                  .most_steps = planner_ != nullptr ? planner_->steps(*session.plan_) : INT_MAX};
    // All take what they need before any other pass runs.
    each.rows = session.source_->prepare(pass, each.point);
  }
  try {
    run_pseudo_rows(drafts);
  } catch (...) {
    for (const Draft& each : drafts) each.session->drop_draft();
    throw;
  }
  const double expected_seconds = planner_ != nullptr ? planner_->draft_seconds(plans) : 0;
  for (Draft& each : drafts) {
    Session& session = *each.session;
    const Proposal* const proposal = each.proposal ? &*each.proposal : nullptr;
    session.take_draft(session.source_->draft(each.point, proposal), each.match);
    if (!session.source_->drafts_in_pass()) session.stats_.drafting_passes += 1;
    session.stats_.expected_seconds += expected_seconds;
  }
  if (planner_ != nullptr) planner_->observe_drafting(plans, watch.seconds());
}

/// The drafting pass: the pseudo rows of all sessions, or as many passes as they need.
void BatchDecoder::run_pseudo_rows(std::span<Draft> drafts) {
  while (!drafts.empty()) {
    rows_.clear();
    std::vector<std::vector<int>> anchors;
    std::size_t count = 0;
    for (; count < drafts.size(); ++count) {
      const std::vector<Row>& rows = drafts[count].rows;
      const auto first = static_cast<int>(rows_.size());
      if (first > 0 && first + std::ssize(rows) > engine_.options().max_rows) break;
      for (Row row : rows) {
        if (row.parent != kContext) row.parent += first;
        rows_.push_back(row);
      }
      if (rows.empty()) continue;
      anchors.push_back(first_rows(rows.size()));
      for (int& row : anchors.back()) row += first;
    }
    if (!anchors.empty()) {
      std::vector<Proposal> proposals = engine_.forward(rows_).propose(anchors);
      auto next = proposals.begin();
      for (Draft& each : drafts.first(count)) {
        if (!each.rows.empty()) each.proposal = std::move(*next++);
      }
    }
    drafts = drafts.subspan(count);
  }
}

}  // namespace firp
