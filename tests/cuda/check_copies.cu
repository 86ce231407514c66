// Checks how the kernels for compute capability 9.0a copy and wait, element by element: boxes and
// runs of bytes by the copy engine, arrivals of cp.async, kernels that start early. Ends with 77
// where it cannot run.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <numeric>
#include <string>
#include <vector>

#include "check_kernels.cuh"
#include "cuda/driver.hpp"
#include "cuda/fused_experts/mma.cuh"
#include "cuda/parts/mbarrier.cuh"
#include "cuda/parts/pdl.cuh"
#include "cuda/parts/tma.cuh"
#include "cuda/parts/wgmma.cuh"

namespace {

using namespace tessera::cuda;
using namespace tessera::test;

constexpr int kBoxLines = 16;
constexpr std::uint32_t kBoxBytes = kBoxLines * kLine * sizeof(std::uint16_t);
constexpr int kTileElements = 2 * kBoxLines * kLine;
constexpr int kTileThreads = kTileElements / 2;
constexpr std::uint16_t kPoison = 0xa5a5;

/// The coordinates of a box, innermost first.
struct Place {
  int x, y, z = 0, w = 0, v = 0;
};

/// Copies a box into the first half of a tile; each thread then writes two elements to `found`.
__global__ void copy_one_box(const __grid_constant__ CUtensorMap map, int num_axes, Place at,
                             bool is_evicted_first, ushort2* found) {
  __shared__ __align__(1024) ushort2 tile[kTileThreads];
  __shared__ std::uint64_t barrier_memory;
  const std::uint32_t barrier = shared_address(&barrier_memory);
  tile[threadIdx.x] = {kPoison, kPoison};
  fence_async_proxy();
  if (threadIdx.x == 0) {
    prefetch_map(&map);
    init_barrier(barrier, 1);
    fence_barriers();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    arrive_and_expect(barrier, kBoxBytes);
    if (num_axes == 2) copy_box(shared_address(tile), &map, barrier, at.x, at.y);
    if (num_axes == 4) copy_box(shared_address(tile), &map, barrier, at.x, at.y, at.z, at.w);
    if (num_axes == 5 && !is_evicted_first) {
      copy_box(shared_address(tile), &map, barrier, at.x, at.y, at.z, at.w, at.v);
    }
    if (num_axes == 5 && is_evicted_first) {
      copy_box(shared_address(tile), &map, barrier, at.x, at.y, at.z, at.w, at.v, evict_first());
    }
  }
  wait(barrier, 0);
  found[threadIdx.x] = tile[threadIdx.x];
}

/// A tensor in which each number, also in the gaps between rows, is one more than its place.
struct Numbers {
  Numbers(const std::string& name, const std::vector<TensorMapAxis>& tensor_axes)
      : axes(tensor_axes), numbers(axes.back().length * axes.back().stride) {
    std::iota(numbers.begin(), numbers.end(), std::uint16_t{1});
    memory = array_of(numbers);
    const bool is_encoded = encode_tensor_map(memory.get(), 2, axes, &map) == CUDA_SUCCESS;
    require(is_encoded ? cudaSuccess : cudaErrorInvalidValue, (name + ", map").c_str());
  }

  /// Element i of the box at `at`.
  int element(const Place& at, int i) const {
    const int first[] = {at.x, at.y, at.z, at.w, at.v};
    std::int64_t offset = 0;
    for (std::size_t axis = 0; axis < axes.size(); ++axis) {
      const int coordinate = first[axis] + i % axes[axis].box;
      i /= axes[axis].box;
      if (coordinate < 0 || coordinate >= axes[axis].length) return 0;
      offset += coordinate * axes[axis].stride;
    }
    return numbers[offset];
  }

  std::vector<TensorMapAxis> axes;
  std::vector<std::uint16_t> numbers;
  Array<std::uint16_t> memory{nullptr, &cudaFree};
  CUtensorMap map;
};

/// Every element of boxes of a tensor.
void check_boxes(const std::string& name, const std::vector<TensorMapAxis>& axes,
                 const std::vector<Place>& places, bool is_evicted_first = false) {
  const Numbers tensor(name, axes);
  for (const Place& at : places) {
    const std::string what = name + ", box " + std::to_string(&at - places.data()) +
                             (is_evicted_first ? ", evicted first" : "");
    const Array<ushort2> tile = array_of(std::vector<ushort2>(kTileThreads));
    copy_one_box<<<1, kTileThreads>>>(tensor.map, static_cast<int>(axes.size()), at,
                                      is_evicted_first, tile.get());
    wait_for_kernel(what);
    const auto* const found = reinterpret_cast<const std::uint16_t*>(tile.get());
    for (int i = 0; i < kTileElements; ++i) {
      expect(found[swizzled(i / kLine, i % kLine)],
             i < kTileElements / 2 ? tensor.element(at, i) : kPoison, what, i / kLine, i % kLine);
    }
  }
}

constexpr int kWords = 256;
constexpr int kNumbers = 4 * kWords;  // of 4 bytes, one for each thread
constexpr std::uint32_t kPoisonedNumber = 0xa5a5a5a5;

/// Words of 16 bytes that follow each other.
struct Run {
  int from, to, num_words;
};
struct Runs {
  Run of[2];
};

/// Copies two runs in one phase of a barrier; each thread then writes one number to `found`.
__global__ void copy_runs(const std::uint32_t* numbers, Runs runs, std::uint32_t* found) {
  __shared__ __align__(16) std::uint32_t copied[kNumbers];
  __shared__ std::uint64_t barrier_memory;
  const std::uint32_t barrier = shared_address(&barrier_memory);
  copied[threadIdx.x] = kPoisonedNumber;
  fence_async_proxy();
  if (threadIdx.x == 0) {
    init_barrier(barrier, 1);
    fence_barriers();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    arrive_and_expect(barrier, 16 * (runs.of[0].num_words + runs.of[1].num_words));
    for (const Run& run : runs.of) {
      copy_bytes(shared_address(copied + 4 * run.to), numbers + 4 * run.from, barrier,
                 16 * run.num_words);
    }
  }
  wait(barrier, 0);
  found[threadIdx.x] = copied[threadIdx.x];
}

void check_bytes() {
  std::vector<std::uint32_t> numbers(kNumbers);
  std::iota(numbers.begin(), numbers.end(), 1U);
  const Array<std::uint32_t> source = array_of(numbers);
  for (const Runs& runs :
       {Runs{{{0, 0, 1}, {255, 255, 1}}}, Runs{{{1, 0, 16}, {40, 17, 32}}},
        Runs{{{0, 128, 128}, {128, 0, 128}}}, Runs{{{3, 5, 251}, {200, 1, 3}}}}) {
    std::vector<std::uint32_t> expected(kNumbers, kPoisonedNumber);
    for (const Run& run : runs.of) {
      for (int i = 0; i < 4 * run.num_words; ++i) {
        expected[4 * run.to + i] = numbers[4 * run.from + i];
      }
    }
    const Array<std::uint32_t> found = array_of(std::vector<std::uint32_t>(kNumbers));
    copy_runs<<<1, kNumbers>>>(source.get(), runs, found.get());
    wait_for_kernel("bytes");
    for (int i = 0; i < kNumbers; ++i) {
      expect(found[i], expected[i], "bytes from word " + std::to_string(runs.of[0].from), i / 4,
             i % 4);
    }
  }
}

constexpr int kRounds = 5;

/// A warpgroup copies words, again and again to the same place; another writes them to `found`.
__global__ void gather(const uint4* words, uint4* found) {
  __shared__ uint4 copied[kWarpgroupThreads];
  __shared__ std::uint64_t barriers[2];
  const std::uint32_t full = shared_address(&barriers[0]);
  const std::uint32_t empty = shared_address(&barriers[1]);
  if (threadIdx.x == 0) {
    for (const auto barrier : {full, empty}) init_barrier(barrier, kWarpgroupThreads);
    fence_barriers();
  }
  __syncthreads();
  const std::uint32_t i = threadIdx.x % kWarpgroupThreads;
  for (std::uint32_t round = 0; round < kRounds; ++round) {
    const std::uint32_t parity = round % 2;
    if (threadIdx.x < kWarpgroupThreads) {
      wait(empty, parity ^ 1);
      copy_word_async(shared_address(&copied[i]), &words[round * kWarpgroupThreads + i],
                      i % kRounds != round);
      arrive_after_copies(full);
    } else {
      wait(full, parity);
      found[round * kWarpgroupThreads + i] = copied[i];
      arrive(empty);
    }
  }
}

void check_gathering() {
  std::vector<uint4> numbers(kRounds * kWarpgroupThreads);
  for (unsigned i = 0; i < numbers.size(); ++i) numbers[i] = {i + 1, ~i, 2 * i + 1, 3 * i + 1};
  const Array<uint4> words = array_of(numbers);
  const Array<uint4> found = array_of(std::vector(numbers.size(), make_uint4(0, ~0U, 0, ~0U)));
  gather<<<1, 2 * kWarpgroupThreads>>>(words.get(), found.get());
  wait_for_kernel("cp.async");
  for (int i = 0; i < 4 * kRounds * kWarpgroupThreads; ++i) {
    const int round = i / 4 / kWarpgroupThreads;
    const bool is_given = i / 4 % kWarpgroupThreads % kRounds != round;
    expect((&found[i / 4].x)[i % 4], is_given ? (&numbers[i / 4].x)[i % 4] : 0, "cp.async", round,
           i % (4 * kWarpgroupThreads));
  }
}

constexpr int kTurnCtas = 64;  // so few that several kernels run at once
constexpr int kTurnThreads = 256;
constexpr int kTurnNumbers = kTurnCtas * kTurnThreads;
constexpr int kTurnDistance = 5 * kTurnThreads + 1;  // a number of another CTA
constexpr int kTurns = 2000;

struct TurnCounts {
  unsigned ended;      ///< CTAs, of all kernels so far
  unsigned num_early;  ///< CTAs that began before the kernel before had ended
  unsigned num_wrong;  ///< CTAs that pdl_wait let go on before that
};

/// Each kernel reads what the one before wrote, and overwrites what that one read.
__global__ void take_turn(unsigned turn, const std::uint32_t* from, std::uint32_t* to,
                          TurnCounts* counts) {
  pdl_launch_dependents();
  const unsigned all_before = turn * kTurnCtas;
  const bool is_early = threadIdx.x == 0 && atomicAdd(&counts->ended, 0U) < all_before;
  pdl_wait();
  if (threadIdx.x == 0 && atomicAdd(&counts->ended, 0U) < all_before) {
    atomicAdd(&counts->num_wrong, 1U);
  }
  const unsigned i = blockIdx.x * kTurnThreads + threadIdx.x;
  const std::uint32_t number = from[(i + kTurnDistance) % kTurnNumbers];
  __nanosleep(1000);  // a kernel that did not wait would read before this one writes
  to[i] = 5 * number + turn;
  if (is_early) atomicAdd(&counts->num_early, 1U);
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(&counts->ended, 1U);
}

void check_early_starts() {
  std::vector<std::uint32_t> numbers(kTurnNumbers);
  std::iota(numbers.begin(), numbers.end(), 1U);
  const Array<std::uint32_t> memory[] = {array_of(numbers), array_of(numbers)};
  const Array<TurnCounts> counts = array_of(std::vector<TurnCounts>(1));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kTurnCtas);
  config.blockDim = dim3(kTurnThreads);
  config.attrs = &attribute;
  config.numAttrs = 1;
  require(cudaStreamCreateWithFlags(&config.stream, cudaStreamNonBlocking), "stream");
  for (unsigned turn = 0; turn < kTurns; ++turn) {
    require(cudaLaunchKernelEx(&config, &take_turn, turn, memory[turn % 2].get(),
                               memory[1 - turn % 2].get(), counts.get()),
            "early start");
  }
  wait_for_kernel("early starts");
  require(cudaStreamDestroy(config.stream), "stream");
  std::vector<std::uint32_t> next(kTurnNumbers);
  for (unsigned turn = 0; turn < kTurns; ++turn) {
    for (int i = 0; i < kTurnNumbers; ++i) {
      next[i] = 5 * numbers[(i + kTurnDistance) % kTurnNumbers] + turn;
    }
    numbers.swap(next);
  }
  for (int i = 0; i < kTurnNumbers; ++i) {
    expect(memory[kTurns % 2][i], numbers[i], "early starts", i / kTurnThreads, i % kTurnThreads);
  }
  expect(counts[0].num_wrong, 0, "CTAs whose pdl_wait did not wait", 0, 0);
  expect(counts[0].num_early > 0 ? 1 : 0, 1, "some CTAs that began early", 0, 0);
  std::printf("early starts: %u of %u CTAs began before the kernel before had ended\n",
              counts[0].num_early, kTurns * kTurnCtas);
}

void check_all_boxes() {
  const auto at = [](int x, int y) { return Place{x, y}; };
  // Rows with gaps between them; per expert, rows of two kinds in turns.
  check_boxes("rows", {{72, 1, kLine}, {20, 80, kBoxLines}},
              {at(0, 0), at(64, 0), at(0, 16), at(64, 16), at(-8, -2), at(128, 0), at(0, -16)});
  const std::vector<TensorMapAxis> kinds{
      {72, 1, kLine}, {20, 160, kBoxLines}, {2, 80, 1}, {2, 3216, 1}};
  check_boxes(
      "kinds", kinds,
      {{0, 0, 0, 0}, {64, 16, 1, 1}, {0, 8, 1, 0}, {0, 0, 0, 1}, {0, 0, 2, 0}, {0, 0, 0, 2}});
  // Rows of two kinds in turns of eight, and runs of eight of one kind, of three runs per expert.
  const std::vector<Place> runs{
      {0, 0, 0, 0, 0}, {64, 0, 0, 2, 1}, {0, 0, 0, 1, 1}, {0, 0, 0, 3, 0}, {0, 0, 0, -1, 1}};
  // Whatever becomes of them in the cache.
  for (const bool is_evicted_first : {false, true}) {
    check_boxes("runs in turns",
                {{72, 1, kLine}, {8, 80, 8}, {2, 1920, 2}, {3, 640, 1}, {2, 3848, 1}}, runs,
                is_evicted_first);
    check_boxes("runs", {{72, 1, kLine}, {8, 80, 8}, {1, 1920, 1}, {3, 640, 2}, {2, 1928, 1}}, runs,
                is_evicted_first);
  }
}

}  // namespace

int main() {
  return run_on_90a([] {
    check_all_boxes();
    check_bytes();
    check_gathering();
    check_early_starts();
  });
}
