// Compares lora_align_block_size on a GPU with the CPU, bit for bit, on the case table and on
// random cases. Ends with 77 if there is no GPU to check.
#include <cstdio>
#include <list>
#include <string>
#include <vector>

#include "check_program.hpp"
#include "device_buffer.hpp"
#include "guarded_lora_call.hpp"

namespace {

using namespace tessera::test;
using tessera::contract::LoraAlignBlockSizeCase;

/// The device arrays of a call, each `misalignment` elements past an aligned address. Exact ones
/// are not initialised, so that initcheck finds reads of unwritten memory.
class DeviceArrays {
 public:
  DeviceArrays(std::size_t misalignment, bool is_exact)
      : misalignment_(misalignment), is_exact_(is_exact) {}

  /// A copy of an array of the host; none if there is none.
  tessera::TensorView input(const char* name, const tessera::TensorView& host) {
    if (!host.given()) return {};
    DeviceBuffer& buffer = add(name, host);
    buffer.upload(host.data);
    return view_of(buffer, host.dtype);
  }

  tessera::TensorView output(const char* name, const tessera::TensorView& host) {
    DeviceBuffer& buffer = add(name, host);
    if (!is_exact_) buffer.poison(std::byte{0xa5});
    return view_of(buffer, host.dtype);
  }

  /// The first array that differs from the host's of the same name, or was written beside.
  std::string difference() const {
    for (const Array& array : arrays_) {
      const auto* const host = static_cast<const std::byte*>(array.host.data);
      const std::vector<std::byte> found = array.buffer.download();
      for (std::size_t i = 0; i < found.size(); ++i) {
        if (found[i] != host[i]) {
          return std::string(array.name) + "[" + std::to_string(i * 8 / array.host.dtype.bits) +
                 "]: another value than on the host";
        }
      }
      if (!array.buffer.intact()) return std::string(array.name) + ": written beside";
    }
    return {};
  }

 private:
  struct Array {
    Array(const char* array_name, const tessera::TensorView& view, std::size_t misalignment,
          bool is_exact)
        : name(array_name),
          host(view),
          buffer(static_cast<std::size_t>(view.num_elements) * view.dtype.bits / 8,
                 misalignment * view.dtype.bits / 8, is_exact) {}

    const char* name;
    tessera::TensorView host;
    DeviceBuffer buffer;
  };

  DeviceBuffer& add(const char* name, const tessera::TensorView& host) {
    return arrays_.emplace_back(name, host, misalignment_, is_exact_).buffer;
  }

  std::size_t misalignment_;
  bool is_exact_;
  std::list<Array> arrays_;
};

/// Runs a case that the host has run; returns what is wrong, or nothing.
std::string check_on_device(const GuardedLoraCall& host, std::size_t misalignment, bool is_exact,
                            tessera::StatusCode* code) {
  DeviceArrays arrays(misalignment, is_exact);
  tessera::LoraAlignBlockSizeArgs args = host.args;
  args.topk_ids = arrays.input("topk_ids", args.topk_ids);
  args.token_lora_mapping = arrays.input("token_lora_mapping", args.token_lora_mapping);
  args.adapter_enabled = arrays.input("adapter_enabled", args.adapter_enabled);
  args.lora_ids = arrays.input("lora_ids", args.lora_ids);
  args.expert_map = arrays.input("expert_map", args.expert_map);
  args.sorted_token_ids = arrays.output("sorted_token_ids", args.sorted_token_ids);
  args.expert_ids = arrays.output("expert_ids", args.expert_ids);
  args.num_tokens_post_pad = arrays.output("num_tokens_post_pad", args.num_tokens_post_pad);
  tessera::Context context;
  context.device = kDevice;
  const tessera::Status status = tessera::lora_align_block_size(args, context);
  *code = status.code();
  if (!status.ok()) return status.message();
  require(cudaDeviceSynchronize(), "lora_align_block_size");
  return arrays.difference();
}

struct Tally {
  long calls = 0;
  long unsupported = 0;  ///< of more experts than the device takes
  long failed = 0;
};

void check_case(const LoraAlignBlockSizeCase& c, unsigned long seed, bool is_exact, Tally* tally) {
  GuardedLoraCall host(c, seed);
  const tessera::Status status = host.run();
  for (const std::size_t misalignment : {std::size_t{0}, std::size_t{1 + seed % 3}}) {
    tessera::StatusCode code = status.code();
    const std::string wrong = status.ok() ? check_on_device(host, misalignment, is_exact, &code)
                                          : "the CPU refuses it: " + status.message();
    ++tally->calls;
    if (code == tessera::StatusCode::kUnsupported && c.pairs.num_experts > 8192) {
      ++tally->unsupported;
    } else if (!wrong.empty() && ++tally->failed <= 20) {
      std::fprintf(stderr, "FAILED case %s, seed %lu, %s: %s\n", c.pairs.name.c_str(), seed,
                   misalignment == 0 ? "aligned" : "shifted buffers", wrong.c_str());
    }
    if (is_exact) break;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const CheckOptions options = begin_check(argc, argv);
  Tally tally;
  for (const auto& c : tessera::contract::lora_align_block_size_cases()) {
    if (c.pairs.num_tokens * c.pairs.top_k > options.max_ids) continue;
    check_case(c, options.seed, options.exact, &tally);
  }
  for (long k = 0; k < options.random; ++k) {
    const unsigned long seed = options.seed + static_cast<unsigned long>(k);
    const auto c = tessera::contract::random_lora_align_block_size_case(
        seed, max_ids_of_random_case(options, k));
    check_case(c, seed, options.exact, &tally);
  }
  std::printf("%ld calls checked, %ld of them with too many experts for the device, %ld failed\n",
              tally.calls, tally.unsupported, tally.failed);
  return tally.failed == 0 && tally.calls > tally.unsupported ? 0 : 1;
}
