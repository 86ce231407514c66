// What the launcher of align_block_size and its kernels share: plain structs and function pointers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/parts/division.hpp"

namespace tessera::cuda {

/// How a kernel reads ids. Of one width, signed and unsigned ids differ only in `id_limit`.
enum class IdWidth { kNarrow, k32, k64 };  // kNarrow: 8 or 16 bits
inline constexpr int kNumIdWidths = 3;

/// The arguments of every kernel; names and meaning are those of the op's contract. Each kernel has
/// two instances: most calls need no more than these, and what they do not use costs them nothing.
struct AlignBlockSizeKernelArgs {
  const void* topk_ids;
  std::int32_t num_ids;
  std::int32_t id_bytes;   ///< 1 or 2; only read for narrow ids
  std::uint32_t id_limit;  ///< an id, taken as unsigned and biased, is valid below this
  std::uint32_t num_experts;
  const std::int32_t* expert_map;  ///< null: none
  bool drops_remote;
  std::int32_t tail_expert;

  std::int32_t block_size;
  Division block_division;

  std::int32_t* sorted_token_ids;
  std::int64_t sorted_token_ids_length;
  std::int32_t* expert_ids;
  std::int64_t expert_ids_length;
  std::int32_t* num_tokens_post_pad;
  std::int32_t* expert_counts;  ///< null: not asked for
  std::int32_t* num_dropped;    ///< null: not asked for

  std::int32_t ids_per_thread;  ///< of a CTA's own ids
  std::int32_t ids_per_cta;     ///< a CTA's own ids; the last CTAs may have fewer, or none
  bool fills_first;             ///< all of sorted_token_ids is filled before ids are placed
  std::uint32_t last_slot;      ///< of sorted_token_ids, or 2^31 - 1, which no id is placed beyond
  void* workspace;
};

/// What is fixed in the plain instances.
struct AlignBlockSizePlainArgs : AlignBlockSizeKernelArgs {
  // NOLINTBEGIN(readability-identifier-naming): the names of the members below.
  static constexpr std::uint32_t id_bias = 0;
  static constexpr std::uint32_t id_shift = 0;
  static constexpr std::uint32_t id_mask = ~0u;
  static constexpr std::int32_t first_expert = 0;
  static constexpr bool id_is_signed = false;
  static constexpr bool map_tail = false;
  static constexpr double reciprocal_of_experts = 0;
  static constexpr double* statistics = nullptr;
  static constexpr std::int64_t* validation = nullptr;
  // NOLINTEND(readability-identifier-naming)
};

/// The arguments of the extended instances; begins with those of the plain ones.
struct AlignBlockSizeExtendedArgs : AlignBlockSizeKernelArgs {
  std::uint32_t id_bias;      ///< 1 where the id -1 is valid
  std::uint32_t id_shift;     ///< from a valid biased id to its bucket
  std::uint32_t id_mask;      ///< the bits of a narrow id
  std::int32_t first_expert;  ///< bucket of expert 0: 1 where the filtered pairs are a group
  bool id_is_signed;
  bool map_tail;
  double reciprocal_of_experts;  ///< 1 / num_experts, rounded to nearest
  double* statistics;            ///< null: not asked for
  std::int64_t* validation;      ///< null: not asked for
};

// The kernels: null where no instance has this number of threads. What each needs in dynamic shared
// memory, in bytes, and in workspace is said next to it.

/// At most kFewMaxIds ids, one CTA of up to 256 threads; no dynamic shared memory.
const void* align_block_size_few_kernel(IdWidth width, int num_threads, bool is_extended);
inline constexpr int kFewMaxIds = 32;

/// At most num_threads * kOneCtaMaxIdsPerThread ids, one CTA.
const void* align_block_size_one_cta_kernel(IdWidth width, int num_threads, bool is_extended);
inline constexpr int kOneCtaMaxIdsPerThread = 4;

/// Fewer than 65,536 ids, at most num_threads of them a CTA; every CTA counts all of them.
const void* align_block_size_redundant_kernel(IdWidth width, int num_threads, bool is_extended);
inline constexpr int kRedundantMaxIds = 65535;

/// One cluster, which exchanges its counts through distributed shared memory; from compute
/// capability 9.0 on.
const void* align_block_size_cluster_kernel(IdWidth width, int num_threads, bool is_extended);
inline constexpr int kClusterMaxCtas = 16;
inline constexpr int kClusterMaxIdsPerThread = 4;

/// A cooperative grid with one barrier; the plain instance does not count dropped ids. Workspace:
/// see grid_workspace_bytes.
const void* align_block_size_grid_kernel(IdWidth width, int num_threads, bool is_extended);
constexpr int grid_max_ids_per_thread(int num_threads) { return num_threads == 1024 ? 16 : 8; }

/// A cooperative grid for any number of ids and experts, with three barriers.
const void* align_block_size_wide_kernel(IdWidth width, int num_threads, bool is_extended);
inline constexpr int kWideIdsPerThread = 16;

// What the kernels need of shared memory and workspace depends on the number of groups, which the
// policy and the functions below take for the number of experts.

/// Counters in a table of one row of shared memory: the groups, the dropped ids, and the pairs of
/// remote experts together with lanes that have no id; whole 16-byte words for either counter size.
constexpr std::size_t counters_per_row(std::size_t num_experts) {
  return (num_experts + 2 + 7) / 8 * 8;
}

/// Besides their dynamic shared memory these kernels have a word a warp, and what they gather to
/// report.
inline constexpr std::size_t kStaticSharedBytes = 288;

constexpr std::size_t one_cta_shared_bytes(std::size_t num_experts, int num_threads) {
  // A row of 16-bit counters and one of lane masks a warp, the starts of the groups.
  return counters_per_row(num_experts) * (num_threads / 32 * (2 + 4) + 4);
}

constexpr std::size_t redundant_shared_bytes(std::size_t num_experts, int ids_per_cta) {
  // Rows only for the warps that have own ids; the packed counts and first blocks of the groups.
  return counters_per_row(num_experts) * (ids_per_cta / 32 * (2 + 4) + 3 * 4);
}

constexpr std::size_t cluster_shared_bytes(std::size_t num_experts, int num_threads) {
  return counters_per_row(num_experts) * (num_threads / 32 * (2 + 4) + 4 * 4);
}

constexpr std::size_t grid_shared_bytes(std::size_t num_experts, int num_threads,
                                        int ids_per_thread) {
  // Also the CTA's own ids, sorted.
  return counters_per_row(num_experts) * (num_threads / 32 * (2 + 4) + 4 * 4) +
         sizeof(std::uint32_t) * num_threads * ids_per_thread;
}

/// Elements of a CTA's row of 16-bit counts in the workspace of the grid kernel.
constexpr std::size_t grid_row_length(std::size_t num_experts) { return (num_experts + 7) / 8 * 8; }

constexpr std::size_t grid_workspace_bytes(std::size_t num_experts, std::size_t num_ctas) {
  return num_ctas * (sizeof(std::uint16_t) * grid_row_length(num_experts) + sizeof(std::uint32_t));
}

/// Blocks and dropped ids; assigned pairs, active experts, largest load and filtered pairs; number
/// and first of the invalid map entries.
inline constexpr std::size_t kWideWordsPerCta = 8;

constexpr std::size_t wide_workspace_bytes(std::size_t num_experts, std::size_t num_ctas) {
  // A row of counts a CTA, the groups' sizes and first blocks, and the words of each CTA.
  return sizeof(std::uint32_t) * (num_experts * (num_ctas + 2) + kWideWordsPerCta * num_ctas);
}

/// Alignment that the kernels need of their workspace.
inline constexpr std::size_t kWorkspaceAlignment = 16;

}  // namespace tessera::cuda
