// Calls the ops while another stream keeps overwriting one of their inputs: a kernel that reads ids
// twice then counts other ids than it places. What the outputs hold may be anything, but nothing
// beside them is written. Ends with 77 where there is nothing to check on.
#include <cstdio>
#include <string>
#include <utility>

#include "align_block_size_cases.hpp"
#include "batched_align_block_size_cases.hpp"
#include "check_program.hpp"
#include "device_call.hpp"
#include "lora_align_block_size_cases.hpp"

namespace {

using namespace tessera::test;
using tessera::contract::CaseArguments;

constexpr int kRounds = 30;
constexpr int kCallsPerRound = 8;
constexpr int kWritesPerCall = 6;

long num_calls = 0;
long num_failed = 0;

void fail(const std::string& what) {
  ++num_failed;
  std::fprintf(stderr, "FAILED %s\n", what.c_str());
}

/// Makes calls in one stream while another one overwrites an input with bytes of one value and of
/// the other, in turns.
void race(const CaseArguments& made, const std::string& implementation, const char* input, int one,
          int other) {
  const std::string what = std::string(made.op) + ", " + implementation + ", " + input + " changes";
  DeviceCall call(made, {.implementation = implementation,
                         .left_out = ~std::uint64_t{0},
                         .stream = stream_of_calls()});
  std::size_t workspace_bytes = 0;
  tessera::Status status = call.workspace_bytes(&workspace_bytes);
  if (!status.ok()) {
    std::printf("skipped: %s: %s\n", what.c_str(), status.message().c_str());
    return;
  }
  const DeviceBuffer workspace(workspace_bytes, 0, false);
  const DeviceBuffer& racing = *call.buffer(input);
  cudaStream_t writer = nullptr;
  require(cudaStreamCreateWithFlags(&writer, cudaStreamNonBlocking), "cudaStreamCreate");
  for (int round = 0; round < kRounds; ++round) {
    for (int k = 0; k < kCallsPerRound; ++k) {
      for (int write = 0; write < kWritesPerCall; ++write) {
        require(cudaMemsetAsync(racing.data(), write % 2 == 0 ? one : other, racing.size(), writer),
                "cudaMemsetAsync");
      }
      if (status.ok()) status = call.enqueue(workspace);
      ++num_calls;
    }
    require(cudaDeviceSynchronize(), what.c_str());
  }
  require(cudaStreamDestroy(writer), "cudaStreamDestroy");
  if (!status.ok()) fail(what + ": " + status.message());
  if (!workspace.intact()) fail(what + ": written beside the workspace");
  if (const std::string damage = call.damage(false); !damage.empty()) fail(what + ": " + damage);
}

/// Blocks have one slot, so that the capacity is the number of ids, and an index one group too far
/// lies beside the output. Ids of 8 bits change between the first and the last expert; ids of any
/// width between expert 0 and -1, where the pairs with id -1 are a group.
void race_align(const char* implementation, std::int64_t num_ids, std::uint8_t bits,
                bool filtered_group) {
  tessera::contract::AlignBlockSizeCase c;
  c.num_tokens = num_ids;
  c.num_experts = 64;
  c.dtype = {kDLInt, bits, 1};
  c.filtered_group = filtered_group;
  race(make_arguments(c, 1), implementation, "topk_ids", 0, filtered_group ? 0xff : 63);
}

/// All tokens use one adapter, whose ids change, or which is switched off and on.
void race_lora() {
  tessera::contract::LoraAlignBlockSizeCase c;
  c.pairs.num_tokens = 65536;
  c.pairs.num_experts = 64;
  c.pairs.dtype = {kDLInt, 8, 1};
  c.choice = tessera::contract::AdapterChoice::kOne;
  c.enabled = tessera::contract::AdapterSet::kAll;
  race(make_arguments(c, 1), "", "topk_ids", 0, 63);
  race(make_arguments(c, 1), "", "adapter_enabled", 0, 63);
}

void race_batched() {
  tessera::contract::BatchedAlignBlockSizeCase c;
  c.num_batches = 4096;
  c.max_tokens_per_batch = 16;
  race(make_arguments(c, 1), "", "expert_num_tokens", 0, 1);
}

std::int64_t num_inputs(const CaseArguments& made) {
  std::int64_t count = 0;
  for (const tessera::Argument& argument : tessera::find_op(made.op)->schema->inputs) {
    count += view_in(made.args.get(), argument).num_elements > 0 ? 1 : 0;
  }
  return count;
}

/// All arguments; or, if no implementation takes them together, the case of the table with the most
/// inputs that one takes.
CaseArguments small_case(const tessera::contract::OpContract& contract) {
  CaseArguments best = full_arguments(contract);
  if (!implementations_of(best, kDevice).empty()) return best;
  std::int64_t most = 0;
  for (const std::string& name : contract.case_names()) {
    const CaseArguments made = contract.arguments(name, 1);
    if (num_inputs(made) <= most || implementations_of(made, kDevice).empty()) continue;
    most = num_inputs(made);
    best = made;
  }
  return best;
}

/// Every input of every op, by every implementation that takes a small case.
void race_all_inputs() {
  for (const tessera::contract::OpContract& contract : tessera::contract::contracts()) {
    const CaseArguments made = small_case(contract);
    for (const std::string& implementation : implementations_of(made, kDevice)) {
      for (const tessera::Argument& argument : tessera::find_op(contract.op)->schema->arguments) {
        if (!argument.is_array() || argument.is_output()) continue;
        if (view_in(made.args.get(), argument).num_elements == 0) continue;
        race(made, implementation, argument.name, 0, 0xff);
        race(made, implementation, argument.name, 1, 0x7f);
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  begin_check(argc, argv);
  const std::pair<const char*, std::int64_t> implementations[] = {
      {"cuda/few", 32},        {"cuda/one_cta", 1024}, {"cuda/redundant", 65535},
      {"cuda/cluster", 16384}, {"cuda/grid", 1 << 20}, {"cuda/wide", 1 << 20}};
  for (const auto& [implementation, num_ids] : implementations) {
    race_align(implementation, num_ids, 8, false);
    for (const std::uint8_t bits : {8, 32, 64}) {
      race_align(implementation, num_ids, bits, true);
    }
  }
  race_lora();
  race_batched();
  race_all_inputs();
  std::printf("%ld calls beside writes to their inputs, %ld failed\n", num_calls, num_failed);
  return num_failed == 0 && num_calls > 0 ? 0 : 1;
}
