#!/usr/bin/env bash
# Installs what a part of the repository needs: scripts/setup.sh PART...
#   package      the Python package tessera, in .venv
#   cxx          CMake, Ninja and the libraries of the C++ tests
#   test         requirements of the Python tests
#   torch        PyTorch, for the tests that pass tensors to Tessera
#   jax          JAX for the CPU, for the tests that pass JAX arrays to Tessera
#   transformers Hugging Face Transformers, for the tests that run its models over Tessera
#   browser      Chromium and its driver, for the tests of reports
#   bench        requirements of the performance page's picture
#   docs         requirements of the book
#   fuzz         clang
#   lint         formatters and checkers
# A part whose inputs have not changed only costs a checksum. A stamp in .venv is written when a
# part is complete and removed before the part changes, so that the next run repairs an interrupted
# one.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly log=build/setup.log
readonly stamps=.venv/stamps

say() { printf 'setup: %s\n' "$*"; }

die() {
  printf 'setup: error: %s\n' "$*" >&2
  exit 1
}

# Shows the last line of its input, on a line of the terminal that the next one overwrites.
show_progress() {
  local line columns
  if [[ ! -t 1 ]]; then
    cat >/dev/null
    return
  fi
  columns=$(tput cols 2>/dev/tty || echo 80)
  while IFS= read -r line; do
    line=${line//[^[:print:]]/}
    line=${line#"${line%%[^ ]*}"}
    printf '\r\e[K%s' "${line:0:columns-1}"
  done
  printf '\r\e[K'
}

# Runs a command. A terminal shows its output in passing; it stays only if the command fails.
quietly() {
  mkdir -p "$(dirname "$log")"
  if ! "$@" 2>&1 </dev/null | tee "$log" | show_progress; then
    tail -n 40 "$log" >&2
    die "this command failed (full output: $log): $*"
  fi
}

is_fresh() { [[ -e $stamps/$1 && $(<"$stamps/$1") == "$2" ]]; }

as_root() {
  if [[ $(id -u) == 0 ]]; then
    "$@"
  else
    sudo "$@"
  fi
}

debian_packages() {
  local missing=() name
  for name in "$@"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) == installed ]] ||
      missing+=("$name")
  done
  [[ ${#missing[@]} -gt 0 ]] || return 0
  command -v apt-get >/dev/null ||
    die "there is no apt-get here; install the equivalents of these yourself: ${missing[*]}"
  [[ $(id -u) == 0 ]] || command -v sudo >/dev/null ||
    die "root rights or sudo are needed to install: ${missing[*]}"

  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300)
  for name in "${missing[@]}"; do say "installing Debian package $name"; done
  quietly as_root env DEBIAN_FRONTEND=noninteractive dpkg --configure -a
  if [[ -z ${package_lists_updated:-} ]]; then
    quietly as_root "${apt[@]}" update
    package_lists_updated=1
  fi
  quietly as_root "${apt[@]}" install --no-install-recommends "${missing[@]}"
}

check_python() {
  command -v python3 >/dev/null || die "python3 not found: Tessera needs Python 3.10 or newer"
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "Tessera needs Python 3.10 or newer, but python3 is $(python3 --version 2>&1)"
}

# A virtual environment contains its own path and Python: if either has changed, it is recreated.
virtual_environment() {
  local inputs
  inputs="$PWD $(python3 --version)"
  is_fresh venv "$inputs" && return
  if [[ -e $stamps/venv ]] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python3 -c 'import ensurepip, venv' 2>/dev/null || debian_packages python3-venv
    say "creating the virtual environment .venv with $(python3 --version)"
    quietly python3 -m venv --clear .venv
  fi
  mkdir -p "$stamps"
  printf '%s\n' "$inputs" >"$stamps/venv"
}

# pip_install PART INPUTS ARGUMENT...
pip_install() {
  local part=$1 inputs=$2
  shift 2
  rm -f "$stamps/$part"
  quietly .venv/bin/python -m pip install --disable-pip-version-check --no-input "$@"
  printf '%s\n' "$inputs" >"$stamps/$part"
}

python_packages() {
  local file=scripts/requirements/$1.txt inputs requirement
  inputs=$(sha256sum <"$file")
  is_fresh "$1" "$inputs" && return
  while read -r requirement; do say "installing Python package $requirement"; done <"$file"
  pip_install "$1" "$inputs" -r "$file"
}

# Builds the CUDA backend only for the GPUs of this machine, or not at all if there are none, since
# compiling for others takes minutes. CUDAARCHS overrides this, also for later runs.
tessera_package() {
  local inputs gpus what lacking='' chosen=$stamps/cudaarchs minutes='two CPU minutes'
  export CUDAARCHS=${CUDAARCHS:-$(cat "$chosen" 2>/dev/null || echo native)}
  gpus=$(nvidia-smi --query-gpu=name,compute_cap --format=csv,noheader 2>/dev/null |
    awk -F ', ' '$NF >= 8.0') || gpus=
  inputs=$(find CMakeLists.txt VERSION pyproject.toml cmake contract include python src \
    -type f ! -name '*.pyc' -print0 |
    LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum)
  inputs+=" $CUDAARCHS ${TESSERA_CUDA:-} $gpus $(command -v nvcc || true)"
  is_fresh package "$inputs" && return
  case ${TESSERA_CUDA:-AUTO} in
    ON | OFF | AUTO) ;;
    *) die "TESSERA_CUDA: expected ON, OFF or AUTO, got '$TESSERA_CUDA'" ;;
  esac
  if [[ ${TESSERA_CUDA:-} == OFF ]]; then
    what='for the CPU, as TESSERA_CUDA=OFF says'
  elif [[ $CUDAARCHS == native && -z $gpus ]]; then
    lacking='no NVIDIA GPU of compute capability 8.0 or newer here (CUDAARCHS=all builds for every GPU)'
  elif ! command -v nvcc >/dev/null; then
    lacking='no nvcc here: to use a GPU install the CUDA toolkit 12.8 or newer'
    lacking+=' (https://developer.nvidia.com/cuda-downloads)'
  else
    what="for the CPU and the CUDA architectures '$CUDAARCHS'"
    minutes='three to six CPU minutes'
  fi
  if [[ -n $lacking ]]; then
    [[ ${TESSERA_CUDA:-} != ON ]] ||
      die "TESSERA_CUDA=ON: the CUDA backend cannot be built: there is $lacking"
    what="for the CPU, as there is $lacking"
  fi
  command -v c++ >/dev/null || debian_packages g++
  say "building Python package tessera $(<VERSION) $what"
  say "compiling takes about $minutes, spread over all cores; it is installed with what it requires"
  pip_install package "$inputs" --verbose .
  printf '%s\n' "$CUDAARCHS" >"$chosen"
  say "built and installed in $SECONDS s"
}

check_python
virtual_environment
for part in "$@"; do
  case $part in
    package) tessera_package ;;
    cxx)
      debian_packages g++ libdlpack-dev libgtest-dev
      python_packages cxx
      ;;
    test | torch | jax | transformers | bench | docs) python_packages "$part" ;;
    browser)
      command -v chromium >/dev/null || debian_packages chromium
      python_packages browser
      ;;
    fuzz) debian_packages clang-14 libclang-rt-14-dev ;;
    lint)
      debian_packages clang-format-14 clang-tidy-14 shellcheck
      python_packages lint
      ;;
    *) die "unknown part: $part" ;;
  esac
done
