#include "decode/grammar.h"

#include <fmt/format.h>
#include <llama.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <regex>
#include <utility>
#include <vector>

#include "base/error.h"
#include "model/ggml_log.h"

namespace firp {
namespace {

/// Brackets in each other: libllama's parser calls itself once a bracket.
constexpr int kMostNested = 200;
/// Of a text in which a lazy grammar looks for its beginning: regular expressions of the standard
/// library call themselves once a character.
constexpr std::size_t kLookBackBytes = 256;

int nested_groups(std::string_view gbnf) {
  int depth = 0, most = 0;
  for (const char byte : gbnf) {
    if (byte == '(') most = std::max(most, ++depth);
    if (byte == ')') --depth;
  }
  return most;
}

bool is_allowed(const llama_token_data& candidate) { return !std::isinf(candidate.logit); }

/// The logits of candidates that may not come next become -infinity.
void forbid_what_is_not_allowed(llama_sampler& state, std::span<llama_token_data> candidates) {
  llama_token_data_array array = {
      .data = candidates.data(), .size = candidates.size(), .selected = -1, .sorted = false};
  llama_sampler_apply(&state, &array);
}

}  // namespace

struct Grammar::Rules {
  const Vocabulary& vocabulary;
  std::unique_ptr<llama_sampler, Free> beginning;
  std::vector<std::string> words;
  std::vector<std::regex> patterns;
};

void Grammar::Free::operator()(llama_sampler* sampler) const { llama_sampler_free(sampler); }

Grammar::Grammar(const Vocabulary& vocabulary, const GrammarText& text) {
  const GgmlErrors errors;
  std::string problem = "there is no rule \"root\", or a rule begins with itself";
  try {
    if (nested_groups(text.gbnf) > kMostNested) {
      throw Error(fmt::format("more than {} brackets in each other", kMostNested));
    }
    auto rules = std::make_shared<Rules>(
        Rules{.vocabulary = vocabulary, .beginning = nullptr, .words = text.words, .patterns = {}});
    for (const std::string& pattern : text.patterns) rules->patterns.emplace_back(pattern);
    rules->beginning.reset(llama_sampler_init_grammar(llama_model_get_vocab(vocabulary.model()),
                                                      text.gbnf.c_str(), "root"));
    if (rules->beginning) {
      rules_ = std::move(rules);
      if (text.is_lazy()) return;
      state_.reset(llama_sampler_clone(rules_->beginning.get()));
      for (const Token token : text.read) accept(token);
      return;
    }
  } catch (const std::exception& error) {
    problem = error.what();
  }
  throw Error(fmt::format("the grammar cannot be read: {}", one_line(errors.text(problem))));
}

Grammar::Grammar(const Grammar& other)
    : rules_(other.rules_),
      state_(other.state_ ? llama_sampler_clone(other.state_.get()) : nullptr),
      last_(other.last_),
      last_text_(other.last_text_),
      is_whole_(other.is_whole_) {}

Grammar& Grammar::operator=(const Grammar& other) {
  Grammar copy(other);
  return *this = std::move(copy);
}

bool Grammar::allows(Token token) const {
  if (!holds()) return true;
  llama_token_data candidate = {.id = token, .logit = 0, .p = 0};
  forbid_what_is_not_allowed(*state_, {&candidate, 1});
  return is_allowed(candidate);
}

void Grammar::accept(Token token) {
  if (holds()) {
    llama_sampler_accept(state_.get(), token);
  } else {
    look_for_beginning(token);
  }
}

/// The token came, while nothing holds yet.
void Grammar::look_for_beginning(Token token) {
  const Vocabulary& vocabulary = rules_->vocabulary;
  const auto piece = [&](Token each) { return vocabulary.piece(each, /*show_special=*/true); };
  last_.push_back(token);
  last_text_ += piece(token);
  while (last_text_.size() > kLookBackBytes && last_.size() > 1) {
    last_text_.erase(0, piece(last_.front()).size());
    last_.erase(last_.begin());
    is_whole_ = false;
  }
  const std::size_t begin = beginning();
  if (begin == std::string::npos) return;
  state_.reset(llama_sampler_clone(rules_->beginning.get()));
  try {
    std::size_t at = 0;
    for (const Token each : last_) {
      const std::string text = piece(each);
      if (at >= begin) {
        llama_sampler_accept(state_.get(), each);
      } else if (at + text.size() > begin) {  // the end of a token
        for (const char byte : std::string_view(text).substr(begin - at)) {
          const Token single = vocabulary.byte_tokens()[static_cast<unsigned char>(byte)];
          if (single == kNoToken) throw Error("no token of this byte");
          llama_sampler_accept(state_.get(), single);
        }
      }
      at += text.size();
    }
  } catch (const std::exception&) {
    // The token that completed the beginning goes on with what the grammar does not have: it was
    // no beginning.
    state_.reset();
  }
  last_.clear();
  last_text_.clear();
  is_whole_ = false;
}

/// In last_text_; npos: there is none.
std::size_t Grammar::beginning() const {
  for (const std::string& word : rules_->words) {
    if (const std::size_t at = last_text_.find(word); at != std::string::npos) return at;
  }
  const auto flags =
      is_whole_ ? std::regex_constants::match_default : std::regex_constants::match_not_bol;
  for (const std::regex& pattern : rules_->patterns) {
    std::smatch match;
    if (!std::regex_search(last_text_, match, pattern, flags)) continue;
    const bool has_group = match.size() > 1 && match[1].matched;
    return static_cast<std::size_t>(match.position(has_group ? 1 : 0));
  }
  return std::string::npos;
}

void Grammar::mask(std::span<float> logits) const {
  if (!holds()) return;
  std::vector<llama_token_data> candidates;
  candidates.reserve(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    candidates.push_back({.id = static_cast<Token>(i), .logit = logits[i], .p = 0});
  }
  forbid_what_is_not_allowed(*state_, candidates);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = candidates[i].logit;
}

std::vector<Token> Grammar::forced(int most) const {
  if (!holds()) return {};
  const Vocabulary& vocabulary = rules_->vocabulary;
  std::vector<llama_token_data> bytes_and_ends;
  for (const std::span<const Token> tokens : {vocabulary.byte_tokens(), vocabulary.end_tokens()}) {
    for (const Token token : tokens) {
      if (token != kNoToken) bytes_and_ends.push_back({.id = token, .logit = 0, .p = 0});
    }
  }
  std::string text;
  Grammar next = *this;
  const std::size_t most_bytes = static_cast<std::size_t>(most) * vocabulary.longest_token_bytes();
  while (text.size() < std::min<std::size_t>(most_bytes, kLookBackBytes)) {
    std::vector<llama_token_data> candidates = bytes_and_ends;
    forbid_what_is_not_allowed(*next.state_, candidates);
    if (std::ranges::count_if(candidates, is_allowed) != 1) break;
    const Token only = std::ranges::find_if(candidates, is_allowed)->id;
    if (vocabulary.is_end_of_generation(only)) break;
    text += vocabulary.piece(only, /*show_special=*/true);
    next.accept(only);
  }
  if (text.empty() || unfinished_utf8(text) > 0) return {};
  // The last token may have ended inside a character; what is left of it is no text.
  if (continues_utf8(text.front())) return {};
  std::vector<Token> tokens = vocabulary.tokenize(text, /*add_bos=*/false);
  if (std::ssize(tokens) > most) tokens.resize(most);
  return tokens;
}

DraftTree allowed_part(const DraftTree& tree, const Grammar& grammar) {
  if (!grammar.holds()) return tree;
  DraftTree kept;
  std::vector<Grammar> behind;              // each kept node
  std::vector<int> place(tree.size(), -1);  // in `kept`
  for (std::size_t i = 0; i < tree.size(); ++i) {
    DraftNode node = tree[i];
    if (node.parent != kRoot) {
      node.parent = place[node.parent];
      if (node.parent < 0) continue;
    }
    const Grammar& before = node.parent == kRoot ? grammar : behind[node.parent];
    if (!before.allows(node.token)) continue;
    Grammar next = before;
    next.accept(node.token);
    behind.push_back(std::move(next));
    place[i] = static_cast<int>(kept.size());
    kept.push_back(node);
  }
  return kept;
}

}  // namespace firp
