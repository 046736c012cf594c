#include "draft/ngram.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace firp {
namespace {

constexpr int kShortest = 2, kLongest = 4;  // n-grams that are looked up
constexpr double kWeight = 1.0 / 24;

std::uint64_t hash_of(std::span<const Token> tokens) {
  std::uint64_t hash = tokens.size();
  for (const Token token : tokens) {
    hash = (hash ^ static_cast<std::uint64_t>(token)) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  }
  return hash;
}

}  // namespace

DraftTree NgramSource::draft(std::span<const Token> text, int most_tokens) {
  last_.clear();
  const auto size = static_cast<int>(text.size());
  const auto known = static_cast<int>(indexed_.size());
  if (known > size || !std::equal(indexed_.begin(), indexed_.end(), text.begin())) {
    indexed_.clear();
    ends_.clear();
  }
  // All but the last token: an n-gram that ends there is the one that is looked up.
  for (int end = static_cast<int>(indexed_.size()) + 1; end < size; ++end) {
    indexed_.push_back(text[end - 1]);
    for (int n = kShortest; n <= std::min(kLongest, end); ++n) {
      ends_[hash_of(text.subspan(end - n, n))] = end;
    }
  }

  for (int n = std::min(kLongest, size); n >= kShortest && last_.empty(); --n) {
    const auto found = ends_.find(hash_of(text.last(n)));
    if (found == ends_.end()) continue;
    const int end = found->second;
    int match = 0;  // counted, not believed: hashes may collide
    while (match < std::min(kLongestMatch, end) &&
           text[end - 1 - match] == text[size - 1 - match]) {
      ++match;
    }
    if (match < n) continue;
    last_match_ = match;
    const int count = std::min({kMostTokens, most_tokens, size - end});
    float log_probability = 0;
    for (int i = 0; i < count; ++i) {
      log_probability +=
          static_cast<float>(std::log(hit_rate_[std::min(match + i, kLongestMatch)]));
      last_.push_back({text[end + i], i - 1, i + 1, log_probability, /*from_text=*/true});
    }
  }
  return last_;
}

void NgramSource::observe(std::span<const Token> came) {
  for (std::size_t i = 0; i < std::min(last_.size(), came.size()); ++i) {
    const bool hit = last_[i].token == came[i];
    double& rate = hit_rate_[std::min(last_match_ + static_cast<int>(i), kLongestMatch)];
    rate = std::clamp(rate + kWeight * ((hit ? 1.0 : 0.0) - rate), 0.02, 0.98);
    if (!hit) break;
  }
  last_.clear();
}

DraftTree join(const DraftTree& tree, const DraftTree& path) {
  DraftTree all = tree;
  int parent = kRoot;
  for (const DraftNode& node : path) {
    const auto same = std::ranges::find_if(all, [&](const DraftNode& other) {
      return other.parent == parent && other.token == node.token;
    });
    if (same != all.end()) {
      same->log_probability = std::max(same->log_probability, node.log_probability);
      same->from_text = true;
      parent = static_cast<int>(same - all.begin());
    } else {
      all.push_back({node.token, parent, node.depth, node.log_probability, node.from_text});
      parent = static_cast<int>(all.size()) - 1;
    }
  }
  // A node is at least as probable as what stands behind it; here children stand behind parents.
  for (std::size_t i = all.size(); i-- > 0;) {
    if (all[i].parent == kRoot) continue;
    float& of_parent = all[all[i].parent].log_probability;
    of_parent = std::max(of_parent, all[i].log_probability);
  }
  std::vector<int> order(all.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int a, int b) {
    return all[a].log_probability > all[b].log_probability ||
           (all[a].log_probability == all[b].log_probability && all[a].depth < all[b].depth);
  });
  std::vector<int> place(all.size());
  for (std::size_t i = 0; i < order.size(); ++i) place[order[i]] = static_cast<int>(i);
  DraftTree sorted;
  for (const int old : order) {
    DraftNode node = all[old];
    if (node.parent != kRoot) node.parent = place[node.parent];
    sorted.push_back(node);
  }
  return sorted;
}

}  // namespace firp
