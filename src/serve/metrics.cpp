#include "serve/metrics.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <utility>

#include "serve/llama_completion.h"

namespace firp {
namespace {

void add(std::string& text, const char* kind, const char* name, const char* help, double value) {
  text += fmt::format("# HELP {0} {1}\n# TYPE {0} {2}\n{0} {3}\n", name, help, kind, value);
}

/// Of Linux (proc_pid_statm(5)); 0 where it does not tell.
double resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  double pages = 0, resident_pages = 0;
  statm >> pages >> resident_pages;
  return resident_pages * static_cast<double>(sysconf(_SC_PAGESIZE));
}

double ratio(double a, double b) { return b > 0 ? a / b : 0; }

/// Tokens of prompts that passes read.
int read_of(const Usage& usage) { return usage.read_tokens - usage.cached_tokens; }

}  // namespace

std::string metrics_of(const Scheduler::Status& status, const Usage& before) {
  const Usage& all = status.all;
  const DecodeStats& stats = all.stats;
  const auto read = static_cast<double>(read_of(all));
  const auto written = static_cast<double>(all.completion_tokens);
  std::string text;
  const auto counter = [&](const char* name, const char* help, double value) {
    add(text, "counter", name, help, value);
  };
  const auto gauge = [&](const char* name, const char* help, double value) {
    add(text, "gauge", name, help, value);
  };
  counter("llamacpp:prompt_tokens_total", "Prompt tokens that were read.", read);
  counter("llamacpp:prompt_tokens_cached_total", "Prompt tokens that were held already.",
          all.cached_tokens);
  counter("llamacpp:prompt_seconds_total", "Seconds of passes that read prompts.",
          stats.prefill_seconds);
  counter("llamacpp:tokens_predicted_total", "Tokens that were written.", written);
  counter("llamacpp:tokens_predicted_seconds_total",
          "Seconds of passes that wrote, once for each answer in them.", stats.decode_seconds);
  counter("llamacpp:n_decode_total", "Passes of the model.", static_cast<double>(status.passes));
  counter("llamacpp:n_tokens_max", "The most tokens of a prompt and its answer.", status.longest);
  counter("llamacpp:spec_decode_num_drafts_total", "Passes that drafted.",
          static_cast<double>(stats.drafting_passes));
  counter("llamacpp:spec_decode_num_draft_tokens_total", "Drafted tokens that were verified.",
          static_cast<double>(stats.drafted));
  counter("llamacpp:spec_decode_num_accepted_tokens_total",
          "Drafted tokens that the model would have written.",
          std::max(0.0, written - static_cast<double>(stats.forwards)));
  gauge(
      "llamacpp:prompt_tokens_seconds", "Prompt tokens a second, since this was asked for last.",
      ratio(read_of(all) - read_of(before), stats.prefill_seconds - before.stats.prefill_seconds));
  gauge("llamacpp:predicted_tokens_seconds",
        "Tokens a second of an answer, since this was asked for last.",
        ratio(all.completion_tokens - before.completion_tokens,
              stats.decode_seconds - before.stats.decode_seconds));
  gauge("llamacpp:requests_processing", "Answers that are being written.",
        static_cast<double>(std::ranges::count(status.slots, true, &Scheduler::Slot::is_busy)));
  gauge("llamacpp:requests_deferred", "Answers that wait to begin.", status.waiting);
  gauge("llamacpp:n_busy_slots_per_decode", "Answers in a pass that wrote, on average.",
        ratio(static_cast<double>(stats.forwards), static_cast<double>(status.passes)));
  counter("firp:answers_total", "Answers that ended.", static_cast<double>(status.answers));
  counter("firp:busy_seconds_total", "Seconds in which passes ran.", status.busy_seconds);
  gauge("firp:free_positions", "Tokens that there is room for, of all answers together.",
        status.free_positions);
  gauge("process_resident_memory_bytes", "Memory that the program holds.", resident_bytes());
  if (!status.pass_seconds.empty()) {
    const char* const name = "firp:pass_seconds";
    text +=
        fmt::format("# HELP {0} What a pass takes by now, by its rows.\n# TYPE {0} gauge\n", name);
    for (const auto& [rows, seconds] : status.pass_seconds) {
      text += fmt::format("{}{{rows=\"{}\"}} {}\n", name, rows, seconds);
    }
  }
  gauge("firp:tokens_per_forward_pass", "Tokens of an answer that a pass gives.",
        stats.tokens_per_forward());
  return text;
}

Json slots_of(const Scheduler::Status& status, int context) {
  Json list = Json::array();
  for (const Scheduler::Slot& slot : status.slots) {
    Json member = {{"id", list.size()},
                   {"n_ctx", context},
                   {"speculative", true},
                   {"is_processing", slot.is_busy}};
    if (slot.answer >= 0) {
      const Usage& usage = slot.usage;
      // Of an answer that is over, nothing; llama-server tells no limit then.
      const int written = slot.is_busy ? usage.completion_tokens : 0;
      const int left = slot.is_busy ? slot.max_tokens - written : -1;
      member["id_task"] = slot.answer;
      member["n_prompt_tokens"] = slot.prompt_tokens;
      member["n_prompt_tokens_cache"] = usage.cached_tokens;
      member["params"] = settings_member(slot.sampling, slot.max_tokens);
      member["next_token"] = Json::array(
          {{{"has_next_token", slot.is_busy}, {"n_remain", left}, {"n_decoded", written}}});
    }
    list.push_back(std::move(member));
  }
  return list;
}

}  // namespace firp
