// Inputs that change while a call reads them: nothing but the outputs is written, nothing is read
// out of bounds, and the call ends.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "align_block_size_cases.hpp"
#include "batched_align_block_size_cases.hpp"
#include "changing_memory.hpp"
#include "guarded_call.hpp"
#include "lora_align_block_size_cases.hpp"

namespace tessera::test {
namespace {

constexpr std::int64_t kPages = 4;
constexpr DLDataType kInt32{kDLInt, 32, 1};

/// What element i holds in version v.
using Contents = std::function<std::int64_t(int v, std::int64_t i)>;

std::int64_t elements_of(DLDataType dtype) {
  return kPages * static_cast<std::int64_t>(ChangingMemory::kPageBytes) * 8 / dtype.bits;
}

/// Four versions, as elements of `dtype`; little-endian, as every host is that Tessera runs on.
std::vector<std::vector<std::byte>> versions_of(DLDataType dtype, const Contents& contents) {
  const std::size_t width = dtype.bits / 8;
  std::vector<std::vector<std::byte>> versions(4);
  for (int v = 0; v < 4; ++v) {
    for (std::int64_t i = 0; i < elements_of(dtype); ++i) {
      const std::int64_t value = contents(v, i);
      const auto* const bytes = reinterpret_cast<const std::byte*>(&value);
      versions[v].insert(versions[v].end(), bytes, bytes + width);
    }
  }
  return versions;
}

/// An output whose guards have room for every index that a call could write behind it.
GuardedBuffer<std::int32_t> guarded_output(std::int64_t length, std::int64_t num_ids) {
  return GuardedBuffer<std::int32_t>(length, 0, static_cast<std::size_t>(num_ids) * 8);
}

struct Scenario {
  const char* name;
  Contents ids;  // of 8 experts
};

const Scenario kScenarios[] = {
    // The cursor of the last expert starts in the middle, and all ids then move it.
    {"half_then_all_last",
     [](int v, std::int64_t i) -> std::int64_t { return v == 0 && i % 2 == 0 ? 0 : 7; }},
    {"valid_then_dropped", [](int v, std::int64_t i) { return v == 0 ? i % 8 : -1; }},
    // The scan for the first invalid id finds none.
    {"dropped_then_valid", [](int v, std::int64_t i) { return v == 0 ? -1 : i % 8; }},
    {"one_dropped_then_repaired",
     [](int v, std::int64_t i) { return v < 2 && i == 1500 ? 100 : i % 8; }},
    {"always_different", [](int v, std::int64_t i) { return (i * 7 + v * 5) % 11 - 1; }},
};

struct Variant {
  std::int64_t num_experts;
  contract::MapKind map;
  bool filtered_group;
};

const Variant kVariants[] = {{8, contract::MapKind::kNone, false},
                             {8, contract::MapKind::kHalfRemote, false},
                             {8, contract::MapKind::kNone, true},
                             {8, contract::MapKind::kHalfRemote, true},
                             {std::int64_t{1} << 21, contract::MapKind::kNone, false}};

contract::AlignBlockSizeCase case_of(const Variant& variant, DLDataType dtype) {
  contract::AlignBlockSizeCase c;
  c.num_tokens = elements_of(dtype);
  c.num_experts = variant.num_experts;
  c.dtype = dtype;
  c.map = variant.map;
  c.ignore_invalid_experts = true;
  c.filtered_group = variant.filtered_group;
  c.statistics = true;
  c.validation = true;
  return c;
}

TEST(ChangingInputs, IdsOfAlignBlockSize) {
  for (const Variant& variant : kVariants) {
    for (const int bits : {8, 16, 32, 64}) {
      const DLDataType dtype{kDLInt, static_cast<std::uint8_t>(bits), 1};
      const auto c = case_of(variant, dtype);
      TypedCall<AlignBlockSizeArgs> call(c);
      for (const std::string& implementation : host_implementations(c)) {
        for (const Scenario& scenario : kScenarios) {
          SCOPED_TRACE(implementation + ", " + scenario.name + ", int" + std::to_string(bits) +
                       ", " + std::to_string(variant.num_experts) + " experts");
          ChangingMemory ids(versions_of(dtype, scenario.ids));
          auto sorted_token_ids = guarded_output(smallest_sizes(c).sorted_token_ids, c.num_tokens);
          call.args.topk_ids.data = ids.data();
          call.args.sorted_token_ids = TensorView::of(sorted_token_ids.span());
          Context context;
          context.implementation = implementation;
          context.num_threads = 1;
          ASSERT_TRUE(ids.survives([&] { EXPECT_TRUE(call.run(context).ok()); }));
          EXPECT_TRUE(sorted_token_ids.intact());
          EXPECT_EQ(call.damage(), "");
          EXPECT_GE(ids.num_walks(), 1);
        }
      }
    }
  }
}

TEST(ChangingInputs, TheMapOfAlignBlockSize) {
  for (const bool ignores : {false, true}) {
    contract::AlignBlockSizeCase c;
    c.num_tokens = 2048;
    c.num_experts = elements_of(kInt32);
    c.map = contract::MapKind::kIdentity;
    c.ignore_invalid_experts = ignores;
    c.map_tail = true;
    c.statistics = true;
    c.validation = true;
    TypedCall<AlignBlockSizeArgs> call(c);
    // Every other expert in order, so that every walk over the ids is one over the map.
    std::vector<std::int32_t> ids(2048);
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(2 * i);
    call.args.topk_ids = TensorView::of(std::span(ids));
    for (const std::string& implementation : host_implementations(c)) {
      SCOPED_TRACE(implementation);
      ChangingMemory map(versions_of(kInt32, [&](int v, std::int64_t expert) -> std::int64_t {
        return v == 0 && expert < c.num_experts / 2 ? 0 : (v < 2 ? c.num_experts - 1 : -9);
      }));
      auto sorted_token_ids = guarded_output(smallest_sizes(c).sorted_token_ids, c.num_tokens);
      call.args.expert_map.data = map.data();
      call.args.sorted_token_ids = TensorView::of(sorted_token_ids.span());
      Context context;
      context.implementation = implementation;
      context.num_threads = 1;
      ASSERT_TRUE(map.survives([&] { EXPECT_TRUE(call.run(context).ok()); }));
      EXPECT_TRUE(sorted_token_ids.intact());
      EXPECT_EQ(call.damage(), "");
      EXPECT_GE(map.num_walks(), 1);
    }
  }
}

/// Two views of one page of memory.
class TwoViews {
 public:
  TwoViews() {
    const int file = memfd_create("two views", 0);
    if (ftruncate(file, ChangingMemory::kPageBytes) != 0) ADD_FAILURE() << "no memory";
    for (std::int32_t*& view : views_) {
      view = static_cast<std::int32_t*>(
          mmap(nullptr, ChangingMemory::kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    }
    close(file);
  }
  ~TwoViews() {
    for (std::int32_t* view : views_) munmap(view, ChangingMemory::kPageBytes);
  }
  std::int32_t* operator[](int view) { return views_[view]; }

 private:
  std::int32_t* views_[2];
};

// The tail of expert_ids overwrites the total as soon as it is written.
TEST(ChangingInputs, OutputsAreNotReadBack) {
  contract::AlignBlockSizeCase c;
  c.num_tokens = 256;
  c.num_experts = 4;
  c.block_size = 4;
  c.broken = contract::BrokenIds::kSome;
  c.statistics = true;
  c.validation = true;
  c.tail_expert = std::numeric_limits<std::int32_t>::max();
  for (const std::string& implementation : host_implementations(c)) {
    SCOPED_TRACE(implementation);
    TypedCall<AlignBlockSizeArgs> call(c);
    TwoViews memory;
    call.args.expert_ids.data = memory[0];
    call.args.expert_ids.num_elements = ChangingMemory::kPageBytes / sizeof(std::int32_t);
    call.args.num_tokens_post_pad.data = memory[1] + call.args.expert_ids.num_elements - 1;
    Context context;
    context.implementation = implementation;
    ChangingMemory unused({std::vector<std::byte>(ChangingMemory::kPageBytes)});
    ASSERT_TRUE(unused.survives([&] { EXPECT_TRUE(call.run(context).ok()); }));
    EXPECT_EQ(call.damage(), "");
    const Outputs found = call.outputs();
    TypedCall<AlignBlockSizeArgs> alone(c);
    ASSERT_TRUE(alone.run(context).ok());
    EXPECT_EQ(found.int32s("sorted_token_ids"), alone.outputs().int32s("sorted_token_ids"));
    EXPECT_EQ(found.at<double>("statistics"), alone.outputs().at<double>("statistics"));
  }
}

TEST(ChangingInputs, CountsOfBatchedAlignBlockSize) {
  contract::BatchedAlignBlockSizeCase c;
  c.num_batches = elements_of(kInt32);
  c.max_tokens_per_batch = 3;
  c.block_size = 2;
  TypedCall<BatchedAlignBlockSizeArgs> call(c);
  ChangingMemory counts(versions_of(kInt32, [](int v, std::int64_t i) -> std::int64_t {
    return v == 0 ? i % 4 : std::numeric_limits<std::int32_t>::max();
  }));
  call.args.expert_num_tokens.data = counts.data();
  ASSERT_TRUE(counts.survives([&] { EXPECT_TRUE(call.run().ok()); }));
  EXPECT_EQ(call.damage(), "");
  EXPECT_EQ(counts.num_walks(), 1);
}

/// The input of lora_align_block_size that changes.
struct LoraInput {
  const char* name;
  TensorView LoraAlignBlockSizeArgs::*view;
  Contents contents;
};

const LoraInput kLoraInputs[] = {
    {"topk_ids", &LoraAlignBlockSizeArgs::topk_ids,
     [](int v, std::int64_t i) -> std::int64_t { return v == 0 && i % 2 == 0 ? 0 : 7; }},
    {"topk_ids_of_many_adapters", &LoraAlignBlockSizeArgs::topk_ids,
     [](int v, std::int64_t i) { return (i + v) % 8; }},
    {"token_lora_mapping", &LoraAlignBlockSizeArgs::token_lora_mapping,
     [](int v, std::int64_t i) { return v == 0 ? i % 2 : 1; }},
    {"mapping_to_none", &LoraAlignBlockSizeArgs::token_lora_mapping,
     [](int v, std::int64_t i) { return v == 0 ? 1 : i % 5 * 1000000 - 1; }},
    {"lora_ids", &LoraAlignBlockSizeArgs::lora_ids,
     [](int v, std::int64_t i) { return v == 0 ? 0 : i % 3 * 1000000; }},
    {"adapter_enabled", &LoraAlignBlockSizeArgs::adapter_enabled,
     [](int v, std::int64_t) -> std::int64_t { return v == 0 ? 1 : 0; }},
};

TEST(ChangingInputs, OfLoraAlignBlockSize) {
  for (const std::int64_t num_experts : {std::int64_t{8}, std::int64_t{1} << 19}) {
    for (const LoraInput& input : kLoraInputs) {
      SCOPED_TRACE(std::string(input.name) + ", " + std::to_string(num_experts) + " experts");
      contract::LoraAlignBlockSizeCase c;
      c.pairs = {.name = "", .num_tokens = elements_of(kInt32), .num_experts = num_experts};
      c.max_loras = 2;
      c.choice = contract::AdapterChoice::kOne;
      c.enabled = contract::AdapterSet::kAll;
      c.in_use = contract::AdapterSet::kAll;
      TypedCall<LoraAlignBlockSizeArgs> call(c);
      ChangingMemory memory(versions_of(kInt32, input.contents));
      (call.args.*input.view).data = memory.data();
      (call.args.*input.view).num_elements = elements_of(kInt32);
      auto sorted_token_ids =
          guarded_output(call.args.sorted_token_ids.num_elements, c.pairs.num_tokens);
      call.args.sorted_token_ids = TensorView::of(sorted_token_ids.span());
      ASSERT_TRUE(memory.survives([&] { EXPECT_TRUE(call.run().ok()); }));
      EXPECT_TRUE(sorted_token_ids.intact());
      EXPECT_EQ(call.damage(), "");
      EXPECT_GE(memory.num_walks(), 1);
    }
  }
}

}  // namespace
}  // namespace tessera::test
