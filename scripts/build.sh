#!/usr/bin/env bash
# Builds a CMake preset into build/PRESET: scripts/build.sh PRESET
# The preset bench needs the installed package, and is built for the same GPUs.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly preset=$1

if [[ $preset == bench ]]; then
  scripts/setup.sh package
  export CUDAARCHS=${CUDAARCHS:-$(<.venv/stamps/cudaarchs)}
fi
scripts/setup.sh cxx
export PATH="$PWD/.venv/bin:$PATH"
readonly log=build/configure-$preset.log
mkdir -p build
echo "build: configuring the preset $preset"
# Recreates a build folder that an interruption or a move has left unusable.
if ! cmake --preset "$preset" >"$log" 2>&1; then
  cmake --fresh --preset "$preset" >"$log" 2>&1 || {
    cat "$log" >&2
    exit 1
  }
fi
grep -o 'CUDA backend: .*' "$log" | sed 's/^/build: /'
cmake --build --preset "$preset"
