#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "base/error.h"
#include "chat/conversation.h"
#include "cli/decode_flags.h"
#include "cli/interrupt.h"
#include "cli/terminal.h"
#include "cli/verbs.h"
#include "model/part_name.h"

namespace firp {
namespace {

struct DemoFlags {
  DecodeFlags decode;
  std::string prompt;
  int tokens = 200;
};

constexpr std::string_view kQuestion =
    "Explain in a few paragraphs why the sky is blue, and why sunsets are red.";
/// For a model that goes on with texts.
constexpr std::string_view kBeginning = "The sky is blue because";

struct Answer {
  std::vector<DecodedToken> tokens;
  DecodeStats stats;
};

/// Reads all of the prompt each time.
Answer decode(Decoder& decoder, BatchDecoder& batch, DecodeOptions options,
              const std::vector<Token>& prompt, int most) {
  Answer answer;
  options.adopts = false;
  Session session(batch, options);
  session.append(prompt);
  answer.stats = generate(
      session, most, [&](Token token) { return decoder.vocabulary.is_end_of_generation(token); },
      [&](const DecodedToken& token) {
        answer.tokens.push_back(token);
        return !interrupted;
      });
  return answer;
}

/// A text as lines of at most `columns` characters, each padded to just that; drafted tokens in
/// colour. Breaks at spaces.
std::vector<std::string> wrap(const Answer& answer, const Vocabulary& vocabulary, int columns,
                              bool colour) {
  // Characters with their colour; a character is coloured as the token that ends it.
  struct Character {
    std::string bytes;
    bool drafted;
  };
  std::vector<Character> text;
  std::string held;
  for (const DecodedToken& token : answer.tokens) {
    held += vocabulary.piece(token.token);
    const std::size_t whole = held.size() - unfinished_utf8(held);
    for (std::size_t i = 0; i < whole; ++i) {
      const bool continues = (static_cast<unsigned char>(held[i]) & 0xc0) == 0x80;
      if (continues && !text.empty()) {
        text.back().bytes += held[i];
      } else {
        text.push_back({std::string(1, held[i]), token.drafted});
      }
    }
    held.erase(0, whole);
  }
  text.push_back({"\n", false});

  std::vector<std::string> lines;
  std::size_t start = 0;
  while (start < text.size()) {
    // The line ends at a line break, else at the last space that fits, else where it is full.
    std::size_t end = start;
    std::size_t space = start;
    while (text[end].bytes != "\n" && end - start < static_cast<std::size_t>(columns)) {
      if (text[end].bytes == " ") space = end;
      ++end;
    }
    std::size_t next = end;
    if (text[end].bytes == "\n" || text[end].bytes == " ") {
      next = end + 1;
    } else if (space > start) {
      end = space;
      next = space + 1;
    }
    std::string line;
    bool drafted = false;
    for (std::size_t i = start; i < end; ++i) {
      if (colour && text[i].drafted != drafted) {
        drafted = text[i].drafted;
        line += drafted ? kDraftedColour : kPlainColour;
      }
      line += text[i].bytes;
    }
    if (drafted) line += kPlainColour;
    line.append(columns - (end - start), ' ');
    lines.push_back(std::move(line));
    start = next;
  }
  return lines;
}

std::vector<std::string> column(const char* title, const Answer& answer, const Decoder& decoder,
                                int columns, bool colour) {
  const DecodeStats& stats = answer.stats;
  std::vector<std::string> lines = wrap(answer, decoder.vocabulary, columns, colour);
  lines.insert(lines.begin(), {fmt::format("{:<{}}", title, columns), std::string(columns, '-')});
  lines.push_back(std::string(columns, '-'));
  for (const std::string& figure :
       {fmt::format("{} tokens in {} forward passes", stats.tokens, stats.forwards),
        fmt::format("{:.2f} tokens per forward pass", stats.tokens_per_forward()),
        fmt::format("{:.1f} tokens/s", stats.tokens_per_second())}) {
    lines.push_back(fmt::format("{:<{}}", figure, columns));
  }
  return lines;
}

int run_demo(DemoFlags& flags) {
  require_utf8(flags.prompt, "the prompt");
  const int most = most_tokens(flags.tokens);
  flags.decode.draft = "firp+ngram";
  std::vector<Token> prompt;
  Decoder decoder(flags.decode, std::span(&flags.decode.tree, 1),
                  [&](const ChatTemplate& chat_template, int context) {
                    if (flags.prompt.empty()) {
                      flags.prompt = chat_template.exists() ? kQuestion : kBeginning;
                    }
                    chat_template.vocabulary().require_fits(flags.prompt.size(), context);
                    prompt = Conversation(chat_template).user_turn(flags.prompt);
                  });
  DecodeOptions plain_options = decoder.options;
  plain_options.method = DraftMethod::kNone;
  plain_options.ngrams = false;
  BatchDecoder plain_batch(decoder.engine);

  catch_interrupts();
  StatusLine status;
  status.show("one answer without drafts, one with ...");
  constexpr int kWarmUpTokens = 16;
  decode(decoder, decoder.batch, decoder.options, prompt, kWarmUpTokens);
  if (interrupted) return kExitInterrupted;
  const Answer plain = decode(decoder, plain_batch, plain_options, prompt, most);
  if (interrupted) return kExitInterrupted;
  const Answer drafted = decode(decoder, decoder.batch, decoder.options, prompt, most);
  if (interrupted) return kExitInterrupted;
  status.clear();

  const bool colour = use_colour(flags.decode.colour);
  constexpr int kNarrow = 72;
  constexpr int kGap = 4;
  const int width = terminal_columns();
  const bool side_by_side = width >= kNarrow;
  const int columns = side_by_side ? std::min((width - kGap) / 2, 76) : std::max(width, 20);
  const auto left = column("Plain decoding", plain, decoder, columns, colour);
  const auto right = column("FIRP", drafted, decoder, columns, colour);

  fmt::print("{}, {} threads ({})\n> {}\n\n", model_name(flags.decode.model),
             decoder.engine.options().threads, decoder.engine.isa(), flags.prompt);
  if (side_by_side) {
    for (std::size_t i = 0; i < std::max(left.size(), right.size()); ++i) {
      fmt::print("{}{:{}}{}\n", i < left.size() ? left[i] : std::string(columns, ' '), "", kGap,
                 i < right.size() ? right[i] : "");
    }
  } else {
    for (const std::string& line : left) fmt::print("{}\n", line);
    fmt::print("\n");
    for (const std::string& line : right) fmt::print("{}\n", line);
  }
  const bool same = std::ranges::equal(plain.tokens, drafted.tokens, {}, &DecodedToken::token,
                                       &DecodedToken::token);
  fmt::print(
      "\n{}; {:.2f} times as fast{}\n", same ? "The same text" : "NOT the same text",
      drafted.stats.tokens_per_second() / plain.stats.tokens_per_second(),
      colour ? fmt::format(". {}Coloured{}: tokens that were drafted", kDraftedColour, kPlainColour)
             : "");
  flush_output();
  return same ? 0 : 1;
}

}  // namespace

Verb add_demo(CLI::App& program) {
  CLI::App* app = program.add_subcommand("demo", "One answer with FIRP and without, side by side");
  const auto flags = std::make_shared<DemoFlags>();
  app->footer(R"(
Exits with 1 if the two texts differ.

Examples:
  firp demo model.gguf
  firp demo -m model.gguf -p "Translate into French: I like trees." --tree 32)");
  flags->decode.add_model_to(*app);
  app->add_option("-p,--prompt", flags->prompt, "The prompt")->capture_default_str();
  app->add_option("-n,--predict,--n-predict", flags->tokens, kPredictHelp)->capture_default_str();
  flags->decode.add_decoding_to(*app);
  flags->decode.add_engine_to(*app);
  app->get_option_group("Drafting")
      ->add_option("--tree", flags->decode.tree,
                   "Drafted tokens that one forward pass verifies (default: as many as pay)")
      ->capture_default_str();
  flags->decode.add_colour_to(*app);
  flags->decode.add_template_to(*app);
  return {app, [flags] { return run_demo(*flags); }};
}

}  // namespace firp
