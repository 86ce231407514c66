// Measures the launches that the CUDA policy chooses among, over a grid of shapes, and prints them
// as JSON; src/cuda/align_block_size/policy.cpp is written from what it prints. For every shape it
// also tells, on stderr, the fastest launch and how the policy's choice compares.
//
// Method: a CUDA graph of 20 back-to-back launches, the device kept busy while the graph is being
// started, median of the replays; L2 is warm. Every launch's output is compared with the CPU's
// first.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "align_block_size_cases.hpp"
#include "cuda/align_block_size/launch.hpp"
#include "cuda/device.hpp"
#include "tessera/align_block_size.hpp"

namespace {

using tessera::AlignBlockSizeShape;
using tessera::cuda::LaunchParameters;
using tessera::cuda::Plan;
using tessera::cuda::Strategy;

constexpr int kGraphLength = 20;
constexpr int kReplays = 9;

void require(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "tune_policy: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

void require(const tessera::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "tune_policy: %s\n", status.message().c_str());
  std::exit(1);
}

template <typename T>
T* device_array(std::size_t size) {
  void* memory = nullptr;
  require(cudaMalloc(&memory, size * sizeof(T)));
  return static_cast<T*>(memory);
}

/// Buffers on the device for the largest shape, and the timer.
struct Bench {
  cudaStream_t stream;
  cudaEvent_t start;
  cudaEvent_t stop;
  std::int32_t* ids = device_array<std::int32_t>(1 << 22);
  std::int32_t* sorted = device_array<std::int32_t>(1 << 23);
  std::int32_t* experts = device_array<std::int32_t>(1 << 23);
  std::int32_t* post = device_array<std::int32_t>(1);
  std::byte* workspace = device_array<std::byte>(1 << 26);
  std::byte* ballast = device_array<std::byte>(1 << 28);

  Bench() {
    require(cudaStreamCreate(&stream));
    require(cudaEventCreate(&start));
    require(cudaEventCreate(&stop));
  }

  double median_us(const Plan& plan, const tessera::core::AlignBlockSizeProblem& problem,
                   const tessera::Context& context) {
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int k = 0; k < kGraphLength; ++k) {
      require(tessera::cuda::launch(plan, problem, context));
    }
    require(cudaStreamEndCapture(stream, &graph));
    require(cudaGraphInstantiate(&executable, graph, 0));
    std::vector<float> times;
    for (int replay = 0; replay < kReplays; ++replay) {
      // Some 60 us of work, while the host starts the graph.
      require(cudaMemsetAsync(ballast, replay, 1 << 28, stream));
      require(cudaEventRecord(start, stream));
      require(cudaGraphLaunch(executable, stream));
      require(cudaEventRecord(stop, stream));
      require(cudaStreamSynchronize(stream));
      float ms = 0;
      require(cudaEventElapsedTime(&ms, start, stop));
      times.push_back(ms * 1000 / kGraphLength);
    }
    require(cudaGraphExecDestroy(executable));
    require(cudaGraphDestroy(graph));
    std::nth_element(times.begin(), times.begin() + kReplays / 2, times.end());
    return times[kReplays / 2];
  }
};

std::vector<LaunchParameters> launches() {
  std::vector<LaunchParameters> all{{Strategy::kWide, 256, 0, 1}};
  for (const int threads : {64, 128, 256}) all.push_back({Strategy::kFew, threads, 0, 1});
  for (const int rounds : {1, 2, 4}) {
    all.push_back({Strategy::kOneCta, 256, 0, rounds});
    all.push_back({Strategy::kOneCta, 512, 0, rounds});
  }
  for (const int ids : {32, 64, 128, 256}) all.push_back({Strategy::kRedundant, 256, ids, 1});
  for (const int ids : {32, 64, 128, 256, 512}) all.push_back({Strategy::kRedundant, 512, ids, 1});
  for (const int ids : {256, 512, 1024}) {
    all.push_back({Strategy::kCluster, 256, ids, 1});
    all.push_back({Strategy::kCluster, 256, ids, 2});
    all.push_back({Strategy::kCluster, 256, ids, 4});
  }
  for (const int ids : {512, 1024, 2048, 4096}) {
    all.push_back({Strategy::kGrid, 512, ids, 1});
    all.push_back({Strategy::kGrid, 512, ids, 4});
  }
  for (const int ids : {4096, 8192, 16384}) all.push_back({Strategy::kGrid, 1024, ids, 1});
  return all;
}

void measure_shape(Bench* bench, std::int64_t num_tokens, std::int64_t num_experts,
                   std::int64_t top_k, bool* is_first) {
  const auto& device = tessera::cuda::properties_of(0);
  const std::int64_t num_ids = num_tokens * top_k;
  tessera::contract::AlignBlockSizeCase c;
  c.top_k = top_k;
  c.num_tokens = num_tokens;
  c.num_experts = num_experts;
  c.block_size = c.num_tokens <= 64 ? 16 : c.num_tokens <= 1024 ? 64 : 128;
  const auto inputs = tessera::contract::make_inputs(c, 1);
  require(cudaMemcpy(bench->ids, inputs.topk_ids.data(), 4 * num_ids, cudaMemcpyHostToDevice));

  const AlignBlockSizeShape shape{num_ids, c.block_size, num_experts, false};
  tessera::AlignBlockSizeSizes sizes;
  require(tessera::align_block_size_sizes(shape, {}, &sizes));
  std::vector<std::int32_t> sorted(sizes.sorted_token_ids);
  std::vector<std::int32_t> experts(sizes.expert_ids);
  std::vector<std::int32_t> post(1);
  std::vector<std::byte> workspace(sizes.workspace_bytes);
  tessera::AlignBlockSizeArgs args;
  args.topk_ids = {const_cast<std::byte*>(inputs.topk_ids.data()), num_ids, {kDLInt, 32, 1}};
  args.block_size = c.block_size;
  args.num_experts = num_experts;
  args.sorted_token_ids = tessera::TensorView::of(std::span(sorted));
  args.expert_ids = tessera::TensorView::of(std::span(experts));
  args.num_tokens_post_pad = tessera::TensorView::of(std::span(post));
  tessera::Context host;
  host.workspace = workspace;
  require(tessera::align_block_size(args, host));

  tessera::core::AlignBlockSizeProblem problem{};
  problem.topk_ids = bench->ids;
  problem.id_dtype = {kDLInt, 32, 1};
  problem.num_ids = static_cast<std::int32_t>(num_ids);
  problem.block_size = static_cast<std::int32_t>(c.block_size);
  problem.num_experts = static_cast<std::int32_t>(num_experts);
  problem.tail_expert = -1;
  problem.sorted_token_ids = bench->sorted;
  problem.sorted_token_ids_length = sizes.sorted_token_ids;
  problem.expert_ids = bench->experts;
  problem.expert_ids_length = sizes.expert_ids;
  problem.num_tokens_post_pad = bench->post;
  tessera::Context context;
  context.device = {kDLCUDA, 0};
  context.stream = bench->stream;
  context.workspace = {bench->workspace, 1 << 26};

  const auto time = [&](const Plan& plan) {
    require(cudaMemset(bench->sorted, 0xa5, 4 * sorted.size()));
    require(tessera::cuda::launch(plan, problem, context));
    require(cudaStreamSynchronize(bench->stream));
    std::vector<std::int32_t> found(sorted.size());
    require(cudaMemcpy(found.data(), bench->sorted, 4 * found.size(), cudaMemcpyDeviceToHost));
    if (found != sorted) {
      std::fprintf(stderr, "tune_policy: wrong output of %s\n",
                   tessera::cuda::to_string(plan).c_str());
      std::exit(1);
    }
    return bench->median_us(plan, problem, context);
  };
  const Plan chosen = tessera::cuda::choose(shape, device).plan;
  const double chosen_us = time(chosen);
  double best_us = chosen_us;
  Plan best = chosen;
  std::printf(
      "%s{\"num_ids\":%ld,\"num_experts\":%ld,\"block_size\":%ld,\"chosen_us\":%.3f,"
      "\"chosen\":\"%s\",\"launches\":[",
      *is_first ? "" : ",\n", num_ids, num_experts, c.block_size, chosen_us,
      tessera::cuda::to_string(chosen).c_str());
  *is_first = false;
  bool is_first_launch = true;
  for (const LaunchParameters& launch : launches()) {
    const bool skips = (launch.strategy == Strategy::kWide && num_ids < 65536) ||
                       (launch.strategy == Strategy::kRedundant &&
                        (num_ids > 32768 || num_ids > 512 * launch.ids_per_cta)) ||
                       (launch.strategy == Strategy::kGrid && num_ids < 2048);
    if (skips) continue;
    Plan plan = tessera::cuda::make_plan(launch, shape, device);
    if (tessera::cuda::limitation(plan, shape, device) != nullptr) continue;
    for (const bool fills_first : {true, false}) {
      if (!fills_first && launch.strategy != Strategy::kGrid) continue;
      plan.fills_first = fills_first;
      const double us = time(plan);
      std::printf("%s\n  {\"plan\":\"%s\",\"fills_first\":%s,\"us\":%.3f}",
                  is_first_launch ? "" : ",", tessera::cuda::to_string(plan).c_str(),
                  fills_first ? "true" : "false", us);
      is_first_launch = false;
      if (us < best_us) {
        best_us = us;
        best = plan;
      }
    }
  }
  std::printf("]}");
  std::fprintf(stderr,
               "%8ld ids %4ld experts block %4ld: %6.2f us by the policy, best %6.2f (%.2f) %s%s\n",
               num_ids, num_experts, c.block_size, chosen_us, best_us, chosen_us / best_us,
               tessera::cuda::to_string(best).c_str(), best.fills_first ? ", fills first" : "");
}

}  // namespace

int main() {
  std::string why_none;
  if (tessera::cuda::count_devices(&why_none) == 0) {
    std::fprintf(stderr, "tune_policy: %s\n", why_none.c_str());
    return 1;
  }
  tessera::Context context;
  context.device = {kDLCUDA, 0};
  // Asks for the device's properties, by which plans are made below.
  require(tessera::cuda::check_context("tune_policy", context));
  Bench bench;
  std::printf(
      "{\"device\":\"%s\",\"method\":\"CUDA graph of %d launches, median of %d replays\","
      "\"shapes\":[\n",
      tessera::cuda::describe(0).c_str(), kGraphLength, kReplays);
  bool is_first = true;
  for (std::int64_t num_tokens = 1; num_tokens <= 1 << 18; num_tokens *= 2) {
    for (const std::int64_t num_experts : {8, 64, 128, 256, 512}) {
      for (const std::int64_t top_k : {2, 8}) {
        measure_shape(&bench, num_tokens, num_experts, top_k, &is_first);
      }
    }
  }
  std::printf("\n]}\n");
  return 0;
}
