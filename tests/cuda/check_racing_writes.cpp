// Calls the ops while another stream keeps overwriting their ids: a kernel that reads ids twice
// then counts other ids than it places. What the outputs hold may be anything, but nothing beside
// them is written. Ends with 77 if there is no GPU to check.
#include <cstdio>
#include <string>

#include "check_program.hpp"
#include "device_call.hpp"
#include "tessera/batched_align_block_size.hpp"
#include "tessera/lora_align_block_size.hpp"

namespace {

using namespace tessera::test;

constexpr int kRounds = 30;
constexpr int kCallsPerRound = 8;
constexpr int kWritesPerCall = 6;

long num_calls = 0;
long num_failed = 0;

/// Memory of a call whose blocks have one slot, so that the capacity is the number of ids, and an
/// index one group too far lies beside the output.
struct Buffers {
  DeviceBuffer ids;
  DeviceBuffer slots;
  DeviceBuffer experts;
  DeviceBuffer totals{sizeof(std::int32_t), 0, false};

  Buffers(std::int64_t num_ids, std::size_t id_bytes)
      : ids(num_ids * id_bytes, 0, false),
        slots(num_ids * sizeof(std::int32_t), 0, false),
        experts(num_ids * sizeof(std::int32_t), 0, false) {}

  void expect_intact(const std::string& what) const {
    if (ids.intact() && slots.intact() && experts.intact() && totals.intact()) return;
    ++num_failed;
    std::fprintf(stderr, "FAILED %s: written beside an array\n", what.c_str());
  }
};

/// Makes calls in one stream while another one overwrites the ids with bytes of one value and of
/// the other, in turns.
template <typename Call>
void race(const DeviceBuffer& ids, int one, int other, const Call& call) {
  cudaStream_t writer = nullptr;
  require(cudaStreamCreateWithFlags(&writer, cudaStreamNonBlocking), "cudaStreamCreate");
  for (int round = 0; round < kRounds; ++round) {
    for (int k = 0; k < kCallsPerRound; ++k) {
      for (int write = 0; write < kWritesPerCall; ++write) {
        require(cudaMemsetAsync(ids.data(), write % 2 == 0 ? one : other, ids.size(), writer),
                "cudaMemsetAsync");
      }
      call();
      ++num_calls;
    }
    require(cudaDeviceSynchronize(), "calls beside writes to their ids");
  }
  require(cudaStreamDestroy(writer), "cudaStreamDestroy");
}

cudaStream_t stream_of_calls() {
  static cudaStream_t stream = [] {
    cudaStream_t created = nullptr;
    require(cudaStreamCreateWithFlags(&created, cudaStreamNonBlocking), "cudaStreamCreate");
    return created;
  }();
  return stream;
}

/// Ids of 8 bits change between the first and the last expert; ids of any width between expert 0
/// and -1, where the pairs with id -1 are a group.
void check_align(const char* implementation, std::int64_t num_ids, DLDataType dtype,
                 bool filtered_group) {
  constexpr std::int64_t kNumExperts = 64;
  Buffers buffers(num_ids, dtype.bits / 8);
  tessera::AlignBlockSizeArgs args;
  args.topk_ids = view_of(buffers.ids, dtype);
  args.block_size = 1;
  args.num_experts = kNumExperts;
  args.filtered_group = filtered_group;
  args.sorted_token_ids = int32_view(buffers.slots);
  args.expert_ids = int32_view(buffers.experts);
  args.num_tokens_post_pad = int32_view(buffers.totals);
  tessera::Context context;
  context.device = kDevice;
  context.implementation = implementation;
  context.stream = stream_of_calls();
  const std::string what = std::string(implementation) + ", ids of " + std::to_string(dtype.bits) +
                           " bits" + (filtered_group ? ", with a group of filtered pairs" : "");
  tessera::AlignBlockSizeSizes sizes;
  tessera::Status status = tessera::align_block_size_sizes(
      {num_ids, 1, kNumExperts, false, filtered_group}, context, &sizes);
  if (!status.ok()) {
    std::printf("skipped: %s: %s\n", what.c_str(), status.message().c_str());
    return;
  }
  const DeviceBuffer workspace(sizes.workspace_bytes, 0, false);
  context.workspace = {workspace.data(), workspace.size()};
  race(buffers.ids, 0, filtered_group ? 0xff : kNumExperts - 1, [&] {
    if (status.ok()) status = tessera::align_block_size(args, context);
  });
  if (!status.ok()) {
    ++num_failed;
    std::fprintf(stderr, "FAILED %s: %s\n", what.c_str(), status.message().c_str());
  }
  buffers.expect_intact(what);
  if (!workspace.intact()) {
    ++num_failed;
    std::fprintf(stderr, "FAILED %s: written beside the workspace\n", what.c_str());
  }
}

/// With one adapter whose ids change, or with a list of adapters that changes.
void check_lora(bool writes_lists) {
  constexpr std::int64_t kNumIds = 65536;
  Buffers buffers(kNumIds, 1);
  DeviceBuffer mapping(kNumIds * sizeof(std::int32_t), 0, false);
  DeviceBuffer enabled(sizeof(std::int32_t), 0, false);
  mapping.poison(std::byte{0});
  enabled.poison(std::byte{1});
  buffers.ids.poison(std::byte{5});
  tessera::LoraAlignBlockSizeArgs args;
  args.topk_ids = view_of(buffers.ids, {kDLInt, 8, 1});
  args.top_k = 1;
  args.token_lora_mapping = int32_view(mapping);
  args.adapter_enabled = int32_view(enabled);
  args.block_size = 1;
  args.num_experts = 64;
  args.max_loras = 1;
  args.sorted_token_ids = int32_view(buffers.slots);
  args.expert_ids = int32_view(buffers.experts);
  args.num_tokens_post_pad = int32_view(buffers.totals);
  tessera::Context context;
  context.device = kDevice;
  context.stream = stream_of_calls();
  tessera::Status status;
  race(writes_lists ? enabled : buffers.ids, 0, 63, [&] {
    if (status.ok()) status = tessera::lora_align_block_size(args, context);
  });
  const std::string what = writes_lists ? "lora, adapters change" : "lora, ids change";
  if (!status.ok()) {
    ++num_failed;
    std::fprintf(stderr, "FAILED %s: %s\n", what.c_str(), status.message().c_str());
  }
  buffers.expect_intact(what);
}

void check_batched() {
  constexpr std::int64_t kNumBatches = 4096;
  Buffers buffers(kNumBatches * 16, 1);
  DeviceBuffer counts(kNumBatches * sizeof(std::int32_t), 0, false);
  tessera::BatchedAlignBlockSizeArgs args;
  args.expert_num_tokens = int32_view(counts);
  args.max_tokens_per_batch = 16;
  args.block_size = 1;
  args.sorted_token_ids = int32_view(buffers.slots);
  args.expert_ids = int32_view(buffers.experts);
  args.num_tokens_post_pad = int32_view(buffers.totals);
  tessera::Context context;
  context.device = kDevice;
  context.stream = stream_of_calls();
  tessera::Status status;
  race(counts, 0, 1, [&] {
    if (status.ok()) status = tessera::batched_align_block_size(args, context);
  });
  if (!status.ok()) {
    ++num_failed;
    std::fprintf(stderr, "FAILED batched: %s\n", status.message().c_str());
  }
  buffers.expect_intact("batched, counts change");
}

}  // namespace

int main(int argc, char** argv) {
  begin_check(argc, argv);
  const std::pair<const char*, std::int64_t> implementations[] = {
      {"cuda/few", 32},        {"cuda/one_cta", 1024}, {"cuda/redundant", 65535},
      {"cuda/cluster", 16384}, {"cuda/grid", 1 << 20}, {"cuda/wide", 1 << 20}};
  for (const auto& [implementation, num_ids] : implementations) {
    check_align(implementation, num_ids, {kDLInt, 8, 1}, false);
    for (const std::uint8_t bits : {8, 32, 64}) {
      check_align(implementation, num_ids, {kDLInt, bits, 1}, true);
    }
  }
  check_lora(false);
  check_lora(true);
  check_batched();
  std::printf("%ld calls beside writes to their ids, %ld failed\n", num_calls, num_failed);
  return num_failed == 0 && num_calls > 0 ? 0 : 1;
}
