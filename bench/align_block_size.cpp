// Times align_block_size on the CPU beside its peers, on one problem, with Google Benchmark.
//
//   bench_align_block_size --list
//   bench_align_block_size --case=NAME [--benchmark_...]
//   bench_align_block_size --ids=FILE --experts=E --block-size=B [--benchmark_...]
//
// NAME is a benchmark case of contract/align_block_size_cases.hpp, as --list prints them; FILE
// holds raw int32 ids. Every implementation's output goes through the contract's checker before
// anything is timed. Normally run for all shapes by bench/run.py.
#include "peers/align_block_size.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "align_block_size_cases.hpp"
#include "align_block_size_checker.hpp"
#include "tessera/align_block_size.hpp"

namespace tessera::bench {
namespace {

struct Problem {
  std::vector<std::int32_t> ids;
  std::int64_t num_experts = 0;
  std::int64_t block_size = 0;
};

/// One problem with its buffers, shared by all contenders so that none has an address of its own.
class Bench {
 public:
  explicit Bench(Problem problem) : problem_(std::move(problem)) {
    const AlignBlockSizeShape shape{static_cast<std::int64_t>(problem_.ids.size()),
                                    problem_.block_size, problem_.num_experts};
    AlignBlockSizeSizes sizes;
    require(align_block_size_sizes(shape, Context{}, &sizes));
    sorted_token_ids_.resize(sizes.sorted_token_ids);
    expert_ids_.resize(sizes.expert_ids);
    workspace_.resize(sizes.workspace_bytes);
  }

  /// Our op as its C++ caller sees it: with validation, dispatch and all.
  void run_tessera(int num_threads) {
    Context context;
    context.workspace = workspace_;
    context.num_threads = num_threads;
    require(align_block_size(args(), context));
  }

  PeerProblem peer_problem() {
    return {problem_.ids.data(),
            static_cast<std::int32_t>(problem_.ids.size()),
            static_cast<std::int32_t>(problem_.block_size),
            static_cast<std::int32_t>(problem_.num_experts),
            sorted_token_ids_.data(),
            static_cast<std::int32_t>(sorted_token_ids_.size()),
            expert_ids_.data(),
            static_cast<std::int32_t>(expert_ids_.size()),
            &num_tokens_post_pad_};
  }

  void check(const std::string& name) {
    for (const contract::Violation& violation : contract::check_align_block_size(args())) {
      throw std::runtime_error(name + " breaks the contract: " + violation.message);
    }
  }

  void poison() {
    std::fill(sorted_token_ids_.begin(), sorted_token_ids_.end(), -7);
    std::fill(expert_ids_.begin(), expert_ids_.end(), -7);
    num_tokens_post_pad_ = -7;
  }

 private:
  static void require(const Status& status) {
    if (!status.ok()) throw std::runtime_error(status.message());
  }

  AlignBlockSizeArgs args() {
    AlignBlockSizeArgs result;
    result.topk_ids = TensorView::of(std::span<std::int32_t>(problem_.ids));
    result.block_size = problem_.block_size;
    result.num_experts = problem_.num_experts;
    result.sorted_token_ids = TensorView::of(std::span<std::int32_t>(sorted_token_ids_));
    result.expert_ids = TensorView::of(std::span<std::int32_t>(expert_ids_));
    result.num_tokens_post_pad = TensorView::of(std::span<std::int32_t>(&num_tokens_post_pad_, 1));
    return result;
  }

  Problem problem_;
  std::vector<std::int32_t> sorted_token_ids_;
  std::vector<std::int32_t> expert_ids_;
  std::int32_t num_tokens_post_pad_ = 0;
  std::vector<std::byte> workspace_;
};

Problem from_case(const std::string& name) {
  const auto found = contract::find_case(name);
  if (!found) throw std::runtime_error("no case is called " + name);
  if (found->dtype.bits != 32) throw std::runtime_error(name + ": the peers take int32 ids only");
  const contract::AlignBlockSizeInputs inputs = contract::make_inputs(*found, 0);
  Problem problem{{}, found->num_experts, found->block_size};
  problem.ids.resize(inputs.topk_ids.size() / sizeof(std::int32_t));
  std::memcpy(problem.ids.data(), inputs.topk_ids.data(), inputs.topk_ids.size());
  return problem;
}

Problem from_file(const std::string& path, std::int64_t num_experts, std::int64_t block_size) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  if (bytes.empty()) throw std::runtime_error("cannot read " + path);
  Problem problem{{}, num_experts, block_size};
  problem.ids.resize(bytes.size() / sizeof(std::int32_t));
  std::memcpy(problem.ids.data(), bytes.data(), problem.ids.size() * sizeof(std::int32_t));
  return problem;
}

/// Takes "--name=value" out of the arguments.
std::string take_flag(int* argc, char** argv, const std::string& name) {
  const std::string prefix = "--" + name + "=";
  for (int i = 1; i < *argc; ++i) {
    const std::string argument = argv[i];
    if (argument.compare(0, prefix.size(), prefix) == 0) {
      std::copy(argv + i + 1, argv + *argc, argv + i);
      --*argc;
      return argument.substr(prefix.size());
    }
  }
  return {};
}

void list_cases() {
  for (const contract::AlignBlockSizeCase& c : contract::align_block_size_cases()) {
    if (c.benchmark) std::printf("%s\n", c.name.c_str());
  }
}

void run(int argc, char** argv) {
  if (argc == 2 && std::string(argv[1]) == "--list") return list_cases();
  const std::string case_name = take_flag(&argc, argv, "case");
  const std::string path = take_flag(&argc, argv, "ids");
  const std::string num_experts = take_flag(&argc, argv, "experts");
  const std::string block_size = take_flag(&argc, argv, "block-size");
  if (case_name.empty() == path.empty()) {
    throw std::runtime_error("give --list, --case=NAME or --ids=FILE --experts=E --block-size=B");
  }
  Bench bench(path.empty() ? from_case(case_name)
                           : from_file(path, std::stoll(num_experts), std::stoll(block_size)));
  std::vector<std::int32_t> workspace;

  struct Contender {
    std::string name;
    bool is_checked;
    std::function<void()> call;
  };
  const std::vector<Contender> contenders{
      {"tessera/1", true, [&] { bench.run_tessera(1); }},
      {"tessera/2", true, [&] { bench.run_tessera(2); }},
      {"textbook", true, [&] { textbook(bench.peer_problem(), workspace); }},
      {"thread_local_counts/1", true,
       [&] { thread_local_counts(bench.peer_problem(), 1, workspace); }},
      {"thread_local_counts/2", true,
       [&] { thread_local_counts(bench.peer_problem(), 2, workspace); }},
      {"memory_floor", false, [&] { memory_floor(bench.peer_problem()); }},
  };
  for (const Contender& contender : contenders) {
    bench.poison();
    contender.call();
    if (contender.is_checked) bench.check(contender.name);
    benchmark::RegisterBenchmark(contender.name.c_str(),
                                 [call = contender.call](benchmark::State& state) {
                                   for (auto _ : state) {
                                     call();
                                     benchmark::ClobberMemory();
                                   }
                                 })
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond);
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
    throw std::runtime_error("unknown arguments");
  }
  benchmark::RunSpecifiedBenchmarks();
}

}  // namespace
}  // namespace tessera::bench

int main(int argc, char** argv) {
  try {
    tessera::bench::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_align_block_size: %s\n", error.what());
    return 1;
  }
}
