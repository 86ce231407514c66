#!/usr/bin/env bash
# Runs every test and ends with one summary line. TORCH=none skips PyTorch, JAX and
# Transformers, BROWSER=none skips Chromium.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${TORCH:-} in
  '') parts=(package test torch jax transformers) ;;
  none) parts=(package test) ;;
  *)
    echo "TORCH: expected 'none' or nothing, got '$TORCH'" >&2
    exit 2
    ;;
esac
# Other values of BROWSER are the user's: desktops use a variable of this name.
[[ ${BROWSER:-} == none ]] || parts+=(browser)
scripts/setup.sh "${parts[@]}"
scripts/build.sh bench

export PATH="$PWD/.venv/bin:$PATH"
readonly results=$PWD/build/test-results
rm -rf "$results"
mkdir -p "$results"

ctest_exit=0
scripts/ctest.sh dev --output-junit "$results/ctest.xml" || ctest_exit=$?
# Files of tests run side by side, but not on a GPU, whose memory they would share. Each process loads
# what it tests, PyTorch for example, so there are four at most.
side_by_side=()
if ! nvidia-smi >/dev/null 2>&1; then
  processes=$(nproc)
  side_by_side=(-n "$((processes < 4 ? processes : 4))" --dist loadfile)
fi
pytest_exit=0
python -m pytest tests "${side_by_side[@]}" --junitxml="$results/pytest.xml" || pytest_exit=$?

python scripts/test_summary.py \
  ctest "$results/ctest.xml" "$ctest_exit" pytest "$results/pytest.xml" "$pytest_exit"
