#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "kernels/kernels.h"
#include "model/model_config.h"

namespace firp {

/// Keys and values of all layers.
///
/// A page holds 64 positions, aligned to absolute position: a PagePart of every layer and KV head.
/// Pages belong to a pool; a sequence has a page table. Pages are taken from slabs, in which a
/// layer's and head's parts of all pages lie side by side: attention reads them one after the
/// other. The rows of the running pass have scratch slots in pages of the same form; committing
/// moves accepted rows from there to the sequence's pages. Where a pass is one sequence's, its last
/// page is the first scratch page, and a row that was accepted where it belongs need not be moved.
class KvCache {
 public:
  KvCache(const ModelConfig& config, CacheType type, int scratch_slots);

  int add_sequence();  ///< the lowest free number
  void remove_sequence(int sequence);
  bool has_sequence(int sequence) const;
  int length(int sequence) const { return sequences_[sequence].length; }
  void truncate(int sequence, int length);

  /// Makes the scratch slots ready for a pass whose first row is of `sequence`, `alone` if all are.
  /// Gives the slot of the first row; those of the others follow it.
  int begin_pass(int sequence, bool alone);

  /// Appends the scratch slots' keys and values, in this order, to the sequence. In a pass of it
  /// alone, the slots ascend.
  void commit(int sequence, std::span<const int> slots);

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
    bool used = false;
    int length = 0;
    std::vector<std::byte*> pages;
  };

  std::byte* take_page();
  std::size_t page_bytes() const {
    return static_cast<std::size_t>(layers_) * kv_heads_ * part_.bytes();
  }

  int layers_, kv_heads_;
  PagePart part_;
  std::size_t slab_pages_;
  std::vector<AlignedBytes> memory_;
  std::vector<std::byte*> free_pages_;
  std::vector<std::byte*> scratch_;      ///< of this pass
  std::vector<std::byte*> own_scratch_;  ///< nullptr where a sequence has kept the page
  bool alone_ = false;                   ///< this pass is one sequence's
  std::vector<Sequence> sequences_;
};

}  // namespace firp
