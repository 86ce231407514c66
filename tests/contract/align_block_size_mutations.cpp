#include "align_block_size_mutations.hpp"

#include <algorithm>

namespace tessera::contract {
namespace {

const Mutation kMutations[] = {
    {"no_ids_dtype",
     {"valid_inputs"},
     [](Finished& f) {
       f.args().topk_ids.dtype = {kDLFloat, 32, 1};
       return true;
     }},
    {"block_size_0",
     {"valid_inputs"},
     [](Finished& f) {
       f.args().block_size = 0;
       return true;
     }},
    {"capacity_overflow",
     {"valid_inputs"},
     [](Finished& f) {
       f.args().block_size = INT32_MAX;
       return f.num_ids() > 1;
     }},
    {"sorted_one_short",
     {"output_sizes"},
     [](Finished& f) {
       const std::int64_t n = f.num_ids();
       const std::int64_t capacity =
           n +
           std::min(n, f.args().num_experts + f.args().filtered_group) * (f.args().block_size - 1);
       f.args().sorted_token_ids.num_elements = capacity - 1;
       return true;
     }},
    {"expert_ids_not_int32",
     {"output_sizes"},
     [](Finished& f) {
       f.args().expert_ids.dtype = {kDLUInt, 32, 1};
       return true;
     }},
    {"sorted_misaligned",
     {"output_sizes"},
     [](Finished& f) {
       f.args().sorted_token_ids.data = reinterpret_cast<std::byte*>(&f.sorted(0)) + 1;
       return f.num_ids() > 0;
     }},
    {"counts_one_short",
     {"output_sizes"},
     [](Finished& f) {
       --f.args().expert_counts.num_elements;
       return true;
     }},
    {"total_one_block_more",
     {"num_tokens_post_pad"},
     [](Finished& f) {
       *f.data(f.args().num_tokens_post_pad) += static_cast<std::int32_t>(f.args().block_size);
       return true;
     }},
    {"total_garbage",
     {"num_tokens_post_pad"},
     [](Finished& f) {
       *f.data(f.args().num_tokens_post_pad) = f.garbage();
       return true;
     }},
    {"member_garbage",
     {"group_members"},
     [](Finished& f) {
       const auto slot = f.pick(f.total(), [&](auto s) { return f.is_member(s); });
       if (slot) f.sorted(*slot) = f.garbage();
       return slot.has_value();
     }},
    {"member_is_filler",
     {"group_members"},
     [](Finished& f) {
       const auto slot = f.pick(f.total(), [&](auto s) { return f.is_member(s); });
       if (slot) f.sorted(*slot) = static_cast<std::int32_t>(f.num_ids());
       return slot.has_value();
     }},
    {"members_of_two_groups_swapped",
     {"group_members"},
     [](Finished& f) {
       const auto a = f.pick(f.total(), [&](auto s) { return f.is_member(s); });
       if (!a) return false;
       const auto b =
           f.pick(f.total(), [&](auto s) { return f.is_member(s) && !f.same_group(s, *a); });
       if (b) std::swap(f.sorted(*a), f.sorted(*b));
       return b.has_value();
     }},
    {"member_repeated",
     {"no_repeats"},
     [](Finished& f) {
       const auto slot = f.pick(f.total() - 1, [&](auto s) {
         return f.is_member(s) && f.is_member(s + 1) && f.same_group(s, s + 1);
       });
       if (slot) f.sorted(*slot + 1) = f.sorted(*slot);
       return slot.has_value();
     }},
    {"neighbours_swapped",
     {"stable_order"},
     [](Finished& f) {
       const auto slot = f.pick(f.total() - 1, [&](auto s) {
         return f.is_member(s) && f.is_member(s + 1) && f.same_group(s, s + 1);
       });
       if (slot) std::swap(f.sorted(*slot), f.sorted(*slot + 1));
       return slot.has_value();
     }},
    {"group_reversed",
     {"stable_order"},
     [](Finished& f) {
       const auto begin = f.pick(f.total() - 1, [&](auto s) {
         return f.is_member(s) && f.is_member(s + 1) && f.same_group(s, s + 1) &&
                (s == 0 || !f.same_group(s - 1, s));
       });
       if (!begin) return false;
       std::int64_t end = *begin;
       while (f.is_member(end) && f.same_group(*begin, end)) ++end;
       std::reverse(&f.sorted(*begin), &f.sorted(*begin) + (end - *begin));
       return true;
     }},
    {"padding_garbage",
     {"padding"},
     [](Finished& f) {
       const auto slot = f.pick(f.total(), [&](auto s) { return !f.is_member(s); });
       if (slot) f.sorted(*slot) = f.garbage();
       return slot.has_value();
     }},
    {"padding_is_an_index",
     {"padding"},
     [](Finished& f) {
       const auto slot = f.pick(f.total(), [&](auto s) { return !f.is_member(s); });
       if (slot) f.sorted(*slot) = 0;
       return slot.has_value();
     }},
    {"sorted_tail_unwritten",
     {"sorted_tail"},
     [](Finished& f) {
       const std::int64_t length = f.args().sorted_token_ids.num_elements;
       const auto slot = f.pick(length, [&](auto s) { return s >= f.total(); });
       if (slot) f.sorted(*slot) = f.garbage();
       return slot.has_value();
     }},
    {"block_of_another_expert",
     {"block_experts"},
     [](Finished& f) {
       const auto block = f.pick(f.total() / f.args().block_size, [](auto) { return true; });
       if (block) ++f.expert(*block);
       return block.has_value();
     }},
    {"block_garbage",
     {"block_experts"},
     [](Finished& f) {
       const auto block = f.pick(f.total() / f.args().block_size, [](auto) { return true; });
       if (block) f.expert(*block) = INT32_MIN;
       return block.has_value();
     }},
    {"expert_tail_unwritten",
     {"expert_tail"},
     [](Finished& f) {
       const std::int64_t length = f.args().expert_ids.num_elements;
       const auto block =
           f.pick(length, [&](auto b) { return b >= f.total() / f.args().block_size; });
       if (block) f.expert(*block) ^= 1;
       return block.has_value();
     }},
    {"count_off_by_one",
     {"expert_counts"},
     [](Finished& f) {
       const auto group = f.pick(f.args().num_experts, [](auto) { return true; });
       ++f.count(*group);
       return true;
     }},
    {"dropped_off_by_one",
     {"num_dropped"},
     [](Finished& f) {
       --*f.data(f.args().num_dropped);
       return true;
     }},
    {"filtered_pairs_dropped",
     {"num_dropped"},
     [](Finished& f) {
       *f.data(f.args().num_dropped) += static_cast<std::int32_t>(f.first_expert_slot());
       return f.first_expert_slot() > 0;
     }},
    {"filtered_block_shows_expert_0",
     {"block_experts"},
     [](Finished& f) {
       if (f.first_expert_slot() > 0) f.expert(0) = 0;
       return f.first_expert_slot() > 0;
     }},
    {"filtered_pair_in_an_expert_s_group",
     {"group_members"},
     [](Finished& f) {
       const auto slot =
           f.pick(f.total(), [&](auto s) { return f.is_member(s) && s >= f.first_expert_slot(); });
       if (slot && f.first_expert_slot() > 0) std::swap(f.sorted(0), f.sorted(*slot));
       return slot && f.first_expert_slot() > 0;
     }},
    {"no_filtered_group",
     {"num_tokens_post_pad"},
     [](Finished& f) {
       const std::int64_t filtered = f.first_expert_slot();
       *f.data(f.args().num_tokens_post_pad) -= static_cast<std::int32_t>(filtered);
       return filtered > 0;
     }},
    {"sorted_one_short_of_the_filtered_group",
     {"output_sizes"},
     [](Finished& f) {
       const std::int64_t missing = f.args().block_size - 1;
       const bool counts = f.args().filtered_group && f.args().num_experts < f.num_ids();
       f.args().sorted_token_ids.num_elements =
           f.num_ids() + f.args().num_experts * missing + missing - 1;
       return counts && missing > 0;
     }},
    {"tail_not_mapped",
     {"expert_tail"},
     [](Finished& f) {
       const std::int64_t used = f.total() / f.args().block_size;
       const std::int64_t length = f.args().expert_ids.num_elements;
       if (!f.args().map_tail || used == length || f.expert(used) == f.args().tail_expert) {
         return false;
       }
       std::fill(&f.expert(0) + used, &f.expert(0) + length, f.args().tail_expert);
       return true;
     }},
    {"tail_mapped_without_being_asked",
     {"expert_tail"},
     [](Finished& f) {
       const std::int64_t length = f.args().expert_ids.num_elements;
       const bool has_tail = f.total() / f.args().block_size < length;
       if (!f.args().expert_map.given() || f.args().map_tail || !has_tail) return false;
       const std::int32_t tail = f.args().tail_expert;
       const bool is_expert = tail >= 0 && tail < f.args().num_experts;
       const std::int32_t local = is_expert ? f.data(f.args().expert_map)[tail] : -1;
       if (local == tail) return false;
       f.expert(length - 1) = local;
       return true;
     }},
    {"statistic_off_by_one",
     {"statistics"},
     [](Finished& f) {
       const auto which = f.pick(5, [](auto) { return true; });
       if (f.statistics() != nullptr) f.statistics()[*which] += 1;
       return f.statistics() != nullptr;
     }},
    {"filtered_pairs_count_as_padding",
     {"statistics"},
     [](Finished& f) {
       const std::int64_t filtered = f.first_expert_slot();
       if (f.statistics() != nullptr) f.statistics()[3] += static_cast<double>(filtered);
       return f.statistics() != nullptr && filtered > 0;
     }},
    {"mean_load_in_float32",
     {"statistics"},
     [](Finished& f) {
       if (f.statistics() == nullptr) return false;
       const double mean = f.statistics()[5];
       f.statistics()[5] = static_cast<float>(mean);
       return f.statistics()[5] != mean;
     }},
    {"statistics_one_short",
     {"output_sizes"},
     [](Finished& f) {
       --f.args().statistics.num_elements;
       return f.statistics() != nullptr;
     }},
    {"invalid_ids_off_by_one",
     {"validation"},
     [](Finished& f) {
       if (f.validation() != nullptr) ++f.validation()[0];
       return f.validation() != nullptr;
     }},
    {"not_the_first_invalid_id",
     {"validation"},
     [](Finished& f) {
       if (f.validation() != nullptr) ++f.validation()[1];
       return f.validation() != nullptr;
     }},
    {"another_invalid_value",
     {"validation"},
     [](Finished& f) {
       if (f.validation() != nullptr) f.validation()[2] ^= 1;
       return f.validation() != nullptr;
     }},
    {"invalid_entries_not_counted",
     {"validation"},
     [](Finished& f) {
       if (f.validation() == nullptr || f.validation()[3] == 0) return false;
       f.validation()[3] = 0;
       return true;
     }},
    {"remote_experts_are_invalid",
     {"validation"},
     [](Finished& f) {
       if (f.validation() == nullptr || !f.args().expert_map.given()) return false;
       f.validation()[4] = 1;  // -1 in all such maps of the table
       f.validation()[5] = -1;
       return true;
     }},
    {"validation_of_32_bits",
     {"output_sizes"},
     [](Finished& f) {
       f.args().validation.dtype = {kDLInt, 32, 1};
       return f.validation() != nullptr;
     }},
    {"everything_at_once",
     {"num_tokens_post_pad", "group_members", "padding", "sorted_tail", "block_experts",
      "expert_tail", "expert_counts", "num_dropped", "statistics", "validation"},
     [](Finished& f) {
       const std::int64_t total = f.total();
       const std::int64_t blocks = total / f.args().block_size;
       const bool has_padding = f.pick(total, [&](auto s) { return !f.is_member(s); }).has_value();
       const bool has_tails = total < f.args().sorted_token_ids.num_elements &&
                              blocks < f.args().expert_ids.num_elements;
       for (const TensorView& view :
            {f.args().sorted_token_ids, f.args().expert_ids, f.args().num_tokens_post_pad,
             f.args().expert_counts, f.args().num_dropped}) {
         std::fill_n(f.data(view), view.num_elements, INT32_MIN);
       }
       if (f.statistics() == nullptr || f.validation() == nullptr) return false;
       std::fill_n(f.statistics(), kAlignBlockSizeNumStatistics, -1.0);
       std::fill_n(f.validation(), kAlignBlockSizeValidationLength, INT64_MIN);
       return total > 0 && has_padding && has_tails && f.args().tail_expert != INT32_MIN;
     }},
};

}  // namespace

std::span<const Mutation> mutations() { return kMutations; }

}  // namespace tessera::contract
