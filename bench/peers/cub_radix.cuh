// The whole contract from CUB's radix sort, which is stable: sort the indices by expert, find the
// groups in the sorted keys, lay them out, move every index to its slot. Ids lie in [0, E).
#pragma once

#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "block_plan.cuh"

namespace tessera::bench {

/// Parts of the workspace; all pointers are null while its size is asked for.
template <typename Id>
struct CubRadixWorkspace {
  std::size_t bytes = 0;
  Id* sorted_ids = nullptr;
  std::int32_t* indices = nullptr;
  std::int32_t* sorted_indices = nullptr;
  std::int32_t* group_begins = nullptr;  // in the sorted ids; one more than there are experts
  std::int32_t* starts = nullptr;        // in sorted_token_ids
  void* sort_storage = nullptr;
  std::size_t sort_storage_bytes = 0;

  CubRadixWorkspace(std::int32_t num_ids, std::int32_t num_experts, std::byte* memory) {
    const auto take = [&](auto*& part, std::size_t part_bytes) {
      part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(memory + bytes);
      bytes += (part_bytes + 255) / 256 * 256;
    };
    throw_unless_ok(
        cub::DeviceRadixSort::SortPairs(nullptr, sort_storage_bytes, sorted_ids, sorted_ids,
                                        indices, sorted_indices, num_ids, 0, key_bits(num_experts)),
        "cub::DeviceRadixSort");
    const std::size_t index_bytes = num_ids * sizeof(std::int32_t);
    take(sorted_ids, num_ids * sizeof(Id));
    take(indices, index_bytes);
    take(sorted_indices, index_bytes);
    take(group_begins, (num_experts + 1) * sizeof(std::int32_t));
    take(starts, num_experts * sizeof(std::int32_t));
    std::byte* storage = nullptr;
    take(storage, sort_storage_bytes);
    sort_storage = storage;
  }

  static int key_bits(std::int32_t num_experts) {
    return std::max(1, static_cast<int>(std::bit_width(static_cast<unsigned>(num_experts - 1))));
  }
};

template <typename Id>
__global__ void cub_radix_fill_kernel(Problem<Id> problem, std::int32_t* indices) {
  const std::int32_t stride = static_cast<std::int32_t>(gridDim.x * blockDim.x);
  for (std::int32_t i = static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
       i < problem.capacity; i += stride) {
    problem.sorted_token_ids[i] = problem.num_ids;
    if (i < problem.num_ids) indices[i] = i;
  }
}

template <typename Id>
__global__ void __launch_bounds__(kPlanThreads)
    cub_radix_plan_kernel(Problem<Id> problem, const Id* sorted_ids, std::int32_t* group_begins,
                          std::int32_t* starts) {
  __shared__ PlanScan::TempStorage scan_storage;
  for (std::int32_t expert = static_cast<std::int32_t>(threadIdx.x); expert <= problem.num_experts;
       expert += kPlanThreads) {
    std::int32_t low = 0;
    for (std::int32_t high = problem.num_ids; low < high;) {
      const std::int32_t middle = low + (high - low) / 2;
      if (sorted_ids[middle] < expert) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    group_begins[expert] = low;
  }
  __syncthreads();
  const auto count_of = [group_begins](std::int32_t expert) {
    return group_begins[expert + 1] - group_begins[expert];
  };
  plan_blocks(problem, starts, count_of, scan_storage);
}

template <typename Id>
__global__ void cub_radix_place_kernel(Problem<Id> problem, const Id* sorted_ids,
                                       const std::int32_t* sorted_indices,
                                       const std::int32_t* group_begins,
                                       const std::int32_t* starts) {
  const std::int32_t stride = static_cast<std::int32_t>(gridDim.x * blockDim.x);
  for (std::int32_t i = static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
       i < problem.num_ids; i += stride) {
    const std::int32_t expert = static_cast<std::int32_t>(sorted_ids[i]);
    problem.sorted_token_ids[starts[expert] + i - group_begins[expert]] = sorted_indices[i];
  }
}

template <typename Id>
void cub_radix(const Problem<Id>& problem, std::byte* memory, cudaStream_t stream) {
  CubRadixWorkspace<Id> part(problem.num_ids, problem.num_experts, memory);
  launch("cub_radix_fill_kernel", cub_radix_fill_kernel<Id>, grid_for(problem.capacity, 256), 256,
         0, stream, false, problem, part.indices);
  throw_unless_ok(cub::DeviceRadixSort::SortPairs(part.sort_storage, part.sort_storage_bytes,
                                                  problem.topk_ids, part.sorted_ids, part.indices,
                                                  part.sorted_indices, problem.num_ids, 0,
                                                  part.key_bits(problem.num_experts), stream),
                  "cub::DeviceRadixSort");
  const Id* const sorted_ids = part.sorted_ids;
  launch("cub_radix_plan_kernel", cub_radix_plan_kernel<Id>, 1, kPlanThreads, 0, stream, false,
         problem, sorted_ids, part.group_begins, part.starts);
  const std::int32_t* const sorted_indices = part.sorted_indices;
  const std::int32_t* const group_begins = part.group_begins;
  const std::int32_t* const starts = part.starts;
  launch("cub_radix_place_kernel", cub_radix_place_kernel<Id>, grid_for(problem.num_ids, 256), 256,
         0, stream, false, problem, sorted_ids, sorted_indices, group_begins, starts);
}

}  // namespace tessera::bench
