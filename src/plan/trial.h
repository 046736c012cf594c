#pragma once

namespace firp {

/// What is known of passes in which no sequence verifies drafts.
struct PlainPasses {
  double measured_seconds;  ///< of such a pass, when costs were measured
  double drift;             ///< what it takes by now, over that
  bool drift_is_old;        ///< no such pass was seen lately
  int run;                  ///< of the passes up to now, those that nobody drafted for
  int settling;             ///< of them, those that have not settled
  int sequences;            ///< that share the pass
};

/// Whether drafting pays is tried: some steps are drafted, and where they lose, a pause follows. It
/// is as long as makes what the trials lose a small share of the time: short where little is lost,
/// long where text cannot be predicted. What plain passes behind a trial take longer until they
/// have settled counts as lost by it.
class Trial {
 public:
  bool pauses() const { return pause_ > 0; }
  bool begins() const { return pause_ == 0 && steps_ == 0; }

  /// Others try again. Who has paused for half of the time joins them: together that costs less.
  void join();

  /// A pass was drafted for, took `seconds` with its drafting, and was faster by `profit` than it
  /// would have been without, as far as was to be expected.
  void observe_drafted(double profit, double seconds, const PlainPasses& plain);
  /// A pass was not drafted for. `settles`: it was plain, its time counts, and took `ratio` of what
  /// was measured.
  void observe_undrafted(bool settles, double ratio, const PlainPasses& plain);

 private:
  int pause_for(const PlainPasses& plain) const;

  int steps_ = 0;            ///< drafted ones since the last pause
  int pause_ = 0;            ///< undrafted_run_ at the next trial; 0: drafting goes on
  int undrafted_run_ = 0;    ///< passes, up to now, without drafting
  double profit_ = 0;        ///< by which share drafting is faster than doing without, on average
  double lost_seconds_ = 0;  ///< by the last trial
  // Of plain passes behind it, before they had settled: the sum of seen / measured, and how many.
  double settling_ratios_ = 0;
  int settling_passes_ = 0;
  double plain_drift_ = 1;  ///< what it was held against
  bool was_blind_ = false;  ///< that was of long ago, or of another run of the program
};

}  // namespace firp
