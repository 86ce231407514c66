// Inputs that another thread writes to while calls read them: nothing but the outputs is written,
// and every call ends.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "align_block_size_cases.hpp"
#include "batched_align_block_size_cases.hpp"
#include "guarded_call.hpp"
#include "lora_align_block_size_cases.hpp"

namespace tessera::test {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kTime{150};

/// An array that a thread writes to until this object is gone, now all of one value and now of
/// another, in turn over all pairs of `values`.
template <typename T>
class RacingArray {
 public:
  RacingArray(std::int64_t length, std::vector<T> values)
      : array_(static_cast<std::size_t>(length), values.front()),
        values_(std::move(values)),
        writer_([this] { write(); }) {}
  ~RacingArray() {
    stop_ = true;
    writer_.join();
  }

  T* data() { return array_.data(); }

 private:
  void write() {
    for (std::size_t turn = 1; !stop_; ++turn) {
      const T value = values_[turn % values_.size()];
      // Runs of odd lengths, so that arrays are mixed at most times.
      for (std::size_t i = turn % 3; i < array_.size() && !stop_; ++i) {
        __atomic_store_n(&array_[i], value, __ATOMIC_RELAXED);
      }
    }
  }

  std::vector<T> array_;
  const std::vector<T> values_;
  std::atomic<bool> stop_{false};
  std::thread writer_;
};

/// Calls until the time is over or something is damaged.
void call_for_a_while(const std::function<bool()>& call) {
  const auto end = Clock::now() + kTime;
  while (Clock::now() < end) ASSERT_TRUE(call());
}

contract::AlignBlockSizeCase case_of(std::int64_t num_ids, int bits, contract::MapKind map) {
  contract::AlignBlockSizeCase c;
  c.num_tokens = num_ids;
  c.num_experts = 8;
  c.dtype = {kDLInt, static_cast<std::uint8_t>(bits), 1};
  c.map = map;
  c.ignore_invalid_experts = true;
  c.statistics = true;
  c.validation = true;
  return c;
}

template <typename Id>
void race_for_ids(std::int64_t num_ids, int num_threads) {
  const auto c = case_of(num_ids, 8 * sizeof(Id), contract::MapKind::kNone);
  RacingArray<Id> ids(num_ids, {-1, 7, 0, 7, 3});
  TypedCall<AlignBlockSizeArgs> call(c);
  GuardedBuffer<std::int32_t> sorted_token_ids(num_ids, 0, num_ids * sizeof(std::int64_t));
  call.args.topk_ids.data = ids.data();
  call.args.sorted_token_ids = TensorView::of(sorted_token_ids.span());
  for (const std::string& implementation : host_implementations(c)) {
    SCOPED_TRACE(implementation + ", int" + std::to_string(8 * sizeof(Id)) + ", " +
                 std::to_string(num_threads) + " threads");
    Context context;
    context.implementation = implementation;
    context.num_threads = num_threads;
    call_for_a_while([&] {
      return call.run(context).ok() && sorted_token_ids.intact() && call.damage().empty();
    });
  }
}

TEST(RacingInputs, IdsOfAlignBlockSize) {
  race_for_ids<std::int8_t>(20000, 1);
  race_for_ids<std::int16_t>(131072, 3);
  race_for_ids<std::int32_t>(20000, 1);
  race_for_ids<std::int32_t>(131072, 3);
  race_for_ids<std::int64_t>(131072, 3);
}

TEST(RacingInputs, TheMapOfAlignBlockSize) {
  for (const std::int64_t num_ids : {12, 20000, 131072}) {
    const auto c = case_of(num_ids, 32, contract::MapKind::kIdentity);
    RacingArray<std::int32_t> map(8, {-1, 7, 0, 8, 2147483647});
    TypedCall<AlignBlockSizeArgs> call(c);
    GuardedBuffer<std::int32_t> sorted_token_ids(num_ids, 0, num_ids * sizeof(std::int64_t));
    call.args.expert_map.data = map.data();
    call.args.sorted_token_ids = TensorView::of(sorted_token_ids.span());
    for (const std::string& implementation : host_implementations(c)) {
      SCOPED_TRACE(implementation + ", " + std::to_string(num_ids) + " ids");
      Context context;
      context.implementation = implementation;
      context.num_threads = 3;
      call_for_a_while([&] {
        return call.run(context).ok() && sorted_token_ids.intact() && call.damage().empty();
      });
    }
  }
}

TEST(RacingInputs, CountsOfBatchedAlignBlockSize) {
  contract::BatchedAlignBlockSizeCase c;
  c.num_batches = 500;
  c.max_tokens_per_batch = 3;
  c.block_size = 2;
  RacingArray<std::int32_t> counts(500, {-2147483647, 3, 2147483647, 1});
  TypedCall<BatchedAlignBlockSizeArgs> call(c);
  call.args.expert_num_tokens.data = counts.data();
  call_for_a_while([&] { return call.run().ok() && call.damage().empty(); });
}

TEST(RacingInputs, OfLoraAlignBlockSize) {
  constexpr std::int64_t kNumIds = 20000;
  RacingArray<std::int32_t> ids(kNumIds, {-1, 7, 0, 7, 3});
  RacingArray<std::int32_t> mapping(kNumIds / 2, {-1, 1, 0, 1, 2});
  RacingArray<std::int32_t> lora_ids(5, {0, 1, 2147483647});
  RacingArray<std::int32_t> enabled(2, {0, 1, 1});
  RacingArray<std::int32_t> map(8, {-1, 7, 0, 7, 9});
  for (const bool all : {false, true}) {
    contract::LoraAlignBlockSizeCase c;
    c.pairs = {.name = "", .num_tokens = kNumIds / 2, .num_experts = 8, .top_k = 2};
    c.pairs.map = contract::MapKind::kIdentity;
    c.max_loras = 2;
    c.choice = contract::AdapterChoice::kOne;
    TypedCall<LoraAlignBlockSizeArgs> call(c);
    GuardedBuffer<std::int32_t> sorted_token_ids(2 * kNumIds, 0, kNumIds * sizeof(std::int64_t));
    call.args.topk_ids.data = ids.data();
    call.args.sorted_token_ids = TensorView::of(sorted_token_ids.span());
    if (all) {
      call.args.token_lora_mapping.data = mapping.data();
      call.args.lora_ids = TensorView::of(std::span(lora_ids.data(), 5));
      call.args.adapter_enabled = TensorView::of(std::span(enabled.data(), 2));
      call.args.expert_map.data = map.data();
    }
    call_for_a_while(
        [&] { return call.run().ok() && sorted_token_ids.intact() && call.damage().empty(); });
  }
}

}  // namespace
}  // namespace tessera::test
