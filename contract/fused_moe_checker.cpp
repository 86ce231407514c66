#include "fused_moe_checker.hpp"

#include <cstdint>
#include <string>

#include "arrays.hpp"
#include "fused_experts_checker.hpp"
#include "select_experts_arithmetic.hpp"
#include "select_experts_checker.hpp"

namespace tessera::contract {
namespace {

class Checker : private ViolationCollector {
 public:
  explicit Checker(const FusedMoeArgs& args) : args_(args) {
    selection_.router_logits = args.router_logits;
    selection_.correction_bias = args.correction_bias;
    selection_.num_valid_tokens = args.num_valid_tokens;
    selection_.topk_weights = args.topk_weights;
    selection_.topk_ids = args.topk_ids;
    selection_.top_k = args.top_k;
    selection_.scoring = args.scoring;
    selection_.renormalize = args.renormalize;
    selection_.num_expert_group = args.num_expert_group;
    selection_.topk_group = args.topk_group;
    selection_.routed_scaling_factor = args.routed_scaling_factor;
    experts_.x = args.x;
    experts_.w13 = args.w13;
    experts_.w2 = args.w2;
    experts_.expert_map = args.expert_map;
    experts_.w13_bias = args.w13_bias;
    experts_.w2_bias = args.w2_bias;
    experts_.output = args.output;
    experts_.activation = args.activation;
    experts_.apply_router_weight_on_input = args.apply_router_weight_on_input;
    experts_.batch_invariant = args.batch_invariant;
    experts_.swiglu_alpha = args.swiglu_alpha;
    experts_.swiglu_beta = args.swiglu_beta;
    experts_.swiglu_limit = args.swiglu_limit;
  }

  std::vector<Violation> run() {
    add_all(check_inputs_of_select_experts(selection_));
    if (none()) check_router();
    if (none()) check_outputs();
    return in_order(kFusedMoeRules);
  }

 private:
  /// Whether the router has the tokens of x and the experts of the weights or the map.
  void check_router() {
    const TensorView& map = args_.expert_map;
    const std::int64_t num_experts = (map.given() ? map : args_.w13).shape[0];
    const TensorView& logits = args_.router_logits;
    if (logits.shape[0] == args_.x.shape[0] && logits.shape[1] == num_experts) return;
    invalid_input("router_logits", "[T, G] values, for the tokens of x and all global experts",
                  describe_axes(logits));
  }

  void check_outputs() {
    SelectedExperts asked = select_by_contract(selection_);
    const std::int64_t num_tokens = args_.router_logits.shape[0];
    if (!args_.topk_weights.given()) {
      selection_.topk_weights =
          TensorView::of(asked.weights.data(), kFloat32, {num_tokens, args_.top_k});
    }
    if (!args_.topk_ids.given()) {
      selection_.topk_ids = TensorView::of(asked.ids.data(), kInt32, {num_tokens, args_.top_k});
    }
    add_all(check_select_experts(selection_));
    if (broken("output_sizes")) return;
    experts_.topk_weights = selection_.topk_weights;
    experts_.topk_ids = selection_.topk_ids;
    add_all(check_fused_experts(experts_));
  }

  void add_all(const std::vector<Violation>& violations) {
    for (const Violation& violation : violations) add(violation);
  }

  const FusedMoeArgs& args_;
  SelectExpertsArgs selection_;
  FusedExpertsArgs experts_;
};

}  // namespace

std::vector<Violation> check_fused_moe(const FusedMoeArgs& args) { return Checker(args).run(); }

}  // namespace tessera::contract
