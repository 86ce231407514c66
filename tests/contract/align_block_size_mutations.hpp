// Ways to spoil correct outputs, each with the rules that it breaks.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "align_block_size_cases.hpp"
#include "guarded_call.hpp"
#include "random_numbers.hpp"

namespace tessera::contract {

using Call = test::TypedCall<AlignBlockSizeArgs>;
using Rules = std::vector<std::string>;

/// A finished, correct call, with helpers to spoil particular parts of it.
class Finished {
 public:
  explicit Finished(const AlignBlockSizeCase& c)
      : call_(c), random_(7), num_experts_(c.num_experts) {
    const Status status = call_.run();
    EXPECT_TRUE(status.ok()) << status.message();
  }

  AlignBlockSizeArgs& args() { return call_.args; }
  std::int64_t num_ids() { return args().topk_ids.num_elements; }
  std::int64_t total() { return *data(args().num_tokens_post_pad); }
  std::int32_t& sorted(std::int64_t slot) { return data(args().sorted_token_ids)[slot]; }
  std::int32_t& expert(std::int64_t block) { return data(args().expert_ids)[block]; }
  std::int32_t& count(std::int64_t group) { return data(args().expert_counts)[group]; }
  double* statistics() { return static_cast<double*>(args().statistics.data); }
  std::int64_t* validation() { return static_cast<std::int64_t*>(args().validation.data); }
  std::int32_t* data(const TensorView& view) { return static_cast<std::int32_t*>(view.data); }

  /// A random element of those that satisfy `is_such`, if any does.
  std::optional<std::int64_t> pick(std::int64_t end,
                                   const std::function<bool(std::int64_t)>& is_such) {
    std::vector<std::int64_t> such;
    for (std::int64_t i = 0; i < end; ++i) {
      if (is_such(i)) such.push_back(i);
    }
    if (such.empty()) return std::nullopt;
    return such[random_.below(std::ssize(such))];
  }

  bool is_member(std::int64_t slot) { return slot < total() && sorted(slot) != num_ids(); }

  /// Whether both slots hold members of one group. Counts tell where the groups lie.
  bool same_group(std::int64_t a, std::int64_t b) { return group_at(a) == group_at(b); }

  std::int64_t group_at(std::int64_t slot) {
    const std::int64_t block_size = args().block_size;
    std::int64_t end = first_expert_slot();
    if (slot < end) return -1;
    for (std::int64_t group = 0; group < num_experts_; ++group) {
      end += (count(group) + block_size - 1) / block_size * block_size;
      if (slot < end) return group;
    }
    return num_experts_;
  }

  /// The end of the blocks of the pairs with id -1.
  std::int64_t first_expert_slot() {
    const std::int64_t block_size = args().block_size;
    std::int64_t slot = total();
    for (std::int64_t group = 0; group < num_experts_; ++group) {
      slot -= (count(group) + block_size - 1) / block_size * block_size;
    }
    return slot;
  }

  std::int32_t garbage() {
    const std::int32_t values[] = {-1, INT32_MIN, INT32_MAX,
                                   static_cast<std::int32_t>(num_ids()) + 1};
    return values[random_.below(4)];
  }

 private:
  Call call_;
  RandomNumbers random_;
  std::int64_t num_experts_;
};

struct Mutation {
  const char* name;
  Rules broken;  ///< exactly these
  /// Spoils the outputs; false if that is not possible in this case.
  std::function<bool(Finished&)> spoil;
};

std::span<const Mutation> mutations();

}  // namespace tessera::contract
