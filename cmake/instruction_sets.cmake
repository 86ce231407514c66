# Sources that are compiled for one instruction set each, and run only where the processor has it.
# Elsewhere, and for other processors, they compile to code that computes nothing.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(avx2 -mavx2 -mfma -mf16c)
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
  set_source_files_properties(src/cpu/fused_experts_avx2.cpp src/cpu/moe_sum_avx2.cpp
    src/cpu/quantize_fp8_avx2.cpp src/cpu/select_experts_avx2.cpp
    PROPERTIES COMPILE_OPTIONS "${avx2}")
  set_source_files_properties(src/cpu/fused_experts_avx512.cpp src/cpu/moe_sum_avx512.cpp
    PROPERTIES COMPILE_OPTIONS "${avx512}")
  set_source_files_properties(src/cpu/fused_experts_avx512_bf16.cpp
    PROPERTIES COMPILE_OPTIONS "${avx512};-mavx512bf16")
endif()

# select_experts gives the same bits everywhere: what its sources write as a product and a sum is
# not to become one instruction, which would round once.
set_property(SOURCE src/cpu/select_experts.cpp src/cpu/select_experts_avx2.cpp
  APPEND PROPERTY COMPILE_OPTIONS -ffp-contract=off)
