#include "moe_permute_checker.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>

#include "arrays.hpp"

namespace tessera::contract {
namespace {

constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();
constexpr DLDataType kFloat8E4m3{dtypes::kFloat8E4m3Code, 8, 1};
constexpr std::int64_t kNone = -1;

/// Whether the elements may be read, and the array has `ndim` axes, one or two, without gaps.
bool is_contiguous(TensorView view, int ndim) {
  if (view.ndim != ndim) return false;
  view.num_elements = 1;
  for (int i = 0; i < ndim; ++i) {
    if (view.shape[i] < 0 || view.shape[i] > kMaxInt32) return false;
    view.num_elements *= view.shape[i];
  }
  const bool steps = ndim == 2 && view.shape[0] > 1 && view.num_elements > 0;
  return has_rows(view, ndim) && (!steps || view.strides[0] == view.shape[1]);
}

class Checker : private ViolationCollector {
 public:
  explicit Checker(const MoePermuteArgs& args)
      : args_(args),
        num_tokens_(args.x.shape[0]),
        hidden_size_(args.x.shape[1]),
        top_k_(args.topk_ids.shape[1]),
        num_experts_(args.num_experts),
        block_size_(args.block_size),
        width_(args.x.dtype.bits / 8U) {}

  std::vector<Violation> run() {
    check_inputs();
    if (none()) check_sizes();
    if (none()) check_contents();
    return in_order(kMoePermuteRules);
  }

 private:
  void check_inputs() {
    const TensorView& x = args_.x;
    if ((!is_float(x.dtype) && !same(x.dtype, kFloat8E4m3)) || !has_rows(x, 2)) {
      invalid_input("x",
                    "[T, H] float16, bfloat16, float32 or float8_e4m3fn values in contiguous rows",
                    describe_axes(x));
    }
    const TensorView& ids = args_.topk_ids;
    if ((!same(ids.dtype, kInt32) && !same(ids.dtype, kInt64)) || !is_contiguous(ids, 2) ||
        ids.shape[0] != num_tokens_ || top_k_ < 1) {
      invalid_input("topk_ids", "[T, k] contiguous int32 or int64 values, k at least 1",
                    describe_axes(ids));
    }
    const TensorView& map = args_.expert_map;
    if (map.given() && (!same(map.dtype, kInt32) || !is_contiguous(map, 1))) {
      invalid_input("expert_map", "[G] contiguous int32 values", describe_axes(map));
    }
    if (num_experts_ < 1 || num_experts_ > kAlignBlockSizeMaxExperts) {
      invalid_input("num_experts", "a value in [1, 2^30]", std::to_string(num_experts_));
    }
    if (block_size_ < 1 || block_size_ > kMaxInt32) {
      invalid_input("block_size", "a value in [1, 2^31 - 1]", std::to_string(block_size_));
    }
    if (none() && (num_pairs() > kMaxInt32 || capacity() > kMaxInt32)) {
      invalid_input("topk_ids", "ids and a capacity of at most 2^31 - 1",
                    std::to_string(num_pairs()) + " ids");
    }
  }

  void check_sizes() {
    check_rows("rows", args_.rows, args_.x.dtype, capacity(), hidden_size_);
    check_int32s("expert_offsets", args_.expert_offsets, {num_experts_ + 1});
    check_int32s("inverse", args_.inverse, {num_tokens_, top_k_});
  }

  void check_int32s(const char* array, const TensorView& view,
                    std::initializer_list<std::int64_t> shape) {
    if (same(view.dtype, kInt32) && is_contiguous(view, static_cast<int>(shape.size())) &&
        std::equal(shape.begin(), shape.end(), view.shape)) {
      return;
    }
    std::int64_t num_elements = 1;
    for (const std::int64_t length : shape) num_elements *= length;
    add({"output_sizes", array, 0, num_elements, view.num_elements,
         std::string("output_sizes: ") + array + ": expected contiguous int32" +
             text_of(std::span(shape.begin(), shape.size())) + ", found " + describe_axes(view)});
  }

  void check_contents() {
    std::vector<std::int64_t> next(static_cast<std::size_t>(num_experts_));  // row of each expert
    for (std::int64_t pair = 0; pair < num_pairs(); ++pair) {
      const std::int64_t expert = expert_of(pair);
      if (expert != kNone) ++next[static_cast<std::size_t>(expert)];
    }
    std::int64_t start = 0;
    for (std::int64_t expert = 0; expert < num_experts_; ++expert) {
      check_values("expert_offsets", "expert_offsets", args_.expert_offsets, expert, expert + 1,
                   start);
      std::int64_t& count = next[static_cast<std::size_t>(expert)];
      const std::int64_t end = start + (count + block_size_ - 1) / block_size_ * block_size_;
      check_padding(start + count, end);
      count = start;
      start = end;
    }
    check_values("expert_offsets", "expert_offsets", args_.expert_offsets, num_experts_,
                 num_experts_ + 1, start);
    for (std::int64_t pair = 0; pair < num_pairs(); ++pair) {
      const std::int64_t expert = expert_of(pair);
      const std::int64_t row = expert == kNone ? kNone : next[static_cast<std::size_t>(expert)]++;
      check_values("inverse", "inverse", args_.inverse, pair, pair + 1, row);
      if (row != kNone) check_token(pair / top_k_, row);
    }
  }

  void check_token(std::int64_t token, std::int64_t row) {
    if (hidden_size_ == 0 || broken("token_bits")) return;  // an empty row may have no address
    const std::byte* const wanted = element(args_.x, token, 0);
    if (std::equal(wanted, wanted + row_bytes(), element(args_.rows, row, 0))) return;
    const std::int64_t column = first_column(
        [&](std::int64_t c) { return bits_at(args_.x, token, c) != bits_at(args_.rows, row, c); });
    report("token_bits", row, column, bits_at(args_.x, token, column),
           ", as x[" + std::to_string(token) + ", " + std::to_string(column) + "] has");
  }

  void check_padding(std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end && hidden_size_ > 0 && !broken("padding"); ++row) {
      const std::int64_t column =
          first_column([&](std::int64_t c) { return bits_at(args_.rows, row, c) != 0; });
      if (column < hidden_size_) report("padding", row, column, 0, "");
    }
  }

  /// The first column for which `is_wrong` holds; hidden_size_ if there is none.
  template <typename IsWrong>
  std::int64_t first_column(const IsWrong& is_wrong) const {
    std::int64_t column = 0;
    while (column < hidden_size_ && !is_wrong(column)) ++column;
    return column;
  }

  void report(const char* rule, std::int64_t row, std::int64_t column, std::uint32_t expected,
              const std::string& why) {
    const std::uint32_t found = bits_at(args_.rows, row, column);
    add({rule, "rows", row * hidden_size_ + column, std::int64_t{expected}, std::int64_t{found},
         std::string(rule) + ": rows[" + std::to_string(row) + ", " + std::to_string(column) +
             "]: expected " + hex(expected) + why + ", found " + hex(found)});
  }

  std::string hex(std::uint32_t bits) const {
    std::array<char, 11> text{};
    std::snprintf(text.data(), text.size(), "0x%0*x", static_cast<int>(2 * width_), bits);
    return text.data();
  }

  const std::byte* element(const TensorView& view, std::int64_t row, std::int64_t column) const {
    const std::int64_t stride = view.shape[0] > 1 ? view.strides[0] : 0;
    return static_cast<const std::byte*>(view.data) +
           (row * stride + column) * static_cast<std::int64_t>(width_);
  }

  std::uint32_t bits_at(const TensorView& view, std::int64_t row, std::int64_t column) const {
    std::uint32_t bits = 0;  // little endian
    std::memcpy(&bits, element(view, row, column), width_);
    return bits;
  }

  std::int64_t expert_of(std::int64_t pair) const {
    const std::int64_t id = same(args_.topk_ids.dtype, kInt64)
                                ? static_cast<const std::int64_t*>(args_.topk_ids.data)[pair]
                                : static_cast<const std::int32_t*>(args_.topk_ids.data)[pair];
    std::int64_t expert = id;
    if (args_.expert_map.given()) {
      if (id < 0 || id >= args_.expert_map.shape[0]) return kNone;
      expert = static_cast<const std::int32_t*>(args_.expert_map.data)[id];
    }
    return expert >= 0 && expert < num_experts_ ? expert : kNone;
  }

  std::int64_t num_pairs() const { return num_tokens_ * top_k_; }
  std::int64_t capacity() const {
    return num_pairs() + std::min(num_pairs(), num_experts_) * (block_size_ - 1);
  }
  std::int64_t row_bytes() const { return hidden_size_ * static_cast<std::int64_t>(width_); }

  const MoePermuteArgs& args_;
  const std::int64_t num_tokens_;
  const std::int64_t hidden_size_;
  const std::int64_t top_k_;
  const std::int64_t num_experts_;
  const std::int64_t block_size_;
  const std::size_t width_;  // bytes of an element
};

}  // namespace

std::vector<Violation> check_moe_permute(const MoePermuteArgs& args) { return Checker(args).run(); }

std::int64_t rows_in_use(const MoePermuteArgs& args) {
  const TensorView& offsets = args.expert_offsets;
  const bool is_readable =
      same(offsets.dtype, kInt32) && is_contiguous(offsets, 1) && offsets.shape[0] > 0;
  const std::int64_t in_use =
      is_readable ? static_cast<const std::int32_t*>(offsets.data)[offsets.shape[0] - 1] : 0;
  return std::clamp<std::int64_t>(in_use, 0, std::max<std::int64_t>(args.rows.shape[0], 0));
}

}  // namespace tessera::contract
