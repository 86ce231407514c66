// Compares every CUDA implementation of every op with the CPU, bit for bit, or, where the contract
// leaves bits open, judges one and compares the others with it, on the tables of cases and on
// random cases. A program of its own, without a test framework, so that compute-sanitizer can run
// it and a machine without GoogleTest can build it. Ends with 77 where there is nothing to check
// on.
#include <algorithm>
#include <cstdio>
#include <map>
#include <string>

#include "check_program.hpp"
#include "device_call.hpp"
#include "fused_experts_cases.hpp"

namespace {

using namespace tessera::test;
using tessera::StatusCode;
using tessera::contract::CaseArguments;

struct Tally {
  std::map<std::string, long> checked;  ///< calls by implementation
  long cases = 0;                       ///< of this op
  long unsupported = 0;                 ///< of these, on this device by every implementation
  long failed = 0;
  long seen = 0;  ///< all cases so far, including those that belong to other shares
};

/// Whether the next case belongs to this program's share.
bool is_shared(const CheckOptions& options, Tally* tally) {
  // Shifted by one in each round: every eighth random case is large, and all shares get some.
  const long seen = tally->seen++;
  return (seen + seen / options.num_shares) % options.num_shares == options.share - 1;
}

void fail(Tally* tally, const std::string& what) {
  if (++tally->failed <= 20) std::fprintf(stderr, "FAILED %s\n", what.c_str());
}

/// Whether implementations may write other bits than each other: those of wgmma add products in
/// float8_e4m3fn with errors of their own.
bool bits_differ(const tessera::contract::OpContract& contract, const CaseArguments& made) {
  if (contract.op != "fused_experts") return false;
  return made.as<tessera::FusedExpertsArgs>().w13_scale.given();
}

/// What every call of the case must write, or why there is no such thing. Where the contract fixes
/// the bits, the host tells them. Otherwise the first of these implementations does, whose outputs
/// are judged: the others have the same bits, but where bits_differ() only those of its kind.
std::string find_expected(const tessera::contract::OpContract& contract, const CaseArguments& made,
                          unsigned long seed, const std::vector<std::string>& implementations,
                          const CheckOptions& options, Outputs* expected) {
  if (contract.fixes_bits) {
    GuardedCall host(made, seed);
    if (const tessera::Status s = host.run(); !s.ok()) return "the CPU refuses it: " + s.message();
    *expected = host.outputs();
    return {};
  }
  if (implementations.empty()) return {};
  DeviceCall first(made, {.implementation = implementations.front(), .is_exact = options.exact});
  if (const tessera::Status s = first.run(); !s.ok()) return s.message();
  *expected = first.outputs();
  return first.violation();
}

void check_case(const tessera::contract::OpContract& contract, const std::string& name,
                const CaseArguments& made, unsigned long seed, const CheckOptions& options,
                Tally* tally) {
  const std::string text =
      std::string(contract.op) + ", case " + name + ", seed " + std::to_string(seed);
  ++tally->cases;
  const std::vector<std::string> implementations = implementations_of(made, kDevice);
  tally->unsupported += implementations.empty() ? 1 : 0;
  Outputs expected;
  if (const std::string wrong =
          find_expected(contract, made, seed, implementations, options, &expected);
      !wrong.empty()) {
    fail(tally, text + ": " + wrong);
    return;
  }
  bool adds_exactly = !implementations.empty() && adds_fp8_exactly(implementations.front());
  for (const std::string& implementation : implementations) {
    if (bits_differ(contract, made) && adds_fp8_exactly(implementation) != adds_exactly) {
      adds_exactly = !adds_exactly;
      const std::string wrong =
          find_expected(contract, made, seed, {implementation}, options, &expected);
      if (!wrong.empty()) fail(tally, text + ", " + implementation + ": " + wrong);
    }
    // Neither the contents of memory, nor addresses, nor the requested outputs, nor a capture may
    // change the results.
    DeviceSurroundings aligned{.implementation = implementation, .is_exact = options.exact};
    DeviceSurroundings shifted{.implementation = implementation,
                               .poison = std::byte{0xff},
                               .misalignment = 1 + seed % 3,
                               .left_out = seed % 16};
    DeviceSurroundings captured{.implementation = implementation,
                                .poison = std::byte{0x01},
                                .misalignment = seed % 4,
                                .stream = stream_of_calls(),
                                .is_captured = true};
    for (DeviceSurroundings around : {aligned, shifted, captured}) {
      if (around.is_captured && seed % 8 != 1) continue;  // a graph takes long to make
      // Some implementations need aligned arrays; the policy picks one that does not.
      if (around.misalignment != 0 && !contract.fixes_bits) around.implementation.clear();
      const bool is_of_policy = around.implementation.empty() && bits_differ(contract, made);
      const std::string wrong =
          is_of_policy ? judge_on_device(made, around) : check_on_device(made, expected, around);
      ++tally->checked[implementation];
      if (!wrong.empty()) {
        fail(tally, text + ", " + implementation + ", " +
                        (around.is_captured         ? "captured"
                         : around.misalignment == 0 ? "aligned"
                                                    : "shifted buffers") +
                        ": " + wrong);
      }
      if (options.exact) break;
    }
  }
}

void check_named_case(const tessera::contract::OpContract& contract, const std::string& name,
                      unsigned long seed, const CheckOptions& options, Tally* tally) {
  if (!is_shared(options, tally)) return;
  const CaseArguments made = contract.arguments(name, seed);
  if (num_elements_of(made) > 8 * options.max_ids && name.find("random:") != 0) return;
  check_case(contract, name, made, seed, options, tally);
}

/// The sizes of models.
void check_pairwise_cases(const CheckOptions& options, Tally* tally) {
  const tessera::contract::OpContract& contract =
      *tessera::contract::find_contract("fused_experts");
  for (const auto& c : tessera::contract::fused_experts_pairwise_cases()) {
    if (!is_shared(options, tally)) continue;
    check_case(contract, c.name, make_arguments(c, 1), 1, options, tally);
  }
}

/// A call that must be refused before anything is launched, because its arrays are on a device that
/// does not exist.
void check_refusal(const tessera::contract::OpContract& contract, Tally* tally) {
  DeviceCall call(full_arguments(contract), {});
  tessera::Context context;
  context.device = {kDLCUDA, 63};
  for (const tessera::Argument& argument : call.op().schema->arguments) {
    if (argument.is_array()) view_in(call.args(), argument).device = context.device;
  }
  const std::string message = call.op().call(call.args(), context).message();
  ++tally->checked["refusals"];
  if (message.starts_with(std::string(contract.op) + ": device: expected one of ")) return;
  fail(tally, std::string(contract.op) + ": a device that is not there: got '" + message + "'");
}

}  // namespace

int main(int argc, char** argv) {
  const CheckOptions options = begin_check(argc, argv);
  Tally tally;
  for (const tessera::contract::OpContract& contract : tessera::contract::contracts()) {
    if (!options.op.empty() && options.op != contract.op) continue;
    if (std::ranges::find(options.left_out, contract.op) != options.left_out.end()) continue;
    tally.cases = tally.unsupported = 0;
    // A sanitizer would count the launch that fails.
    if (!options.exact) check_refusal(contract, &tally);
    for (const std::string& name : contract.case_names()) {
      check_named_case(contract, name, 1, options, &tally);
    }
    for (long k = 0; k < options.random; ++k) {
      const unsigned long seed = options.seed + static_cast<unsigned long>(k);
      const long size = max_ids_of_random_case(options, k);
      check_named_case(contract, tessera::contract::random_case_name(seed, size), seed, options,
                       &tally);
    }
    if (options.pairwise && contract.op == "fused_experts") check_pairwise_cases(options, &tally);
    std::printf("%s: %ld cases, %ld of them unsupported on this device\n", contract.op.data(),
                tally.cases, tally.unsupported);
    // fused_experts leaves float32 to the CPU, a third of its cases.
    if (2 * tally.unsupported < tally.cases) continue;
    fail(&tally, std::string(contract.op) + ": too few cases run on this device");
  }
  long calls = 0;
  for (const auto& [implementation, count] : tally.checked) {
    std::printf("%s %ld, ", implementation.c_str(), count);
    calls += count;
  }
  std::printf("%ld calls checked, %ld failed\n", calls, tally.failed);
  return tally.failed == 0 && calls > 0 ? 0 : 1;
}
