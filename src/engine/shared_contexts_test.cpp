// Sequences that adopt what others hold, and what is kept for them.

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "engine/context_file.h"
#include "engine/native_engine.h"
#include "engine/test_engines.h"
#include "model/test_files.h"

namespace firp {
namespace {

constexpr int kVocabulary = 320;
using Tokens = std::vector<Token>;

Tokens some_tokens(int count, std::uint32_t seed) {
  std::mt19937 random(seed);
  return random_tokens(count, kVocabulary, random);
}

Tokens joined(std::span<const Token> a, std::span<const Token> b) {
  Tokens tokens(a.begin(), a.end());
  tokens.insert(tokens.end(), b.begin(), b.end());
  return tokens;
}

/// Logits of a token behind the context, which stays as it is.
std::vector<float> probe(Engine& engine, int sequence) {
  return copied(engine.forward(token_chain(sequence, Tokens{7})).logits(std::vector<int>{0}));
}

class SharedContexts : public testing::TestWithParam<CacheType> {
 protected:
  SharedContexts() {
    const EngineOptions options = {
        .threads = 1, .context = 400, .positions = 4000, .cache_type = GetParam()};
    engine_ = std::make_unique<NativeEngine>(*model_, options);
    reference_ = std::make_unique<NativeEngine>(*model_, options);
  }

  int sequence_of(const Tokens& tokens, int chunk = 50) {
    const int sequence = engine_->add_sequence();
    append(*engine_, sequence, tokens, chunk);
    return sequence;
  }
  int adopter_of(const Tokens& tokens, int length) {
    const int sequence = engine_->add_sequence();
    EXPECT_EQ(engine_->adopt(sequence, tokens), length);
    return sequence;
  }
  /// The sequence holds these tokens, as one does that read them itself in another engine.
  void expect_holds(int sequence, const Tokens& tokens) {
    ASSERT_EQ(engine_->length(sequence), std::ssize(tokens));
    const int other = reference_->add_sequence();
    append(*reference_, other, tokens, 256);
    EXPECT_TRUE(bits_equal(probe(*engine_, sequence), probe(*reference_, other)));
    reference_->remove_sequence(other);
  }

  const TinyModel model_{{.type = GGML_TYPE_Q4_1}};
  std::unique_ptr<NativeEngine> engine_, reference_;
  const Tokens text_ = some_tokens(200, 1);
};

constexpr int kLengths[] = {1, 63, 64, 65, 128, 130};

TEST_P(SharedContexts, AnAdoptedBeginningIsAsIfItHadBeenRead) {
  for (const int length : kLengths) {
    SCOPED_TRACE(length);
    const Tokens beginning(text_.begin(), text_.begin() + length);
    Tokens wanted = joined(beginning, some_tokens(20, 2));
    wanted[length] = text_[length] ^ 1;

    const int whole = sequence_of(beginning);
    int adopter = adopter_of(wanted, length);
    expect_holds(adopter, beginning);
    engine_->remove_sequence(whole);
    expect_holds(adopter, beginning);
    engine_->remove_sequence(adopter);

    const int longer = sequence_of(text_);
    adopter = adopter_of(wanted, length);
    expect_holds(adopter, beginning);
    engine_->remove_sequence(adopter);

    engine_->truncate(longer, length);
    adopter = adopter_of(wanted, length);
    expect_holds(adopter, beginning);
    engine_->remove_sequence(adopter);

    engine_->retire_sequence(longer);
    EXPECT_FALSE(engine_->has_sequence(longer));
    adopter = adopter_of(wanted, length);
    expect_holds(adopter, beginning);
    // One that holds something keeps what is wanted of it, where no other has more.
    EXPECT_EQ(engine_->adopt(adopter, Tokens(text_.begin(), text_.begin() + 1)), 1);
    expect_holds(adopter, Tokens(text_.begin(), text_.begin() + 1));
    EXPECT_EQ(engine_->adopt(adopter, wanted), length);
    expect_holds(adopter, beginning);
    EXPECT_EQ(engine_->adopt(adopter, Tokens{static_cast<Token>(text_[0] ^ 1)}), 0);
    engine_->remove_sequence(adopter);
    // Without the retired one, which the next length would find, too.
    engine_ = std::make_unique<NativeEngine>(*model_, engine_->options());
  }
}

TEST_P(SharedContexts, NeitherDisturbsTheOtherWhenItGoesOn) {
  const Tokens of_source = some_tokens(90, 3), of_adopter = some_tokens(80, 4);
  for (const int length : kLengths) {
    SCOPED_TRACE(length);
    const Tokens beginning(text_.begin(), text_.begin() + length);
    Tokens source_tokens = joined(beginning, of_source);
    const int source = sequence_of(source_tokens);
    const int adopter = adopter_of(beginning, length);
    Tokens adopted = joined(beginning, of_adopter);
    append(*engine_, adopter, of_adopter, 30);
    expect_holds(adopter, adopted);
    expect_holds(source, source_tokens);
    append(*engine_, source, of_adopter, 30);
    source_tokens = joined(source_tokens, of_adopter);
    expect_holds(source, source_tokens);
    expect_holds(adopter, adopted);

    // Back into a page that both have, and on from there with other tokens.
    for (const int kept : {std::min(length, 127), (length + 1) / 2}) {
      engine_->truncate(source, kept);
      source_tokens = joined(std::span(beginning).first(kept), some_tokens(60, kept));
      append(*engine_, source, std::span(source_tokens).subspan(kept), 25);
      expect_holds(source, source_tokens);
      expect_holds(adopter, adopted);
    }
    const int third = adopter_of(adopted, length + 80);
    engine_->truncate(adopter, length / 2);
    append(*engine_, adopter, of_source, 90);
    expect_holds(third, adopted);
    adopted = joined(std::span(beginning).first(length / 2), of_source);
    expect_holds(adopter, adopted);
    engine_->remove_sequence(source);
    const int next = sequence_of(some_tokens(200, 5));  // in the pages that it left
    expect_holds(adopter, adopted);
    engine_->remove_sequence(next);
    engine_->remove_sequence(third);
    expect_holds(adopter, adopted);
    engine_->remove_sequence(adopter);
  }
}

/// One adopts what another one just committed, while the pass goes on to be committed.
TEST_P(SharedContexts, AdoptingBetweenTheCommitsOfAPassDisturbsNobody) {
  const Tokens a_tokens = some_tokens(60, 6), b_tokens = some_tokens(120, 7);
  const int a = sequence_of(a_tokens), b = sequence_of(b_tokens);
  const Tokens a_more = some_tokens(30, 8), b_more = some_tokens(40, 9);
  std::vector<Row> rows = token_chain(a, a_more);
  for (Row row : token_chain(b, b_more)) {
    if (row.parent != kContext) row.parent += 30;
    rows.push_back(row);
  }
  const Pass pass = engine_->forward(rows);
  const int before = adopter_of(joined(b_tokens, b_more), 120);
  pass.commit(a, first_rows(30));
  const int after = adopter_of(joined(a_tokens, a_more), 90);
  std::vector<int> path;
  for (int row = 30; row < 70; ++row) path.push_back(row);
  pass.commit(b, path);
  expect_holds(a, joined(a_tokens, a_more));
  expect_holds(b, joined(b_tokens, b_more));
  expect_holds(before, b_tokens);
  expect_holds(after, joined(a_tokens, a_more));
}

INSTANTIATE_TEST_SUITE_P(CacheTypes, SharedContexts,
                         testing::Values(CacheType::kF16, CacheType::kQ8_0), [](const auto& of) {
                           return of.param == CacheType::kF16 ? "F16" : "Q8_0";
                         });

/// An engine with room for four pages, in which three sequences of a page each were retired.
class RetiredContexts : public testing::Test {
 protected:
  RetiredContexts() : engine_(*model_, {.threads = 1, .context = 150, .positions = 256}) {
    for (std::uint32_t seed = 0; seed < 3; ++seed) texts_.push_back(some_tokens(64, 10 + seed));
    std::vector<int> sequences;
    for (const Tokens& text : texts_) {
      sequences.push_back(engine_.add_sequence());
      append(engine_, sequences.back(), text, 64);
    }
    for (const int sequence : sequences) engine_.retire_sequence(sequence);
  }

  /// How much of each text can still be adopted.
  std::vector<int> found() {
    std::vector<int> lengths;
    for (const Tokens& text : texts_) {
      const int sequence = engine_.add_sequence();
      lengths.push_back(engine_.adopt(sequence, text));
      engine_.remove_sequence(sequence);
    }
    return lengths;
  }
  int new_sequence(int tokens) {
    const int sequence = engine_.add_sequence();
    append(engine_, sequence, some_tokens(tokens, 20), tokens);
    return sequence;
  }

  const TinyModel model_{{}};
  NativeEngine engine_;
  std::vector<Tokens> texts_;
};

TEST_F(RetiredContexts, StayWhileThereIsRoom) {
  EXPECT_EQ(engine_.free_positions(), 256);
  new_sequence(20);  // which takes the last page
  EXPECT_EQ(engine_.free_positions(), 236);
  EXPECT_EQ(found(), (std::vector<int>{64, 64, 64}));
}

TEST_F(RetiredContexts, AreDroppedOldestFirst) {
  new_sequence(65);
  EXPECT_EQ(found(), (std::vector<int>{0, 64, 64}));
}

TEST_F(RetiredContexts, AreDroppedAsFarAsRoomIsWanted) {
  const int sequence = new_sequence(65);
  EXPECT_EQ(found(), (std::vector<int>{0, 64, 64}));
  append(engine_, sequence, Tokens{1}, 1);
  EXPECT_EQ(found(), (std::vector<int>{0, 0, 64}));
}

TEST_F(RetiredContexts, ThatAreAdoptedAreNotTheOldest) {
  const int adopter = engine_.add_sequence();
  EXPECT_EQ(engine_.adopt(adopter, std::span(texts_[0]).first(10)), 10);
  new_sequence(30);
  EXPECT_EQ(found(), (std::vector<int>{64, 0, 64}));
}

/// A page is the least that a sequence takes: many short ones must not take many times the room.
TEST_F(RetiredContexts, CountByTheMemoryThatTheyTake) {
  for (int i = 0; i < 30; ++i) {
    const int sequence = engine_.add_sequence();
    append(engine_, sequence, some_tokens(3, 100 + i), 3);
    engine_.retire_sequence(sequence);
  }
  int kept = 0;
  for (int i = 0; i < 30; ++i) {
    const int sequence = engine_.add_sequence();
    kept += engine_.adopt(sequence, some_tokens(3, 100 + i)) == 3;
    engine_.remove_sequence(sequence);
  }
  EXPECT_GE(kept, 2);
  EXPECT_LE(kept, 4);
}

TEST_F(RetiredContexts, ThatAreDroppedLeaveTheirAdoptersWhatTheyHold) {
  const int adopter = engine_.add_sequence();
  EXPECT_EQ(engine_.adopt(adopter, texts_[0]), 64);
  const std::vector<float> before = probe(engine_, adopter);
  new_sequence(139);  // together with the adopter nearly all
  EXPECT_EQ(found(), (std::vector<int>{64, 0, 0})) << "the adopter's";
  EXPECT_TRUE(bits_equal(probe(engine_, adopter), before));
  EXPECT_EQ(engine_.free_positions(), 53);
}

TEST_F(RetiredContexts, AreNoneWhereLiveOnesNeedMoreThanThereIs) {
  new_sequence(150);
  new_sequence(150);  // memory is taken as it goes
  EXPECT_EQ(engine_.free_positions(), -44);
  EXPECT_EQ(found(), (std::vector<int>{0, 0, 0}));
}

TEST_F(RetiredContexts, AreNotCountedWhatIsSharedCountsOnce) {
  const int first = engine_.add_sequence(), second = engine_.add_sequence();
  EXPECT_EQ(engine_.adopt(first, texts_[0]), 64);
  EXPECT_EQ(engine_.free_positions(), 192);
  EXPECT_EQ(engine_.adopt(second, std::span(texts_[0]).first(40)), 40);
  EXPECT_EQ(engine_.free_positions(), 192);
  append(engine_, second, Tokens(10, 3), 10);
  EXPECT_EQ(engine_.free_positions(), 182);
  engine_.remove_sequence(first);
  EXPECT_EQ(engine_.free_positions(), 206);
  engine_.truncate(second, 20);
  EXPECT_EQ(engine_.free_positions(), 236);
  engine_.retire_sequence(second);
  EXPECT_EQ(engine_.free_positions(), 256);
}

/// Layers with a window give their pages back: what lies too far back must be read again.
TEST(WindowedContexts, AreKeptAsFarAsTheirWindowIsThere) {
  const TinyModel model({.architecture = "gemma3", .layers = 7, .sliding_window = 20});
  const EngineOptions options = {.threads = 1, .context = 400, .positions = 4000};
  NativeEngine engine(*model, options), reference(*model, options);
  const Tokens tokens = some_tokens(300, 5);
  const auto expect_holds = [&](int sequence, int length) {
    ASSERT_EQ(engine.length(sequence), length);
    const int other = reference.add_sequence();
    append(reference, other, std::span(tokens).first(length), 7);
    EXPECT_TRUE(bits_equal(probe(engine, sequence), probe(reference, other))) << length;
    reference.remove_sequence(other);
  };
  const int sequence = engine.add_sequence();
  append(engine, sequence, tokens, 50);
  engine.truncate(sequence, 285);
  expect_holds(sequence, 285);

  const int adopter = engine.add_sequence();
  EXPECT_EQ(engine.adopt(adopter, std::span(tokens).first(280)), 280);
  expect_holds(adopter, 280);
  append(engine, adopter, std::span(tokens).subspan(280), 20);
  expect_holds(adopter, 300);
  EXPECT_EQ(engine.adopt(engine.add_sequence(), std::span(tokens).first(100)), 0);

  engine.truncate(sequence, 100);
  EXPECT_EQ(engine.length(sequence), 0);
  append(engine, sequence, std::span(tokens).first(120), 33);
  expect_holds(sequence, 120);

  // A retired one of which nothing can be kept goes.
  append(engine, sequence, std::span(tokens).subspan(120), 33);
  engine.remove_sequence(adopter);
  engine.retire_sequence(sequence);
  engine.forget(tokens, 100);
  EXPECT_EQ(engine.adopt(engine.add_sequence(), tokens), 0);
}

TEST(WindowedContexts, AreTheSameOutOfAFile) {
  const TemporaryDirectory directory;
  const TinyModel model({.architecture = "gemma3", .layers = 7, .sliding_window = 20});
  const EngineOptions options = {.threads = 1, .context = 400, .positions = 4000};
  NativeEngine writer(*model, options), reader(*model, options);
  const Tokens tokens = some_tokens(300, 5);
  const int written = writer.add_sequence();
  append(writer, written, tokens, 50);
  save_context(writer, tokens, directory / "context");
  EXPECT_EQ(restore_context(reader, directory / "context").tokens, tokens);
  const int read = reader.add_sequence();
  ASSERT_EQ(reader.adopt(read, tokens), 300);
  EXPECT_TRUE(bits_equal(probe(reader, read), probe(writer, written)));
  // Of what the window does not reach nothing was saved.
  reader.truncate(read, 200);
  EXPECT_EQ(reader.length(read), 0);
}

}  // namespace
}  // namespace firp
