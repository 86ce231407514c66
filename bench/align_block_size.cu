// The CUDA half of `tessera bench`: the peers and floors that are always there, and the kernels
// that the method `chain` puts beside them, exported.
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include "peers/cub_radix.cuh"
#include "peers/floor.cuh"
#include "peers/neighbours.cuh"
#include "peers/textbook.cuh"

namespace tessera::bench {
namespace {

namespace ffi = tvm::ffi;
using OptionalTensor = ffi::Optional<TensorView>;

template <typename Id>
Problem<Id> problem_of(const TensorView& topk_ids, const OptionalTensor& expert_map,
                       const TensorView& sorted_token_ids, const TensorView& expert_ids,
                       const TensorView& num_tokens_post_pad, std::int64_t block_size,
                       std::int64_t num_experts) {
  Problem<Id> problem{};
  problem.topk_ids = data_of<const Id>(topk_ids);
  problem.expert_map = expert_map.has_value() ? data_of<const std::int32_t>(*expert_map) : nullptr;
  problem.num_ids = static_cast<std::int32_t>(topk_ids.numel());
  problem.block_size = static_cast<std::int32_t>(block_size);
  problem.num_experts = static_cast<std::int32_t>(num_experts);
  problem.sorted_token_ids = data_of<std::int32_t>(sorted_token_ids);
  problem.capacity = static_cast<std::int32_t>(sorted_token_ids.numel());
  problem.expert_ids = data_of<std::int32_t>(expert_ids);
  problem.num_blocks = static_cast<std::int32_t>(expert_ids.numel());
  problem.num_tokens_post_pad = data_of<std::int32_t>(num_tokens_post_pad);
  return problem;
}

/// Calls `call` with a value of the type of ids of that many bits: int32 or int64.
template <typename Call>
auto with_id_type(int bits, Call call) {
  if (bits != 32 && bits != 64) {
    TVM_FFI_THROW(TypeError) << "the peers take ids of 32 or 64 bits, got " << bits;
  }
  return bits == 32 ? call(std::int32_t{}) : call(std::int64_t{});
}

void run_textbook(const TensorView& topk_ids, const OptionalTensor& expert_map,
                  const TensorView& sorted_token_ids, const TensorView& expert_ids,
                  const TensorView& num_tokens_post_pad, const TensorView& workspace,
                  std::int64_t block_size, std::int64_t num_experts) {
  with_id_type(topk_ids.dtype().bits, [&](auto id) {
    textbook(problem_of<decltype(id)>(topk_ids, expert_map, sorted_token_ids, expert_ids,
                                      num_tokens_post_pad, block_size, num_experts),
             data_of<std::int32_t>(workspace), stream_of(topk_ids));
  });
}

void run_cub_radix(const TensorView& topk_ids, const OptionalTensor& expert_map,
                   const TensorView& sorted_token_ids, const TensorView& expert_ids,
                   const TensorView& num_tokens_post_pad, const TensorView& workspace,
                   std::int64_t block_size, std::int64_t num_experts) {
  with_id_type(topk_ids.dtype().bits, [&](auto id) {
    cub_radix(problem_of<decltype(id)>(topk_ids, expert_map, sorted_token_ids, expert_ids,
                                       num_tokens_post_pad, block_size, num_experts),
              data_of<std::byte>(workspace), stream_of(topk_ids));
  });
}

std::int64_t cub_radix_workspace_bytes(std::int64_t num_ids, std::int64_t num_experts,
                                       std::int64_t id_bits) {
  return with_id_type(static_cast<int>(id_bits), [&](auto id) {
    return static_cast<std::int64_t>(
        CubRadixWorkspace<decltype(id)>(static_cast<std::int32_t>(num_ids),
                                        static_cast<std::int32_t>(num_experts), nullptr)
            .bytes);
  });
}

void run_floor(const TensorView& topk_ids, const TensorView& sorted_token_ids,
               const TensorView& expert_ids, const TensorView& num_tokens_post_pad,
               std::int64_t num_ctas, bool pdl) {
  const auto num_ids = static_cast<std::int32_t>(topk_ids.numel());
  const FloorArrays arrays{data_of<const std::int32_t>(topk_ids),
                           num_ids * (topk_ids.dtype().bits / 32),
                           num_ids,
                           data_of<std::int32_t>(sorted_token_ids),
                           static_cast<std::int32_t>(sorted_token_ids.numel()),
                           data_of<std::int32_t>(expert_ids),
                           static_cast<std::int32_t>(expert_ids.numel()),
                           data_of<std::int32_t>(num_tokens_post_pad)};
  floor_of(arrays, static_cast<int>(num_ctas), pdl, stream_of(topk_ids));
}

/// Takes the arrays of a call of the op, so that the same binding does the same work for it.
void run_empty_kernel(const TensorView& topk_ids, const TensorView&, const TensorView&,
                      const TensorView&) {
  launch("empty_kernel", empty_kernel, 1, 32, 0, stream_of(topk_ids), false);
}

/// Words of 32 bits in a contiguous array, whose length has to be a multiple of them.
std::int64_t num_words_of(const TensorView& array) {
  const std::int64_t bits = array.numel() * array.dtype().bits * array.dtype().lanes;
  if (bits % 32 != 0) {
    TVM_FFI_THROW(ValueError) << "expected an array of whole words of 32 bits, got " << bits
                              << " bits";
  }
  return bits / 32;
}

/// Both arrays have the same length and type.
void run_write_input(const TensorView& values, const TensorView& input) {
  const cudaStream_t stream = stream_of(input);
  if (input.dtype().bits == 64) {
    write_input(data_of<const std::int64_t>(values), data_of<std::int64_t>(input),
                static_cast<std::int32_t>(input.numel()), stream);
  } else {
    write_input(data_of<const std::int32_t>(values), data_of<std::int32_t>(input),
                static_cast<std::int32_t>(num_words_of(input)), stream);
  }
}

void run_read_outputs(const TensorView& sorted_token_ids, const TensorView& expert_ids,
                      const TensorView& num_tokens_post_pad) {
  const auto num_rows = static_cast<std::int32_t>(num_tokens_post_pad.numel());
  const ReadArrays arrays{data_of<const std::int32_t>(sorted_token_ids),
                          static_cast<std::int32_t>(sorted_token_ids.numel()) / num_rows,
                          data_of<const std::int32_t>(expert_ids),
                          static_cast<std::int32_t>(expert_ids.numel()),
                          data_of<const std::int32_t>(num_tokens_post_pad),
                          num_rows};
  read_outputs(arrays, stream_of(sorted_token_ids));
}

void run_read_array(const TensorView& array) {
  read_array(data_of<const std::int32_t>(array), num_words_of(array), stream_of(array));
}

}  // namespace
}  // namespace tessera::bench

TVM_FFI_DLL_EXPORT_TYPED_FUNC(textbook, tessera::bench::run_textbook)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(cub_radix, tessera::bench::run_cub_radix)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(cub_radix_workspace_bytes, tessera::bench::cub_radix_workspace_bytes)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(floor, tessera::bench::run_floor)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(empty_kernel, tessera::bench::run_empty_kernel)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(write_input, tessera::bench::run_write_input)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(read_outputs, tessera::bench::run_read_outputs)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(read_array, tessera::bench::run_read_array)
