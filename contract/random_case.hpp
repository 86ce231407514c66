// Names of random cases, which are in no table.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace tessera::contract {

/// The largest SIZE of a random case.
inline constexpr std::int64_t kMaxRandomSize = std::int64_t{1} << 30;

struct RandomCase {
  std::uint64_t seed = 0;
  std::int64_t size = 0;
};

/// "random:SEED:SIZE"
std::string random_case_name(std::uint64_t seed, std::int64_t size);

/// Parses such a name; empty if it is not one, or its size is above kMaxRandomSize.
std::optional<RandomCase> find_random_case(std::string_view name);

}  // namespace tessera::contract
