// How the kernels of align_block_size divide their dynamic shared memory and their workspace.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/parts/layout.hpp"

namespace tessera::cuda {

/// Counters in a row of a table in shared memory: one per group, one for the dropped ids, and one
/// for pairs of remote experts and lanes without an id. Rounded up to whole 16-byte words of 16-bit
/// counters, which aligns every array below.
constexpr std::size_t counters_per_row(std::size_t num_groups) {
  return (num_groups + 2 + 7) / 8 * 8;
}

struct OneCtaLayout {
  Section<std::uint16_t> counts;  ///< a row per warp
  Section<std::uint32_t> masks;   ///< a row per warp
  Section<std::int32_t> starts;

  constexpr OneCtaLayout(std::size_t num_groups, std::size_t num_warps)
      : counts(0, num_warps * counters_per_row(num_groups)),
        masks(counts.end, num_warps * counters_per_row(num_groups)),
        starts(masks.end, counters_per_row(num_groups)) {}
  constexpr std::size_t bytes() const { return starts.end; }
};

struct RedundantLayout {
  Section<std::uint32_t> both_counts;  ///< lower half: all ids; upper half: ids of earlier CTAs
  Section<std::int32_t> starts;
  Section<std::int32_t> first_blocks;
  Section<std::uint32_t> masks;   ///< a row per warp with ids of its own
  Section<std::uint16_t> counts;  ///< a row per warp with ids of its own

  constexpr RedundantLayout(std::size_t num_groups, std::size_t ids_per_cta)
      : both_counts(0, counters_per_row(num_groups)),
        starts(both_counts.end, counters_per_row(num_groups)),
        first_blocks(starts.end, counters_per_row(num_groups)),
        masks(first_blocks.end, ids_per_cta / 32 * counters_per_row(num_groups)),
        counts(masks.end, ids_per_cta / 32 * counters_per_row(num_groups)) {}
  constexpr std::size_t bytes() const { return counts.end; }
};

struct ClusterLayout {
  Section<std::uint32_t> cta_counts;  ///< of this CTA; the others read them
  Section<std::int32_t> starts;
  Section<std::int32_t> first_blocks;
  Section<std::uint32_t> group_sizes;
  Section<std::uint32_t> masks;   ///< a row per warp
  Section<std::uint16_t> counts;  ///< a row per warp

  constexpr ClusterLayout(std::size_t num_groups, std::size_t num_warps)
      : cta_counts(0, counters_per_row(num_groups)),
        starts(cta_counts.end, counters_per_row(num_groups)),
        first_blocks(starts.end, counters_per_row(num_groups)),
        group_sizes(first_blocks.end, counters_per_row(num_groups)),
        masks(group_sizes.end, num_warps * counters_per_row(num_groups)),
        counts(masks.end, num_warps * counters_per_row(num_groups)) {}
  constexpr std::size_t bytes() const { return counts.end; }
};

struct GridLayout {
  Section<std::int32_t> group_sizes;    ///< before the barrier of this CTA, afterwards of the grid
  Section<std::int32_t> starts;         ///< where this CTA's ids of a group go
  Section<std::int32_t> sorted_starts;  ///< where this CTA's ids of a group begin in `sorted`
  Section<std::int32_t> first_blocks;
  Section<std::uint32_t> masks;        ///< a row per warp; used until the ids are ranked
  Section<std::int32_t> partial_sums;  ///< a row per warp, in the memory of `masks`
  Section<std::uint32_t> sorted;       ///< bucket << 16 | index within the CTA
  Section<std::uint16_t> counts;       ///< a row per warp

  constexpr GridLayout(std::size_t num_groups, std::size_t num_threads, std::size_t ids_per_thread)
      : group_sizes(0, counters_per_row(num_groups)),
        starts(group_sizes.end, counters_per_row(num_groups)),
        sorted_starts(starts.end, counters_per_row(num_groups)),
        first_blocks(sorted_starts.end, counters_per_row(num_groups)),
        masks(first_blocks.end, num_threads / 32 * counters_per_row(num_groups)),
        partial_sums(first_blocks.end, num_threads / 32 * counters_per_row(num_groups)),
        sorted(masks.end, num_threads * ids_per_thread),
        counts(sorted.end, num_threads / 32 * counters_per_row(num_groups)) {}
  constexpr std::size_t bytes() const { return counts.end; }
};

/// Alignment that the kernels need of their workspace, in bytes.
inline constexpr std::size_t kWorkspaceAlignment = 16;

/// The workspace of the grid kernel.
struct GridWorkspace {
  std::size_t row_length;
  Section<std::uint16_t> counts;   ///< a row per CTA
  Section<std::uint32_t> dropped;  ///< of each CTA

  constexpr GridWorkspace(std::size_t num_groups, std::size_t num_ctas)
      : row_length((num_groups + 7) / 8 * 8),
        counts(0, num_ctas * row_length),
        dropped(counts.end, num_ctas) {}
  constexpr std::size_t bytes() const { return dropped.end; }
};

/// What a CTA of the wide kernel passes on to the others.
struct WideCtaSums {
  std::uint32_t blocks;
  std::uint32_t dropped;
  std::uint32_t assigned_pairs;
  std::uint32_t active_experts;
  std::uint32_t max_load;
  std::uint32_t filtered_pairs;
  std::uint32_t invalid_entries;
  std::uint32_t first_invalid_entry;
};

/// The workspace of the wide kernel.
struct WideWorkspace {
  Section<std::uint32_t> counts;  ///< a row of num_groups per CTA
  Section<std::uint32_t> group_sizes;
  Section<std::uint32_t> first_blocks;
  Section<WideCtaSums> cta_sums;

  constexpr WideWorkspace(std::size_t num_groups, std::size_t num_ctas)
      : counts(0, num_ctas * num_groups),
        group_sizes(counts.end, num_groups),
        first_blocks(group_sizes.end, num_groups),
        cta_sums(first_blocks.end, num_ctas) {}
  constexpr std::size_t bytes() const { return cta_sums.end; }
};

/// Bound on the static shared memory of the kernels that have dynamic shared memory, too. The
/// kernels assert it, and preparing a kernel checks it.
inline constexpr std::size_t kStaticSharedBytes = 288;

}  // namespace tessera::cuda
