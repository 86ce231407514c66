// The scales of fused_experts whose weights are in float8_e4m3fn.
#pragma once

#include <dlpack/dlpack.h>

#include <cstdint>

#include "core/fused_experts_problem.hpp"
#include "core/validation.hpp"
#include "tessera/fused_experts.hpp"

namespace tessera::ops {

constexpr bool is_fp8(DLDataType dtype) { return dtypes::set_of(dtype) == dtypes::kFloat8E4m3; }

/// Whether scales that are given have the shapes of the contract. Writes their numbers.
bool good_scale_shapes(const FusedExpertsArgs& args, std::int64_t* symbols, core::Validator* check);

/// Whether those scales are given that weights and x need, and no others.
bool good_scales(const FusedExpertsArgs& args, const std::int64_t* symbols, core::Validator* check);

// Of scales that need not be checked yet.
core::ExpertScales scales_of_w13(const FusedExpertsArgs& args, const std::int64_t* symbols);
core::ExpertScales scales_of_w2(const FusedExpertsArgs& args, const std::int64_t* symbols);

}  // namespace tessera::ops
