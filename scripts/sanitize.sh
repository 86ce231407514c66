#!/usr/bin/env bash
# Runs the C++ tests in a sanitizer preset: scripts/sanitize.sh asan|tsan
set -euo pipefail
cd "$(dirname "$0")/.."
readonly preset=$1

scripts/build.sh "$preset"
export PATH="$PWD/.venv/bin:$PATH"
ctest --test-dir "build/$preset" -j "$(nproc)" --output-on-failure --progress --no-tests=error
