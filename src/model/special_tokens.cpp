#include "model/special_tokens.h"

#include <algorithm>
#include <cctype>

namespace firp {
namespace {

// Bits of what is known of a byte.
constexpr std::uint8_t kTaken = 1, kLiteral = 2, kCut = 4;

/// Bytes of the first character.
std::size_t first_character(std::string_view text) {
  std::size_t size = 1;
  while (size < text.size() && (static_cast<unsigned char>(text[size]) & 0xc0) == 0x80) ++size;
  return size;
}

bool is_space(char byte) { return std::isspace(static_cast<unsigned char>(byte)) != 0; }

}  // namespace

SpecialTokens::SpecialTokens(const llama_vocab* vocabulary, std::string_view chat_template) {
  const auto marks_turns = [&](std::string_view text) {
    return !std::ranges::all_of(text, is_space) && chat_template.find(text) != std::string::npos;
  };
  constexpr int kControl = LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN;
  std::vector<Special> found;
  for (Token token = 0; token < llama_vocab_n_tokens(vocabulary); ++token) {
    const int attributes = llama_vocab_get_attr(vocabulary, token);
    if ((attributes & (kControl | LLAMA_TOKEN_ATTR_USER_DEFINED)) == 0) continue;
    const char* const text = llama_vocab_get_text(vocabulary, token);
    found.push_back({.text = text,
                     .token = token,
                     .control = (attributes & kControl) != 0 || marks_turns(text),
                     .user_defined = (attributes & LLAMA_TOKEN_ATTR_USER_DEFINED) != 0,
                     .strips_left = (attributes & LLAMA_TOKEN_ATTR_LSTRIP) != 0,
                     .strips_right = (attributes & LLAMA_TOKEN_ATTR_RSTRIP) != 0});
  }
  // Not a stable sort, as in libllama: of overlapping tokens of one length the same must win.
  std::vector<std::size_t> order(found.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return found[a].text.size() > found[b].text.size();
  });
  for (const std::size_t i : order) {
    const Special& special = specials_.emplace_back(found[i]);
    const std::size_t bytes = special.text.size();
    if (bytes == 0) continue;
    if (lengths_.empty() || lengths_.back().bytes != bytes) {
      lengths_.push_back({.bytes = bytes, .specials = {}, .first = {}, .last = {}});
    }
    Length& length = lengths_.back();
    length.specials.emplace(special.text, specials_.size() - 1);
    length.first.set(static_cast<unsigned char>(special.text.front()));
    length.last.set(static_cast<unsigned char>(special.text.back()));
  }
}

template <typename Found>
void SpecialTokens::find(const Length& length, std::string_view text, Found found) {
  for (std::size_t end = length.bytes; end <= text.size(); ++end) {
    const std::size_t begin = end - length.bytes;
    if (!length.first[static_cast<unsigned char>(text[begin])] ||
        !length.last[static_cast<unsigned char>(text[end - 1])]) {
      continue;
    }
    const auto special = length.specials.find(text.substr(begin, length.bytes));
    if (special != length.specials.end()) found(begin, special->second);
  }
}

std::vector<SpecialTokens::Piece> SpecialTokens::split(std::string_view text,
                                                       std::span<const TextRange> literal) const {
  std::vector<std::uint8_t> bits(text.size());
  for (const TextRange& range : literal) {
    std::fill(bits.begin() + range.begin, bits.begin() + range.end, kLiteral);
  }
  struct Place {
    std::size_t begin;
    std::size_t special;
  };
  std::vector<Place> places;
  std::vector<Place> found;
  for (const Length& length : lengths_) {
    found.clear();
    find(length, text, [&](std::size_t begin, std::size_t special) {
      // Longer tokens are taken already: they cover an end of what they overlap.
      if (((bits[begin] | bits[begin + length.bytes - 1]) & kTaken) == 0) {
        found.push_back({begin, special});
      }
    });
    std::ranges::stable_sort(found, {}, &Place::special);
    for (const Place& place : found) {
      const Special& special = specials_[place.special];
      std::size_t begin = place.begin;
      std::size_t end = begin + length.bytes;
      const auto has = [&](std::uint8_t bit) {
        return std::any_of(bits.begin() + begin, bits.begin() + end,
                           [&](std::uint8_t each) { return (each & bit) != 0; });
      };
      if (has(kTaken)) continue;
      if (special.control && has(kLiteral)) {
        // Or libllama would find it in the text.
        if (special.user_defined) bits[begin + first_character(special.text)] |= kCut;
        continue;
      }
      const auto strippable = [&](std::size_t at) {
        return (bits[at] & kTaken) == 0 && is_space(text[at]);
      };
      while (special.strips_left && begin > 0 && strippable(begin - 1)) --begin;
      while (special.strips_right && end < text.size() && strippable(end)) ++end;
      std::fill(bits.begin() + begin, bits.begin() + end, kTaken);
      places.push_back(place);
    }
  }
  std::ranges::sort(places, {}, &Place::begin);

  std::vector<Piece> pieces;
  std::size_t at = 0;
  const auto add_texts_up_to = [&](std::size_t end) {
    while (at < end) {
      const auto taken = [&](std::size_t i) { return (bits[i] & kTaken) != 0; };
      while (at < end && taken(at)) ++at;
      const std::size_t begin = at;
      while (at < end && !taken(at) && (at == begin || (bits[at] & kCut) == 0)) ++at;
      if (at > begin) pieces.push_back({text.substr(begin, at - begin), LLAMA_TOKEN_NULL});
    }
  };
  for (const Place& place : places) {
    add_texts_up_to(place.begin);
    const Special& special = specials_[place.special];
    pieces.push_back({special.text, special.token});
    at = place.begin + special.text.size();
  }
  add_texts_up_to(text.size());
  return pieces;
}

std::vector<TextRange> SpecialTokens::control_texts(std::string_view text) const {
  std::vector<TextRange> ranges;
  for (const Length& length : lengths_) {
    find(length, text, [&](std::size_t begin, std::size_t special) {
      if (specials_[special].control) ranges.push_back({begin, begin + length.bytes});
    });
  }
  std::ranges::sort(ranges, {}, &TextRange::begin);
  std::vector<TextRange> joined;
  for (const TextRange& range : ranges) {
    if (!joined.empty() && range.begin <= joined.back().end) {
      joined.back().end = std::max(joined.back().end, range.end);
    } else {
      joined.push_back(range);
    }
  }
  return joined;
}

}  // namespace firp
