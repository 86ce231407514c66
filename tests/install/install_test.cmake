# Installs the build into a fresh prefix, builds the C and C++ examples against it as strangers would,
# each as a project of its own, and compares what they print. Run by ctest, which sets the variables.
file(REMOVE_RECURSE ${SCRATCH})
set(prefix ${SCRATCH}/prefix)

execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --prefix ${prefix}
  COMMAND_ERROR_IS_FATAL ANY)
foreach(language c cpp)
  set(consumer ${SCRATCH}/${language})
  execute_process(
    COMMAND ${CMAKE_COMMAND} -S ${SOURCE}/examples/${language} -B ${consumer} -G ${GENERATOR}
            -D CMAKE_MAKE_PROGRAM=${MAKE_PROGRAM} -D CMAKE_C_COMPILER=${C_COMPILER}
            -D CMAKE_CXX_COMPILER=${CXX_COMPILER} --no-warn-unused-cli
            -D CMAKE_PREFIX_PATH=${prefix} -D DLPACK_INCLUDE_DIR=${DLPACK_INCLUDE_DIR}
    COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND ${CMAKE_COMMAND} --build ${consumer} COMMAND_ERROR_IS_FATAL ANY)
  execute_process(
    COMMAND ${CMAKE_COMMAND} -D PROGRAM=${consumer}/align
            -D EXPECTED=${SOURCE}/examples/worked_example.txt
            -P ${SOURCE}/tests/expect_output.cmake
    COMMAND_ERROR_IS_FATAL ANY)
endforeach()
foreach(example moe_sum fused_experts)
  execute_process(
    COMMAND ${CMAKE_COMMAND} -D PROGRAM=${SCRATCH}/c/${example}
            -D EXPECTED=${SOURCE}/examples/c/${example}.txt
            -P ${SOURCE}/tests/expect_output.cmake
    COMMAND_ERROR_IS_FATAL ANY)
endforeach()
