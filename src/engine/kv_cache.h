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
/// A page holds 64 positions, aligned to absolute position: a PagePart of every layer and KV head
/// of a group. Layers that see all positions are one group, those of a window another: pages that
/// no window reaches any more are given back, while the others stay. Pages of a group belong to a
/// pool; a sequence has a page table for each group. Pages are taken from slabs, in which a layer's
/// and head's parts of all pages lie side by side: attention reads them one after the other.
/// Sequences may share pages; nobody writes into one that another has, too.
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
  /// What truncate() and share() can give of a sequence's first `length` positions: all of them, or
  /// 0 where a window would reach back to pages that were given back.
  int keepable(int sequence, int length) const;
  void truncate(int sequence, int length);
  /// Makes the first `length` positions of `from` the context of `to`, which is empty.
  void share(int from, int to, int length);

  /// Makes scratch slots for a pass, and gives them: `sequences` are those of its rows.
  std::span<const int> begin_pass(std::span<const int> sequences);

  /// Appends the scratch slots' keys and values, which ascend, to the sequence.
  void commit(int sequence, std::span<const int> slots);

  /// Copies page `page` of a sequence, the parts of all layers and heads one behind the other. What
  /// is behind the sequence's end, or was given back, is 0. `to`: [page_bytes()]
  void read_page(int sequence, int page, std::span<std::byte> to) const;
  /// Appends so many positions of a page that read_page() gave to a sequence that ends with a page.
  void append_page(int sequence, std::span<const std::byte> from, int positions);
  std::size_t page_bytes() const;  ///< of all layers

  /// Of sequences, and of the last pass: 64 for so much memory as a page of all layers takes.
  int positions_in_use() const;

  const PagePart& part() const { return part_; }
  /// Where a layer's and head's part begins in any page of its group, in bytes.
  std::size_t offset(int layer, int kv_head) const {
    return group_of(layer).offset(places_[layer].index, kv_head);
  }
  /// A layer's pages of a sequence; nullptr for those that were given back.
  std::span<const std::byte* const> pages(int sequence, int layer) const {
    return sequences_[sequence].pages[places_[layer].group];
  }
  std::span<const std::byte* const> scratch(int layer) const { return group_of(layer).scratch; }
  std::byte* scratch_page(int layer, int slot) {
    return groups_[places_[layer].group].scratch[slot / kPagePositions];
  }

 private:
  /// Layers with the same window, and the pool of their pages.
  struct Group {
    int window, layers = 0;
    int kv_heads;
    std::size_t part_bytes;
    std::size_t slab_pages = 0;
    std::vector<AlignedBytes> memory;
    std::vector<std::byte*> free_pages;
    std::unordered_map<const std::byte*, int> more_users;  ///< of shared pages: users beyond one
    std::vector<std::byte*> scratch;                       ///< pages of the running pass

    int parts() const { return layers * kv_heads; }
    std::size_t page_bytes() const { return parts() * part_bytes; }
    std::size_t offset(int part) const { return part * slab_pages * part_bytes; }
    std::size_t offset(int index, int kv_head) const { return offset(index * kv_heads + kv_head); }
    std::byte* take_page();
    void let_go(std::byte* page);
    std::byte* copy_of(const std::byte* page);
    /// Gives the pages back that end before this position.
    void give_back(std::vector<std::byte*>& pages, int first_kept);
  };
  struct Place {  ///< of a layer
    int group, index;
  };
  struct Sequence {
    int length = 0;
    std::vector<std::vector<std::byte*>> pages;  ///< by group
    int next_slot = -1;                          ///< of the running pass; -1: no row of it yet
  };

  const Group& group_of(int layer) const { return groups_[places_[layer].group]; }

  PagePart part_;
  std::vector<Group> groups_;
  std::vector<Place> places_;  ///< [layers]
  std::vector<Sequence> sequences_;
  // Of the running pass.
  std::vector<int> slots_;        ///< of its rows
  std::vector<bool> is_scratch_;  ///< of each scratch page: it is no sequence's
};

}  // namespace firp
