// Times the same calls by two builds of the library, in turns in one process, and prints them as
// JSON: what a change to the library costs.
//
//   compare_builds BEFORE/libtessera.so AFTER/libtessera.so cpu|cuda
//
// The builds must differ in their version, or the loader takes the second for the first: give one
// another number in VERSION. Method on the host: the minimum over rounds of calls on one thread; on
// a GPU: the median over replays of a CUDA graph of 20 calls, L2 warm.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "tessera/tessera.h"

namespace {

constexpr int kGraphLength = 20;
constexpr int kReplays = 101;
constexpr int kRounds = 200;
constexpr double kMicrosecondsPerRound = 300;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "compare_builds: %s\n", what.c_str());
  std::exit(1);
}

void require(cudaError_t error) {
  if (error != cudaSuccess) fail(cudaGetErrorString(error));
}

struct Build {
  decltype(&tessera_align_block_size_query) align_query;
  decltype(&tessera_align_block_size) align;
  decltype(&tessera_lora_align_block_size_query) lora_query;
  decltype(&tessera_lora_align_block_size) lora;
  decltype(&tessera_last_error) last_error;

  explicit Build(const char* path) {
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) fail(dlerror());
    find(library, "tessera_align_block_size_query", &align_query);
    find(library, "tessera_align_block_size", &align);
    find(library, "tessera_lora_align_block_size_query", &lora_query);
    find(library, "tessera_lora_align_block_size", &lora);
    find(library, "tessera_last_error", &last_error);
  }

  void require(tessera_status status) const {
    if (status != TESSERA_OK) fail(last_error());
  }

 private:
  template <typename Function>
  static void find(void* library, const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(library, name));
    if (*function == nullptr) fail(std::string("no function ") + name);
  }
};

/// Memory where the calls run.
class Memory {
 public:
  Memory(std::size_t bytes, bool on_device) : on_device_(on_device) {
    if (on_device) {
      require(cudaMalloc(&data_, std::max<std::size_t>(bytes, 1)));
    } else {
      data_ = std::malloc(std::max<std::size_t>(bytes, 1));
    }
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { on_device_ ? static_cast<void>(cudaFree(data_)) : std::free(data_); }

  template <typename T>
  T* of() const {
    return static_cast<T*>(data_);
  }

  void fill(const std::vector<std::int32_t>& values) {
    const std::size_t bytes = values.size() * sizeof(std::int32_t);
    if (on_device_) {
      require(cudaMemcpy(data_, values.data(), bytes, cudaMemcpyHostToDevice));
      require(cudaStreamSynchronize(nullptr));  // the stream of calls does not wait for the copy
    } else {
      std::memcpy(data_, values.data(), bytes);
    }
  }

 private:
  bool on_device_;
  void* data_ = nullptr;
};

std::vector<std::int32_t> random_numbers(std::int64_t count, std::int64_t below) {
  std::mt19937 engine(1);
  std::uniform_int_distribution<std::int32_t> draw(0, static_cast<std::int32_t>(below - 1));
  std::vector<std::int32_t> numbers(count);
  for (std::int32_t& number : numbers) number = draw(engine);
  return numbers;
}

/// A call by either build.
using Call = std::function<void(const Build&)>;

class Timer {
 public:
  Timer(const Build& before, const Build& after, bool on_device)
      : builds_{&before, &after}, on_device_(on_device) {
    if (on_device) require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  }

  /// Prints a row.
  void time(const std::string& op, const std::string& shape, const Call& call) {
    double us[2];
    on_device_ ? time_on_device(call, us) : time_on_host(call, us);
    std::printf(
        "%s\n    {\"op\": \"%s\", \"shape\": \"%s\", \"before_us\": %.4f, \"after_us\": %.4f}",
        is_first_ ? "" : ",", op.c_str(), shape.c_str(), us[0], us[1]);
    std::fflush(stdout);
    is_first_ = false;
  }

  cudaStream_t stream = nullptr;

 private:
  void time_on_host(const Call& call, double* us) const {
    using Clock = std::chrono::steady_clock;
    const auto run = [&](const Build& build, int calls) {
      const auto begin = Clock::now();
      for (int k = 0; k < calls; ++k) call(build);
      return std::chrono::duration<double, std::micro>(Clock::now() - begin).count() / calls;
    };
    for (int k = 0; k < 2; ++k) us[k] = std::numeric_limits<double>::max();
    const int calls = std::max(1, static_cast<int>(kMicrosecondsPerRound / run(*builds_[0], 3)));
    for (int round = 0; round < kRounds; ++round) {
      for (const int k : {round % 2, 1 - round % 2}) {
        us[k] = std::min(us[k], run(*builds_[k], calls));
      }
    }
  }

  void time_on_device(const Call& call, double* us) const {
    cudaGraphExec_t graphs[2];
    cudaEvent_t begin, end;
    require(cudaEventCreate(&begin));
    require(cudaEventCreate(&end));
    for (int k = 0; k < 2; ++k) {
      cudaGraph_t graph;
      call(*builds_[k]);
      require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
      for (int i = 0; i < kGraphLength; ++i) call(*builds_[k]);
      require(cudaStreamEndCapture(stream, &graph));
      require(cudaGraphInstantiate(&graphs[k], graph, 0));
    }
    std::vector<float> times[2];
    for (int replay = 0; replay < kReplays; ++replay) {
      for (const int k : {replay % 2, 1 - replay % 2}) {
        require(cudaGraphLaunch(graphs[k], stream));  // keeps the device busy until the next is in
        require(cudaEventRecord(begin, stream));
        require(cudaGraphLaunch(graphs[k], stream));
        require(cudaEventRecord(end, stream));
        require(cudaStreamSynchronize(stream));
        float ms = 0;
        require(cudaEventElapsedTime(&ms, begin, end));
        times[k].push_back(ms);
      }
    }
    for (int k = 0; k < 2; ++k) {
      std::nth_element(times[k].begin(), times[k].begin() + kReplays / 2, times[k].end());
      us[k] = 1e3 * times[k][kReplays / 2] / kGraphLength;
    }
  }

  const Build* builds_[2];
  bool on_device_;
  bool is_first_ = true;
};

void compare_align(Timer* timer, const Build& before, const Build& after, bool on_device,
                   std::int64_t num_ids, std::int64_t num_experts, std::int64_t block_size,
                   bool with_map) {
  const std::int64_t capacity = num_ids + std::min(num_ids, num_experts) * (block_size - 1);
  const std::int64_t num_blocks = (capacity + block_size - 1) / block_size;
  constexpr std::size_t kInt = sizeof(std::int32_t);
  Memory ids(num_ids * kInt, on_device);
  Memory map(num_experts * kInt, on_device);
  const Memory slots(capacity * kInt, on_device);
  const Memory experts(num_blocks * kInt, on_device);
  const Memory total(kInt, on_device);
  ids.fill(random_numbers(num_ids, num_experts));
  map.fill(random_numbers(num_experts, num_experts));
  tessera_align_block_size_args args{};
  args.struct_size = sizeof(args);
  args.topk_ids = ids.of<void>();
  args.topk_ids_dtype = TESSERA_INT32;
  args.num_ids = num_ids;
  args.block_size = block_size;
  args.num_experts = num_experts;
  if (with_map) args.expert_map = map.of<std::int32_t>();
  args.ignore_invalid_experts = with_map ? 1 : 0;
  args.tail_expert = -1;
  args.sorted_token_ids = slots.of<std::int32_t>();
  args.sorted_token_ids_length = capacity;
  args.expert_ids = experts.of<std::int32_t>();
  args.expert_ids_length = num_blocks;
  args.num_tokens_post_pad = total.of<std::int32_t>();
  args.device_type = on_device ? TESSERA_CUDA : TESSERA_CPU;
  args.stream = timer->stream;
  args.num_threads = 1;
  for (const Build* build : {&before, &after}) {
    tessera_align_block_size_sizes sizes{};
    sizes.struct_size = sizeof(sizes);
    build->require(build->align_query(&args, &sizes));
    args.workspace_bytes = std::max(args.workspace_bytes, sizes.workspace_bytes);
  }
  const Memory workspace(args.workspace_bytes, on_device);
  args.workspace = workspace.of<void>();
  timer->time("align_block_size",
              std::to_string(num_ids) + "x" + std::to_string(num_experts) + "/" +
                  std::to_string(block_size) + (with_map ? ", map" : ""),
              [&](const Build& build) { build.require(build.align(&args)); });
}

void compare_lora(Timer* timer, const Build& before, const Build& after, bool on_device,
                  std::int64_t num_ids, std::int64_t num_experts, std::int64_t max_loras) {
  constexpr std::int64_t kTopK = 8;
  constexpr std::int64_t kBlockSize = 16;
  constexpr std::size_t kInt = sizeof(std::int32_t);
  const std::int64_t capacity = num_ids + std::min(num_ids, num_experts) * (kBlockSize - 1);
  const std::int64_t num_blocks = (capacity + kBlockSize - 1) / kBlockSize;
  Memory ids(num_ids * kInt, on_device);
  Memory mapping(num_ids / kTopK * kInt, on_device);
  const Memory slots(max_loras * capacity * kInt, on_device);
  const Memory experts(max_loras * num_blocks * kInt, on_device);
  const Memory totals(max_loras * kInt, on_device);
  ids.fill(random_numbers(num_ids, num_experts));
  mapping.fill(random_numbers(num_ids / kTopK, max_loras));
  tessera_lora_align_block_size_args args{};
  args.struct_size = sizeof(args);
  args.topk_ids = ids.of<void>();
  args.topk_ids_dtype = TESSERA_INT32;
  args.num_ids = num_ids;
  args.top_k = kTopK;
  args.token_lora_mapping = mapping.of<std::int32_t>();
  args.block_size = kBlockSize;
  args.num_experts = num_experts;
  args.max_loras = max_loras;
  args.tail_expert = -1;
  args.sorted_token_ids = slots.of<std::int32_t>();
  args.sorted_token_ids_length = max_loras * capacity;
  args.expert_ids = experts.of<std::int32_t>();
  args.expert_ids_length = max_loras * num_blocks;
  args.num_tokens_post_pad = totals.of<std::int32_t>();
  args.device_type = on_device ? TESSERA_CUDA : TESSERA_CPU;
  args.stream = timer->stream;
  for (const Build* build : {&before, &after}) {
    tessera_lora_align_block_size_sizes sizes{};
    sizes.struct_size = sizeof(sizes);
    build->require(build->lora_query(&args, &sizes));
    args.workspace_bytes = std::max(args.workspace_bytes, sizes.workspace_bytes);
  }
  const Memory workspace(args.workspace_bytes, on_device);
  args.workspace = workspace.of<void>();
  timer->time("lora_align_block_size",
              std::to_string(num_ids) + "x" + std::to_string(num_experts) + "/16, " +
                  std::to_string(max_loras) + " adapters",
              [&](const Build& build) { build.require(build.lora(&args)); });
}

}  // namespace

int main(int argc, char** argv) {
  const std::string where = argc == 4 ? argv[3] : "";
  if (where != "cpu" && where != "cuda") {
    std::fputs("usage: compare_builds BEFORE/libtessera.so AFTER/libtessera.so cpu|cuda\n", stderr);
    return 2;
  }
  const Build before(argv[1]);
  const Build after(argv[2]);
  const bool on_device = where == "cuda";
  std::string machine = "CPU, one thread";
  if (on_device) {
    cudaDeviceProp properties{};
    require(cudaGetDeviceProperties(&properties, 0));
    machine = properties.name;
  }
  Timer timer(before, after, on_device);
  std::printf("{\n  \"machine\": \"%s\",\n  \"rows\": [", machine.c_str());
  // The smallest, where a call is shortest, and those from which on a guard must not show.
  for (const std::int64_t num_ids : {256, 1024, 2048, 4096, 8192, 16384, 65536, 1 << 20}) {
    for (const std::int64_t num_experts : {8, 64, 256}) {
      for (const bool with_map : {false, true}) {
        compare_align(&timer, before, after, on_device, num_ids, num_experts, 16, with_map);
      }
    }
  }
  compare_align(&timer, before, after, on_device, 4096, 65536, 16, false);
  if (on_device) compare_align(&timer, before, after, on_device, 10000000, 256, 128, false);
  for (const std::int64_t num_ids : {1024, 8192, 65536}) {
    compare_lora(&timer, before, after, on_device, num_ids, 64, 4);
  }
  std::printf("\n  ]\n}\n");
}
