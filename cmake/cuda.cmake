# The CUDA backend, libtessera_cuda.so: loaded at run time from the library's folder, if it is
# there.
set(TESSERA_CUDA AUTO CACHE STRING "Build the CUDA backend: ON, OFF, or AUTO (if nvcc is there)")
if(NOT TESSERA_CUDA MATCHES "^(ON|OFF|AUTO)$")
  message(FATAL_ERROR "TESSERA_CUDA: expected ON, OFF or AUTO, got '${TESSERA_CUDA}'")
endif()
set(cuda_min_toolkit 12.8)
include(cmake/cuda_architectures.cmake)

set(TESSERA_HAS_CUDA OFF)
# The reason why there is no backend, with a remedy: compiled into the library for `tessera info`.
set(cuda_left_out "")
if(TESSERA_CUDA STREQUAL "OFF")
  set(cuda_left_out "it was built with TESSERA_CUDA=OFF (AUTO builds one where there is nvcc ${cuda_min_toolkit} or newer)")
elseif(TESSERA_SANITIZE)
  set(cuda_left_out "it was built with TESSERA_SANITIZE (only a build without that has one)")
elseif(NOT CMAKE_CUDA_ARCHITECTURES)
  set(cuda_left_out "no GPU of compute capability 8.0 or newer was found at build time (to get one all the same, install nvcc ${cuda_min_toolkit} or newer and build with CMAKE_CUDA_ARCHITECTURES=all or, with pip or make, CUDAARCHS=all in the environment)")
else()
  include(CheckLanguage)
  if(NOT CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE)  # a compiler that was missing before may exist now
  endif()
  check_language(CUDA)
  set(cuda_remedy "install the CUDA toolkit, https://developer.nvidia.com/cuda-downloads, put its nvcc on the PATH, and build again")
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    find_package(CUDAToolkit ${cuda_min_toolkit} QUIET)
    # CMake 3.25, as in Debian 12, and older versions do not know the C++20 option of nvcc 12.
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    endif()
    if(NOT CUDAToolkit_FOUND)
      set(cuda_left_out "nvcc ${cuda_min_toolkit} or newer is needed, and ${CMAKE_CUDA_COMPILER} is of version ${CMAKE_CUDA_COMPILER_VERSION} (${cuda_remedy})")
    endif()
  else()
    find_program(broken_nvcc nvcc PATHS ENV PATH NO_DEFAULT_PATH NO_CACHE)
    if(broken_nvcc)
      set(cuda_left_out "nvcc ${cuda_min_toolkit} or newer is needed, and ${broken_nvcc} could not compile a program (${cuda_remedy})")
    else()
      set(cuda_left_out "no nvcc was found at build time (${cuda_remedy})")
    endif()
  endif()
endif()
if(cuda_left_out)
  if(TESSERA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "TESSERA_CUDA=ON: the CUDA backend cannot be built: ${cuda_left_out}")
  endif()
  message(STATUS "CUDA backend: left out: ${cuda_left_out}. Everything is built but that, and runs on the CPU")
  set_property(SOURCE src/cuda/loader.cpp PROPERTY
    COMPILE_DEFINITIONS "TESSERA_CUDA_LEFT_OUT=\"${cuda_left_out}\"")
  return()
endif()
set(TESSERA_HAS_CUDA ON)

list(JOIN CMAKE_CUDA_ARCHITECTURES " " built_architectures)
list(JOIN all_cuda_architectures " " known_architectures)
message(STATUS "CUDA backend: built for ${built_architectures}; CMAKE_CUDA_ARCHITECTURES chooses: "
               "native (the GPUs here), all (${known_architectures}) or a list")
set_property(SOURCE src/registry.cpp PROPERTY COMPILE_DEFINITIONS
  "TESSERA_CUDA_BUILD=\"CUDA ${CUDAToolkit_VERSION} for ${built_architectures} (CMAKE_CUDA_ARCHITECTURES chooses)\"")

# An object library of the backend whose CUDA sources are compiled for `architectures`, which need not
# be CMAKE_CUDA_ARCHITECTURES: 90a-real for a kernel made of instructions that only Hopper has.
function(add_cuda_objects name architectures)
  add_library(${name} OBJECT ${ARGN})
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>)
  target_compile_definitions(${name} PUBLIC
    TESSERA_VERSION="${PROJECT_VERSION}"
    TESSERA_CUDA_ARCHITECTURES="${built_architectures}")
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)
  target_link_libraries(${name} PUBLIC DLPack::DLPack CUDA::cudart_static)
  set_target_properties(${name} PROPERTIES
    CUDA_ARCHITECTURES "${architectures}"
    CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden)
endfunction()

add_cuda_objects(tessera_cuda_objects "${CMAKE_CUDA_ARCHITECTURES}"
  src/core/errors.cpp
  src/cuda/align_block_size/cluster.cu
  src/cuda/align_block_size/few.cu
  src/cuda/align_block_size/grid.cu
  src/cuda/align_block_size/launch.cpp
  src/cuda/align_block_size/one_cta.cu
  src/cuda/align_block_size/policy.cpp
  src/cuda/align_block_size/redundant.cu
  src/cuda/align_block_size/wide.cu
  src/cuda/backend.cpp
  src/cuda/batched_align_block_size/kernel.cu
  src/cuda/batched_align_block_size/launch.cpp
  src/cuda/device.cpp
  src/cuda/driver.cpp
  src/cuda/fused_experts/chunk.cpp
  src/cuda/fused_experts/chunk_swap_ab.cpp
  src/cuda/fused_experts/combine.cu
  src/cuda/fused_experts/down.cu
  src/cuda/fused_experts/fp8_down.cu
  src/cuda/fused_experts/fp8_gate_up.cu
  src/cuda/fused_experts/gate_up.cu
  src/cuda/fused_experts/launch.cpp
  src/cuda/fused_experts/pairs.cu
  src/cuda/fused_experts/policy.cpp
  src/cuda/fused_experts/prepared_kernels.cpp
  src/cuda/fused_experts/tensor_maps.cpp
  src/cuda/fused_moe/launch.cpp
  src/cuda/launch.cpp
  src/cuda/lora_align_block_size/kernel.cu
  src/cuda/lora_align_block_size/launch.cpp
  src/cuda/lora_align_block_size/policy.cpp
  src/cuda/moe_permute/kernel.cu
  src/cuda/moe_permute/launch.cpp
  src/cuda/moe_sum/kernel.cu
  src/cuda/moe_sum/launch.cpp
  src/cuda/moe_unpermute/kernel.cu
  src/cuda/moe_unpermute/launch.cpp
  src/cuda/quantize_fp8/kernel.cu
  src/cuda/quantize_fp8/launch.cpp
  src/cuda/select_and_align/launch.cpp
  src/cuda/select_experts/launch.cpp
  src/cuda/select_experts/parts.cu
  src/cuda/select_experts/warps.cu)

# Kernels made of instructions that only compute capability 9.0 has.
if(CMAKE_CUDA_ARCHITECTURES MATCHES "(^|;)90")
  add_cuda_objects(tessera_cuda_90a_objects 90a-real
    src/cuda/fused_experts/swap_ab.cu
    src/cuda/fused_experts/swap_ab_fp8.cu
    src/cuda/fused_experts/wgmma_down.cu
    src/cuda/fused_experts/wgmma_gate_up.cu)
  target_compile_definitions(tessera_cuda_90a_objects PRIVATE TESSERA_HAS_90A=1)
  target_compile_definitions(tessera_cuda_objects PRIVATE TESSERA_HAS_90A=1)
  target_link_libraries(tessera_cuda_objects PUBLIC $<TARGET_OBJECTS:tessera_cuda_90a_objects>)
endif()

add_library(tessera_cuda MODULE)
target_link_libraries(tessera_cuda PRIVATE tessera_cuda_objects)
target_link_options(tessera_cuda PRIVATE -Wl,--exclude-libs,ALL)
set_target_properties(tessera_cuda PROPERTIES
  CUDA_RUNTIME_LIBRARY Static LINKER_LANGUAGE CXX
  # The library finds it in its own folder, both in the build tree and in an installation.
  LIBRARY_OUTPUT_DIRECTORY $<TARGET_FILE_DIR:tessera>)
