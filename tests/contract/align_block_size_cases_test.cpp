// The table of cases and the generator behind it.
#include "align_block_size_cases.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <set>
#include <string>

namespace tessera::contract {
namespace {

std::vector<std::int32_t> int32_ids(const AlignBlockSizeCase& c, std::uint64_t seed) {
  const AlignBlockSizeInputs inputs = make_inputs(c, seed);
  std::vector<std::int32_t> ids(inputs.topk_ids.size() / sizeof(std::int32_t));
  std::memcpy(ids.data(), inputs.topk_ids.data(), inputs.topk_ids.size());
  return ids;
}

AlignBlockSizeCase small_case() {
  AlignBlockSizeCase c;
  c.num_tokens = 500;
  c.num_experts = 20;
  c.top_k = 4;
  c.block_size = 8;
  return c;
}

TEST(Cases, NamesAreUniqueAndFindTheirCase) {
  std::set<std::string> names;
  for (const AlignBlockSizeCase& c : align_block_size_cases()) {
    EXPECT_TRUE(names.insert(c.name).second) << c.name;
    const auto found = find_case(c.name);
    ASSERT_TRUE(found.has_value()) << c.name;
    EXPECT_EQ(to_json(*found), to_json(c));
  }
}

TEST(Cases, RandomCasesAreFoundByName) {
  const AlignBlockSizeCase c = random_align_block_size_case(12345, 4096);
  EXPECT_EQ(c.name, "random:12345:4096");
  const auto found = find_case(c.name);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(to_json(*found), to_json(c));
}

TEST(Cases, RandomCasesKeepToTheirLimitAndFitInt32) {
  std::set<std::int64_t> sizes;
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    const AlignBlockSizeCase c = random_align_block_size_case(seed, 1000);
    const std::int64_t num_ids = c.num_tokens * c.top_k;
    EXPECT_LE(num_ids, 1000);
    sizes.insert(num_ids);
  }
  EXPECT_TRUE(sizes.contains(0));
  EXPECT_TRUE(sizes.contains(1));
  EXPECT_GT(*sizes.rbegin(), 900);
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    const AlignBlockSizeCase c = random_align_block_size_case(seed, kMaxRandomSize);
    const std::int64_t num_ids = c.num_tokens * c.top_k;
    EXPECT_LE(num_ids + std::min(num_ids, c.num_experts) * (c.block_size - 1) + c.block_size,
              2147483647);
  }
}

TEST(Cases, RandomCasesDrawFromTheWholeRange) {
  std::int64_t block_size = 0, num_experts = 0, top_k = 0, extra_length = 0;
  std::int64_t odd_block_size = 0;
  std::set<std::int32_t> tails;
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    const AlignBlockSizeCase c = random_align_block_size_case(seed, 5000);
    const std::int64_t num_ids = c.num_tokens * c.top_k;
    block_size = std::max(block_size, c.block_size);
    if (num_ids > 100) odd_block_size = std::max(odd_block_size, c.block_size % 2 * c.block_size);
    num_experts = std::max(num_experts, c.num_experts);
    top_k = std::max(top_k, c.top_k);
    extra_length = std::max(extra_length, c.extra_length);
    tails.insert(c.tail_expert);
    EXPECT_LE(std::min(num_ids, c.num_experts + 1) * (c.block_size - 1), 2 << 20) << c.name;
  }
  EXPECT_GT(block_size, 1 << 17);
  EXPECT_GT(odd_block_size, 2000);
  EXPECT_GT(num_experts, 1 << 19);
  EXPECT_GT(top_k, 128);
  EXPECT_GT(extra_length, 1 << 15);
  EXPECT_TRUE(tails.contains(INT32_MIN));
  EXPECT_TRUE(tails.contains(INT32_MAX));
  EXPECT_LT(*std::next(tails.begin()), -(1 << 30));
}

// The numbers were recorded once. If the generator changed, replaying a failure by its name, and
// comparing benchmarks across versions, would silently use other inputs.
TEST(Cases, InputsAreTheSameEverywhere) {
  AlignBlockSizeCase c = small_case();
  c.num_tokens = 3;
  EXPECT_EQ(int32_ids(c, 1),
            (std::vector<std::int32_t>{14, 19, 8, 15, 17, 10, 5, 15, 8, 12, 9, 10}));
  c.distribution = IdDistribution::kZipf;
  EXPECT_EQ(int32_ids(c, 1),
            (std::vector<std::int32_t>{11, 15, 19, 16, 11, 3, 10, 19, 15, 11, 19, 16}));
  EXPECT_EQ(
      to_json(random_align_block_size_case(7, 5000)),
      R"({"name": "random:7:5000", "num_ids": 0, "num_tokens": 0, "num_experts": 2, "top_k": 10)"
      R"(, "block_size": 231, "dtype": "uint16", "distribution": "uniform", "broken": "all", "map": "merged", "ignore_invalid_experts": false, "pad_sorted_ids": false, "tail_expert": -1, "map_tail": false, "filtered_group": true, "statistics": true, "validation": true, "extra_length": 227, "benchmark": false})");
}

TEST(Cases, SeedsGiveDifferentInputs) {
  EXPECT_NE(int32_ids(small_case(), 1), int32_ids(small_case(), 2));
}

TEST(Cases, ATokensIdsAreValidAndDoNotRepeat) {
  for (const IdDistribution distribution :
       {IdDistribution::kUniform, IdDistribution::kZipf, IdDistribution::kOneExpert}) {
    AlignBlockSizeCase c = small_case();
    c.distribution = distribution;
    const std::vector<std::int32_t> ids = int32_ids(c, 3);
    ASSERT_EQ(ids.size(), 2000U);
    for (std::size_t token = 0; token < ids.size(); token += 4) {
      const std::set<std::int32_t> experts(ids.begin() + token, ids.begin() + token + 4);
      EXPECT_EQ(experts.size(), 4U);
      EXPECT_GE(*experts.begin(), 0);
      EXPECT_LT(*experts.rbegin(), 20);
    }
  }
}

TEST(Cases, DistributionsAreWhatTheyAreCalled) {
  AlignBlockSizeCase c = small_case();
  c.top_k = 1;
  c.num_tokens = 20000;
  const auto sorted_loads = [&](IdDistribution distribution) {
    c.distribution = distribution;
    std::vector<std::int64_t> loads(20, 0);
    for (const std::int32_t id : int32_ids(c, 4)) ++loads[id];
    std::sort(loads.rbegin(), loads.rend());
    return loads;
  };
  const auto uniform = sorted_loads(IdDistribution::kUniform);
  EXPECT_LT(uniform.front(), 1200);
  EXPECT_GT(uniform.back(), 800);
  // 20000 / sum of rank^-1.2 over 20 ranks is 6996 for the first rank, and 2^-1.2 of it next.
  const auto zipf = sorted_loads(IdDistribution::kZipf);
  EXPECT_NEAR(zipf[0], 6996, 300);
  EXPECT_NEAR(zipf[1], 3045, 250);
  EXPECT_EQ(sorted_loads(IdDistribution::kOneExpert)[0], 20000);
  c.distribution = IdDistribution::kSorted;
  const std::vector<std::int32_t> ids = int32_ids(c, 4);
  EXPECT_TRUE(std::is_sorted(ids.begin(), ids.end()));
}

TEST(Cases, BrokenIdsLieOutsideTheExperts) {
  AlignBlockSizeCase c = small_case();
  c.broken = BrokenIds::kAll;
  const std::vector<std::int32_t> all = int32_ids(c, 5);
  const std::set<std::int32_t> expected = {-1, 20, INT32_MIN, INT32_MAX};
  EXPECT_EQ(std::set(all.begin(), all.end()), expected);

  c.broken = BrokenIds::kSome;
  const std::vector<std::int32_t> some = int32_ids(c, 5);
  const auto broken =
      std::count_if(some.begin(), some.end(), [](int id) { return id < 0 || id >= 20; });
  EXPECT_NEAR(static_cast<double>(broken), 250, 60);  // one in eight of 2000
}

TEST(Cases, TypesThatHaveNoIdOutsideTheExpertsKeepValidOnes) {
  AlignBlockSizeCase c = small_case();
  c.broken = BrokenIds::kAll;
  c.num_experts = 300;
  c.dtype = {kDLUInt, 8, 1};
  const AlignBlockSizeInputs unsigned_ids = make_inputs(c, 6);
  EXPECT_EQ(unsigned_ids.topk_ids.size(), 2000U);
  EXPECT_GT(std::set(unsigned_ids.topk_ids.begin(), unsigned_ids.topk_ids.end()).size(), 200U);

  c.dtype = {kDLInt, 8, 1};
  const AlignBlockSizeInputs signed_ids = make_inputs(c, 6);
  EXPECT_EQ(std::set(signed_ids.topk_ids.begin(), signed_ids.topk_ids.end()),
            (std::set{std::byte{0xff}, std::byte{0x80}}));
}

TEST(Cases, MapsAreWhatTheyAreCalled) {
  AlignBlockSizeCase c = small_case();
  c.num_experts = 6;
  const auto map = [&](MapKind kind) {
    c.map = kind;
    return make_inputs(c, 7).expert_map;
  };
  using Map = std::vector<std::int32_t>;
  EXPECT_EQ(map(MapKind::kNone), std::nullopt);
  EXPECT_EQ(map(MapKind::kIdentity), (Map{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(map(MapKind::kHalfRemote), (Map{0, -1, 1, -1, 2, -1}));
  EXPECT_EQ(map(MapKind::kAllRemote), (Map{-1, -1, -1, -1, -1, -1}));
  EXPECT_EQ(map(MapKind::kBroken), (Map{0, -1, 1, -2, 2, 6}));
  EXPECT_EQ(map(MapKind::kMerged), (Map{0, 0, 1, 2, 3, 4}));
}

TEST(Cases, TheTableCoversWhatItIsThereFor) {
  const auto cases = align_block_size_cases();
  const auto some = [&](auto is_such) { return std::any_of(cases.begin(), cases.end(), is_such); };
  using Case = AlignBlockSizeCase;
  EXPECT_TRUE(some([](const Case& c) { return c.num_tokens == 0; }));
  EXPECT_TRUE(some([](const Case& c) { return c.num_tokens * c.top_k == 1; }));
  EXPECT_TRUE(some([](const Case& c) { return c.num_experts == 1; }));
  EXPECT_TRUE(some([](const Case& c) { return c.num_experts == 65536; }));
  EXPECT_TRUE(some([](const Case& c) { return c.block_size == 1; }));
  EXPECT_TRUE(some([](const Case& c) { return c.top_k > c.num_experts; }));
  EXPECT_TRUE(some([](const Case& c) { return c.extra_length > 0; }));
  std::set<int> dtypes;
  std::set<std::pair<MapKind, bool>> maps;
  for (const Case& c : cases) {
    dtypes.insert(c.dtype.code * 100 + c.dtype.bits);
    maps.insert({c.map, c.ignore_invalid_experts});
  }
  EXPECT_EQ(dtypes.size(), 8U);
  EXPECT_EQ(maps.size(), 12U);
}

}  // namespace
}  // namespace tessera::contract
