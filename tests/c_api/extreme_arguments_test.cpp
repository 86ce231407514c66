// Every argument of every C function at its extremes, alone and in pairs: a status comes back, and
// a refused call writes nothing.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "align_block_size_cases.hpp"
#include "batched_align_block_size_cases.hpp"
#include "c_arguments.hpp"
#include "guarded_call.hpp"
#include "lora_align_block_size_cases.hpp"
#include "tessera/tessera.h"

namespace tessera::test {
namespace {

constexpr std::int64_t kInt32Max = std::numeric_limits<std::int32_t>::max();
constexpr std::array<std::int64_t, 8> kExtremes{std::numeric_limits<std::int64_t>::min(),
                                                std::numeric_limits<std::int64_t>::min() + 1,
                                                -1,
                                                0,
                                                1,
                                                kInt32Max,
                                                kInt32Max + 1,
                                                std::numeric_limits<std::int64_t>::max()};

/// One field of a struct set to one value.
template <typename Args>
struct Change {
  std::string what;
  std::function<void(Args*)> apply;
};

/// Fields of `Args`, each at all extremes of its type.
template <typename Args>
class Changes {
 public:
  template <typename... Fields>
  explicit Changes(Fields... fields) {
    (add(fields.first, fields.second), ...);
    for (const std::size_t size : {std::size_t{0}, std::size_t{8}, offsetof(Args, struct_size) + 1,
                                   sizeof(Args) - 8, sizeof(Args) + 8, SIZE_MAX}) {
      set("struct_size", &Args::struct_size, size);
    }
  }

  const std::vector<Change<Args>>& all() const { return changes_; }

 private:
  template <typename T>
  void add(const char* name, T Args::*field) {
    if constexpr (std::is_pointer_v<T>) {
      changes_.push_back(
          {std::string(name) + " = NULL", [field](Args* a) { a->*field = nullptr; }});
    } else {
      for (const std::int64_t value : kExtremes) {
        if (std::is_unsigned_v<T> || std::in_range<T>(value)) {
          set(name, field, static_cast<T>(value));
        }
      }
      if (!std::in_range<T>(kExtremes.front())) {
        set(name, field, std::numeric_limits<T>::min());
        set(name, field, std::numeric_limits<T>::max());
      }
    }
  }

  template <typename T>
  void set(const char* name, T Args::*field, T value) {
    changes_.push_back({std::string(name) + " = " + std::to_string(value),
                        [field, value](Args* a) { a->*field = value; }});
  }

  std::vector<Change<Args>> changes_;
};

#define FIELD(name) std::pair(#name, &Args::name)

bool has_cuda() {
  static const bool found = tessera_warmup(TESSERA_CUDA, 0) == TESSERA_OK;
  return found;
}

// For each op a small case, the fields of its arguments, and the fields of which a call cannot
// notice that they are too large: lengths of arrays.

struct Align {
  using Args = tessera_align_block_size_args;
  using CppArgs = AlignBlockSizeArgs;

  static contract::AlignBlockSizeCase small_case() {
    contract::AlignBlockSizeCase c;
    c.num_tokens = 12;
    c.top_k = 2;
    c.num_experts = 5;
    c.block_size = 4;
    c.broken = contract::BrokenIds::kSome;
    c.map = contract::MapKind::kHalfRemote;
    c.statistics = c.validation = true;
    return c;
  }

  static Changes<Args> changes() {
    return Changes<Args>(
        FIELD(topk_ids), FIELD(topk_ids_dtype), FIELD(num_ids), FIELD(block_size),
        FIELD(num_experts), FIELD(expert_map), FIELD(ignore_invalid_experts), FIELD(pad_sorted_ids),
        FIELD(tail_expert), FIELD(sorted_token_ids), FIELD(sorted_token_ids_length),
        FIELD(expert_ids), FIELD(expert_ids_length), FIELD(num_tokens_post_pad),
        FIELD(expert_counts), FIELD(num_dropped), FIELD(device_type), FIELD(device_id),
        FIELD(stream), FIELD(workspace), FIELD(workspace_bytes), FIELD(num_threads),
        FIELD(statistics), FIELD(validation), FIELD(map_tail), FIELD(filtered_group));
  }

  static constexpr std::int64_t Args::*kLengths[] = {
      &Args::num_ids, &Args::num_experts, &Args::sorted_token_ids_length, &Args::expert_ids_length};
};

struct Batched {
  using Args = tessera_batched_align_block_size_args;
  using CppArgs = BatchedAlignBlockSizeArgs;

  static contract::BatchedAlignBlockSizeCase small_case() {
    contract::BatchedAlignBlockSizeCase c;
    c.num_batches = 5;
    c.max_tokens_per_batch = 6;
    c.block_size = 4;
    c.counts = contract::BatchCounts::kBroken;
    return c;
  }

  static Changes<Args> changes() {
    return Changes<Args>(FIELD(expert_num_tokens), FIELD(num_batches), FIELD(max_tokens_per_batch),
                         FIELD(block_size), FIELD(tail_expert), FIELD(sorted_token_ids),
                         FIELD(sorted_token_ids_length), FIELD(expert_ids),
                         FIELD(expert_ids_length), FIELD(num_tokens_post_pad), FIELD(device_type),
                         FIELD(device_id), FIELD(stream));
  }

  static constexpr std::int64_t Args::*kLengths[] = {
      &Args::num_batches, &Args::sorted_token_ids_length, &Args::expert_ids_length};
};

struct Lora {
  using Args = tessera_lora_align_block_size_args;
  using CppArgs = LoraAlignBlockSizeArgs;

  static contract::LoraAlignBlockSizeCase small_case() {
    contract::LoraAlignBlockSizeCase c;
    c.pairs = Align::small_case();
    c.pairs.statistics = c.pairs.validation = false;
    c.max_loras = 3;
    c.enabled = contract::AdapterSet::kEven;
    c.in_use = contract::AdapterSet::kAll;
    return c;
  }

  static Changes<Args> changes() {
    return Changes<Args>(FIELD(topk_ids), FIELD(topk_ids_dtype), FIELD(num_ids), FIELD(top_k),
                         FIELD(token_lora_mapping), FIELD(block_size), FIELD(num_experts),
                         FIELD(max_loras), FIELD(adapter_enabled), FIELD(lora_ids),
                         FIELD(num_lora_ids), FIELD(expert_map), FIELD(pad_sorted_ids),
                         FIELD(tail_expert), FIELD(sorted_token_ids),
                         FIELD(sorted_token_ids_length), FIELD(expert_ids),
                         FIELD(expert_ids_length), FIELD(num_tokens_post_pad), FIELD(device_type),
                         FIELD(device_id), FIELD(stream), FIELD(workspace), FIELD(workspace_bytes));
  }

  static constexpr std::int64_t Args::*kLengths[] = {
      &Args::num_ids,      &Args::num_experts,
      &Args::max_loras,    &Args::sorted_token_ids_length,
      &Args::num_lora_ids, &Args::expert_ids_length};
};

template <typename Op>
class ExtremeArguments : public testing::Test {
 protected:
  using Args = typename Op::Args;
  using Functions = CFunctions<Args>;
  using Sizes = typename Functions::Sizes;

  ExtremeArguments() : call_(Op::small_case()), good_(c_args(call_.args)) {
    Sizes sizes = empty_sizes<Sizes>();
    EXPECT_EQ(Functions::kQuery(&good_, &sizes), TESSERA_OK) << tessera_last_error();
    workspace_ = std::make_unique<GuardedBuffer<std::byte>>(
        static_cast<std::int64_t>(workspace_bytes(sizes)));
    set_workspace(workspace_->span(), &good_);
  }

  /// Whether the arrays are as long as `args` says. No call can notice if they are not.
  bool is_true_of(const Args& args) const {
    if constexpr (requires { args.topk_ids_dtype; }) {
      if (args.topk_ids_dtype > TESSERA_UINT32) return false;
    }
    // The mapping has an element per token.
    if constexpr (requires { args.top_k; }) {
      if (args.top_k < good_.top_k) return false;
    }
    return std::ranges::all_of(
        Op::kLengths, [&](std::int64_t Args::*length) { return args.*length <= good_.*length; });
  }

  /// Returns what is wrong with how the op takes `args`; nothing if all is well.
  std::string fault_of(const Args& args) {
    Sizes sizes = empty_sizes<Sizes>();
    const Sizes before = sizes;
    const tessera_status query = Functions::kQuery(&args, &sizes);
    if (!is_status(query)) return "the query returns " + std::to_string(query);
    if (query != TESSERA_OK) {
      if (*tessera_last_error() == '\0') return "the query refuses without a message";
      if (std::memcmp(&sizes, &before, sizeof(sizes)) != 0) return "a refused query writes";
    }
    const bool must_be_refused = query != TESSERA_OK ||
                                 args.sorted_token_ids_length < sizes.sorted_token_ids_length ||
                                 args.expert_ids_length < sizes.expert_ids_length ||
                                 workspace_bytes(args) < workspace_bytes(sizes);
    if (!must_be_refused && !is_true_of(args)) return {};
    if (args.device_type == TESSERA_CUDA && has_cuda()) return {};  // these arrays are the host's
    call_.poison_outputs(kPoison);
    const tessera_status run = Functions::kRun(&args);
    if (!is_status(run)) return "the call returns " + std::to_string(run);
    if (run == TESSERA_OK && must_be_refused) return "accepted";
    if (run != TESSERA_OK && *tessera_last_error() == '\0') return "refused without a message";
    if (run != TESSERA_OK && !call_.outputs_untouched()) return "a refused call writes";
    if (const std::string damage = call_.damage(); !damage.empty()) return "damages " + damage;
    ++(run == TESSERA_OK ? num_accepted_ : num_refused_);
    return workspace_->intact() ? "" : "writes beside the workspace";
  }

  static bool is_status(int status) {
    return status >= TESSERA_OK && status <= TESSERA_RUNTIME_ERROR;
  }

  TypedCall<typename Op::CppArgs> call_;
  Args good_;
  std::unique_ptr<GuardedBuffer<std::byte>> workspace_;
  int num_accepted_ = 0;
  int num_refused_ = 0;
};

using Ops = testing::Types<Align, Batched, Lora>;
TYPED_TEST_SUITE(ExtremeArguments, Ops);

TYPED_TEST(ExtremeArguments, AloneAndInPairs) {
  ASSERT_EQ(this->fault_of(this->good_), "");
  ASSERT_EQ(this->num_accepted_, 1);
  const auto changes = TypeParam::changes();
  for (const auto& first : changes.all()) {
    for (const auto& second : changes.all()) {
      auto args = this->good_;
      first.apply(&args);
      second.apply(&args);
      EXPECT_EQ(this->fault_of(args), "") << first.what << ", " << second.what;
    }
  }
  // If all were refused, or all accepted, the test would show nothing.
  EXPECT_GT(this->num_accepted_, 200);
  EXPECT_GT(this->num_refused_, 1000);
}

TEST(ExtremeArgumentsOfLibrary, Warmup) {
  for (const std::int64_t type : kExtremes) {
    for (const std::int64_t id : kExtremes) {
      const int status = tessera_warmup(static_cast<int>(type), static_cast<int>(id));
      EXPECT_TRUE(status >= TESSERA_OK && status <= TESSERA_RUNTIME_ERROR) << type << " " << id;
      EXPECT_EQ(status == TESSERA_OK, *tessera_last_error() == '\0');
    }
  }
}

TEST(ExtremeArgumentsOfLibrary, NegativeTopKDividesNothing) {
  tessera_lora_align_block_size_args args{};
  args.struct_size = sizeof(args);
  args.num_ids = std::numeric_limits<std::int64_t>::min();
  args.top_k = -1;
  args.topk_ids_dtype = TESSERA_INT32;
  args.block_size = args.num_experts = args.max_loras = 4;
  EXPECT_EQ(tessera_lora_align_block_size(&args), TESSERA_INVALID_VALUE);
}

}  // namespace
}  // namespace tessera::test
