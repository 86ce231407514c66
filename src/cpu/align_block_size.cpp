// cpu/counting_sort: counts the ids of every group, lays the groups out, places every index.
//
// It differs from the textbook in three ways:
//  - Ids are processed in batches: all loads of a batch come before its stores. Otherwise a
//    processor that may not let a load pass a store of unknown address (SSBD), or that mispredicts
//    doing so, waits once per id.
//  - No branch depends on an id, unless it changes during the call. Ids outside [0, E) and pairs of
//    remote experts are counted and placed like any other, in buckets of their own behind the last
//    group, and these slots are finally overwritten with N. There is room: capacity is at least N.
//  - A large batch is cut into slices for several threads. Each slice is counted separately; the
//    counts give it its own place inside every group, so the order, and every bit, stays the same.
#include "cpu/align_block_size.hpp"

#include <algorithm>
#include <cstring>
#include <cwchar>
#include <functional>
#include <limits>
#include <type_traits>

#include "core/dispatch.hpp"
#include "cpu/align_block_size_buckets.hpp"
#include "cpu/align_block_size_groups.hpp"
#include "cpu/align_block_size_statistics.hpp"
#include "cpu/integer_ids.hpp"
#include "cpu/read_once.hpp"
#include "cpu/thread_pool.hpp"
#include "cpu/workspace.hpp"

namespace tessera::cpu {
namespace {

using core::AlignBlockSizeProblem;

// Fewest ids per thread that make waking it worthwhile: a sleeping thread starts some 50 us late on
// a virtual machine, and one thread sorts 32,768 ids in that time.
constexpr std::int64_t kIdsPerThread = 32768;

// More slices than threads, so that a thread that starts late still finds work, and threads end
// together; but no slice so short that the cost of claiming it shows.
constexpr std::int64_t kSlicesPerThread = 16;
constexpr std::int64_t kIdsPerSlice = 16384;

// Ids per batch: as many as fit into registers; placing needs twice as many registers per id. GCC
// unrolls loops around atomic loads only with the pragmas below.
constexpr int kCountedAtOnce = 8;
constexpr int kPlacedAtOnce = 4;

// Up to this many ids, sorting keys beats a walk over all experts, however few experts there are.
constexpr std::int32_t kFewIds = 16;

// With more experts per id than this, sorting keys wins for any number of ids.
constexpr std::int64_t kSparseExpertsPerId = 64;

bool is_sparse(std::int64_t num_ids, std::int64_t num_experts) {
  return num_experts > kSparseExpertsPerId * num_ids;
}

// Up to this average group size, one fill of the whole output, which writes the ids' slots twice,
// beats one fill per group.
constexpr std::int64_t kFillFirstGroupSize = 64;

/// How a call is split. More threads never lead to fewer slices, nor to a smaller workspace.
struct Split {
  int num_threads = 1;
  int num_slices = 1;

  /// Calls `max_threads` only for a batch that is large enough for threads.
  Split(std::int64_t num_ids, std::int64_t num_experts, const Context& context,
        int (*max_threads)(const Context&)) {
    if (num_ids < 2 * kIdsPerThread) return;
    const std::int64_t threads =
        std::min<std::int64_t>(num_ids / kIdsPerThread, max_threads(context));
    if (threads < 2) return;
    // A slice costs a few passes over all experts.
    const std::int64_t slices =
        std::min({threads * kSlicesPerThread, num_ids / kIdsPerSlice, num_ids / (4 * num_experts),
                  std::int64_t{ThreadPool::kMaxSlices}});
    if (slices < 2) return;
    num_threads = static_cast<int>(std::min(threads, slices));
    num_slices = static_cast<int>(slices);
  }
};

/// Ints in a table with one counter per bucket: at most E + 1 groups, the dropped ids and the pairs
/// of remote experts.
std::int64_t table_stride(std::int64_t num_experts) {
  constexpr std::int64_t kIntsPerCacheLine = 16;
  return (num_experts + 3 + kIntsPerCacheLine - 1) / kIntsPerCacheLine * kIntsPerCacheLine;
}

template <typename Id, typename Buckets>
void count_ids(const Id* ids, std::int64_t begin, std::int64_t end, Buckets bucket_of,
               std::int32_t* counts) {
  std::int64_t i = begin;
  for (; i + kCountedAtOnce <= end; i += kCountedAtOnce) {
    std::uint32_t bucket[kCountedAtOnce];
#pragma GCC unroll 8
    for (int k = 0; k < kCountedAtOnce; ++k) bucket[k] = bucket_of(read_once(ids + i + k));
#pragma GCC unroll 8
    for (int k = 0; k < kCountedAtOnce; ++k) ++counts[bucket[k]];
  }
  for (; i < end; ++i) ++counts[bucket_of(read_once(ids + i))];
}

/// Ids that have changed since they were counted may move a cursor beyond sorted_token_ids, which
/// has `num_slots`: nothing is written there, and a cursor that overflows wraps.
template <typename Id, typename Buckets>
void place_ids(const Id* ids, std::int64_t begin, std::int64_t end, Buckets bucket_of,
               std::uint32_t* cursors, std::int32_t* sorted_token_ids, std::uint32_t num_slots) {
  const auto place = [&](std::uint32_t slot, std::int64_t index) {
    if (slot < num_slots) [[likely]] {
      // Atomic, because two slices may place changed ids in the same slot; the generated code is
      // the same.
      __atomic_store_n(sorted_token_ids + slot, static_cast<std::int32_t>(index), __ATOMIC_RELAXED);
    }
  };
  std::int64_t i = begin;
  for (; i + kPlacedAtOnce <= end; i += kPlacedAtOnce) {
    std::uint32_t bucket[kPlacedAtOnce];
    std::uint32_t slot[kPlacedAtOnce];
#pragma GCC unroll 8
    for (int k = 0; k < kPlacedAtOnce; ++k) bucket[k] = bucket_of(read_once(ids + i + k));
#pragma GCC unroll 8
    for (int k = 0; k < kPlacedAtOnce; ++k) slot[k] = cursors[bucket[k]]++;
#pragma GCC unroll 8
    for (int k = 0; k < kPlacedAtOnce; ++k) place(slot[k], i + k);
  }
  for (; i < end; ++i) place(cursors[bucket_of(read_once(ids + i))]++, i);
}

void fill(std::int32_t* first, std::int64_t count, std::int32_t value) {
  if (count == 0) return;  // there may be no memory
  if constexpr (sizeof(wchar_t) == sizeof(std::int32_t)) {
    // The C library picks the widest stores of the machine it runs on.
    std::wmemset(reinterpret_cast<wchar_t*>(first), static_cast<wchar_t>(value),
                 static_cast<std::size_t>(count));
  } else {
    std::fill_n(first, count, value);
  }
}

/// One table per slice of the ids, with counters that become cursors.
struct Tables {
  std::int32_t* data;
  std::int64_t stride;
  int num_slices;

  std::int32_t* slice(int s) const { return data + s * stride; }

  /// Replaces the counts of a bucket by the slots where each slice starts. Returns the end.
  std::int32_t start_at(std::int32_t slot, std::int32_t bucket) const {
    for (int s = 0; s < num_slices; ++s) {
      std::int32_t& entry = slice(s)[bucket];
      const std::int32_t count = entry;
      entry = slot;
      slot += count;
    }
    return slot;
  }
};

/// The value of expert_ids for a block of `group`.
struct BlockExpert {
  const std::int32_t* expert_map;  // null: the group itself
  std::int32_t num_experts;

  explicit BlockExpert(const AlignBlockSizeProblem& p)
      : expert_map(p.drops_remote ? nullptr : p.expert_map), num_experts(p.num_experts) {}

  std::int32_t operator()(std::int32_t group) const {
    return expert_map == nullptr ? group : mapped_expert(expert_map, num_experts, group);
  }
};

void fill_expert_tail(const AlignBlockSizeProblem& p, std::int32_t num_blocks) {
  const std::int32_t shown =
      p.map_tail ? mapped_expert(p.expert_map, p.num_experts, p.tail_expert) : p.tail_expert;
  fill(p.expert_ids + num_blocks, p.expert_ids_length - num_blocks, shown);
}

/// Ends of the buckets. Duplicates num_tokens_post_pad, because outputs are never read: another
/// thread may change them, like the inputs.
struct Layout {
  std::int32_t num_dropped;
  std::int32_t groups_end;   // num_tokens_post_pad
  std::int32_t buckets_end;  // indices in no group lie between groups_end and here
};

/// Writes all outputs but the indices themselves and `validation`, and turns the tables' counts
/// into cursors. If `first_group` is -1, buckets are numbered as by FilteredBuckets.
Layout lay_out(const AlignBlockSizeProblem& p, std::int32_t first_group, const std::int32_t* totals,
               const Tables& tables) {
  const std::int32_t num_groups = p.num_experts - first_group;
  const std::int32_t* const expert_totals = totals - first_group;
  if (p.expert_counts != nullptr) std::copy_n(expert_totals, p.num_experts, p.expert_counts);
  const std::int32_t num_dropped = totals[num_groups];
  if (p.num_dropped != nullptr) *p.num_dropped = num_dropped;
  Loads loads;
  if (p.statistics != nullptr) {
    for (std::int32_t e = 0; e < p.num_experts; ++e) loads.add(expert_totals[e]);
  }
  const std::int32_t num_filtered = first_group == 0 ? 0 : totals[0];

  const bool fills_first = p.num_ids <= kFillFirstGroupSize * num_groups;
  if (fills_first) fill(p.sorted_token_ids, p.sorted_token_ids_length, p.num_ids);

  const double inverse_block = 1.0 / p.block_size;
  const BlockExpert block_expert(p);
  std::int32_t slot = 0;
  std::int32_t block = 0;
  for (std::int32_t first = 0; first < num_groups; first += Groups::kMaxBuckets) {
    const Groups groups(totals, first, std::min(Groups::kMaxBuckets, num_groups - first),
                        inverse_block);
    for (int k = 0; k < groups.num; ++k) {
      const std::int32_t bucket = groups.bucket[k];
      const std::int32_t num_blocks = groups.num_blocks[k];
      const std::int32_t end = tables.start_at(slot, bucket);
      slot += num_blocks * p.block_size;
      if (!fills_first) fill(p.sorted_token_ids + end, slot - end, p.num_ids);
      const std::int32_t shown = block_expert(bucket + first_group);
      for (std::int32_t b = 0; b < num_blocks; ++b) p.expert_ids[block++] = shown;
    }
  }
  const std::int32_t groups_end = slot;
  *p.num_tokens_post_pad = groups_end;
  fill_expert_tail(p, block);
  if (p.statistics != nullptr) loads.write_statistics(p, block, num_filtered);
  for (const std::int32_t bucket : {num_groups, num_groups + 1}) {
    slot = tables.start_at(slot, bucket);
  }
  if (!fills_first) {
    fill(p.sorted_token_ids + slot, p.sorted_token_ids_length - slot, p.num_ids);
  }
  return {num_dropped, groups_end, slot};
}

/// Returns the number of dropped ids. `for_each_slice(task)` calls task(s) for every slice of
/// `tables`, all at once or in turn.
template <typename Id, typename Buckets, typename ForEachSlice>
std::int32_t sort_slices(const AlignBlockSizeProblem& p, const Id* ids, Buckets bucket_of,
                         std::int32_t* totals, const Tables& tables, ForEachSlice for_each_slice) {
  const auto slice_begin = [&](int s) { return std::int64_t{p.num_ids} * s / tables.num_slices; };

  for_each_slice([&](int s) {
    std::memset(tables.slice(s), 0, tables.stride * sizeof(std::int32_t));
    count_ids(ids, slice_begin(s), slice_begin(s + 1), bucket_of, tables.slice(s));
  });
  if (tables.num_slices == 1) {
    totals = tables.slice(0);
  } else {
    std::copy_n(tables.slice(0), tables.stride, totals);
    for (int s = 1; s < tables.num_slices; ++s) {
      for (std::int64_t b = 0; b < tables.stride; ++b) totals[b] += tables.slice(s)[b];
    }
  }
  const Layout layout = lay_out(p, Buckets::kFirstGroup, totals, tables);
  const auto num_slots = static_cast<std::uint32_t>(
      std::min<std::int64_t>(p.sorted_token_ids_length, std::numeric_limits<std::int32_t>::max()));
  for_each_slice([&](int s) {
    place_ids(ids, slice_begin(s), slice_begin(s + 1), bucket_of,
              reinterpret_cast<std::uint32_t*>(tables.slice(s)), p.sorted_token_ids, num_slots);
  });
  if (layout.buckets_end != layout.groups_end) {
    fill(p.sorted_token_ids + layout.groups_end, layout.buckets_end - layout.groups_end, p.num_ids);
  }
  return layout.num_dropped;
}

/// Sorts few ids by bucket and index: needs no table, so neither time nor memory depends on E.
/// `keys` has room for every id. Returns the number of dropped ids.
template <typename Id, typename Buckets>
std::int32_t sort_keys(const AlignBlockSizeProblem& p, const Id* ids, Buckets bucket_of,
                       std::uint64_t* keys) {
  for (std::int32_t i = 0; i < p.num_ids; ++i) {
    const std::uint32_t bucket = bucket_of(read_once(ids + i));
    keys[i] = std::uint64_t{bucket} << 32 | static_cast<std::uint32_t>(i);
  }
  std::sort(keys, keys + p.num_ids);
  const auto bucket_at = [&](std::int32_t k) { return static_cast<std::int32_t>(keys[k] >> 32); };

  fill(p.sorted_token_ids, p.sorted_token_ids_length, p.num_ids);
  if (p.expert_counts != nullptr) fill(p.expert_counts, p.num_experts, 0);
  const BlockExpert block_expert(p);
  const std::int32_t num_groups = p.num_experts - Buckets::kFirstGroup;
  Loads loads;
  std::int32_t num_filtered = 0;
  std::int32_t block = 0;
  std::int32_t k = 0;
  while (k < p.num_ids && bucket_at(k) < num_groups) {
    const std::int32_t bucket = bucket_at(k);
    const std::int32_t group = bucket + Buckets::kFirstGroup;
    const std::int32_t begin = k;
    const std::int32_t start = block * p.block_size;
    do {
      if ((k - begin) % p.block_size == 0) p.expert_ids[block++] = block_expert(group);
      p.sorted_token_ids[start + (k - begin)] = static_cast<std::int32_t>(keys[k] & 0xffffffff);
      ++k;
    } while (k < p.num_ids && bucket_at(k) == bucket);
    if (group < 0) {
      num_filtered = k;
      continue;
    }
    loads.add(k - begin);
    if (p.expert_counts != nullptr) p.expert_counts[group] = k - begin;
  }
  *p.num_tokens_post_pad = block * p.block_size;
  fill_expert_tail(p, block);
  const std::int32_t begin = k;
  while (k < p.num_ids && bucket_at(k) == num_groups) ++k;
  const std::int32_t num_dropped = k - begin;
  if (p.num_dropped != nullptr) *p.num_dropped = num_dropped;
  if (p.statistics != nullptr) loads.write_statistics(p, block, num_filtered);
  return num_dropped;
}

/// Returns the number of dropped ids.
template <typename Id, typename Buckets>
std::int32_t sort_ids(const AlignBlockSizeProblem& p, const Id* ids, Buckets bucket_of,
                      const Context& context) {
  if (p.num_ids <= kFewIds) {
    std::uint64_t keys[kFewIds];
    return sort_keys(p, ids, bucket_of, keys);
  }
  if (is_sparse(p.num_ids, p.num_experts)) {
    return sort_keys(p, ids, bucket_of, Workspace::array_in<std::uint64_t>(context.workspace));
  }

  const Split split(p.num_ids, p.num_experts, context, core::max_threads);
  const std::int64_t stride = table_stride(p.num_experts);
  const Tables tables{Workspace::array_in<std::int32_t>(context.workspace), stride,
                      split.num_slices};
  std::int32_t* const totals = tables.slice(split.num_slices);  // unused by one slice
  if (split.num_threads == 1) {
    return sort_slices(p, ids, bucket_of, totals, tables, [](const auto& task) { task(0); });
  }
  ThreadPool::Lease threads(split.num_threads);
  return sort_slices(p, ids, bucket_of, totals, tables,
                     [&](const auto& task) { threads.run(split.num_slices, std::cref(task)); });
}

}  // namespace

std::size_t counting_sort_workspace_bytes(const AlignBlockSizeProblem& p, const Context& context) {
  if (p.num_ids <= kFewIds) return 0;
  if (is_sparse(p.num_ids, p.num_experts)) {
    return Workspace::bytes_for<std::uint64_t>(p.num_ids);
  }
  // A table per slice, and one for the totals of several slices: enough for a call that may use
  // more threads than this one.
  const Split largest(p.num_ids, p.num_experts, context, core::max_possible_threads);
  const std::int64_t num_tables = largest.num_slices == 1 ? 1 : largest.num_slices + 1;
  return Workspace::bytes_for<std::int32_t>(num_tables * table_stride(p.num_experts));
}

Status align_block_size_counting_sort(const AlignBlockSizeProblem& p, const Context& context) {
  with_typed_ids(p, [&](const auto* ids) {
    const auto run = [&](auto bucket_of) {
      const std::int32_t num_dropped = sort_ids(p, ids, bucket_of, context);
      if (p.validation != nullptr) write_validation(p, ids, bucket_of, num_dropped);
    };
    const auto run_filtered_or_not = [&](auto bucket_of) {
      // No unsigned value is -1.
      if constexpr (std::is_signed_v<std::remove_cvref_t<decltype(*ids)>>) {
        if (p.filtered_group) return run(FilteredBuckets<decltype(bucket_of)>{bucket_of});
      }
      run(bucket_of);
    };
    const auto num_experts = static_cast<std::uint32_t>(p.num_experts);
    if (p.drops_remote) {
      run_filtered_or_not(LocalBuckets{num_experts, p.expert_map});
    } else {
      run_filtered_or_not(GlobalBuckets{num_experts});
    }
  });
  return {};
}

}  // namespace tessera::cpu
