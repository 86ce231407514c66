// Arrays in a caller's workspace, at whatever address it begins.
#include "cpu/workspace.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <span>
#include <vector>

namespace tessera::cpu {
namespace {

TEST(Workspace, ArraysBeginAtACacheLineAndFit) {
  constexpr std::int64_t kNumElements = 10;
  const std::size_t bytes = Workspace::bytes_for<std::uint64_t>(kNumElements);
  std::vector<std::byte> memory(bytes + 2 * Workspace::kCacheLineBytes);
  for (std::size_t offset = 0; offset <= Workspace::kCacheLineBytes; ++offset) {
    const std::span<std::byte> workspace(memory.data() + offset, bytes);
    const auto* const array =
        reinterpret_cast<std::byte*>(Workspace::array_in<std::uint64_t>(workspace));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(array) % Workspace::kCacheLineBytes, 0U);
    EXPECT_GE(array, workspace.data());
    EXPECT_LE(array + kNumElements * sizeof(std::uint64_t), workspace.data() + bytes);
  }
}

TEST(Workspace, OfNothingNeedsNothing) { EXPECT_EQ(Workspace::bytes_for<std::int32_t>(0), 0U); }

}  // namespace
}  // namespace tessera::cpu
