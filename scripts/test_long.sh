#!/usr/bin/env bash
# The tests that take minutes: fused_experts at the sizes of whole models, and on 5,000 random cases.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh package cxx
export PATH="$PWD/.venv/bin:$PATH"
# One after the other: each may take half of the memory of a small machine.
TESSERA_LONG=1 CTEST_PARALLEL_LEVEL=1 scripts/ctest.sh dev -L slow -j 1
tessera verify --op fused_experts --random 5000
