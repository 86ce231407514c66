// Threads that are cancelled during a call, and values that are computed once.
#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <thread>
#include <vector>

#include "core/once.hpp"
#include "tessera/align_block_size.hpp"

namespace tessera {
namespace {

struct CancelledCall {
  std::vector<std::int32_t> ids = std::vector<std::int32_t>(1 << 20);
  std::vector<std::int32_t> slots = std::vector<std::int32_t>(1 << 20);
  std::vector<std::int32_t> experts = std::vector<std::int32_t>(1 << 20);
  std::int32_t total = 0;
  bool has_returned = false;
};

void* cancel_and_call(void* argument) {
  auto& call = *static_cast<CancelledCall*>(argument);
  pthread_cancel(pthread_self());  // takes effect at the next cancellation point
  AlignBlockSizeArgs args;
  args.topk_ids = TensorView::of(std::span(call.ids));
  args.block_size = 1;
  args.num_experts = 8;
  args.sorted_token_ids = TensorView::of(std::span(call.slots));
  args.expert_ids = TensorView::of(std::span(call.experts));
  args.num_tokens_post_pad = TensorView::of(std::span(&call.total, 1));
  Context context;  // as many threads as there are cores, for which files are read
  AlignBlockSizeSizes sizes;
  const AlignBlockSizeShape shape{args.topk_ids.num_elements, 1, 8, false, false};
  bool is_good = align_block_size_sizes(shape, context, &sizes).ok();
  std::vector<std::byte> workspace(sizes.workspace_bytes);
  context.workspace = workspace;
  is_good = is_good && align_block_size(args, context).ok();
  call.has_returned = is_good && call.total == 1 << 20;
  pthread_testcancel();
  return nullptr;
}

TEST(Cancellation, ACancelledThreadFinishesItsCallFirst) {
  CancelledCall call;
  pthread_t thread{};
  ASSERT_EQ(pthread_create(&thread, nullptr, cancel_and_call, &call), 0);
  void* result = nullptr;
  ASSERT_EQ(pthread_join(thread, &result), 0);
  EXPECT_TRUE(call.has_returned);
  EXPECT_EQ(result, PTHREAD_CANCELED);
}

TEST(Once, EveryThreadGetsTheSameValueThoughSeveralComputeIt) {
  static std::atomic<const int*> kept;  // never destroyed, as what it points to
  std::atomic<int> num_made{0};
  std::vector<const int*> found(8);
  {
    std::vector<std::jthread> threads;
    for (const int*& one : found) {
      threads.emplace_back([&] { one = &core::once(&kept, [&] { return ++num_made; }); });
    }
  }
  for (const int* one : found) EXPECT_EQ(one, found[0]);
  EXPECT_GE(num_made, 1);
  const int made_before = num_made;
  EXPECT_EQ(core::once(&kept, [&] { return ++num_made; }), *found[0]);
  EXPECT_EQ(num_made, made_before);
}

}  // namespace
}  // namespace tessera
