#include "select_and_align_checker.hpp"

#include <cstdint>
#include <string>
#include <string_view>

#include "align_block_size_checker.hpp"
#include "arrays.hpp"
#include "select_experts_checker.hpp"

namespace tessera::contract {
namespace {

constexpr std::string_view kBlockPadding = "block_padding";

bool is_of_call(const Violation& violation) {
  return violation.rule == "valid_inputs" || violation.rule == "output_sizes";
}

class Checker : private ViolationCollector {
 public:
  explicit Checker(const SelectAndAlignArgs& args) : args_(args) {}

  std::vector<Violation> run() {
    const std::vector<Violation> of_selection = check_select_experts(selection());
    add_of_call(of_selection);
    if (none() && args_.router_logits.shape[1] > kAlignBlockSizeMaxExperts) {
      invalid_input("router_logits", "at most 2^30 experts",
                    std::to_string(args_.router_logits.shape[1]));
    }
    if (none()) {
      const std::vector<Violation> of_alignment = check_align_block_size(alignment());
      add_of_call(of_alignment);
      if (none()) {
        for (const Violation& violation : of_selection) add(violation);
        for (const Violation& violation : of_alignment) add_renamed(violation);
      }
    }
    return in_order(kSelectAndAlignRules);
  }

 private:
  SelectExpertsArgs selection() const {
    SelectExpertsArgs selection;
    selection.router_logits = args_.router_logits;
    selection.correction_bias = args_.correction_bias;
    selection.num_valid_tokens = args_.num_valid_tokens;
    selection.topk_weights = args_.topk_weights;
    selection.topk_ids = args_.topk_ids;
    selection.top_k = args_.top_k;
    selection.scoring = args_.scoring;
    selection.renormalize = args_.renormalize;
    selection.num_expert_group = args_.num_expert_group;
    selection.topk_group = args_.topk_group;
    selection.routed_scaling_factor = args_.routed_scaling_factor;
    return selection;
  }

  AlignBlockSizeArgs alignment() const {
    AlignBlockSizeArgs alignment;
    alignment.topk_ids = args_.topk_ids;
    alignment.block_size = args_.block_size;
    alignment.num_experts = args_.router_logits.shape[1];
    alignment.expert_map = args_.expert_map;
    alignment.ignore_invalid_experts = args_.ignore_invalid_experts;
    alignment.pad_sorted_ids = args_.pad_sorted_ids;
    alignment.sorted_token_ids = args_.sorted_token_ids;
    alignment.expert_ids = args_.expert_ids;
    alignment.num_tokens_post_pad = args_.num_tokens_post_pad;
    alignment.expert_counts = args_.expert_counts;
    alignment.statistics = args_.statistics;
    return alignment;
  }

  void add_of_call(const std::vector<Violation>& violations) {
    for (const Violation& violation : violations) {
      if (is_of_call(violation)) add(violation);
    }
  }

  /// The rule `padding` of align_block_size has another name here.
  void add_renamed(Violation violation) {
    if (violation.rule == "padding") {
      violation.message.replace(0, violation.rule.size(), kBlockPadding);
      violation.rule = kBlockPadding;
    }
    add(violation);
  }

  const SelectAndAlignArgs& args_;
};

}  // namespace

std::vector<Violation> check_select_and_align(const SelectAndAlignArgs& args) {
  return Checker(args).run();
}

}  // namespace tessera::contract
