// Compares every CUDA implementation with the CPU, bit for bit, on the case table and on random
// cases. A separate program without a test framework, so that compute-sanitizer can run it and
// a machine without GoogleTest can build it. Ends with 77 if there is no GPU to check.
#include <cstdio>
#include <map>
#include <string>

#include "check_program.hpp"
#include "device_call.hpp"

namespace {

using tessera::contract::AlignBlockSizeCase;
using tessera::test::DeviceSurroundings;
using tessera::test::Outputs;

struct Tally {
  std::map<std::string, long> checked;  ///< calls by implementation
  long cases = 0;
  long failed = 0;
};

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
    // Memory contents, alignment and the choice of outputs must not matter.
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
}

}  // namespace

int main(int argc, char** argv) {
  const tessera::test::CheckOptions options = tessera::test::begin_check(argc, argv);
  Tally tally;
  // A sanitizer would count the launch that fails.
  if (!options.exact) check_refusals(&tally);
  for (const AlignBlockSizeCase& c : tessera::contract::align_block_size_cases()) {
    if (c.num_tokens * c.top_k <= options.max_ids) check_case(c, 1, options.exact, &tally);
  }
  for (long k = 0; k < options.random; ++k) {
    const unsigned long seed = options.seed + static_cast<unsigned long>(k);
    const long max_ids = tessera::test::max_ids_of_random_case(options, k);
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
