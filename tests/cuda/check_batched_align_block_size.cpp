// Compares batched_align_block_size on a GPU with the CPU, bit for bit, on the case table and on
// random cases. Ends with 77 if there is no GPU to check.
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "check_program.hpp"
#include "device_buffer.hpp"
#include "guarded_batched_call.hpp"

namespace {

using namespace tessera::test;
using tessera::contract::BatchedAlignBlockSizeCase;

/// Runs a case whose arrays lie `misalignment` elements past an aligned address; returns what is
/// wrong, or nothing. Exact buffers are left as they came from the allocator, so that initcheck
/// finds reads of what nobody wrote.
std::string check_on_device(const BatchedAlignBlockSizeCase& c, unsigned long seed,
                            const BatchedOutputs& expected, std::size_t misalignment, bool is_exact,
                            tessera::StatusCode* code) {
  const std::vector<std::int32_t> host_counts = tessera::contract::make_counts(c, seed);
  constexpr std::size_t kBytes = sizeof(std::int32_t);
  const auto bytes_of = [](std::size_t num_elements) { return num_elements * kBytes; };
  DeviceBuffer counts(bytes_of(host_counts.size()), bytes_of(misalignment), is_exact);
  DeviceBuffer slots(bytes_of(expected.sorted_token_ids.size()), bytes_of(misalignment), is_exact);
  DeviceBuffer experts(bytes_of(expected.expert_ids.size()), bytes_of(misalignment), is_exact);
  DeviceBuffer total(kBytes, bytes_of(misalignment), is_exact);
  counts.upload(host_counts.data());
  if (!is_exact) {
    for (DeviceBuffer* output : {&slots, &experts, &total}) output->poison(std::byte{0xa5});
  }
  tessera::BatchedAlignBlockSizeArgs args;
  args.expert_num_tokens = int32_view(counts);
  args.max_tokens_per_batch = c.max_tokens_per_batch;
  args.block_size = c.block_size;
  args.tail_expert = c.tail_expert;
  args.sorted_token_ids = int32_view(slots);
  args.expert_ids = int32_view(experts);
  args.num_tokens_post_pad = int32_view(total);
  tessera::Context context;
  context.device = kDevice;
  if (const auto s = tessera::batched_align_block_size(args, context); !s.ok()) {
    *code = s.code();
    return s.message();
  }
  require(cudaDeviceSynchronize(), c.name.c_str());

  for (const std::string& difference :
       {first_difference<std::int32_t>("expert_num_tokens", counts, host_counts),
        first_difference<std::int32_t>("sorted_token_ids", slots, expected.sorted_token_ids),
        first_difference<std::int32_t>("expert_ids", experts, expected.expert_ids),
        first_difference<std::int32_t>("num_tokens_post_pad", total,
                                       {&expected.num_tokens_post_pad, 1})}) {
    if (!difference.empty()) return difference;
  }
  const std::pair<const char*, const DeviceBuffer*> buffers[] = {{"expert_num_tokens", &counts},
                                                                 {"sorted_token_ids", &slots},
                                                                 {"expert_ids", &experts},
                                                                 {"num_tokens_post_pad", &total}};
  for (const auto& [name, buffer] : buffers) {
    if (!buffer->intact()) return std::string(name) + ": written beside";
  }
  return {};
}

struct Tally {
  long calls = 0;
  long unsupported = 0;  ///< of more batches than the device takes
  long failed = 0;
};

void check_case(const BatchedAlignBlockSizeCase& c, unsigned long seed, bool is_exact,
                Tally* tally) {
  GuardedBatchedCall host(c, seed);
  const tessera::Status status = host.run();
  const BatchedOutputs expected = host.outputs();
  for (const std::size_t misalignment : {std::size_t{0}, std::size_t{1 + seed % 3}}) {
    tessera::StatusCode code = status.code();
    const std::string wrong =
        status.ok() ? check_on_device(c, seed, expected, misalignment, is_exact, &code)
                    : "the CPU refuses it: " + status.message();
    ++tally->calls;
    if (code == tessera::StatusCode::kUnsupported && c.num_batches > 32768) {
      ++tally->unsupported;
    } else if (!wrong.empty() && ++tally->failed <= 20) {
      std::fprintf(stderr, "FAILED case %s, seed %lu, %s: %s\n", c.name.c_str(), seed,
                   misalignment == 0 ? "aligned" : "shifted buffers", wrong.c_str());
    }
    if (is_exact) break;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const CheckOptions options = begin_check(argc, argv);
  Tally tally;
  for (const auto& c : tessera::contract::batched_align_block_size_cases()) {
    if (sizes_of(c).sorted_token_ids > options.max_ids) continue;
    check_case(c, options.seed, options.exact, &tally);
  }
  for (long k = 0; k < options.random; ++k) {
    const unsigned long seed = options.seed + static_cast<unsigned long>(k);
    const auto c = tessera::contract::random_batched_align_block_size_case(
        seed, max_ids_of_random_case(options, k));
    check_case(c, seed, options.exact, &tally);
  }
  std::printf("%ld calls checked, %ld of them with too many batches for the device, %ld failed\n",
              tally.calls, tally.unsupported, tally.failed);
  return tally.failed == 0 && tally.calls > tally.unsupported ? 0 : 1;
}
