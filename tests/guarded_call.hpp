// One call of any op on guarded memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "contracts.hpp"
#include "guarded_buffer.hpp"
#include "op_arguments.hpp"
#include "tessera/ops.hpp"

namespace tessera::test {

/// Everything that a call writes.
struct Outputs {
  std::map<std::string, std::vector<std::byte>, std::less<>> bytes;  ///< by argument

  template <typename T>
  std::vector<T> at(std::string_view argument) const {
    const std::vector<std::byte>& found = bytes.find(argument)->second;
    std::vector<T> values(found.size() / sizeof(T));
    std::copy(found.begin(), found.end(), std::as_writable_bytes(std::span(values)).begin());
    return values;
  }

  std::vector<std::int32_t> int32s(std::string_view argument) const {
    return at<std::int32_t>(argument);
  }

  bool operator==(const Outputs&) const = default;
};

/// The argument in which two sets of outputs differ first, and the byte there; empty if they do
/// not.
std::string difference(const Outputs& expected, const Outputs& found);

/// Holds the arrays of a case, each of exactly its size, the outputs poisoned. Arrays and workspace
/// lie at any address that their elements may have.
class GuardedCall {
 public:
  /// `guard_bytes` lie on both sides of each array.
  explicit GuardedCall(contract::CaseArguments made, std::uint64_t seed = 1,
                       std::size_t guard_bytes = kGuardBytes);

  const OpEntry& op() const { return op_; }

  /// The op's argument struct, whose arrays are guarded. A test may change it before run().
  void* args() { return args_.data(); }
  const void* args() const { return args_.data(); }

  /// Memory of an array that the case gives, wherever the argument struct points now.
  std::span<std::byte> memory(std::string_view argument);

  /// Calls the op with a workspace of exactly the size that the query names.
  Status run(Context context = {});

  void poison_outputs(std::byte value);
  bool outputs_untouched() const;

  /// Empty if no guard zone was hit, no input changed and nothing was written between the rows of
  /// an output, or to rows that the contract leaves as they were, else the name of the array.
  std::string damage() const;

  /// Without such rows.
  Outputs outputs() const;

 private:
  struct Array {
    const Argument* argument;
    TensorView view;                      // as the case gives it
    std::span<const std::byte> contents;  // of an input
    std::unique_ptr<GuardedBuffer<std::byte>> buffer;
  };

  TensorView written_part(const Array& array) const;

  const OpEntry& op_;
  const contract::OpContract& contract_;
  contract::CaseArguments made_;
  std::vector<std::byte> args_;  // aligned as operator new aligns
  std::vector<Array> arrays_;
  std::size_t workspace_misalignment_;
  bool workspace_intact_ = true;
};

/// The same where the op is known.
template <typename Args>
class TypedCall : public GuardedCall {
 public:
  template <typename Case>
  explicit TypedCall(const Case& c, std::uint64_t seed = 1, std::size_t guard_bytes = kGuardBytes)
      : GuardedCall(make_arguments(c, seed), seed, guard_bytes),
        args(*static_cast<Args*>(GuardedCall::args())) {}

  Args& args;
};

/// The implementations on the host that run a case.
template <typename Case>
std::vector<std::string> host_implementations(const Case& c) {
  return implementations_of(make_arguments(c, 1));
}

}  // namespace tessera::test
