// How the tests of this folder run once per op.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "contracts.hpp"
#include "tessera/ops.hpp"

namespace tessera::test {

/// A test of one op; use TESSERA_FOR_ALL_OPS to run it for each.
class OpTest : public testing::TestWithParam<contract::OpContract> {
 protected:
  const contract::OpContract& contract() const { return GetParam(); }
  const OpEntry& op() const { return *find_op(contract().op); }
  std::string name() const { return std::string(contract().op); }
};

#define TESSERA_FOR_ALL_OPS(suite)                                                            \
  INSTANTIATE_TEST_SUITE_P(                                                                   \
      , suite, testing::ValuesIn(contract::contracts().begin(), contract::contracts().end()), \
      [](const auto& info) { return std::string(info.param.op); })

}  // namespace tessera::test
