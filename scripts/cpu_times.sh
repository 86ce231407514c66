#!/usr/bin/env bash
# Runs a compiler, and adds the CPU time that it took to the file CPU_TIMES:
#   CMAKE_CUDA_COMPILER_LAUNCHER=scripts/cpu_times.sh
"$@"
status=$?
times >>"$CPU_TIMES"
exit $status
