#!/usr/bin/env bash
# Builds the CUDA backend and checks it on the GPU of this machine:
#   scripts/gpu_check.sh [STAGE...]
# Without an argument it runs all stages in order. Those whose names begin with bench write
# bench/results/<gpu>/ and docs/performance.md.
#
# Without a network, WHEELS=FOLDER names a folder with the wheels of the Python packages that
# python3 lacks (apache-tvm-ffi, msgspec); python3 must then have torch, pytest, hypothesis, NumPy,
# rich, matplotlib, scikit-build-core, CMake and Ninja. TESSERA_TRACES=FOLDER adds routing logs to
# tests and benchmark. COMMIT=REVISION is written to the results if this is not a git checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
# The models of fused_experts are stages of their own, as each takes minutes.
declare -rA models=([bench-qwen3]=Qwen3-30B-A3B [bench-tp8]=DeepSeek-V3-TP8
  [bench-ep8]=DeepSeek-V3-EP8 [bench-mixtral]=Mixtral-8x7B [bench-gpt-oss]=gpt-oss-120b)
readonly stages=(build test experts python python-experts sanitize sanitize-experts bench
  bench-qwen3 bench-tp8 bench-ep8 bench-mixtral bench-gpt-oss bench-zipf bench-rows bench-steps)

say() { printf 'gpu-check: %s\n' "$*"; }

if [[ ${1:-} == --help ]]; then
  sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' scripts/gpu_check.sh
  echo "Stages: ${stages[*]}"
  exit
fi
chosen=("$@")
(($# > 0)) || chosen=("${stages[@]}")
for each in "${chosen[@]}"; do
  is_stage=no
  for known in "${stages[@]}"; do [[ $each != "$known" ]] || is_stage=yes; done
  if [[ $is_stage == no ]]; then
    say "STAGE: expected one of ${stages[*]}, got '$each'" >&2
    exit 2
  fi
done
if ((${#chosen[@]} > 1)); then
  for each in "${chosen[@]}"; do scripts/gpu_check.sh "$each"; done
  exit
fi
readonly stage=${chosen[0]}

if ! gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1); then
  say "no NVIDIA GPU here (nvidia-smi finds none); 'make test' checks Tessera on the CPU" >&2
  exit 1
fi
readonly cuda=${CUDA_HOME:-/usr/local/cuda}
if ! command -v nvcc >/dev/null && [[ -x $cuda/bin/nvcc ]]; then
  export PATH="$cuda/bin:$PATH"
fi
if ! command -v nvcc >/dev/null; then
  say "this machine has a GPU ($gpu), but no nvcc: install the CUDA toolkit 12.8 or newer" \
    "(https://developer.nvidia.com/cuda-downloads) and put nvcc on the PATH." \
    "Until then Tessera runs on the CPU; checking that." >&2
  make test
  say "nothing was checked on the GPU" >&2
  exit 1
fi
# "NVIDIA H200" -> h200
results=bench/results/$(tr '[:upper:] ' '[:lower:]-' <<<"${gpu#NVIDIA }")
readonly gpu results
readonly build=build/gpu older=build/gpu-older site=build/gpu-site
# The ops with stages of their own, whose cases take long to judge.
readonly but_experts=(--except fused_experts --except fused_moe)

if [[ -n ${WHEELS:-} ]]; then
  readonly python=python3
  PYTHONPATH=$PWD/$site${PYTHONPATH:+:$PYTHONPATH}
  export PYTHONPATH
else
  scripts/setup.sh cxx package test torch bench
  readonly python=$PWD/.venv/bin/python
  export PATH="$PWD/.venv/bin:$PATH"
fi

# sanitized TOOL OPTION...: runs check_ops under a tool of compute-sanitizer.
sanitized() {
  say "compute-sanitizer --tool $1"
  compute-sanitizer --tool "$1" --error-exitcode 1 --print-limit 20 \
    "$build/tests/cuda/check_ops" --exact "${@:2}"
}

# in_shares PROGRAM OPTION...: runs check_ops in as many processes as there are processors, up to 8,
# each with a share of the cases.
in_shares() {
  local number processes=() failed=0
  number=$(nproc)
  ((number <= 8)) || number=8
  for ((i = 1; i <= number; ++i)); do
    "$@" --share "$i/$number" &
    processes+=($!)
  done
  for process in "${processes[@]}"; do wait "$process" || failed=1; done
  return "$failed"
}

# run_pytest ARGUMENT...: runs Python tests, and sums up what they did.
run_pytest() {
  local report=build/gpu-test-results/$stage.xml pytest_exit=0
  mkdir -p "${report%/*}"
  "$python" -m pytest "$@" -p no:cacheprovider --junitxml="$report" || pytest_exit=$?
  "$python" scripts/test_summary.py pytest "$report" "$pytest_exit"
}

# bench_experts MODEL QUANTIZATION [OPTION...]: times fused_experts, and adds the results.
bench_experts() {
  local run=build/fused_experts.json
  mkdir -p "$results"
  say "timing fused_experts of $1, quantization $2, beside its peers"
  "$python" -m tessera bench --op fused_experts --device cuda --model "$1" --quantization "$2" \
    --force --json "$run" ${COMMIT:+--commit "$COMMIT"} "${@:3}"
  "$python" bench/merge_fused_experts.py "$run" --into "$results/fused_experts.json"
}

case $stage in
  build)
    if [[ -n ${WHEELS:-} ]]; then
      say "installing the wheels of $WHEELS and the package into $site"
      rm -rf "$site"
      "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$WHEELS"/*.whl
      CUDAARCHS=native TESSERA_CUDA=ON "$python" -m pip install --quiet --no-index --no-deps \
        --no-build-isolation --target "$site" .
    fi
    say "building for the GPUs here"
    cmake --preset gpu -DCMAKE_CUDA_ARCHITECTURES=native
    cmake --build "$build"
    cmake --preset bench -DCMAKE_CUDA_ARCHITECTURES=native \
      -DPython_EXECUTABLE="$(command -v "$python")"
    cmake --build --preset bench
    say "building for compute capability 8.0 alone"
    cmake --preset gpu -B "$older" -DCMAKE_CUDA_ARCHITECTURES=80
    cmake --build "$older" --target check_ops check_contexts
    "$python" -m tessera info
    ;;
  test)
    in_shares "$build/tests/cuda/check_ops" "${but_experts[@]}" --random 8000 --max-ids 100000
    "$build/tests/cuda/check_contexts"
    "$build/tests/cuda/check_racing_writes"
    # Built where one of the GPUs has compute capability 9.0.
    for program in check_copies check_wgmma check_wgmma_fp8 check_wgmma_shapes; do
      [[ ! -x $build/tests/cuda/$program ]] || "$build/tests/cuda/$program"
    done
    say "code for compute capability 8.0, which the driver compiles for this GPU"
    in_shares "$older/tests/cuda/check_ops" "${but_experts[@]}" --random 1000
    "$older/tests/cuda/check_contexts"
    say "machine code of the expert products"
    "$python" scripts/check_sass.py "$build/libtessera_cuda.so"
    ;;
  experts)
    for op in fused_experts fused_moe; do  # the largest cases of the tables, too
      in_shares "$build/tests/cuda/check_ops" --op "$op" --random 0 --max-ids 3000000
    done
    in_shares "$build/tests/cuda/check_ops" --op fused_experts --random 8000 --max-ids 20000 --pairwise
    in_shares "$build/tests/cuda/check_ops" --op fused_moe --random 1000 --max-ids 20000
    say "code for compute capability 8.0, which the driver compiles for this GPU"
    in_shares "$older/tests/cuda/check_ops" --op fused_experts --random 300
    in_shares "$older/tests/cuda/check_ops" --op fused_moe --random 100
    ;;
  python)
    # `make test` runs the commands of the pages, because it installs the package.
    run_pytest tests/python/cuda tests/transformers/test_cuda.py tests/docs \
      --ignore-glob='tests/python/cuda/test_cuda_fused_experts*' \
      --deselect tests/docs/test_code_blocks.py::test_command
    ;;
  python-experts)
    run_pytest tests/python/cuda/test_cuda_fused_experts*.py
    ;;
  sanitize)
    # Racecheck takes some hundred times as long as the kernel alone; the other tools take little.
    for tool in memcheck initcheck synccheck racecheck; do
      random=200
      [[ $tool != racecheck ]] || random=40
      sanitized "$tool" "${but_experts[@]}" --random "$random" --max-ids 4000
      # Writes to ids beside a call are races on purpose.
      [[ $tool != memcheck ]] ||
        compute-sanitizer --tool memcheck --error-exitcode 1 "$build/tests/cuda/check_racing_writes"
    done
    ;;
  sanitize-experts)
    # The tables without their largest cases, and random ones.
    for tool in memcheck initcheck synccheck; do
      sanitized "$tool" --op fused_experts --random 100 --max-ids 20000
      sanitized "$tool" --op fused_moe --random 20 --max-ids 20000
    done
    sanitized racecheck --op fused_experts --random 40 --max-ids 10000
    ;;
  bench)
    mkdir -p "$results"
    say "measuring the launches that the policy chooses among"
    "$python" bench/policy.py "$build/tests/cuda/tune_policy" --json "$results/policy.json" \
      ${COMMIT:+--commit "$COMMIT"}
    options=(--device cuda --preset report --force --json "$results")
    [[ -z ${COMMIT:-} ]] || options+=(--commit "$COMMIT")
    [[ -z ${TESSERA_TRACES:-} ]] || options+=(--log "$TESSERA_TRACES"/*.jsonl)
    say "tessera bench ${options[*]}"
    "$python" -m tessera bench "${options[@]}"
    "$python" bench/performance_page.py
    ;;
  bench-zipf)
    for model in "${models[@]}"; do
      bench_experts "$model" none --skew zipf --method burst,sustained,chain \
        --tokens 1,16,64,256,1024,4096,16384
    done
    "$python" bench/performance_page.py
    ;;
  bench-rows)
    for model in DeepSeek-V3-EP8 Mixtral-8x7B; do
      for quantization in row tensor; do
        bench_experts "$model" "$quantization" --tokens 1,16,64,1024,4096,16384
      done
    done
    "$python" bench/performance_page.py
    ;;
  bench-steps)
    mkdir -p "$results"
    say "timing the combination of fused_experts and its implementations"
    "$python" bench/fused_experts_combine.py --json "$results/fused_experts_combine.json" \
      ${COMMIT:+--commit "$COMMIT"}
    "$python" bench/fused_experts_policy.py --json "$results/fused_experts_policy.json" \
      ${COMMIT:+--commit "$COMMIT"}
    "$python" bench/performance_page.py
    ;;
  bench-*)
    # A chain has 20 calls, which the loop in torch over weights in fp8 takes seconds for.
    bench_experts "${models[$stage]}" none --method burst,sustained,chain
    bench_experts "${models[$stage]}" block
    "$python" bench/performance_page.py
    ;;
esac
say "$stage: done"
