#!/usr/bin/env bash
# Runs clang-tidy on the library and the checker, with the compile commands of the dev preset.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/build.sh dev >/dev/null
# Without nvcc the CUDA backend has no compile commands.
compiled() {
  local file
  while read -r file; do
    ! grep -qF "\"$PWD/$file\"" build/dev/compile_commands.json || printf '%s\0' "$file"
  done
}

# On stderr clang-tidy counts warnings of system headers, although it does not show them.
find src contract -name '*.cpp' | compiled |
  xargs -0 -n 1 -P "$(nproc)" clang-tidy-14 -p build/dev --quiet 2> >(
    grep -v 'warnings generated\.$' >&2
  )
