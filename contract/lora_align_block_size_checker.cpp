#include "lora_align_block_size_checker.hpp"

#include <algorithm>
#include <span>
#include <string>
#include <utility>

#include "align_block_size_checker.hpp"
#include "arrays.hpp"

namespace tessera::contract {
namespace {

constexpr std::int64_t kNoAdapter = -1;

template <typename T>
std::vector<std::int64_t> widen(const TensorView& ids) {
  const T* const data = static_cast<const T*>(ids.data);
  return {data, data + ids.num_elements};
}

/// Valid ids keep their value; invalid ids stay invalid.
std::vector<std::int64_t> widened(const TensorView& ids) {
  const bool is_signed = ids.dtype.code == kDLInt;
  switch (ids.dtype.bits) {
    case 8:
      return is_signed ? widen<std::int8_t>(ids) : widen<std::uint8_t>(ids);
    case 16:
      return is_signed ? widen<std::int16_t>(ids) : widen<std::uint16_t>(ids);
    case 32:
      return is_signed ? widen<std::int32_t>(ids) : widen<std::uint32_t>(ids);
    default:
      return is_signed ? widen<std::int64_t>(ids) : widen<std::uint64_t>(ids);
  }
}

class Checker : private ViolationCollector {
 public:
  explicit Checker(const LoraAlignBlockSizeArgs& args) : args_(args) {}

  std::vector<Violation> run() {
    check_inputs();
    if (none()) check_rows_are_there();
    if (none()) {
      find_adapters();
      for (std::int64_t adapter = 0; adapter < args_.max_loras; ++adapter) check_row(adapter);
    }
    return in_order(kLoraAlignBlockSizeRules);
  }

 private:
  /// The arguments that align_block_size also has, without its outputs.
  AlignBlockSizeArgs row_args() const {
    AlignBlockSizeArgs row;
    row.topk_ids = args_.topk_ids;
    row.block_size = args_.block_size;
    row.num_experts = args_.num_experts;
    row.expert_map = args_.expert_map;
    row.ignore_invalid_experts = true;
    row.pad_sorted_ids = args_.pad_sorted_ids;
    row.tail_expert = args_.tail_expert;
    return row;
  }

  void check_inputs() {
    // Without outputs, its checker stops after the inputs.
    const Violation of_row = check_align_block_size(row_args()).front();
    if (of_row.rule == "valid_inputs") {
      add(of_row);
      return;
    }
    if (args_.max_loras < 1 || args_.max_loras > kLoraAlignBlockSizeMaxLoras) {
      invalid_input("max_loras", "a value in [1, 2^20]", std::to_string(args_.max_loras));
    }
    const TensorView& mapping = args_.token_lora_mapping;
    const std::int64_t num_ids = args_.topk_ids.num_elements;
    if (args_.top_k < 1 || num_ids % args_.top_k != 0) {
      invalid_input("top_k", "a divisor of the number of ids", std::to_string(args_.top_k));
    } else if (!same(mapping.dtype, kInt32) || !readable(mapping) ||
               mapping.num_elements != num_ids / args_.top_k) {
      invalid_input("token_lora_mapping", "a contiguous int32 value for each token",
                    describe(mapping));
    }
    check_adapters("adapter_enabled", args_.adapter_enabled, args_.max_loras);
    check_adapters("lora_ids", args_.lora_ids, 0);
  }

  void check_adapters(const char* argument, const TensorView& view, std::int64_t min_length) {
    if (!view.given()) return;
    if (same(view.dtype, kInt32) && readable(view) && view.num_elements >= min_length) return;
    invalid_input(argument, "contiguous int32 values, one for each adapter", describe(view));
  }

  /// Checks that the outputs can be cut into rows; check_row() checks the length of each row.
  void check_rows_are_there() {
    check_array("num_tokens_post_pad", args_.num_tokens_post_pad, kInt32, args_.max_loras);
    for (const auto& [name, view] : {std::pair("sorted_token_ids", &args_.sorted_token_ids),
                                     std::pair("expert_ids", &args_.expert_ids)}) {
      const std::int64_t whole_rows =
          view->num_elements < 0 ? 0 : view->num_elements / args_.max_loras * args_.max_loras;
      check_array(name, *view, kInt32, whole_rows);
    }
  }

  void find_adapters() {
    const auto is_active = [&](std::int64_t adapter) {
      if (args_.adapter_enabled.given() &&
          int32s(args_.adapter_enabled)[static_cast<std::size_t>(adapter)] == 0) {
        return false;
      }
      const auto in_use = int32s(args_.lora_ids);
      return !args_.lora_ids.given() ||
             std::find(in_use.begin(), in_use.end(), adapter) != in_use.end();
    };
    std::vector<bool> active;
    for (std::int64_t l = 0; l < args_.max_loras; ++l) active.push_back(is_active(l));
    for (const std::int64_t adapter : int32s(args_.token_lora_mapping)) {
      const bool has_row =
          adapter >= 0 && adapter < args_.max_loras && active[static_cast<std::size_t>(adapter)];
      adapters_.push_back(has_row ? adapter : kNoAdapter);
    }
    ids_ = widened(args_.topk_ids);
  }

  TensorView row_of(const TensorView& view, std::int64_t adapter) const {
    TensorView row = view;
    row.num_elements = view.num_elements / args_.max_loras;
    row.data = static_cast<std::int32_t*>(view.data) + adapter * row.num_elements;
    return row;
  }

  void check_row(std::int64_t adapter) {
    // The pairs of other rows become dropped ids.
    std::vector<std::int64_t> ids = ids_;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (adapters_[i / static_cast<std::size_t>(args_.top_k)] != adapter) ids[i] = -1;
    }
    AlignBlockSizeArgs row = row_args();
    row.topk_ids = TensorView::of(std::span(ids));
    row.sorted_token_ids = row_of(args_.sorted_token_ids, adapter);
    row.expert_ids = row_of(args_.expert_ids, adapter);
    row.num_tokens_post_pad = row_of(args_.num_tokens_post_pad, adapter);
    for (Violation& violation : check_align_block_size(row)) {
      const TensorView& array = violation.array == "sorted_token_ids" ? row.sorted_token_ids
                                : violation.array == "expert_ids"     ? row.expert_ids
                                                                      : row.num_tokens_post_pad;
      violation.position += adapter * array.num_elements;
      violation.message = "adapter " + std::to_string(adapter) + ": " + violation.message;
      add(violation);
    }
  }

  const LoraAlignBlockSizeArgs& args_;
  std::vector<std::int64_t> ids_;
  std::vector<std::int64_t> adapters_;  ///< per token; kNoAdapter: its pairs are in no row
};

}  // namespace

std::vector<Violation> check_lora_align_block_size(const LoraAlignBlockSizeArgs& args) {
  return Checker(args).run();
}

}  // namespace tessera::contract
