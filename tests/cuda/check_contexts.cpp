// Runs the ops in every kind of CUDA context: after a reset of the device, in a second context, in
// a green context with few multiprocessors, from a thread without a context, and for another
// device. Outputs are compared bit for bit with the CPU. Ends with 77 where there is nothing to
// check on.
#include <cuda.h>

#include <cstdio>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "align_block_size_cases.hpp"
#include "check_program.hpp"
#include "device_call.hpp"
#include "lora_align_block_size_cases.hpp"
#include "tessera/align_block_size.hpp"
#include "tessera/info.hpp"

namespace {

using namespace tessera::test;
using tessera::contract::AlignBlockSizeCase;

long num_checked = 0;
long num_failed = 0;

void expect(bool is_right, const std::string& what) {
  ++num_checked;
  if (is_right) return;
  ++num_failed;
  std::fprintf(stderr, "FAILED %s\n", what.c_str());
}

/// A function of the driver, found through the runtime: the program links no driver.
template <typename Function>
Function* driver_function(const char* name, unsigned version, Function*) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  require(cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableDefault, &result),
          name);
  return reinterpret_cast<Function*>(found);
}
#define DRIVER(name, version) driver_function(#name, version, static_cast<decltype(&name)>(nullptr))

AlignBlockSizeCase shape(std::int64_t num_tokens, std::int64_t num_experts,
                         std::int64_t block_size) {
  AlignBlockSizeCase c;
  c.name = std::to_string(num_tokens) + " ids, " + std::to_string(num_experts) + " experts";
  c.num_tokens = num_tokens;
  c.top_k = 1;
  c.num_experts = num_experts;
  c.block_size = block_size;
  return c;
}

/// Shapes that run every strategy, with more dynamic shared memory than a kernel has by default if
/// the strategy uses any, and with clusters that not every device runs.
const std::vector<AlignBlockSizeCase>& shapes() {
  static const std::vector<AlignBlockSizeCase> all{
      shape(32, 64, 16),      shape(900, 1000, 16),   shape(2048, 512, 16),  shape(16384, 128, 16),
      shape(65536, 1024, 16), shape(600000, 256, 64), shape(4096, 65536, 16)};
  return all;
}

/// Checks the shapes by every implementation that can run them on the stream, or by the policy's.
void check_shapes(const std::string& where, cudaStream_t stream, bool is_captured,
                  bool only_chosen) {
  for (const AlignBlockSizeCase& c : shapes()) {
    const tessera::contract::CaseArguments made = make_arguments(c, 1);
    GuardedCall host(made);
    expect(host.run().ok(), c.name + " on the CPU");
    std::vector<std::string> implementations{""};
    if (!only_chosen) implementations = implementations_of(made, kDevice);
    for (const std::string& implementation : implementations) {
      DeviceSurroundings around;
      around.implementation = implementation;
      around.stream = stream;
      around.is_captured = is_captured;
      const std::string wrong = check_on_device(made, host.outputs(), around);
      expect(wrong.empty(), where + ", " + c.name + ", " + implementation + ": " + wrong);
    }
  }
}

void check_reset() {
  check_shapes("before a reset", nullptr, false, false);
  require(cudaDeviceReset(), "cudaDeviceReset");
  check_shapes("after a reset", nullptr, false, false);
  // What another copy of the runtime in the process does.
  require(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  expect(DRIVER(cuDevicePrimaryCtxReset, 11000)(0) == CUDA_SUCCESS, "cuDevicePrimaryCtxReset");
  require(cudaFree(nullptr), "the device after its reset");
  check_shapes("after a reset by others", nullptr, false, false);
}

void check_second_context() {
  CUcontext second = nullptr;
  const auto create =
      reinterpret_cast<CUresult (*)(CUcontext*, unsigned, CUdevice)>(driver_function(
          "cuCtxCreate", 3020, static_cast<CUresult (*)(CUcontext*, unsigned, CUdevice)>(nullptr)));
  expect(create(&second, 0, 0) == CUDA_SUCCESS, "cuCtxCreate");
  check_shapes("in a second context", nullptr, false, false);
  CUcontext popped = nullptr;
  DRIVER(cuCtxPopCurrent, 4000)(&popped);
  check_shapes("in the first context again", nullptr, false, false);
  DRIVER(cuCtxDestroy, 4000)(second);
}

/// A green context of `num_sms` multiprocessors, and a stream of it.
bool make_green_context(unsigned num_sms, CUgreenCtx* green, CUstream* stream) {
  const auto get_resource = DRIVER(cuDeviceGetDevResource, 12040);
  const auto create_stream = DRIVER(cuGreenCtxStreamCreate, 12050);
  if (get_resource == nullptr || create_stream == nullptr) return false;
  CUdevResource all{};
  CUdevResource part{};
  CUdevResource rest{};
  CUdevResourceDesc description = nullptr;
  unsigned num_groups = 1;
  return get_resource(0, &all, CU_DEV_RESOURCE_TYPE_SM) == CUDA_SUCCESS &&
         DRIVER(cuDevSmResourceSplitByCount, 12040)(&part, &num_groups, &all, &rest, 0, num_sms) ==
             CUDA_SUCCESS &&
         DRIVER(cuDevResourceGenerateDesc, 12040)(&description, &part, 1) == CUDA_SUCCESS &&
         DRIVER(cuGreenCtxCreate, 12040)(green, description, 0, CU_GREEN_CTX_DEFAULT_STREAM) ==
             CUDA_SUCCESS &&
         create_stream(stream, *green, CU_STREAM_NON_BLOCKING, 0) == CUDA_SUCCESS;
}

void check_lora_on(cudaStream_t stream, const std::string& where) {
  tessera::contract::LoraAlignBlockSizeCase c;
  c.pairs = shape(32768, 64, 16);
  c.max_loras = 2;
  const tessera::contract::CaseArguments made = make_arguments(c, 1);
  GuardedCall host(made);
  expect(host.run().ok(), "lora on the CPU");
  DeviceSurroundings around;
  around.stream = stream;
  const std::string wrong = check_on_device(made, host.outputs(), around);
  expect(wrong.empty(), where + ", lora: " + wrong);
}

/// With as few multiprocessors as a green context can have, and with half a device.
void check_green_contexts() {
  for (const unsigned num_sms : {8u, 64u}) {
    CUgreenCtx green = nullptr;
    CUstream stream = nullptr;
    if (!make_green_context(num_sms, &green, &stream)) {
      std::printf("skipped: no green context of %u multiprocessors on this device\n", num_sms);
      continue;
    }
    const std::string where = "on " + std::to_string(num_sms) + " multiprocessors";
    check_shapes(where, stream, false, true);
    check_shapes(where + ", captured", stream, true, true);
    check_lora_on(stream, where);
    // Current, with its null stream.
    CUcontext context = nullptr;
    CUcontext popped = nullptr;
    DRIVER(cuCtxFromGreenCtx, 12040)(&context, green);
    DRIVER(cuCtxPushCurrent, 4000)(context);
    check_shapes(where + ", current", nullptr, false, true);
    DRIVER(cuCtxPopCurrent, 4000)(&popped);
    // Sizes queried meanwhile also suffice for the whole device.
    check_shapes("on the whole device", nullptr, false, true);
    DRIVER(cuStreamDestroy, 4000)(stream);
    DRIVER(cuGreenCtxDestroy, 12040)(green);
  }
}

/// A small call for a device, in a thread of its own, which has no context: it needs one only while
/// the call is made.
void check_thread_without_context(const tessera::AlignBlockSizeArgs& args, int device_id) {
  std::thread([&] {
    tessera::Context context;
    context.device = {kDLCUDA, device_id};
    const tessera::Status status = tessera::align_block_size(args, context);
    expect(status.ok(), "a thread without a context: " + status.message());
    CUcontext current = nullptr;
    DRIVER(cuCtxGetCurrent, 4000)(&current);
    expect(current == nullptr, "a thread without a context has none after the call");
  }).join();
}

/// Memory of a small call on the current device: four ids in four blocks of one.
struct SmallCall {
  DeviceBuffer memory{64 * sizeof(std::int32_t), 0, true};
  tessera::AlignBlockSizeArgs args;

  explicit SmallCall(int device_id) {
    std::vector<std::int32_t> values(64, -7);
    std::iota(values.begin(), values.begin() + 4, 0);
    memory.upload(values.data());
    const auto part = [&](int first, std::int64_t length) {
      tessera::TensorView view = int32_view(memory);
      view.data = memory.data() + first * sizeof(std::int32_t);
      view.num_elements = length;
      view.device = {kDLCUDA, device_id};
      return view;
    };
    args.topk_ids = part(0, 4);
    args.block_size = 1;
    args.num_experts = 4;
    args.sorted_token_ids = part(8, 4);
    args.expert_ids = part(16, 4);
    args.num_tokens_post_pad = part(24, 1);
  }

  bool has_run() const {
    require(cudaDeviceSynchronize(), "a small call");
    std::vector<std::int32_t> found(64);
    std::memcpy(found.data(), memory.download().data(), found.size() * sizeof(std::int32_t));
    return found[24] == 4 && found[8] == 0 && found[11] == 3 && found[16] == 0 && found[19] == 3;
  }
};

/// A call for device 1 leaves device 0, which nobody has used yet, without a context; and a stream
/// of another device than the call's is refused.
void check_two_devices() {
  require(cudaSetDevice(1), "cudaSetDevice(1)");
  SmallCall call(1);
  check_thread_without_context(call.args, 1);
  expect(call.has_run(), "a call for device 1 from a thread without a context");
  tessera::Context context;
  context.device = {kDLCUDA, 1};
  expect(tessera::warmup(context.device).ok(), "warmup of device 1");
  unsigned flags = 0;
  int is_active = 1;
  DRIVER(cuDevicePrimaryCtxGetState, 7000)(0, &flags, &is_active);
  expect(is_active == 0, "calls for device 1 create no context on device 0");

  require(cudaSetDevice(0), "cudaSetDevice(0)");
  cudaStream_t stream_of_0 = nullptr;
  require(cudaStreamCreate(&stream_of_0), "cudaStreamCreate");
  context.stream = stream_of_0;
  expect(tessera::align_block_size(call.args, context).message() ==
             "align_block_size: stream: expected a stream of cuda:1, got one of another device: "
             "cuda:0",
         "a stream of another device is refused");
  require(cudaStreamDestroy(stream_of_0), "cudaStreamDestroy");
  int current = -1;
  require(cudaGetDevice(&current), "cudaGetDevice");
  expect(current == 0, "a call for device 1 leaves device 0 current");
}

}  // namespace

int main(int argc, char** argv) {
  begin_check(argc, argv);
  int num_devices = 0;
  require(cudaGetDeviceCount(&num_devices), "cudaGetDeviceCount");
  if (num_devices > 1) {
    check_two_devices();  // first: nobody may have used device 0
  } else {
    std::puts("skipped: what needs a second GPU");
  }
  require(cudaSetDevice(0), "cudaSetDevice(0)");
  {
    const SmallCall call(0);
    check_thread_without_context(call.args, 0);
    expect(call.has_run(), "a call from a thread without a context");
  }
  check_reset();
  check_second_context();
  check_green_contexts();
  std::printf("%ld checks, %ld failed\n", num_checked, num_failed);
  return num_failed == 0 ? 0 : 1;
}
