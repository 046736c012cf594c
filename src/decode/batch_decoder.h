#pragma once

#include <span>
#include <vector>

#include "decode/session.h"
#include "engine/engine.h"
#include "plan/planner.h"
#include "plan/reading_pace.h"

namespace firp {

/// The decoding loop of an engine: schedules the rows of its sessions into passes, runs them, and
/// lets each session take in what came of its own.
///
/// A session's text does not depend on the others, on an engine whose rows do not.
class BatchDecoder {
 public:
  /// `planner`: where there is one, it decides how much of a tree of kMostPlannedNodes each session
  /// verifies, and whether anything is drafted; DecodeOptions::tree_nodes is not used. Only for
  /// methods that draft in passes of their own. Both outlive the decoder.
  /// `someone_waits`: for the tokens, as they come; else prompts are read in chunks as large as
  /// fit.
  explicit BatchDecoder(Engine& engine, Planner* planner = nullptr, bool someone_waits = true)
      : engine_(engine), planner_(planner), someone_waits_(someone_waits) {}
  BatchDecoder(const BatchDecoder&) = delete;
  BatchDecoder& operator=(const BatchDecoder&) = delete;

  Engine& engine() const { return engine_; }
  Planner* planner() const { return planner_; }

  /// One forward pass for `sessions` of this decoder, each with at least one token, and one
  /// drafting pass for those that draft then. In it stand, side by side, the roots and trees of
  /// sessions that decode and chunks of the prompts of those that read. Where the engine has no
  /// room for all, those take part that waited longest. Session::decoded() is what it gave.
  ///
  /// Whom others wait for: while some decode, prompts are read in chunks of bounded time; and of
  /// prompts that begin alike, one is read and the others take what it read.
  ///
  /// Where the pass throws, all sessions are as they were before.
  void step(std::span<Session* const> sessions);

 private:
  using Part = Session::Part;

  std::vector<Part> schedule(std::span<Session* const> sessions);
  void schedule_reading(std::span<Session* const> readers, int decoders, int room,
                        std::vector<Part>& parts);
  void schedule_verifying(std::span<Session* const> decoders, int room, std::vector<Part>& parts);
  void choose(const Pass& pass, std::span<Part> parts) const;
  void commit(const Pass& pass, std::span<const Part> parts);
  void absorb(const Pass& pass, std::span<Part> parts, double seconds);
  void draft(const Pass& pass, std::span<Part> parts);
  struct Draft;
  void run_pseudo_rows(std::span<Draft> drafts);

  Engine& engine_;
  Planner* const planner_;
  const bool someone_waits_;
  ReadingPace pace_;
  unsigned long long passes_ = 0;
  std::vector<Row> rows_;  ///< of the pass that is scheduled
};

}  // namespace firp
