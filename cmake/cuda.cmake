# The CUDA backend, libtessera_cuda.so: loaded at run time from where the library lies, or missed.
set(TESSERA_CUDA AUTO CACHE STRING "Build the CUDA backend: ON, OFF, or AUTO (if nvcc is there)")
# Machine code for these. PTX of 10.0 serves 11.0, that of 12.0 what comes after it.
set(cuda_architectures 80-real 86-real 89-real 90-real 100 120)
set(cuda_min_toolkit 12.8)

set(TESSERA_HAS_CUDA OFF)
if(TESSERA_CUDA STREQUAL "OFF" OR TESSERA_SANITIZE)
  return()
endif()
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES ${cuda_architectures})
endif()
include(CheckLanguage)
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
  enable_language(CUDA)
  find_package(CUDAToolkit ${cuda_min_toolkit})
endif()
# An old CMake may drive a new nvcc, and not know that it speaks C++20.
if(NOT CUDAToolkit_FOUND OR NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(reason "it needs nvcc ${cuda_min_toolkit} or newer (https://developer.nvidia.com/cuda-toolkit) and a CMake that knows it")
  if(TESSERA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "The CUDA backend cannot be built: ${reason}")
  endif()
  message(STATUS "The CUDA backend is left out: ${reason}")
  return()
endif()
set(TESSERA_HAS_CUDA ON)

list(JOIN CMAKE_CUDA_ARCHITECTURES " " built_architectures)

add_library(tessera_cuda_objects OBJECT
  src/core/errors.cpp
  src/cuda/align_block_size.cpp
  src/cuda/align_block_size_policy.cpp
  src/cuda/backend.cpp
  src/cuda/batched_align_block_size.cpp
  src/cuda/batched_align_block_size.cu
  src/cuda/device.cpp
  src/cuda/driver.cpp
  src/cuda/launch.cpp
  src/cuda/lora_align_block_size.cpp
  src/cuda/lora_align_block_size_policy.cpp
  src/cuda/align_block_size_cluster.cu
  src/cuda/align_block_size_few.cu
  src/cuda/align_block_size_grid.cu
  src/cuda/align_block_size_one_cta.cu
  src/cuda/align_block_size_redundant.cu
  src/cuda/align_block_size_wide.cu
  src/cuda/lora_align_block_size_kernel.cu)
target_compile_options(tessera_cuda_objects PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>)
target_compile_definitions(tessera_cuda_objects PUBLIC
  TESSERA_VERSION="${PROJECT_VERSION}"
  TESSERA_CUDA_ARCHITECTURES="${built_architectures}")
target_include_directories(tessera_cuda_objects PUBLIC src include)
target_link_libraries(tessera_cuda_objects PUBLIC DLPack::DLPack CUDA::cudart_static)
set_target_properties(tessera_cuda_objects PROPERTIES
  CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden)

add_library(tessera_cuda MODULE)
target_link_libraries(tessera_cuda PRIVATE tessera_cuda_objects)
target_link_options(tessera_cuda PRIVATE -Wl,--exclude-libs,ALL)
set_target_properties(tessera_cuda PROPERTIES
  CUDA_RUNTIME_LIBRARY Static LINKER_LANGUAGE CXX
  # Found beside the library in the build tree as in an installation.
  LIBRARY_OUTPUT_DIRECTORY $<TARGET_FILE_DIR:tessera>)
