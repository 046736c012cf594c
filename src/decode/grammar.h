#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "draft/draft_tree.h"
#include "model/grammar_text.h"
#include "model/vocabulary.h"

struct llama_sampler;

namespace firp {

/// A grammar, and how far into it a sequence is. A value: a copy goes on by itself. The rules are
/// libllama's own, read by its grammar sampler.
class Grammar {
 public:
  /// `vocabulary` outlives the grammar. An Error where the text is no grammar.
  Grammar(const Vocabulary& vocabulary, const GrammarText& text);
  Grammar(const Grammar& other);
  Grammar(Grammar&&) noexcept = default;
  Grammar& operator=(const Grammar& other);
  Grammar& operator=(Grammar&&) noexcept = default;

  /// False: a lazy one that waits for its beginning, and allows everything.
  bool holds() const { return state_ != nullptr; }
  /// Whether the token may come next.
  bool allows(Token token) const;
  /// Goes on behind a token that may come next.
  void accept(Token token);
  /// The logits of what may not come next become -infinity. [vocabulary]
  void mask(std::span<float> logits) const;

  /// What must come next, where only one text may: as the tokenizer writes it, at most `most`
  /// tokens. Empty: there is a choice.
  std::vector<Token> forced(int most) const;

 private:
  struct Rules;
  struct Free {
    void operator()(llama_sampler* sampler) const;
  };

  void look_for_beginning(Token token);
  std::size_t beginning() const;

  std::shared_ptr<const Rules> rules_;
  std::unique_ptr<llama_sampler, Free> state_;  ///< null: it does not hold
  // What a lazy one looks for its beginning in: the last tokens and their text.
  std::vector<Token> last_;
  std::string last_text_;
  bool is_whole_ = true;  ///< nothing came before those
};

/// The nodes that the grammar lets stand behind what it has read.
DraftTree allowed_part(const DraftTree& tree, const Grammar& grammar);

}  // namespace firp
