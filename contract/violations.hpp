// Violations of a contract, and their collection; common to the checkers of all ops.
#pragma once

#include <concepts>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "tessera/tensor_view.hpp"

namespace tessera::contract {

/// An element of an array, or its length: an integer or a floating-point number.
class Number {
 public:
  template <std::integral T>
  constexpr Number(T value) : value_(static_cast<std::int64_t>(value)) {}
  constexpr Number(double value) : value_(value) {}

  bool operator==(const Number&) const = default;

  /// All digits that tell it from its neighbours, as Python's json module reads them: "17", "-0.0",
  /// "1e-07", "NaN", "-Infinity".
  std::string text() const;

 private:
  std::variant<std::int64_t, double> value_;
};

/// One broken rule, at the first position that breaks it.
struct Violation {
  std::string rule;   ///< the name of one of the op's rules
  std::string array;  ///< the argument, as the contract names it
  /// Element of `array`, in row-major order; 0 if the rule is about the whole array.
  std::int64_t position = 0;

  /// The value that the rule asks for; where several would do, the smallest of them. For
  /// output_sizes the smallest legal length; for valid_inputs unused, and for statistics, which
  /// need not be whole.
  Number expected = 0;
  Number found = 0;

  /// "stable_order: sorted_token_ids[17]: expected an index above 40, found 12"
  std::string message;
};

struct Rule {
  const char* name;
  const char* meaning;  ///< one plain sentence
};

/// Base of the checkers: collects violations, at most one per rule.
class ViolationCollector {
 protected:
  bool none() const { return violations_.empty(); }
  bool broken(std::string_view rule) const;

  /// In the order of the rules.
  std::vector<Violation> in_order(std::span<const Rule> rules) const;

  /// Adds a violation of valid_inputs.
  void invalid_input(const char* argument, const char* expected, const std::string& found);

  /// Add a violation of output_sizes unless the output is readable and has: int32 type and at least
  /// `min_length` elements; this type and length; the same, or is not given.
  void check_buffer(const char* array, const TensorView& view, std::int64_t min_length);
  void check_array(const char* array, const TensorView& view, DLDataType dtype,
                   std::int64_t length);
  void check_optional(const char* array, const TensorView& view, DLDataType dtype,
                      std::int64_t length);
  /// Likewise unless it has this type and shape, in contiguous rows.
  void check_rows(const char* array, const TensorView& view, DLDataType dtype,
                  std::int64_t num_rows, std::int64_t length);

  /// Adds a violation of `rule` at the first int32 in [begin, end) that is not `expected`.
  void check_values(const char* rule, const char* array, const TensorView& view, std::int64_t begin,
                    std::int64_t end, std::int64_t expected);

  void add_value(const char* rule, const char* array, std::int64_t position, std::int64_t expected,
                 std::int64_t found);
  void add(const char* rule, const char* array, std::int64_t position, Number expected,
           Number found, const std::string& expected_text, const std::string& found_text);

  /// Adds a violation that another checker found.
  void add(const Violation& violation);

 private:
  void add_size(const char* array, const TensorView& view, DLDataType dtype, const char* bound,
                std::int64_t length);

  std::vector<Violation> violations_;
};

}  // namespace tessera::contract
