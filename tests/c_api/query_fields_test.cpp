// Which fields of its arguments a query reads: those that tessera.h names above the struct of its
// sizes, each of which changes what comes back, and no others.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "c_arguments.hpp"
#include "tessera/tessera.h"

namespace tessera::test {
namespace {

/// What a query says, as text.
template <typename Args>
std::string answer_to(const Args& args) {
  using Functions = CFunctions<Args>;
  auto sizes = empty_sizes<typename Functions::Sizes>();
  const tessera_status status = Functions::kQuery(&args, &sizes);
  std::ostringstream text;
  text << status << " " << tessera_last_error() << " " << sizes.sorted_token_ids_length << " "
       << sizes.expert_ids_length << " " << workspace_bytes(sizes);
  return text.str();
}

/// A field, and arguments of which it decides the answer, before and after it changes.
template <typename Args>
struct ReadField {
  const char* name;
  std::function<void(Args*)> change;
  std::function<void(Args*)> prepare = nullptr;
};

template <typename Args>
void expect_each_changes_the_answer(const Args& good, const std::vector<ReadField<Args>>& fields) {
  ASSERT_EQ(answer_to(good).substr(0, 2), "0 ");
  for (const ReadField<Args>& field : fields) {
    Args before = good;
    if (field.prepare) field.prepare(&before);
    Args after = before;
    field.change(&after);
    EXPECT_NE(answer_to(after), answer_to(before)) << field.name;
  }
}

/// All bytes of the fields that are not in the list are noise, and the answer stays.
template <typename Args>
void expect_others_are_not_read(const Args& good,
                                const std::function<void(const Args&, Args*)>& copy) {
  Args noisy;
  std::memset(static_cast<void*>(&noisy), 0xa5, sizeof(noisy));
  noisy.struct_size = sizeof(noisy);
  copy(good, &noisy);
  EXPECT_EQ(answer_to(noisy), answer_to(good));
}

TEST(QueryFields, OfAlignBlockSize) {
  using Args = tessera_align_block_size_args;
  Args good{};
  good.struct_size = sizeof(good);
  // Enough ids for threads, not a multiple of the block size.
  good.num_ids = 1000003;
  good.block_size = 48;
  good.num_experts = 64;
  good.num_threads = 2;
  const auto on_cuda = [](Args* a) { a->device_type = TESSERA_CUDA; };
  expect_each_changes_the_answer<Args>(
      good, {{"num_ids", [](Args* a) { a->num_ids += 1; }, nullptr},
             {"block_size", [](Args* a) { a->block_size += 1; }, nullptr},
             {"num_experts", [](Args* a) { a->num_experts += 1; }, nullptr},
             {"pad_sorted_ids", [](Args* a) { a->pad_sorted_ids = 1; }, nullptr},
             {"filtered_group", [](Args* a) { a->filtered_group = 1; }, nullptr},
             {"device_type", [](Args* a) { a->device_type = 7; }, nullptr},
             {"device_id", [](Args* a) { a->device_id = 63; }, on_cuda},
             {"num_threads", [](Args* a) { a->num_threads = 1; }, nullptr}});
  expect_others_are_not_read<Args>(good, [](const Args& from, Args* to) {
    to->num_ids = from.num_ids;
    to->block_size = from.block_size;
    to->num_experts = from.num_experts;
    to->pad_sorted_ids = from.pad_sorted_ids;
    to->filtered_group = from.filtered_group;
    to->device_type = from.device_type;
    to->device_id = from.device_id;
    to->num_threads = from.num_threads;
  });
}

TEST(QueryFields, OfBatchedAlignBlockSize) {
  using Args = tessera_batched_align_block_size_args;
  Args good{};
  good.struct_size = sizeof(good);
  good.num_batches = 10;
  good.max_tokens_per_batch = 48;
  good.block_size = 16;
  expect_each_changes_the_answer<Args>(
      good, {{"num_batches", [](Args* a) { a->num_batches += 1; }, nullptr},
             {"max_tokens_per_batch", [](Args* a) { a->max_tokens_per_batch += 1; }, nullptr},
             {"block_size", [](Args* a) { a->block_size += 1; }, nullptr}});
  expect_others_are_not_read<Args>(good, [](const Args& from, Args* to) {
    to->num_batches = from.num_batches;
    to->max_tokens_per_batch = from.max_tokens_per_batch;
    to->block_size = from.block_size;
  });
}

TEST(QueryFields, OfLoraAlignBlockSize) {
  using Args = tessera_lora_align_block_size_args;
  Args good{};
  good.struct_size = sizeof(good);
  good.num_ids = 1001;
  good.block_size = 48;
  good.num_experts = 64;
  good.max_loras = 3;
  const auto on_cuda = [](Args* a) { a->device_type = TESSERA_CUDA; };
  expect_each_changes_the_answer<Args>(
      good, {{"num_ids", [](Args* a) { a->num_ids += 1; }, nullptr},
             {"block_size", [](Args* a) { a->block_size += 1; }, nullptr},
             {"num_experts", [](Args* a) { a->num_experts += 1; }, nullptr},
             {"max_loras", [](Args* a) { a->max_loras += 1; }, nullptr},
             {"pad_sorted_ids", [](Args* a) { a->pad_sorted_ids = 1; }, nullptr},
             {"device_type", [](Args* a) { a->device_type = 7; }, nullptr},
             {"device_id", [](Args* a) { a->device_id = 63; }, on_cuda}});
  expect_others_are_not_read<Args>(good, [](const Args& from, Args* to) {
    to->num_ids = from.num_ids;
    to->block_size = from.block_size;
    to->num_experts = from.num_experts;
    to->max_loras = from.max_loras;
    to->pad_sorted_ids = from.pad_sorted_ids;
    to->device_type = from.device_type;
    to->device_id = from.device_id;
  });
}

}  // namespace
}  // namespace tessera::test
