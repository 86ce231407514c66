#!/usr/bin/env bash
# Runs every check of .pre-commit-config.yaml on all files.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh package cxx test lint
export PATH="$PWD/.venv/bin:$PATH"
scripts/build.sh dev # clang-tidy needs it, and would build it silently
pre-commit run --all-files --show-diff-on-failure
