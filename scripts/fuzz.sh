#!/usr/bin/env bash
# Fuzzes all ops for some seconds, starting from their cases:
#   scripts/fuzz.sh [SECONDS]
# fuzzes for 60 s by default.
# A failing input is left in build/fuzz/; pass the file to the program to replay it.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh fuzz
scripts/build.sh fuzz
readonly seconds=${1:-60}
readonly folder=build/fuzz/tests/fuzz
readonly log=build/fuzz/fuzz.log
echo "fuzzing all ops for $seconds s"
# An input takes milliseconds: the limit of 60 s finds hangs, and outlasts pauses of the machine.
"$folder/fuzz_ops" -max_total_time="$seconds" -timeout=60 -artifact_prefix=build/fuzz/ \
  -print_final_stats=1 "$folder/corpus" >"$log" 2>&1 || {
  tail -n 60 "$log" >&2
  exit 1
}
grep '^stat::' "$log"
