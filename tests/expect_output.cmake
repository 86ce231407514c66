# cmake -D PROGRAM=<file> -D EXPECTED=<file> -P expect_output.cmake
# Fails unless the program ends well and prints exactly what the file holds.
execute_process(COMMAND ${PROGRAM} OUTPUT_VARIABLE output RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${PROGRAM}: exit status ${result}")
endif()
file(READ ${EXPECTED} expected)
if(NOT output STREQUAL expected)
  message(FATAL_ERROR "${PROGRAM} printed\n${output}\nexpected\n${expected}")
endif()
