#!/usr/bin/env bash
# Builds a CMake preset and runs its C++ tests: scripts/ctest.sh PRESET [CTEST ARGUMENT...]
set -euo pipefail
cd "$(dirname "$0")/.."
readonly preset=$1
shift

scripts/build.sh "$preset"
export PATH="$PWD/.venv/bin:$PATH"
# ctest pads every line to the longest name there is.
ctest --test-dir "build/$preset" -j "$(nproc)" --output-on-failure --no-tests=error "$@" |
  sed -uE -e '/^ +Start +[0-9]+: /d' -e 's/ \.{3,} */ ... /'
