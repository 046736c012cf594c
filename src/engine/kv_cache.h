#pragma once

#include <cstddef>
#include <span>
#include <unordered_map>
#include <vector>

#include "kernels/kernels.h"
#include "model/model_config.h"

namespace firp {

/// Keys and values of all layers.
///
/// A page holds 64 positions, aligned to absolute position: a PagePart of every layer and KV head.
/// Pages belong to a pool; a sequence has a page table. Pages are taken from slabs, in which a
/// layer's and head's parts of all pages lie side by side: attention reads them one after the
/// other. Sequences may share pages; nobody writes into one that another has, too.
///
/// The rows of the running pass have scratch slots in pages of the same form. Those of a sequence
/// follow each other, from where its context ends: its last page is their first scratch page. So a
/// row that is accepted where it belongs need not be moved; committing moves the others there.
class KvCache {
 public:
  KvCache(const ModelConfig& config, CacheType type);

  // The caller chooses the numbers of sequences.
  void add_sequence(int sequence);
  void remove_sequence(int sequence);
  int length(int sequence) const { return sequences_[sequence].length; }
  void truncate(int sequence, int length);
  /// Makes the first `length` positions of `from` the context of `to`, which is empty.
  void share(int from, int to, int length);

  /// Makes scratch slots for a pass, and gives them: `sequences` are those of its rows.
  std::span<const int> begin_pass(std::span<const int> sequences);

  /// Appends the scratch slots' keys and values, which ascend, to the sequence.
  void commit(int sequence, std::span<const int> slots);

  /// Copies page `page` of a sequence, the parts of all layers and heads one behind the other. What
  /// is behind the sequence's end is 0. `to`: [page_bytes()]
  void read_page(int sequence, int page, std::span<std::byte> to) const;
  /// Appends so many positions of a page that read_page() gave to a sequence that ends with a page.
  void append_page(int sequence, std::span<const std::byte> from, int positions);
  std::size_t page_bytes() const {
    return static_cast<std::size_t>(layers_) * kv_heads_ * part_.bytes();
  }

  /// Of sequences, and of the last pass.
  int pages_in_use() const {
    return static_cast<int>(memory_.size() * slab_pages_ - free_pages_.size());
  }

  const PagePart& part() const { return part_; }
  /// Where a layer's and head's part begins in any page, in bytes.
  std::size_t offset(int layer, int kv_head) const {
    return (static_cast<std::size_t>(layer) * kv_heads_ + kv_head) * slab_pages_ * part_.bytes();
  }
  std::span<const std::byte* const> pages(int sequence) const { return sequences_[sequence].pages; }
  std::span<const std::byte* const> scratch() const { return scratch_; }
  std::byte* scratch_page(int slot) { return scratch_[slot / kPagePositions]; }

 private:
  struct Sequence {
    int length = 0;
    std::vector<std::byte*> pages;
    int next_slot = -1;  ///< of the running pass; -1: no row of it yet
  };

  std::byte* take_page();
  void let_go(std::byte* page);
  bool is_shared(const std::byte* page) const { return more_users_.contains(page); }
  std::byte* copy_of(const std::byte* page);

  int layers_, kv_heads_;
  PagePart part_;
  std::size_t slab_pages_;
  std::vector<AlignedBytes> memory_;
  std::vector<std::byte*> free_pages_;
  std::unordered_map<const std::byte*, int> more_users_;  ///< of shared pages: users beyond one
  std::vector<Sequence> sequences_;
  // Of the running pass.
  std::vector<int> slots_;           ///< of its rows
  std::vector<std::byte*> scratch_;  ///< pages
  std::vector<bool> is_scratch_;     ///< [scratch_]: the page is no sequence's
};

}  // namespace firp
