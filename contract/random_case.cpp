#include "random_case.hpp"

#include <charconv>

namespace tessera::contract {
namespace {

constexpr std::string_view kPrefix = "random:";

}  // namespace

std::string random_case_name(std::uint64_t seed, std::int64_t size) {
  return std::string(kPrefix) + std::to_string(seed) + ":" + std::to_string(size);
}

std::optional<RandomCase> find_random_case(std::string_view name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  RandomCase c;
  const char* const end = name.data() + name.size();
  const auto first = std::from_chars(name.data(), end, c.seed);
  if (first.ec != std::errc() || first.ptr == end || *first.ptr != ':') return std::nullopt;
  const auto second = std::from_chars(first.ptr + 1, end, c.size);
  if (second.ec != std::errc() || second.ptr != end) return std::nullopt;
  if (c.size < 0 || c.size > kMaxRandomSize) return std::nullopt;
  return c;
}

}  // namespace tessera::contract
