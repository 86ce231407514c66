// What the launcher of align_block_size and its kernels share: arguments, limits and the functions
// that find a kernel's instances. No CUDA headers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cuda/parts/division.hpp"

namespace tessera::cuda {

/// The widths of ids that kernels are instantiated for. Signed and unsigned ids of one width share
/// an instance and differ in `id_limit`.
enum class IdWidth { kNarrow, k32, k64 };  // kNarrow: 8 or 16 bits
inline constexpr int kNumIdWidths = 3;

/// The arguments of every kernel. Members have the names and meaning of the op's contract.
struct AlignBlockSizeKernelArgs {
  const void* topk_ids;
  std::int32_t num_ids;
  std::int32_t id_bytes;   ///< 1 or 2; read for narrow ids only
  std::uint32_t id_limit;  ///< an id, read as unsigned and biased, is valid below this
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
  std::int32_t* expert_counts;  ///< null: not requested
  std::int32_t* num_dropped;    ///< null: not requested

  std::int32_t ids_per_thread;  ///< of the CTA's own ids
  std::int32_t ids_per_cta;     ///< the CTA's own ids; the last CTAs may have fewer, or none
  bool fills_first;             ///< sorted_token_ids is filled before any id is placed
  std::uint32_t last_slot;      ///< the last slot an id may be placed in: at most 2^31 - 1
  void* workspace;
};

/// The arguments of a plain instance, which most calls run. What a call can do without is a
/// constant here, so that it costs nothing.
struct AlignBlockSizePlainArgs {
  AlignBlockSizeKernelArgs base;

  // NOLINTBEGIN(readability-identifier-naming): the names of AlignBlockSizeExtendedArgs' members.
  static constexpr std::uint32_t id_bias = 0;
  static constexpr std::uint32_t id_shift = 0;
  static constexpr std::uint32_t id_mask = ~0u;
  static constexpr std::int32_t first_expert = 0;
  static constexpr bool id_is_signed = false;
  static constexpr bool map_tail = false;
  static constexpr double reciprocal_of_experts = 0;
  static constexpr double* statistics = nullptr;
  static constexpr std::int64_t* validation = nullptr;
  static constexpr std::int32_t* slots_of_ids = nullptr;
  // NOLINTEND(readability-identifier-naming)
};

/// The arguments of an extended instance.
struct AlignBlockSizeExtendedArgs {
  AlignBlockSizeKernelArgs base;

  std::uint32_t id_bias;      ///< 1 if the id -1 is valid, else 0
  std::uint32_t id_shift;     ///< from a valid biased id to its bucket
  std::uint32_t id_mask;      ///< the bits of a narrow id
  std::int32_t first_expert;  ///< bucket of expert 0: 1 if the filtered pairs are a group, else 0
  bool id_is_signed;
  bool map_tail;
  double reciprocal_of_experts;  ///< 1 / num_experts, rounded to nearest
  double* statistics;            ///< null: not requested
  std::int64_t* validation;      ///< null: not requested
  std::int32_t* slots_of_ids;    ///< null: not requested
};

// A launch of either instance reads its arguments from the start of AlignBlockSizeExtendedArgs.
static_assert(std::is_standard_layout_v<AlignBlockSizePlainArgs> &&
              std::is_standard_layout_v<AlignBlockSizeExtendedArgs>);
static_assert(sizeof(AlignBlockSizePlainArgs) == sizeof(AlignBlockSizeKernelArgs) &&
              offsetof(AlignBlockSizePlainArgs, base) == 0 &&
              offsetof(AlignBlockSizeExtendedArgs, base) == 0);

/// One of a kernel's instances.
struct Instance {
  IdWidth width;
  int num_threads;
  bool is_extended;
};

// Each function returns an instance of a kernel, or null if there is none with this number of
// threads.

/// One CTA of up to 256 threads for at most kFewMaxIds ids.
const void* align_block_size_few_kernel(const Instance& instance);
inline constexpr int kFewMaxIds = 32;

/// One CTA for at most num_threads * kOneCtaMaxIdsPerThread ids.
const void* align_block_size_one_cta_kernel(const Instance& instance);
inline constexpr int kOneCtaMaxIdsPerThread = 4;

/// CTAs that each count all ids, fewer than 65,536, and place at most num_threads of them.
const void* align_block_size_redundant_kernel(const Instance& instance);
inline constexpr int kRedundantMaxIds = 65535;

/// One cluster whose CTAs read each other's counts from distributed shared memory. Needs compute
/// capability 9.0.
const void* align_block_size_cluster_kernel(const Instance& instance);
inline constexpr int kClusterMaxCtas = 16;
inline constexpr int kClusterMaxIdsPerThread = 4;

/// A cooperative grid with one barrier. The plain instance does not count dropped ids.
const void* align_block_size_grid_kernel(const Instance& instance);
constexpr int grid_max_ids_per_thread(int num_threads) { return num_threads == 1024 ? 16 : 8; }

/// A cooperative grid with three barriers, for any number of ids and experts.
const void* align_block_size_wide_kernel(const Instance& instance);
inline constexpr int kWideIdsPerThread = 16;

}  // namespace tessera::cuda
