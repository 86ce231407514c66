#!/usr/bin/env bash
# Rewrites C++ and Python files in the house format.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh lint
export PATH="$PWD/.venv/bin:$PATH"
git ls-files -z '*.c' '*.cc' '*.cpp' '*.cu' '*.cuh' '*.h' '*.hpp' | xargs -0 clang-format-14 -i
ruff format .
ruff check --fix .
