#!/usr/bin/env bash
# Fuzzes the C API for some seconds, starting from the table of cases: scripts/fuzz.sh SECONDS
# A finding is left in build/fuzz/ and replayed by giving its file to the program instead.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh fuzz
scripts/build.sh fuzz
readonly folder=build/fuzz/tests/fuzz
readonly log=build/fuzz/fuzz.log
echo "fuzzing tessera_align_block_size for $1 s"
"$folder/fuzz_align_block_size" -max_total_time="$1" -timeout=10 -artifact_prefix=build/fuzz/ \
  -print_final_stats=1 "$folder/corpus" >"$log" 2>&1 || {
  tail -n 60 "$log" >&2
  exit 1
}
grep '^stat::' "$log"
