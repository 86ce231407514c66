#include "violations.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

#include "arrays.hpp"

namespace tessera::contract {

std::string Number::text() const {
  if (const auto* integer = std::get_if<std::int64_t>(&value_)) return std::to_string(*integer);
  const double value = std::get<double>(value_);
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
  std::string text = text_of(value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

bool ViolationCollector::broken(std::string_view rule) const {
  return std::any_of(violations_.begin(), violations_.end(),
                     [&](const Violation& v) { return v.rule == rule; });
}

std::vector<Violation> ViolationCollector::in_order(std::span<const Rule> rules) const {
  std::vector<Violation> ordered;
  for (const Rule& rule : rules) {
    std::copy_if(violations_.begin(), violations_.end(), std::back_inserter(ordered),
                 [&](const Violation& v) { return v.rule == rule.name; });
  }
  return ordered;
}

void ViolationCollector::invalid_input(const char* argument, const char* expected,
                                       const std::string& found) {
  if (broken("valid_inputs")) return;
  violations_.push_back(
      {"valid_inputs", argument, 0, 0, 0,
       std::string("valid_inputs: ") + argument + ": expected " + expected + ", found " + found});
}

void ViolationCollector::check_buffer(const char* array, const TensorView& view,
                                      std::int64_t min_length) {
  const bool is_good = view.num_elements >= min_length && same(view.dtype, kInt32);
  if (!is_good || !readable(view)) add_size(array, view, kInt32, "at least ", min_length);
}

void ViolationCollector::check_array(const char* array, const TensorView& view, DLDataType dtype,
                                     std::int64_t length) {
  const bool is_good = view.num_elements == length && same(view.dtype, dtype);
  if (!is_good || !readable(view)) add_size(array, view, dtype, "", length);
}

void ViolationCollector::check_optional(const char* array, const TensorView& view, DLDataType dtype,
                                        std::int64_t length) {
  if (view.given()) check_array(array, view, dtype, length);
}

void ViolationCollector::check_rows(const char* array, const TensorView& view, DLDataType dtype,
                                    std::int64_t num_rows, std::int64_t length) {
  const std::array shape{num_rows, length};
  if (same(view.dtype, dtype) && has_rows(view, 2) &&
      std::equal(shape.begin(), shape.end(), view.shape)) {
    return;
  }
  add({"output_sizes", array, 0, num_rows * length, view.num_elements,
       std::string("output_sizes: ") + array + ": expected " + name_of(dtype) + text_of(shape) +
           " in contiguous rows, found " + describe_axes(view)});
}

void ViolationCollector::add_size(const char* array, const TensorView& view, DLDataType dtype,
                                  const char* bound, std::int64_t length) {
  add("output_sizes", array, 0, length, view.num_elements,
      bound + std::to_string(length) + " contiguous " + name_of(dtype) + " values", describe(view));
}

void ViolationCollector::check_values(const char* rule, const char* array, const TensorView& view,
                                      std::int64_t begin, std::int64_t end, std::int64_t expected) {
  if (broken(rule)) return;
  const auto values = int32s(view);
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t found = values[static_cast<std::size_t>(i)];
    if (found == expected) continue;
    add_value(rule, array, i, expected, found);
    return;
  }
}

void ViolationCollector::add(const Violation& violation) {
  if (!broken(violation.rule)) violations_.push_back(violation);
}

void ViolationCollector::add_value(const char* rule, const char* array, std::int64_t position,
                                   std::int64_t expected, std::int64_t found) {
  add(rule, array, position, expected, found, std::to_string(expected), std::to_string(found));
}

void ViolationCollector::add(const char* rule, const char* array, std::int64_t position,
                             Number expected, Number found, const std::string& expected_text,
                             const std::string& found_text) {
  if (broken(rule)) return;
  violations_.push_back({rule, array, position, expected, found,
                         std::string(rule) + ": " + array + "[" + std::to_string(position) +
                             "]: expected " + expected_text + ", found " + found_text});
}

}  // namespace tessera::contract
