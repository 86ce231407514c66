// The table of cases that drives the tests of select_and_align, and the generator that turns a case
// into the same inputs everywhere.
#pragma once

#include <cstdint>
#include <span>

#include "align_block_size_cases.hpp"
#include "case_arguments.hpp"
#include "select_experts_cases.hpp"
#include "tessera/select_and_align.hpp"

namespace tessera::contract {

struct SelectAndAlignCase {
  SelectExpertsCase selection;  ///< has the name of the case
  std::int64_t block_size = 16;
  MapKind map = MapKind::kNone;
  bool ignore_invalid_experts = false;
  bool pad_sorted_ids = false;
  bool expert_counts = false;     ///< requested
  bool statistics = false;        ///< requested
  std::int64_t extra_length = 0;  ///< elements by which the padded outputs exceed the minimum
};

/// The table, written by hand and small enough to read.
std::span<const SelectAndAlignCase> select_and_align_cases();

/// A random case of about `max_elements` in each array at most. A pure function of its arguments,
/// on every platform.
SelectAndAlignCase random_select_and_align_case(std::uint64_t seed, std::int64_t max_elements);

CaseArguments make_arguments(const SelectAndAlignCase& c, std::uint64_t seed);

}  // namespace tessera::contract
