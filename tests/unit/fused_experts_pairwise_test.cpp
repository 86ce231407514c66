// fused_experts at the sizes of models, as dispatch runs it: the contract holds, the call repeats
// its bits, and a token's bits do not depend on the other tokens. ctest calls these tests slow.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

#include "fused_experts_cases.hpp"
#include "fused_experts_checker.hpp"
#include "op_arguments.hpp"
#include "random_numbers.hpp"
#include "tessera/fused_experts.hpp"

namespace tessera::test {
namespace {

using contract::FusedExpertsCase;
using Bytes = std::vector<std::byte>;
using Tokens = std::vector<std::int64_t>;

std::size_t row_bytes(const TensorView& view) {
  return static_cast<std::size_t>(view.shape[1]) * element_bytes(view);
}

std::byte* row_of(const TensorView& view, std::int64_t row) {
  return static_cast<std::byte*>(view.data) +
         static_cast<std::size_t>(row * view.strides[0]) * element_bytes(view);
}

/// A call with an output of its own.
class Call {
 public:
  explicit Call(const FusedExpertsArgs& args) : args_(args), output_(bytes_of(args.output)) {
    args_.output.data = output_.data();
  }

  const FusedExpertsArgs& args() const { return args_; }

  void run(int num_threads, std::byte poison) {
    Context context;
    context.num_threads = num_threads;
    std::size_t bytes = 0;
    Status status = fused_experts_workspace_bytes(args_, context, &bytes);
    ASSERT_TRUE(status.ok()) << status.message();
    Bytes workspace(bytes, poison);
    context.workspace = workspace;
    std::ranges::fill(output_, poison);
    status = fused_experts(args_, context);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_TRUE(has_gaps_of(poison, output_, args_.output)) << "writes between rows";
  }

  /// The elements of the output, without the gaps between rows.
  Bytes elements() const { return elements_in(output_, args_.output); }

 private:
  FusedExpertsArgs args_;
  Bytes output_;
};

/// Rows of an array in memory of their own, as far apart as in the array.
class Rows {
 public:
  TensorView take(TensorView view, const Tokens& tokens) {
    const auto stride = static_cast<std::size_t>(view.strides[0]) * element_bytes(view);
    memory_.assign(tokens.size() * stride, std::byte{0xff});
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      std::memcpy(memory_.data() + i * stride, row_of(view, tokens[i]), row_bytes(view));
    }
    view.data = memory_.data();
    return resized(view, std::ssize(tokens));
  }

  static TensorView resized(TensorView view, std::int64_t num_rows) {
    view.shape[0] = num_rows;
    view.num_elements = num_rows * view.shape[1];
    return view;
  }

 private:
  Bytes memory_;
};

/// A call with these tokens alone gives them the bits that they have in `whole`.
void expect_same_bits(const Call& whole, const Tokens& tokens, const std::string& what) {
  Rows x;
  Rows weights;
  Rows ids;
  FusedExpertsArgs args = whole.args();
  args.x = x.take(args.x, tokens);
  args.topk_weights = weights.take(args.topk_weights, tokens);
  args.topk_ids = ids.take(args.topk_ids, tokens);
  args.output = Rows::resized(args.output, std::ssize(tokens));
  Call call(args);
  ASSERT_NO_FATAL_FAILURE(call.run(1, std::byte{0x5a}));
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto row = static_cast<std::int64_t>(i);
    ASSERT_EQ(std::memcmp(row_of(call.args().output, row), row_of(whole.args().output, tokens[i]),
                          row_bytes(args.output)),
              0)
        << what << ": token " << tokens[i];
  }
}

void expect_contract(const contract::CaseArguments& made) {
  Call call(made.as<FusedExpertsArgs>());
  ASSERT_NO_FATAL_FAILURE(call.run(0, std::byte{0xff}));
  for (const contract::Violation& violation : contract::check_fused_experts(call.args())) {
    ADD_FAILURE() << violation.message;
  }
  const Bytes first = call.elements();
  ASSERT_NO_FATAL_FAILURE(call.run(3, std::byte{0x01}));
  EXPECT_TRUE(call.elements() == first) << "the second call has other bits";

  const std::int64_t num_tokens = call.args().x.shape[0];
  if (num_tokens == 0) return;
  expect_same_bits(call, {0}, "the first token alone");
  expect_same_bits(call, {num_tokens - 1}, "the last token alone");
  Tokens half(static_cast<std::size_t>(num_tokens));
  std::iota(half.begin(), half.end(), 0);
  contract::RandomNumbers random(1);
  for (std::size_t i = half.size() - 1; i > 0; --i) {
    std::swap(half[i], half[static_cast<std::size_t>(random.below(std::ssize(half)))]);
  }
  half.resize((half.size() + 1) / 2);
  expect_same_bits(call, half, "half of the tokens in another order");
}

class FusedExpertsPairwise : public testing::TestWithParam<FusedExpertsCase> {};

TEST_P(FusedExpertsPairwise, KeepsTheContract) { expect_contract(make_arguments(GetParam(), 1)); }

INSTANTIATE_TEST_SUITE_P(All, FusedExpertsPairwise,
                         testing::ValuesIn(contract::fused_experts_pairwise_cases()),
                         [](const auto& info) { return info.param.name; });

/// Layers of models as they are, and as many tokens as fill several chunks.
std::vector<FusedExpertsCase> large_cases() {
  return {
      {.name = "Qwen3_30B_A3B",
       .num_tokens = 1000,
       .top_k = 8,
       .num_experts = 128,
       .hidden_size = 2048,
       .intermediate_size = 768},
      {.name = "Mixtral_8x7B",
       .num_tokens = 250,
       .top_k = 2,
       .num_experts = 8,
       .hidden_size = 4096,
       .intermediate_size = 14336,
       .routing = contract::ExpertRouting::kHot},
      {.name = "DeepSeekV3_TP8",
       .num_tokens = 64,
       .top_k = 8,
       .num_experts = 256,
       .hidden_size = 7168,
       .intermediate_size = 256},
      {.name = "DeepSeekV3_EP8",
       .num_tokens = 64,
       .top_k = 8,
       .num_experts = 32,
       .hidden_size = 7168,
       .intermediate_size = 2048,
       .num_global_experts = 256},
      {.name = "ManyTokens",
       .num_tokens = 131072,
       .top_k = 8,
       .num_experts = 8,
       .hidden_size = 7168,
       .intermediate_size = 16},
  };
}

class FusedExpertsLarge : public testing::TestWithParam<FusedExpertsCase> {};

TEST_P(FusedExpertsLarge, KeepsTheContract) {
  if (std::getenv("TESSERA_LONG") == nullptr) {
    GTEST_SKIP() << "takes up to a minute and 8 GiB of memory; TESSERA_LONG=1 runs it";
  }
  expect_contract(make_arguments(GetParam(), 1));
}

INSTANTIATE_TEST_SUITE_P(All, FusedExpertsLarge, testing::ValuesIn(large_cases()),
                         [](const auto& info) { return info.param.name; });

/// The ids of a routing log, whose lines hold one token each: "topk_ids": [7, 6, 4].
std::vector<std::int64_t> ids_of(const std::filesystem::path& log) {
  std::vector<std::int64_t> ids;
  std::ifstream file(log);
  const std::string key = "\"topk_ids\": [";
  for (std::string line; std::getline(file, line);) {
    const std::size_t found = line.find(key);
    if (found == std::string::npos) continue;
    const char* at = line.c_str() + found + key.size();
    while (*at != ']') {
      char* end = nullptr;
      ids.push_back(std::strtoll(at, &end, 10));
      at = *end == ',' ? end + 1 : end;
    }
  }
  return ids;
}

struct Log {
  const char* name;
  const char* file;
  std::int64_t top_k;
  std::int64_t num_experts;
};

class FusedExpertsLogs : public testing::TestWithParam<Log> {};

TEST_P(FusedExpertsLogs, KeepTheContract) {
  const char* const folder = std::getenv("TESSERA_TRACES");
  const std::filesystem::path path =
      std::filesystem::path(folder != nullptr ? folder : TRACES) / GetParam().file;
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no recorded log " << path;
  const std::vector<std::int64_t> ids = ids_of(path);
  ASSERT_GT(ids.size(), 10000U);
  FusedExpertsCase c;
  c.top_k = GetParam().top_k;
  c.num_tokens = std::ssize(ids) / c.top_k;
  c.num_experts = GetParam().num_experts;
  c.hidden_size = 128;
  c.intermediate_size = 96;
  c.values = contract::ExpertValues::kExact;
  expect_contract(make_arguments(c, ids, 1));
}

INSTANTIATE_TEST_SUITE_P(Recorded, FusedExpertsLogs,
                         testing::Values(Log{"OlmoeLayer0", "olmoe-1b-7b_layer0.jsonl", 8, 64},
                                         Log{"QwenLayer0", "qwen1.5-moe-a2.7b_layer0.jsonl", 4, 60},
                                         Log{"QwenLayer12", "qwen1.5-moe-a2.7b_layer12.jsonl", 4,
                                             60}),
                         [](const auto& log) { return log.param.name; });

}  // namespace
}  // namespace tessera::test
