// How every op runs: validation against its table, dispatch, the implementation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "core/errors.hpp"
#include "core/validation.hpp"
#include "tessera/context.hpp"
#include "tessera/ops.hpp"
#include "tessera/schema.hpp"
#include "tessera/status.hpp"

namespace tessera::core {

/// The largest size of a problem, the struct that an op passes to its implementations.
inline constexpr std::size_t kMaxProblemBytes = 640;

/// An op with erased types, made by make_op(). `args` points to its argument struct, `problem` to
/// the struct that its implementations take.
struct Op {
  const Schema& schema;
  const OutOfMemory& out_of_memory;
  /// Computes the remaining symbols from those that arguments give, and checks the op's own rules
  /// about numbers.
  bool (*sizes)(const void* args, std::int64_t* symbols, Validator* check);
  /// Checks the op's own rules about arrays that are as the table says. Null: there are none.
  bool (*rules)(const void* args, const std::int64_t* symbols, Validator* check);
  /// Writes the problem to `problem`, kMaxProblemBytes. Its arrays need not be checked yet.
  void (*make_problem)(const void* args, const std::int64_t* symbols, void* problem);
  /// The size of a problem in words, for TESSERA_VERBOSE.
  std::string (*describe)(const void* problem);
};

/// An op from functions of its own types:
///   bool sizes(const Args&, std::int64_t* symbols, Validator*)
///   Problem make_problem(const Args&, const std::int64_t* symbols)
///   std::string describe(const Problem&)
///   bool rules(const Args&, const std::int64_t* symbols, Validator*), or nullptr
template <typename Args, typename Problem, auto kSizes, auto kMakeProblem, auto kDescribe,
          auto kRules = nullptr>
constexpr Op make_op(const Schema& schema, const OutOfMemory& out_of_memory) {
  static_assert(sizeof(Problem) <= kMaxProblemBytes && std::is_trivially_copyable_v<Problem>);
  Op op{schema,
        out_of_memory,
        [](const void* args, std::int64_t* symbols, Validator* check) {
          return kSizes(*static_cast<const Args*>(args), symbols, check);
        },
        nullptr,
        [](const void* args, const std::int64_t* symbols, void* problem) {
          new (problem) Problem(kMakeProblem(*static_cast<const Args*>(args), symbols));
        },
        [](const void* problem) { return kDescribe(*static_cast<const Problem*>(problem)); }};
  if constexpr (!std::is_null_pointer_v<decltype(kRules)>) {
    op.rules = [](const void* args, const std::int64_t* symbols, Validator* check) {
      return kRules(*static_cast<const Args*>(args), symbols, check);
    };
  }
  return op;
}

/// Takes the workspace from `source`, or from the context if that is null.
Status call(const Op& op, const void* args, const Context& context,
            const WorkspaceSource* source = nullptr) noexcept;
Status sizes(const Op& op, const void* args, const Context& context, OpSizes* sizes) noexcept;
Status explain(const Op& op, const void* args, const Context& context,
               std::vector<ImplementationReport>* reports) noexcept;

template <typename Args>
inline constexpr Args kDefaultArgs{};

/// The op's entry in `all_ops()`.
template <typename Args, const Op& kOp>
constexpr OpEntry make_entry() {
  static_assert(sizeof(Args) <= kMaxArgsBytes && std::is_trivially_copyable_v<Args>);
  return {.schema = &kOp.schema,
          .args_bytes = sizeof(Args),
          .default_args = &kDefaultArgs<Args>,
          .out_of_memory = kOp.out_of_memory.error(),
          .call = [](const void* args,
                     const Context& context) noexcept { return call(kOp, args, context); },
          .call_with =
              [](const void* args, const Context& context, const WorkspaceSource& source) noexcept {
                return call(kOp, args, context, &source);
              },
          .sizes = [](const void* args, const Context& context,
                      OpSizes* result) noexcept { return sizes(kOp, args, context, result); },
          .explain =
              [](const void* args, const Context& context,
                 std::vector<ImplementationReport>* reports) noexcept {
                return explain(kOp, args, context, reports);
              }};
}

}  // namespace tessera::core
