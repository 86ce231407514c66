// The contracts of all ops: every op has one, and its cases are valid calls of that op.
#include "contracts.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <set>
#include <string>

#include "tessera/ops.hpp"

namespace tessera::contract {
namespace {

TEST(Contracts, EveryOpHasOne) {
  EXPECT_EQ(contracts().size(), all_ops().size());
  for (const OpEntry& op : all_ops()) {
    const OpContract* contract = find_contract(op.schema->op);
    ASSERT_NE(contract, nullptr) << op.schema->op;
    EXPECT_FALSE(contract->rules.empty());
    EXPECT_GE(contract->case_names().size(), 10U);
  }
  EXPECT_EQ(find_contract("no_such_op"), nullptr);
}

TEST(Contracts, NamesAreUniqueAndNothingElseIsACase) {
  for (const OpContract& contract : contracts()) {
    std::set<std::string> names;
    for (const std::string& name : contract.case_names()) {
      EXPECT_TRUE(names.insert(name).second) << name;
    }
    for (const char* name : {"", "random", "random:", "random:1", "random:1:", "random::1",
                             "random:1:2:", "random:-1:5", "random:1:-5", "random:1:9999999999",
                             "random:x:1", "no such case"}) {
      EXPECT_EQ(contract.arguments(name, 1).args, nullptr) << name;
    }
  }
}

TEST(Contracts, ArgumentsAreThoseOfTheTable) {
  for (const OpContract& contract : contracts()) {
    const OpEntry* op = find_op(contract.op);
    std::set<std::string> seen;
    for (const std::string& name : contract.case_names()) {
      SCOPED_TRACE(std::string(contract.op) + " " + name);
      const CaseArguments made = contract.arguments(name, 1);
      EXPECT_EQ(made.op, contract.op);
      OpSizes sizes;
      const Status status = op->sizes(made.args.get(), Context{}, &sizes);
      ASSERT_TRUE(status.ok()) << status.message();
      for (const Argument& argument : op->schema->arguments) {
        if (!argument.is_array()) continue;
        const TensorView& view = view_in(made.args.get(), argument);
        if (view.given()) seen.insert(argument.name);
        EXPECT_TRUE(view.given() || argument.is_optional()) << argument.name;
        if (!view.given()) continue;
        EXPECT_NE(dtypes::set_of(view.dtype) & argument.dtypes, 0U) << argument.name;
        EXPECT_GE(view.ndim, 1) << argument.name;
        if (argument.is_output()) {
          EXPECT_EQ(view.data, nullptr) << argument.name;
        } else {
          EXPECT_EQ(view.data == nullptr, view.num_elements == 0) << argument.name;
        }
      }
    }
    // Each optional argument is given by some case.
    for (const Argument& argument : op->schema->arguments) {
      EXPECT_TRUE(!argument.is_array() || seen.contains(argument.name)) << argument.name;
    }
  }
}

TEST(Contracts, InputsAreAFunctionOfNameAndSeed) {
  for (const OpContract& contract : contracts()) {
    const OpEntry* op = find_op(contract.op);
    const std::string name = contract.case_names().front();
    const CaseArguments first = contract.arguments(name, 1);
    const CaseArguments again = contract.arguments(name, 1);
    const CaseArguments other = contract.arguments(name, 2);
    bool differs = false;
    for (const Argument& argument : op->schema->arguments) {
      if (!argument.is_array() || argument.is_output()) continue;
      const TensorView& view = view_in(first.args.get(), argument);
      const std::size_t bytes = static_cast<std::size_t>(view.num_elements) * view.dtype.bits / 8;
      if (bytes == 0) continue;
      EXPECT_EQ(std::memcmp(view.data, view_in(again.args.get(), argument).data, bytes), 0)
          << argument.name;
      differs |= std::memcmp(view.data, view_in(other.args.get(), argument).data, bytes) != 0;
    }
    EXPECT_TRUE(differs) << contract.op;
  }
}

}  // namespace
}  // namespace tessera::contract
