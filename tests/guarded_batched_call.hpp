// One call of batched_align_block_size on guarded memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "batched_align_block_size_cases.hpp"
#include "guarded_buffer.hpp"
#include "tessera/batched_align_block_size.hpp"

namespace tessera::test {

/// Everything that a call writes.
struct BatchedOutputs {
  std::vector<std::int32_t> sorted_token_ids;
  std::vector<std::int32_t> expert_ids;
  std::int32_t num_tokens_post_pad = 0;

  bool operator==(const BatchedOutputs&) const = default;
};

/// Holds the arrays of a case, each of exactly its size, the outputs poisoned.
class GuardedBatchedCall {
 public:
  explicit GuardedBatchedCall(const contract::BatchedAlignBlockSizeCase& c, std::uint64_t seed = 1)
      : GuardedBatchedCall(c, contract::make_counts(c, seed)) {}

  /// With these counts in place of the case's.
  GuardedBatchedCall(const contract::BatchedAlignBlockSizeCase& c,
                     std::vector<std::int32_t> counts);

  /// The case's arguments. A test may change them before run().
  BatchedAlignBlockSizeArgs args;

  Status run() { return batched_align_block_size(args, Context{}); }

  void poison_outputs(std::byte value);
  bool outputs_untouched() const;

  /// Empty if no guard zone was hit and no input changed, else the name of the array.
  std::string damage();

  BatchedOutputs outputs();

 private:
  std::vector<std::int32_t> counts_;
  GuardedBuffer<std::int32_t> expert_num_tokens_;
  GuardedBuffer<std::int32_t> sorted_token_ids_;
  GuardedBuffer<std::int32_t> expert_ids_;
  GuardedBuffer<std::int32_t> num_tokens_post_pad_;
};

/// Output sizes of a case as the contract has them.
BatchedAlignBlockSizeSizes sizes_of(const contract::BatchedAlignBlockSizeCase& c);

}  // namespace tessera::test
