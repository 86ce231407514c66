// Compares every CUDA implementation with the CPU, bit for bit, on the case table and on random
// cases. A program of its own, without a test framework, so that compute-sanitizer can run it and
// a machine without GoogleTest can build it. Ends with 77 where there is nothing to check on.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "device_call.hpp"
#include "tessera/info.hpp"

namespace {

using tessera::contract::AlignBlockSizeCase;
using tessera::test::DeviceSurroundings;
using tessera::test::Outputs;

constexpr int kExitSkipped = 77;
constexpr const char* kUsage =
    "usage: check_align_block_size [--random COUNT] [--seed FIRST] [--max-ids N] [--exact]\n"
    "  --random COUNT  also check COUNT random cases (default 1000)\n"
    "  --seed FIRST    seed of the first random case (default 1)\n"
    "  --max-ids N     leave out cases with more ids, and draw no larger ones (default 20000)\n"
    "  --exact         one call a case and implementation, on allocations of exactly the size:\n"
    "                  for compute-sanitizer\n";

struct Options {
  long random = 1000;
  unsigned long seed = 1;
  long max_ids = 20000;
  bool exact = false;
};

struct Tally {
  std::map<std::string, long> checked;  ///< calls by implementation
  long cases = 0;
  long failed = 0;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const auto value = [&]() -> long {
      char* end = nullptr;
      const long parsed = i + 1 < argc ? std::strtol(argv[++i], &end, 10) : -1;
      if (end == nullptr || *end != '\0' || parsed < 0) {
        std::fputs(kUsage, stderr);
        std::exit(2);
      }
      return parsed;
    };
    if (std::strcmp(argv[i], "--random") == 0) {
      options.random = value();
    } else if (std::strcmp(argv[i], "--seed") == 0) {
      options.seed = static_cast<unsigned long>(value());
    } else if (std::strcmp(argv[i], "--max-ids") == 0) {
      options.max_ids = value();
    } else if (std::strcmp(argv[i], "--exact") == 0) {
      options.exact = true;
    } else {
      std::fputs(kUsage, std::strcmp(argv[i], "--help") == 0 ? stdout : stderr);
      std::exit(std::strcmp(argv[i], "--help") == 0 ? 0 : 2);
    }
  }
  return options;
}

void check_case(const AlignBlockSizeCase& c, unsigned long seed, bool exact, Tally* tally) {
  tessera::test::GuardedCall host(c, seed);
  if (const tessera::Status s = host.run(); !s.ok()) {
    std::fprintf(stderr, "%s: the CPU refuses it: %s\n", c.name.c_str(), s.message().c_str());
    ++tally->failed;
    return;
  }
  const Outputs expected = host.outputs();
  ++tally->cases;
  for (const std::string& implementation : tessera::test::device_implementations(c)) {
    // What is in memory, where it lies and which outputs are asked for must not matter.
    const DeviceSurroundings surroundings[] = {
        {implementation, std::byte{0xa5}, 0, exact, true},
        {implementation, std::byte{0xff}, 1 + seed % 3, false, seed % 2 == 0}};
    for (const DeviceSurroundings& around : surroundings) {
      const std::string wrong = tessera::test::check_on_device(c, seed, expected, around);
      ++tally->checked[implementation];
      if (!wrong.empty() && ++tally->failed <= 20) {
        std::fprintf(stderr, "FAILED case %s, seed %lu, %s, %s: %s\n", c.name.c_str(), seed,
                     implementation.c_str(),
                     around.misalignment == 0 ? "aligned" : "shifted buffers", wrong.c_str());
      }
      if (exact) break;
    }
  }
}

/// Calls that have to be refused before anything is launched.
void check_refusals(Tally* tally) {
  const auto expect = [&](const char* what, const tessera::Context& context,
                          const std::string& message_start) {
    const std::string message = tessera::test::call_on_device(context).message();
    ++tally->checked["refusals"];
    if (message.substr(0, message_start.size()) == message_start) return;
    ++tally->failed;
    std::fprintf(stderr, "FAILED %s: expected '%s...', got '%s'\n", what, message_start.c_str(),
                 message.c_str());
  };
  tessera::Context context;
  context.device = {kDLCUDA, 63};
  expect("a device that is not there", context, "align_block_size: device: expected one of ");

  int num_devices = 0;
  tessera::test::require(cudaGetDeviceCount(&num_devices), "cudaGetDeviceCount");
  if (num_devices < 2) {
    std::puts("a stream of another device: skipped, there is no second device");
    return;
  }
  cudaStream_t stream;
  tessera::test::require(cudaSetDevice(1), "cudaSetDevice");
  tessera::test::require(cudaStreamCreate(&stream), "cudaStreamCreate");
  tessera::test::require(cudaSetDevice(0), "cudaSetDevice");
  context.device = {kDLCUDA, 0};
  context.stream = stream;
  expect("a stream of another device", context,
         "align_block_size: stream: expected a stream of cuda:0, got one of another device");
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  for (const tessera::BackendInfo& backend : tessera::backends()) {
    if (backend.name != "cuda") continue;
    std::printf("cuda: %s\n", backend.detail.c_str());
    if (!backend.available) {
      std::puts("skipped: nothing to check the CUDA backend on");
      return kExitSkipped;
    }
  }
  Tally tally;
  // A sanitizer would count the launch that fails.
  if (!options.exact) check_refusals(&tally);
  for (const AlignBlockSizeCase& c : tessera::contract::align_block_size_cases()) {
    if (c.num_tokens * c.top_k <= options.max_ids) check_case(c, 1, options.exact, &tally);
  }
  for (long k = 0; k < options.random; ++k) {
    const unsigned long seed = options.seed + static_cast<unsigned long>(k);
    // Most cases small, where the corners are; every eighth up to the limit.
    const long max_ids = k % 8 == 0 ? options.max_ids : std::min(options.max_ids, 1024L);
    check_case(tessera::contract::random_align_block_size_case(seed, max_ids), seed, options.exact,
               &tally);
  }
  std::printf("%ld cases;", tally.cases);
  long calls = 0;
  for (const auto& [implementation, count] : tally.checked) {
    std::printf(" %s %ld", implementation.c_str(), count);
    calls += count;
  }
  std::printf("\n%ld calls checked, %ld failed\n", calls, tally.failed);
  return tally.failed == 0 && calls > 0 ? 0 : 1;
}
