// What is special to the implementations of fused_experts: values worked out by hand, and bits that
// do not depend on threads, on other tokens, or on the chunks of a call.
#include "tessera/fused_experts.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "guarded_buffer.hpp"
#include "tessera/ops.hpp"

namespace tessera::test {
namespace {

constexpr DLDataType kFp16{kDLFloat, 16, 1};
constexpr DLDataType kBf16{kDLBfloat, 16, 1};
constexpr DLDataType kFp32{kDLFloat, 32, 1};
constexpr DLDataType kDtypes[] = {kFp32, kBf16, kFp16};
constexpr const char* kNames[] = {"cpu/avx512_bf16", "cpu/avx512", "cpu/avx2", "cpu/portable",
                                  "cpu/reference"};

/// `value` in the data type, which has to represent it exactly or is only required to be near.
std::uint32_t bits_of(DLDataType dtype, float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  if (dtype.bits == 32) return bits;
  if (dtype.code == kDLBfloat) return bits >> 16;
  if (std::isnan(value)) return 0x7e00;
  const std::uint32_t sign = bits >> 16 & 0x8000;
  const std::uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude < 0x38800000) return sign;  // below the normal numbers
  return sign | (magnitude - 0x38000000) >> 13;
}

float value_of(DLDataType dtype, std::uint32_t bits) {
  float value = 0;
  if (dtype.code == kDLFloat && dtype.bits == 16) {
    const std::uint32_t exponent = bits >> 10 & 31;
    value = static_cast<float>(std::ldexp(exponent == 0 ? bits & 0x3ff : 0x400 | (bits & 0x3ff),
                                          exponent == 0 ? -24 : static_cast<int>(exponent) - 25));
    if (exponent == 31) value = NAN;
    return (bits & 0x8000) == 0 ? value : -value;
  }
  if (dtype.bits == 16) bits <<= 16;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

/// An array of one of the data types, which ends where its memory does.
class Array {
 public:
  Array(DLDataType dtype, std::int64_t size)
      : dtype_(dtype), memory_(size * dtype.bits / 8, dtype.bits / 8U) {}
  Array(DLDataType dtype, const std::vector<float>& values)
      : Array(dtype, static_cast<std::int64_t>(values.size())) {
    for (std::size_t i = 0; i < values.size(); ++i) set(static_cast<std::int64_t>(i), values[i]);
  }
  void set(std::int64_t i, float value) {
    const std::uint32_t bits = bits_of(dtype_, value);
    std::memcpy(memory_.data() + i * width(), &bits, static_cast<std::size_t>(width()));
  }
  float get(std::int64_t i) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, memory_.data() + i * width(), static_cast<std::size_t>(width()));
    return value_of(dtype_, bits);
  }
  std::vector<std::byte> bytes() { return {memory_.span().begin(), memory_.span().end()}; }
  TensorView view(std::initializer_list<std::int64_t> shape) {
    return TensorView::of(memory_.data(), dtype_, shape);
  }

 private:
  std::int64_t width() const { return dtype_.bits / 8; }
  DLDataType dtype_;
  GuardedBuffer<std::byte> memory_;
};

struct Sizes {
  std::int64_t tokens, hidden, experts, size, top_k;
};

/// Random arguments. What no pair uses is NaN.
struct Layer {
  Layer(DLDataType dtype, const Sizes& sizes, Activation activation, std::uint32_t seed)
      : dtype(dtype),
        s(sizes),
        num_rows(has_gate(activation) ? 2 * s.size : s.size),
        x(dtype, s.tokens * s.hidden),
        w13(dtype, s.experts * num_rows * s.hidden),
        w2(dtype, s.experts * s.hidden * s.size),
        w13_bias(dtype, s.experts * num_rows),
        w2_bias(dtype, s.experts * s.hidden),
        ids(static_cast<std::size_t>(s.tokens * s.top_k)),
        weights(ids.size(), NAN),
        activation(activation) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    // The last expert is never used, and some ids are none.
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ids[i] = static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(s.experts)) - 1;
      if (ids[i] >= 0) weights[i] = std::abs(normal(random));
    }
    const auto fill = [&](Array& array, std::int64_t first, std::int64_t count, float scale) {
      for (std::int64_t i = first; i < first + count; ++i) array.set(i, scale * normal(random));
    };
    for (std::int64_t t = 0; t < s.tokens; ++t) {
      const auto* const begin = ids.data() + t * s.top_k;
      const bool is_used = std::any_of(begin, begin + s.top_k, [](int id) { return id >= 0; });
      for (std::int64_t h = 0; h < s.hidden; ++h) x.set(t * s.hidden + h, NAN);
      if (is_used) fill(x, t * s.hidden, s.hidden, 1);
    }
    for (std::int64_t e = 0; e < s.experts; ++e) {
      const float scale = e + 1 == s.experts ? NAN : 0.1F;
      fill(w13, e * num_rows * s.hidden, num_rows * s.hidden, scale);
      fill(w2, e * s.hidden * s.size, s.hidden * s.size, scale);
      fill(w13_bias, e * num_rows, num_rows, scale);
      fill(w2_bias, e * s.hidden, s.hidden, scale);
    }
  }

  /// The bytes of each token's output, in the order of `tokens`.
  std::vector<std::vector<std::byte>> run(const char* implementation, int num_threads,
                                          const std::vector<std::int64_t>& tokens) {
    const auto count = static_cast<std::int64_t>(tokens.size());
    Array chosen(dtype, count * s.hidden);
    Array output(dtype, count * s.hidden);
    std::vector<std::int32_t> chosen_ids;
    std::vector<float> chosen_weights;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t t = tokens[static_cast<std::size_t>(i)];
      for (std::int64_t h = 0; h < s.hidden; ++h) {
        chosen.set(i * s.hidden + h, x.get(t * s.hidden + h));
      }
      for (std::int64_t k = t * s.top_k; k < (t + 1) * s.top_k; ++k) {
        chosen_ids.push_back(ids[static_cast<std::size_t>(k)]);
        chosen_weights.push_back(weights[static_cast<std::size_t>(k)]);
      }
    }
    FusedExpertsArgs args;
    args.x = chosen.view({count, s.hidden});
    args.w13 = w13.view({s.experts, num_rows, s.hidden});
    args.w2 = w2.view({s.experts, s.hidden, s.size});
    args.w13_bias = w13_bias.view({s.experts, num_rows});
    args.w2_bias = w2_bias.view({s.experts, s.hidden});
    args.topk_ids = TensorView::of(chosen_ids.data(), DLDataType{kDLInt, 32, 1}, {count, s.top_k});
    args.topk_weights = TensorView::of(chosen_weights.data(), kFp32, {count, s.top_k});
    args.output = output.view({count, s.hidden});
    args.activation = activation;
    Context context;
    context.implementation = implementation;
    context.num_threads = num_threads;
    std::size_t bytes = 0;
    Status status = fused_experts_workspace_bytes(args, context, &bytes);
    EXPECT_TRUE(status.ok()) << status.message();
    workspace_bytes = bytes;
    std::vector<std::byte> workspace(bytes, std::byte{0xff});
    context.workspace = workspace;
    status = fused_experts(args, context);
    EXPECT_TRUE(status.ok()) << status.message();
    const std::vector<std::byte> all = output.bytes();
    const std::size_t row = tokens.empty() ? 0 : all.size() / tokens.size();
    std::vector<std::vector<std::byte>> rows;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const auto begin = all.begin() + static_cast<std::ptrdiff_t>(i * row);
      rows.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(row));
    }
    return rows;
  }

  std::vector<std::int64_t> all_tokens() const {
    std::vector<std::int64_t> tokens(static_cast<std::size_t>(s.tokens));
    std::iota(tokens.begin(), tokens.end(), 0);
    return tokens;
  }

  DLDataType dtype;
  Sizes s;
  std::int64_t num_rows;
  Array x, w13, w2, w13_bias, w2_bias;
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
  Activation activation;
  std::size_t workspace_bytes = 0;
};

float value_in(DLDataType dtype, const std::vector<std::byte>& row, std::int64_t h) {
  std::uint32_t bits = 0;
  const std::size_t width = dtype.bits / 8U;
  std::memcpy(&bits, row.data() + static_cast<std::size_t>(h) * width, width);
  return value_of(dtype, bits);
}

class FusedExperts : public testing::TestWithParam<const char*> {
 protected:
  /// Why the implementation does not run with the data type here; empty if it does.
  static std::string refusal(DLDataType dtype) {
    Array x(dtype, 1);
    Array w13(dtype, 2);
    Array w2(dtype, 1);
    FusedExpertsArgs args;
    args.x = args.output = x.view({1, 1});
    args.w13 = w13.view({1, 2, 1});
    args.w2 = w2.view({1, 1, 1});
    args.topk_ids = TensorView::of(nullptr, DLDataType{kDLInt, 32, 1}, {1, 1});
    args.topk_weights = TensorView::of(nullptr, kFp32, {1, 1});
    Context context;
    context.implementation = GetParam();
    std::vector<ImplementationReport> reports;
    EXPECT_TRUE(find_op("fused_experts")->explain(&args, context, &reports).ok());
    for (const ImplementationReport& report : reports) {
      if (report.name == GetParam()) return report.refusal;
    }
    ADD_FAILURE() << "no " << GetParam();
    return "none";
  }

  static std::vector<DLDataType> dtypes() {
    std::vector<DLDataType> found;
    for (const DLDataType dtype : kDtypes) {
      if (refusal(dtype).empty()) found.push_back(dtype);
    }
    return found;
  }

  void SetUp() override {
    if (dtypes().empty()) GTEST_SKIP() << GetParam() << " " << refusal(kBf16);
  }
};

INSTANTIATE_TEST_SUITE_P(Implementations, FusedExperts, testing::ValuesIn(kNames),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '/', '_');
                           return name;
                         });

TEST_P(FusedExperts, ComputesTheLayerThatWasWorkedOutByHand) {
  // Expert 1 of two: g = (1 2 + 2 1, 0.5 2 + 1 1) = (4, 2) + bias (0, 1) = (4, 3). relu2: (16, 9).
  // y = (16 + 9, 16 - 9) + bias (1, 0) = (26, 7). Half of that, and nothing of the other slot.
  for (const DLDataType dtype : dtypes()) {
    Array x(dtype, {1, 2});
    Array w13(dtype, {NAN, NAN, NAN, NAN, 2, 1, 1, 0.5F});
    Array w2(dtype, {NAN, NAN, NAN, NAN, 1, 1, 1, -1});
    Array w13_bias(dtype, {NAN, NAN, 0, 1});
    Array w2_bias(dtype, {NAN, NAN, 1, 0});
    Array output(dtype, {NAN, NAN});
    const std::vector<std::int64_t> ids = {1, -1};
    const std::vector<float> weights = {0.5F, NAN};
    FusedExpertsArgs args;
    args.x = x.view({1, 2});
    args.w13 = w13.view({2, 2, 2});
    args.w2 = w2.view({2, 2, 2});
    args.w13_bias = w13_bias.view({2, 2});
    args.w2_bias = w2_bias.view({2, 2});
    args.topk_ids = TensorView::of(ids.data(), DLDataType{kDLInt, 64, 1}, {1, 2});
    args.topk_weights = TensorView::of(weights.data(), kFp32, {1, 2});
    args.output = output.view({1, 2});
    args.activation = Activation::kRelu2NoMul;
    Context context;
    context.implementation = GetParam();
    std::size_t bytes = 0;
    ASSERT_TRUE(fused_experts_workspace_bytes(args, context, &bytes).ok());
    std::vector<std::byte> workspace(bytes);
    context.workspace = workspace;
    ASSERT_TRUE(fused_experts(args, context).ok());
    EXPECT_EQ(output.get(0), 13.0F);
    EXPECT_EQ(output.get(1), 3.5F);
  }
}

TEST_P(FusedExperts, AgreesWithTheReferenceForEveryActivationAndTail) {
  std::uint32_t seed = 0;
  for (const DLDataType dtype : dtypes()) {
    const float tolerance = dtype.bits == 32 ? 1e-5F : dtype.code == kDLBfloat ? 2e-2F : 3e-3F;
    for (int activation = 0; activation < 9; ++activation) {
      for (const Sizes& sizes : {Sizes{3, 1, 3, 1, 2}, Sizes{40, 77, 4, 101, 3},
                                 Sizes{9, 1100, 3, 33, 2}, Sizes{250, 31, 3, 130, 1}}) {
        Layer layer(dtype, sizes, static_cast<Activation>(activation), ++seed);
        const auto expected = layer.run("cpu/reference", 1, layer.all_tokens());
        const auto found = layer.run(GetParam(), 2, layer.all_tokens());
        for (std::size_t t = 0; t < found.size(); ++t) {
          float largest = 0;
          for (std::int64_t h = 0; h < sizes.hidden; ++h) {
            largest = std::max(largest, std::abs(value_in(dtype, expected[t], h)));
          }
          for (std::int64_t h = 0; h < sizes.hidden; ++h) {
            ASSERT_NEAR(value_in(dtype, found[t], h), value_in(dtype, expected[t], h),
                        tolerance * std::max(largest, 1e-3F))
                << kActivationNames[activation] << " token " << t << " column " << h << " seed "
                << seed;
          }
        }
      }
    }
  }
}

TEST_P(FusedExperts, GivesTheSameBitsOnAnyNumberOfThreads) {
  for (const DLDataType dtype : dtypes()) {
    Layer layer(dtype, {60, 300, 5, 200, 2}, Activation::kSilu, 7);
    const auto once = layer.run(GetParam(), 1, layer.all_tokens());
    for (int threads = 2; threads <= 4; ++threads) {
      EXPECT_EQ(layer.run(GetParam(), threads, layer.all_tokens()), once) << threads;
    }
  }
}

TEST_P(FusedExperts, GivesATokenTheSameBitsInAnyCompany) {
  for (const DLDataType dtype : dtypes()) {
    // Long enough for two blocks of every format, and with tails.
    Layer layer(dtype, {130, 1063, 3, 99, 2}, Activation::kGelu, 11);
    const std::vector<std::int64_t> all = layer.all_tokens();
    const auto together = layer.run(GetParam(), 2, all);
    for (const std::size_t count : {1U, 2U, 3U, 4U, 5U, 7U, 20U, 61U, 130U}) {
      std::vector<std::int64_t> some(all.rbegin(),
                                     all.rbegin() + static_cast<std::ptrdiff_t>(count));
      const auto rows = layer.run(GetParam(), 2, some);
      for (std::size_t i = 0; i < count; ++i) {
        ASSERT_EQ(rows[i], together[static_cast<std::size_t>(some[i])])
            << count << " tokens, token " << some[i];
      }
    }
  }
}

TEST_P(FusedExperts, GivesTheSameBitsInChunks) {
  // So many slots per token that the workspace's limit is reached with few bytes of anything else.
  constexpr std::int64_t kSlots = 4096;
  for (const DLDataType dtype : dtypes()) {
    Layer layer(dtype, {500, 5, 3, 3, kSlots}, Activation::kSilu, 13);
    for (std::size_t i = 0; i < layer.ids.size(); ++i) {
      if (i % 1000 != 0) layer.ids[i] = -1;
    }
    for (std::int64_t t = 0; t < layer.s.tokens; ++t) layer.x.set(t * 5, 1);
    const auto together = layer.run(GetParam(), 2, layer.all_tokens());
    const std::size_t bytes = layer.workspace_bytes;
    EXPECT_LE(bytes, std::size_t{1} << 28);
    for (const std::int64_t token : {0, 63, 64, 255, 256, 499}) {
      EXPECT_EQ(layer.run(GetParam(), 2, {token})[0], together[static_cast<std::size_t>(token)]);
    }
  }
}

TEST_P(FusedExperts, PassesNansOfAnyBitsOn) {
  if (!refusal(kFp32).empty()) return;
  for (int activation = 0; activation < 9; ++activation) {
    Layer layer(kFp32, {512, 1, 2, 1, 1}, static_cast<Activation>(activation), 18);
    std::fill(layer.ids.begin(), layer.ids.end(), 0);
    std::fill(layer.weights.begin(), layer.weights.end(), 1.0F);
    for (std::int64_t t = 0; t < 512; ++t) {
      layer.x.set(t, std::bit_cast<float>(0x7fc00000U | static_cast<std::uint32_t>(t)));
    }
    for (const auto& row : layer.run(GetParam(), 1, layer.all_tokens())) {
      EXPECT_TRUE(std::isnan(value_in(kFp32, row, 0))) << kActivationNames[activation];
    }
  }
}

TEST_P(FusedExperts, WritesZerosWhereNoPairCounts) {
  for (const DLDataType dtype : dtypes()) {
    Layer layer(dtype, {5, 33, 2, 20, 2}, Activation::kSilu, 17);
    std::fill(layer.ids.begin(), layer.ids.end(), -1);
    const std::size_t row_bytes = 33 * dtype.bits / 8U;
    for (const auto& row : layer.run(GetParam(), 2, layer.all_tokens())) {
      EXPECT_EQ(row, std::vector<std::byte>(row_bytes));
    }
    EXPECT_TRUE(layer.run(GetParam(), 2, {}).empty());
  }
}

}  // namespace
}  // namespace tessera::test
