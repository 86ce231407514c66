// What an implementation of select_and_align takes.
#pragma once

#include "core/align_block_size_problem.hpp"
#include "core/select_experts_problem.hpp"

namespace tessera::core {

/// A validated call: every pointer is good for its length, and nothing overlaps but the ids, which
/// the first op writes and the second one reads.
struct SelectAndAlignProblem {
  SelectExpertsProblem selection;
  AlignBlockSizeProblem alignment;
};

}  // namespace tessera::core
