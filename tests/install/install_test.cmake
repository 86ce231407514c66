# Installs the build into a fresh prefix, builds examples/cpp against it as a stranger would, and
# compares what the example prints. Run by ctest, which sets the variables.
file(REMOVE_RECURSE ${SCRATCH})
set(prefix ${SCRATCH}/prefix)
set(consumer ${SCRATCH}/consumer)

execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --prefix ${prefix}
  COMMAND_ERROR_IS_FATAL ANY)
execute_process(
  COMMAND ${CMAKE_COMMAND} -S ${SOURCE}/examples/cpp -B ${consumer} -G ${GENERATOR}
          -D CMAKE_MAKE_PROGRAM=${MAKE_PROGRAM} -D CMAKE_CXX_COMPILER=${CXX_COMPILER}
          -D CMAKE_PREFIX_PATH=${prefix} -D DLPACK_INCLUDE_DIR=${DLPACK_INCLUDE_DIR}
  COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --build ${consumer} COMMAND_ERROR_IS_FATAL ANY)
execute_process(
  COMMAND ${CMAKE_COMMAND} -D PROGRAM=${consumer}/align
          -D EXPECTED=${SOURCE}/examples/worked_example.txt -P ${SOURCE}/tests/expect_output.cmake
  COMMAND_ERROR_IS_FATAL ANY)
