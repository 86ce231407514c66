# Defines DLPack::DLPack from the header dlpack/dlpack.h (Debian: libdlpack-dev), or, if that is not
# installed, from the copy in Python's apache-tvm-ffi package. Installed with tesseraConfig.cmake,
# so that a consumer finds the header in the same way.
if(NOT TARGET DLPack::DLPack)
  find_path(DLPACK_INCLUDE_DIR dlpack/dlpack.h)
  if(NOT DLPACK_INCLUDE_DIR)
    unset(_Python3_EXECUTABLE CACHE)  # a virtual environment may have been activated since
    find_package(Python3 COMPONENTS Interpreter QUIET)
    if(Python3_FOUND)
      execute_process(
        COMMAND ${Python3_EXECUTABLE} -m tvm_ffi.config --dlpack-includedir
        OUTPUT_VARIABLE tvm_ffi_dlpack OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
      find_path(DLPACK_INCLUDE_DIR dlpack/dlpack.h HINTS ${tvm_ffi_dlpack})
    endif()
  endif()
  if(NOT DLPACK_INCLUDE_DIR)
    message(FATAL_ERROR "dlpack/dlpack.h not found: install libdlpack-dev (Debian) or, in an "
                        "active virtual environment, apache-tvm-ffi (pip), or set "
                        "DLPACK_INCLUDE_DIR to the folder that holds dlpack/dlpack.h")
  endif()
  add_library(DLPack::DLPack INTERFACE IMPORTED)
  set_target_properties(DLPack::DLPack PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES ${DLPACK_INCLUDE_DIR})
endif()
