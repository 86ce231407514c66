// moe_sum on the CPU.
#include "cpu/moe_sum.hpp"

#include <cstdint>

#include "cpu/moe_sum_threads.hpp"

namespace tessera::cpu {
namespace {

using core::MoeSumProblem;

struct MoeSumTokens {
  using Problem = MoeSumProblem;

  template <typename T>
  static TokenSlots<T> at(const Problem& p, std::int64_t token) {
    return {static_cast<const T*>(p.input) + token * p.token_stride,
            p.slot_stride,
            p.token_stride,
            p.topk_weights == nullptr ? nullptr : p.topk_weights + token * p.top_k,
            p.top_k,
            static_cast<T*>(p.output) + token * p.output_stride};
  }
};

}  // namespace

Status moe_sum_avx512(const MoeSumProblem& problem, const Context& context) {
  return sum_on_threads<WithAvx512, MoeSumTokens>(problem, context);
}

Status moe_sum_avx512_refusal(const MoeSumProblem&, const Context&, bool) {
  return require_avx512();
}

Status moe_sum_avx2(const MoeSumProblem& problem, const Context& context) {
  return sum_on_threads<WithAvx2, MoeSumTokens>(problem, context);
}

Status moe_sum_avx2_refusal(const MoeSumProblem&, const Context&, bool) { return require_avx2(); }

Status moe_sum_portable(const MoeSumProblem& problem, const Context& context) {
  return sum_on_threads<Portably, MoeSumTokens>(problem, context);
}

Status moe_sum_reference(const MoeSumProblem& problem, const Context&) {
  return sum_on_caller<MoeSumTokens>(problem);
}

}  // namespace tessera::cpu
