// The CPU half of `tessera bench`: the loop that times a host call, with nothing of Python in it.
#include "peers/align_block_size.hpp"

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>
#include <tvm/ffi/string.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "tessera/align_block_size.hpp"

namespace tessera::bench {
namespace {

namespace ffi = tvm::ffi;
using OptionalTensor = ffi::Optional<ffi::TensorView>;

std::span<std::int32_t> int32_span(const ffi::TensorView& tensor) {
  return {static_cast<std::int32_t*>(tensor.data_ptr()), static_cast<std::size_t>(tensor.numel())};
}

void require(const Status& status) {
  if (!status.ok()) TVM_FFI_THROW(RuntimeError) << status.message();
}

TensorView view_of(const ffi::TensorView& tensor) {
  TensorView view;
  view.data = tensor.data_ptr();
  view.num_elements = tensor.numel();
  view.dtype = tensor.dtype();
  return view;
}

/// One of `num_windows` equal parts.
TensorView window_of(TensorView ids, std::int64_t num_windows, std::int64_t window) {
  ids.num_elements /= num_windows;
  ids.data = static_cast<std::byte*>(ids.data) + window * ids.num_elements * ids.dtype.bits / 8;
  return ids;
}

/// Our op as its C++ caller sees it: with validation, dispatch and all.
std::function<void()> tessera_call(const AlignBlockSizeArgs& args, std::int64_t num_threads,
                                   std::vector<std::byte>& workspace) {
  Context context;
  context.num_threads = static_cast<std::int32_t>(num_threads);
  AlignBlockSizeSizes sizes;
  require(align_block_size_sizes({args.topk_ids.num_elements, args.block_size, args.num_experts},
                                 context, &sizes));
  workspace.resize(sizes.workspace_bytes);
  context.workspace = workspace;
  return [args, context] { require(align_block_size(args, context)); };
}

/// Seconds that `num_calls` calls of a contender take, which go round the windows: equal parts of
/// the ids. All arrays are contiguous in host memory, and the outputs have at least the contract's
/// lengths for a window. All but Tessera ignore the map; the peers need int32 ids.
double host_seconds(const ffi::String& contender, const ffi::TensorView& topk_ids,
                    const OptionalTensor& expert_map, const ffi::TensorView& sorted_token_ids,
                    const ffi::TensorView& expert_ids, const ffi::TensorView& num_tokens_post_pad,
                    std::int64_t block_size, std::int64_t num_experts, std::int64_t num_threads,
                    std::int64_t num_windows, std::int64_t num_calls) {
  // Kept between calls, so that the first one of a loop does not pay for fresh pages.
  static std::vector<std::byte> workspace;
  static std::vector<std::int32_t> peer_workspace;

  const std::string name(contender.data(), contender.size());
  const auto call_of = [&](const TensorView& ids) -> std::function<void()> {
    const PeerProblem problem{static_cast<const std::int32_t*>(ids.data),
                              static_cast<std::int32_t>(ids.num_elements),
                              static_cast<std::int32_t>(block_size),
                              static_cast<std::int32_t>(num_experts),
                              int32_span(sorted_token_ids).data(),
                              static_cast<std::int32_t>(sorted_token_ids.numel()),
                              int32_span(expert_ids).data(),
                              static_cast<std::int32_t>(expert_ids.numel()),
                              int32_span(num_tokens_post_pad).data()};
    if (name == "textbook") return [problem] { textbook(problem, peer_workspace); };
    if (name == "floor") return [problem] { memory_floor(problem); };
    if (name == "thread_local_counts") {
      return [problem, num_threads] {
        thread_local_counts(problem, static_cast<int>(num_threads), peer_workspace);
      };
    }
    if (name != "tessera") TVM_FFI_THROW(ValueError) << "no contender is called " << name;
    AlignBlockSizeArgs args;
    args.topk_ids = ids;
    args.block_size = block_size;
    args.num_experts = num_experts;
    if (expert_map.has_value()) args.expert_map = view_of(*expert_map);
    args.sorted_token_ids = view_of(sorted_token_ids);
    args.expert_ids = view_of(expert_ids);
    args.num_tokens_post_pad = view_of(num_tokens_post_pad);
    return tessera_call(args, num_threads, workspace);
  };
  std::vector<std::function<void()>> calls;
  for (std::int64_t window = 0; window < num_windows; ++window) {
    calls.push_back(call_of(window_of(view_of(topk_ids), num_windows, window)));
  }

  const auto start = std::chrono::steady_clock::now();
  auto call = calls.begin();
  for (std::int64_t i = 0; i < num_calls; ++i) {
    (*call)();
    if (++call == calls.end()) call = calls.begin();
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Takes the arrays of a call of the op, and does nothing: what the binding alone costs.
void empty_call(const ffi::TensorView&, const ffi::TensorView&, const ffi::TensorView&,
                const ffi::TensorView&) {}

}  // namespace
}  // namespace tessera::bench

TVM_FFI_DLL_EXPORT_TYPED_FUNC(empty_call, tessera::bench::empty_call)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(host_seconds, tessera::bench::host_seconds)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(has_openmp, tessera::bench::has_openmp)
