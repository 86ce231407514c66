// moe_unpermute on the CPU.
#include "cpu/moe_unpermute.hpp"

#include <cstdint>

#include "cpu/moe_sum_threads.hpp"

namespace tessera::cpu {
namespace {

using core::MoeUnpermuteProblem;

struct MoeUnpermuteTokens {
  using Problem = MoeUnpermuteProblem;

  template <typename T>
  static TokenRows<T> at(const Problem& p, std::int64_t token) {
    const std::int64_t next = token + 1 < p.num_tokens ? token + 1 : token;
    return {static_cast<const T*>(p.rows),
            p.row_stride,
            p.num_rows,
            p.inverse + token * p.top_k,
            p.inverse + next * p.top_k,
            p.topk_weights == nullptr ? nullptr : p.topk_weights + token * p.top_k,
            p.top_k,
            static_cast<T*>(p.output) + token * p.output_stride};
  }
};

}  // namespace

Status moe_unpermute_avx512(const MoeUnpermuteProblem& problem, const Context& context) {
  return sum_on_threads<WithAvx512, MoeUnpermuteTokens>(problem, context);
}

Status moe_unpermute_avx512_refusal(const MoeUnpermuteProblem&, const Context&, bool) {
  return require_avx512();
}

Status moe_unpermute_avx2(const MoeUnpermuteProblem& problem, const Context& context) {
  return sum_on_threads<WithAvx2, MoeUnpermuteTokens>(problem, context);
}

Status moe_unpermute_avx2_refusal(const MoeUnpermuteProblem&, const Context&, bool) {
  return require_avx2();
}

Status moe_unpermute_portable(const MoeUnpermuteProblem& problem, const Context& context) {
  return sum_on_threads<Portably, MoeUnpermuteTokens>(problem, context);
}

Status moe_unpermute_reference(const MoeUnpermuteProblem& problem, const Context&) {
  return sum_on_caller<MoeUnpermuteTokens>(problem);
}

}  // namespace tessera::cpu
