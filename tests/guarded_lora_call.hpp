// One call of lora_align_block_size on guarded memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "guarded_buffer.hpp"
#include "lora_align_block_size_cases.hpp"
#include "tessera/lora_align_block_size.hpp"

namespace tessera::test {

/// Everything that a call writes.
struct LoraOutputs {
  std::vector<std::int32_t> sorted_token_ids;
  std::vector<std::int32_t> expert_ids;
  std::vector<std::int32_t> num_tokens_post_pad;

  bool operator==(const LoraOutputs&) const = default;
};

/// Lengths of the outputs of a case by the contract, over all rows together.
struct LoraLengths {
  explicit LoraLengths(const contract::LoraAlignBlockSizeCase& c);

  std::int64_t sorted_token_ids;
  std::int64_t expert_ids;
};

/// Holds the arrays of a case, each of exactly its size, the outputs poisoned.
class GuardedLoraCall {
 public:
  explicit GuardedLoraCall(const contract::LoraAlignBlockSizeCase& c, std::uint64_t seed = 1);

  /// The case's arguments. A test may change them before run().
  LoraAlignBlockSizeArgs args;

  /// Calls the op with a workspace of exactly the size that the query names, at any address.
  Status run();

  void poison_outputs(std::byte value);
  bool outputs_untouched() const;

  /// Empty if no guard zone was hit and no input changed, else the name of the array.
  std::string damage() const;

  LoraOutputs outputs() const;

 private:
  using Int32s = std::unique_ptr<GuardedBuffer<std::int32_t>>;

  contract::LoraAlignBlockSizeInputs inputs_;
  std::unique_ptr<GuardedBuffer<std::byte>> topk_ids_;
  Int32s token_lora_mapping_;
  Int32s adapter_enabled_;
  Int32s lora_ids_;
  Int32s expert_map_;
  Int32s sorted_token_ids_;
  Int32s expert_ids_;
  Int32s num_tokens_post_pad_;
  std::size_t workspace_misalignment_;
  bool workspace_intact_ = true;
};

}  // namespace tessera::test
