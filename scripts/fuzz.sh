#!/usr/bin/env bash
# Fuzzes each op of the C API for some seconds, starting from its table of cases:
#   scripts/fuzz.sh SECONDS
# A failing input is left in build/fuzz/; pass the file to the program to replay it.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh fuzz
scripts/build.sh fuzz
readonly folder=build/fuzz/tests/fuzz
readonly log=build/fuzz/fuzz.log
for op in align_block_size batched_align_block_size lora_align_block_size; do
  echo "fuzzing tessera_$op for $1 s"
  corpus=()
  [[ ! -d $folder/corpus/$op ]] || corpus=("$folder/corpus/$op")
  "$folder/fuzz_$op" -max_total_time="$1" -timeout=10 -artifact_prefix=build/fuzz/ \
    -print_final_stats=1 "${corpus[@]}" >"$log" 2>&1 || {
    tail -n 60 "$log" >&2
    exit 1
  }
  grep '^stat::' "$log"
done
