// What a call writes may share memory with nothing else: every pair of arrays of every op, and
// arrays so long that their ends wrap around.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tessera/align_block_size.hpp"
#include "tessera/batched_align_block_size.hpp"
#include "tessera/lora_align_block_size.hpp"

namespace tessera::test {
namespace {

constexpr std::size_t kRegionBytes = 4096;
constexpr std::int64_t kLongest = std::numeric_limits<std::int64_t>::max();

/// An array of the call under test, or its workspace.
struct Array {
  const char* name;
  TensorView* view;  // null: the workspace
  bool is_written;
};

/// A call whose arrays lie far apart in one piece of memory, in the order in which messages name
/// them: outputs, inputs, workspace.
struct Call {
  std::string op;
  std::vector<Array> arrays;
  Context context;
  std::function<Status()> run;
  std::vector<std::byte> memory;

  std::byte* begin(std::size_t k) {
    const auto first = reinterpret_cast<std::uintptr_t>(memory.data());
    return memory.data() + (kRegionBytes - first % kRegionBytes) + (2 * k + 1) * kRegionBytes;
  }
  std::size_t bytes(std::size_t k) const {
    const TensorView* const view = arrays[k].view;
    return view == nullptr ? 1000 : static_cast<std::size_t>(view->num_elements) * width(k);
  }
  std::size_t width(std::size_t k) const {
    return arrays[k].view == nullptr ? 1 : arrays[k].view->dtype.bits / 8U;
  }
  void move(std::size_t k, std::byte* to) {
    if (arrays[k].view == nullptr) {
      context.workspace = {to, bytes(k)};
    } else {
      arrays[k].view->data = to;
    }
  }
  void place_all() {
    memory.assign((2 * arrays.size() + 4) * kRegionBytes, std::byte{1});
    for (std::size_t k = 0; k < arrays.size(); ++k) move(k, begin(k));
  }
};

TensorView view_of(std::int64_t length, DLDataType dtype = {kDLInt, 32, 1}) {
  TensorView view;
  view.num_elements = length;
  view.dtype = dtype;
  return view;
}

/// 40 ids of 4 experts in blocks of 4: 52 slots in 13 blocks.
struct AlignCall : Call {
  AlignBlockSizeArgs args;

  AlignCall() {
    args.block_size = 4;
    args.num_experts = 4;
    args.topk_ids = view_of(40, {kDLInt, 64, 1});
    args.expert_map = view_of(4);
    args.sorted_token_ids = view_of(52);
    args.expert_ids = view_of(13);
    args.num_tokens_post_pad = view_of(1);
    args.expert_counts = view_of(4);
    args.num_dropped = view_of(1);
    args.statistics = view_of(6, {kDLFloat, 64, 1});
    args.validation = view_of(6, {kDLInt, 64, 1});
    op = "align_block_size";
    arrays = {{"sorted_token_ids", &args.sorted_token_ids, true},
              {"expert_ids", &args.expert_ids, true},
              {"num_tokens_post_pad", &args.num_tokens_post_pad, true},
              {"expert_counts", &args.expert_counts, true},
              {"num_dropped", &args.num_dropped, true},
              {"statistics", &args.statistics, true},
              {"validation", &args.validation, true},
              {"topk_ids", &args.topk_ids, false},
              {"expert_map", &args.expert_map, false},
              {"workspace", nullptr, true}};
    run = [this] { return align_block_size(args, context); };
    place_all();
  }
};

/// 10 batches of up to 4 tokens in blocks of 4.
struct BatchedCall : Call {
  BatchedAlignBlockSizeArgs args;

  BatchedCall() {
    args.block_size = 4;
    args.max_tokens_per_batch = 4;
    args.expert_num_tokens = view_of(10);
    args.sorted_token_ids = view_of(40);
    args.expert_ids = view_of(10);
    args.num_tokens_post_pad = view_of(1);
    op = "batched_align_block_size";
    arrays = {{"sorted_token_ids", &args.sorted_token_ids, true},
              {"expert_ids", &args.expert_ids, true},
              {"num_tokens_post_pad", &args.num_tokens_post_pad, true},
              {"expert_num_tokens", &args.expert_num_tokens, false},
              {"workspace", nullptr, true}};
    run = [this] { return batched_align_block_size(args, context); };
    place_all();
  }
};

/// 40 ids of 20 tokens, 4 experts and 2 adapters, in blocks of 4: rows of 52 slots in 13 blocks.
struct LoraCall : Call {
  LoraAlignBlockSizeArgs args;

  LoraCall() {
    args.block_size = 4;
    args.num_experts = 4;
    args.top_k = 2;
    args.max_loras = 2;
    args.topk_ids = view_of(40, {kDLInt, 64, 1});
    args.token_lora_mapping = view_of(20);
    args.adapter_enabled = view_of(3);
    args.lora_ids = view_of(2);
    args.expert_map = view_of(4);
    args.sorted_token_ids = view_of(104);
    args.expert_ids = view_of(26);
    args.num_tokens_post_pad = view_of(2);
    op = "lora_align_block_size";
    arrays = {{"sorted_token_ids", &args.sorted_token_ids, true},
              {"expert_ids", &args.expert_ids, true},
              {"num_tokens_post_pad", &args.num_tokens_post_pad, true},
              {"topk_ids", &args.topk_ids, false},
              {"token_lora_mapping", &args.token_lora_mapping, false},
              {"adapter_enabled", &args.adapter_enabled, false},
              {"lora_ids", &args.lora_ids, false},
              {"expert_map", &args.expert_map, false},
              {"workspace", nullptr, true}};
    run = [this] { return lora_align_block_size(args, context); };
    place_all();
  }
};

std::byte* align_down(std::byte* address, std::size_t alignment) {
  return address - reinterpret_cast<std::uintptr_t>(address) % alignment;
}

void expect_refused(Call& call, const std::string& message) {
  const std::vector<std::byte> before = call.memory;
  const Status status = call.run();
  EXPECT_EQ(status.code(), StatusCode::kInvalidValue);
  EXPECT_EQ(status.message(), call.op + ": " + message);
  EXPECT_TRUE(call.memory == before);
}

/// Lays every array over every other one, and returns how many pairs may not overlap.
int check_every_pair(Call& call) {
  const Status good = call.run();
  EXPECT_TRUE(good.ok()) << good.message();
  int num_pairs = 0;
  for (std::size_t i = 0; i < call.arrays.size(); ++i) {
    for (std::size_t j = i + 1; j < call.arrays.size(); ++j) {
      const Array& first = call.arrays[i];
      const Array& second = call.arrays[j];
      SCOPED_TRACE(std::string(first.name) + ", " + second.name);
      const std::string message =
          first.is_written
              ? std::string(first.name) + ": expected memory of its own, got memory shared with " +
                    second.name
              : "workspace: expected memory of its own, got memory shared with " +
                    std::string(first.name);
      // The same start, the last element of the first, and the first element of the first.
      for (std::byte* const to :
           {call.begin(i), align_down(call.begin(i) + call.bytes(i) - 1, call.width(j)),
            align_down(call.begin(i) + call.width(j) - call.bytes(j), call.width(j))}) {
        call.move(j, to);
        if (first.is_written || second.is_written) {
          expect_refused(call, message);
        } else {
          EXPECT_TRUE(call.run().ok());
        }
      }
      // Side by side.
      call.move(j, align_down(call.begin(i) - call.bytes(j), call.width(j)));
      EXPECT_TRUE(call.run().ok());
      call.move(j, call.begin(j));
      num_pairs += first.is_written || second.is_written ? 1 : 0;
    }
  }
  return num_pairs;
}

TEST(Overlap, IsRefusedOfEveryPairThatIsWritten) {
  AlignCall align;
  EXPECT_EQ(check_every_pair(align), 44);
  BatchedCall batched;
  EXPECT_EQ(check_every_pair(batched), 10);
  LoraCall lora;
  EXPECT_EQ(check_every_pair(lora), 26);
}

TEST(Overlap, ArraysThatEndBeyondTheAddressSpaceAreRefused) {
  const auto expect = [](Call& call, TensorView* view, const std::string& name,
                         std::int64_t length) {
    const std::int64_t good = view->num_elements;
    view->num_elements = length;
    expect_refused(call, name + ".num_elements: expected an end within the address space, got " +
                             std::to_string(length));
    view->num_elements = good;
  };
  // The lengths in between are those whose bytes are a few when they wrap around.
  for (const std::int64_t length :
       {kLongest - 1, (std::int64_t{1} << 62) + 64, (std::int64_t{1} << 62) - 2}) {
    AlignCall align;
    expect(align, &align.args.sorted_token_ids, "sorted_token_ids", length);
    expect(align, &align.args.expert_ids, "expert_ids", length);
    BatchedCall batched;
    expect(batched, &batched.args.sorted_token_ids, "sorted_token_ids", length);
    expect(batched, &batched.args.expert_ids, "expert_ids", length);
    LoraCall lora;
    expect(lora, &lora.args.sorted_token_ids, "sorted_token_ids", length);
    expect(lora, &lora.args.expert_ids, "expert_ids", length);
    expect(lora, &lora.args.adapter_enabled, "adapter_enabled", length);
    expect(lora, &lora.args.lora_ids, "lora_ids", length);
  }
}

TEST(Overlap, AWorkspaceThatEndsBeyondTheAddressSpaceIsRefused) {
  AlignCall align;
  BatchedCall batched;
  LoraCall lora;
  for (Call* call :
       {static_cast<Call*>(&align), static_cast<Call*>(&batched), static_cast<Call*>(&lora)}) {
    std::byte* const begin = call->begin(call->arrays.size() - 1);
    const std::size_t last =
        std::numeric_limits<std::size_t>::max() - reinterpret_cast<std::uintptr_t>(begin);
    for (const std::size_t size : {last + 1, std::numeric_limits<std::size_t>::max()}) {
      call->context.workspace = {begin, size};
      expect_refused(*call, "workspace: expected an end within the address space, got " +
                                std::to_string(size) + " bytes");
    }
    // All behind the first output, up to the very end.
    call->context.workspace = {call->begin(0) + call->bytes(0), last};
    expect_refused(*call,
                   "expert_ids: expected memory of its own, got memory shared with workspace");
  }
}

}  // namespace
}  // namespace tessera::test
