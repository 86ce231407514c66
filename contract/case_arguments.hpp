// The arguments of one call of any op.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "tessera/tensor_view.hpp"

namespace tessera::contract {

/// An argument struct of the op, with the inputs' memory. Inputs are views of that memory. Outputs
/// are views without memory, of the smallest legal length or longer; optional outputs that the case
/// leaves out are not given. Numbers and flags are set.
struct CaseArguments {
  std::string_view op;
  /// Points to the op's argument struct, and keeps the inputs' memory alive. Null: no such case.
  std::shared_ptr<void> args;

  template <typename Args>
  Args& as() const {
    return *static_cast<Args*>(args.get());
  }
};

/// The same memory and shape with these strides, in elements.
inline TensorView strided(TensorView view, std::initializer_list<std::int64_t> strides) {
  DLTensor tensor{};
  tensor.data = view.data;
  tensor.device = view.device;
  tensor.ndim = view.ndim;
  tensor.dtype = view.dtype;
  tensor.shape = view.shape;
  tensor.strides = const_cast<std::int64_t*>(strides.begin());
  return TensorView::of(tensor);
}

/// Makes the arguments of one case.
template <typename Args>
class CaseBuilder {
 public:
  explicit CaseBuilder(std::string_view op) : op_(op), made_(std::make_shared<Made>()) {}

  Args& args() { return made_->args; }

  TensorView input(std::vector<std::byte> contents, DLDataType dtype,
                   std::initializer_list<std::int64_t> shape) {
    const std::vector<std::byte>& kept = made_->memory.emplace_back(std::move(contents));
    return TensorView::of(kept.data(), dtype, shape);
  }

  /// An input with strides, in elements; `contents` reach from its first element to its last.
  TensorView input(std::vector<std::byte> contents, DLDataType dtype,
                   std::initializer_list<std::int64_t> shape,
                   std::initializer_list<std::int64_t> strides) {
    return strided(input(std::move(contents), dtype, shape), strides);
  }

  TensorView input(const std::vector<std::int32_t>& values) {
    std::vector<std::byte> bytes(values.size() * sizeof(std::int32_t));
    if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
    return input(std::move(bytes), {kDLInt, 32, 1}, {static_cast<std::int64_t>(values.size())});
  }

  /// Keeps the inputs of another case alive, for views of their memory.
  void keep(const CaseArguments& other) { made_->others.push_back(other.args); }

  CaseArguments finish() { return {op_, std::shared_ptr<void>(made_, &made_->args)}; }

 private:
  struct Made {
    Args args;
    std::vector<std::vector<std::byte>> memory;
    std::vector<std::shared_ptr<void>> others;
  };

  std::string_view op_;
  std::shared_ptr<Made> made_;
};

inline TensorView output(DLDataType dtype, std::initializer_list<std::int64_t> shape) {
  return TensorView::of(nullptr, dtype, shape);
}

}  // namespace tessera::contract
