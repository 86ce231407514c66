// One call of align_block_size on guarded memory.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "align_block_size_cases.hpp"
#include "guarded_buffer.hpp"
#include "tessera/align_block_size.hpp"

namespace tessera::test {

/// Everything that a call writes.
struct Outputs {
  std::vector<std::int32_t> sorted_token_ids;
  std::vector<std::int32_t> expert_ids;
  std::int32_t num_tokens_post_pad = 0;
  std::vector<std::int32_t> expert_counts;
  std::int32_t num_dropped = 0;
  std::vector<double> statistics;        ///< empty: not asked for
  std::vector<std::int64_t> validation;  ///< empty: not asked for

  bool operator==(const Outputs&) const = default;
};

/// Holds the arrays of a case, each of exactly its size, the outputs poisoned.
class GuardedCall {
 public:
  explicit GuardedCall(const contract::AlignBlockSizeCase& c, std::uint64_t seed = 1);

  /// The case's arguments, with both optional outputs and the others that the case asks for. A test
  /// may change them before run().
  AlignBlockSizeArgs args;

  /// Calls the op with a workspace of exactly the size that the query names, at any address.
  Status run(Context context = {});

  void poison_outputs(std::byte value);
  bool outputs_untouched() const;

  /// Empty if no guard zone was hit and no input changed, else the name of the array.
  std::string damage() const;

  Outputs outputs() const;

 private:
  contract::AlignBlockSizeInputs inputs_;
  std::unique_ptr<GuardedBuffer<std::byte>> topk_ids_;
  std::unique_ptr<GuardedBuffer<std::int32_t>> expert_map_;
  std::unique_ptr<GuardedBuffer<std::int32_t>> sorted_token_ids_;
  std::unique_ptr<GuardedBuffer<std::int32_t>> expert_ids_;
  std::unique_ptr<GuardedBuffer<std::int32_t>> num_tokens_post_pad_;
  std::unique_ptr<GuardedBuffer<std::int32_t>> expert_counts_;
  std::unique_ptr<GuardedBuffer<std::int32_t>> num_dropped_;
  std::unique_ptr<GuardedBuffer<double>> statistics_;        // of no elements: not asked for
  std::unique_ptr<GuardedBuffer<std::int64_t>> validation_;  // the same
  std::size_t workspace_misalignment_;
  bool workspace_intact_ = true;
};

/// Names of the implementations that can run a case on the host.
std::vector<std::string> host_implementations(const contract::AlignBlockSizeCase& c);

/// Output sizes of a case as the contract has them.
AlignBlockSizeSizes sizes_of(const contract::AlignBlockSizeCase& c);

}  // namespace tessera::test
