// Which devices the code of a build runs on: a function of its list of architectures.
#include "cuda/code_targets.hpp"

#include <gtest/gtest.h>

namespace tessera::cuda {
namespace {

TEST(CodeTargets, MachineCodeRunsOnItsMajorVersionFromItsMinorVersionOn) {
  EXPECT_FALSE(has_code_for(80, "86-real"));
  EXPECT_TRUE(has_code_for(86, "86-real"));
  EXPECT_TRUE(has_code_for(87, "86-real"));
  EXPECT_TRUE(has_code_for(89, "86-real"));
  EXPECT_FALSE(has_code_for(90, "86-real"));
  EXPECT_FALSE(has_code_for(110, "100-real"));
  EXPECT_TRUE(has_code_for(103, "100-real"));
}

TEST(CodeTargets, PtxRunsOnEveryLaterVersion) {
  for (const char* architectures : {"80", "80-virtual"}) {
    EXPECT_FALSE(has_code_for(75, architectures));
    EXPECT_TRUE(has_code_for(80, architectures));
    EXPECT_TRUE(has_code_for(90, architectures));
    EXPECT_TRUE(has_code_for(121, architectures));
  }
}

TEST(CodeTargets, WhatIsSpecificToAnArchitectureRunsOnThatAlone) {
  for (const char* architectures : {"90a", "90a-real", "90a-virtual", "90f"}) {
    EXPECT_TRUE(has_code_for(90, architectures));
    EXPECT_FALSE(has_code_for(100, architectures));
    EXPECT_FALSE(has_code_for(89, architectures));
  }
}

TEST(CodeTargets, AnyTargetOfTheListWillDo) {
  for (const char* architectures : {ALL_ARCHITECTURES, PORTABLE_ARCHITECTURES}) {
    for (const int capability : {80, 86, 87, 89, 90, 100, 103, 110, 120, 121, 130}) {
      EXPECT_TRUE(has_code_for(capability, architectures)) << capability << ": " << architectures;
    }
    EXPECT_FALSE(has_code_for(75, architectures)) << architectures;
  }
  // Without PTX for 10.0 there is nothing for 11.0.
  EXPECT_FALSE(has_code_for(110, "80-real 86-real 89-real 90-real 100-real 120"));
  EXPECT_FALSE(has_code_for(90, ""));
}

}  // namespace
}  // namespace tessera::cuda
