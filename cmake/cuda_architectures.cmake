# Turns CMAKE_CUDA_ARCHITECTURES into a list of architectures; the only place that defines them.
#   native  the GPUs of this machine; an empty list if none can run Tessera
#   all     machine code for every generation, PTX for later ones
#   LIST    as in CMake, such as "80-real;90"
# If unset, it is the value of the environment variable CUDAARCHS. Without that it is `native` if
# there is a GPU that can run Tessera, else a list that every such GPU can run. Machine code also
# runs on later minor versions, PTX on all later versions.
set(all_cuda_architectures 80-real 90-real 100 120)
set(portable_cuda_architectures 80-real 90)

# The compute capabilities of the GPUs of this machine, such as "80;90".
function(find_cuda_capabilities result)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                  OUTPUT_VARIABLE printed ERROR_QUIET RESULT_VARIABLE exit_status)
  set(found "")
  if(exit_status EQUAL 0)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]" capabilities "${printed}")
    foreach(capability IN LISTS capabilities)
      if(NOT capability VERSION_LESS 8.0)
        string(REPLACE "." "" architecture ${capability})
        list(APPEND found ${architecture})
      endif()
    endforeach()
    list(REMOVE_DUPLICATES found)
    list(SORT found COMPARE NATURAL)
  endif()
  set(${result} "${found}" PARENT_SCOPE)
endfunction()

if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES "$ENV{CUDAARCHS}")
endif()
if(CMAKE_CUDA_ARCHITECTURES STREQUAL "all")
  set(CMAKE_CUDA_ARCHITECTURES ${all_cuda_architectures})
elseif(CMAKE_CUDA_ARCHITECTURES STREQUAL "native")
  find_cuda_capabilities(CMAKE_CUDA_ARCHITECTURES)
elseif(NOT CMAKE_CUDA_ARCHITECTURES)
  find_cuda_capabilities(CMAKE_CUDA_ARCHITECTURES)
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES ${portable_cuda_architectures})
  endif()
else()
  foreach(architecture IN LISTS CMAKE_CUDA_ARCHITECTURES)
    if(NOT architecture MATCHES "^[0-9]+[af]?(-real|-virtual)?$")
      message(FATAL_ERROR "CMAKE_CUDA_ARCHITECTURES: expected native, all or a list such as "
                          "80-real;90, got '${CMAKE_CUDA_ARCHITECTURES}'")
    endif()
    string(REGEX MATCH "^[0-9]+" number ${architecture})
    if(number LESS 80)
      message(FATAL_ERROR "CMAKE_CUDA_ARCHITECTURES: expected compute capability 8.0 or newer, 80 "
                          "and above, got '${architecture}'")
    endif()
  endforeach()
endif()
