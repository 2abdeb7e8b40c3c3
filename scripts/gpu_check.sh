#!/usr/bin/env bash
# For a machine with an NVIDIA GPU and a CUDA toolkit: builds the package with CUDA, runs CTest and
# pytest, runs the kernels under compute-sanitizer, times the operators, and writes a report.
#   gpu_check.sh [REPORT]    a Markdown file, by default runs/gpu_check/DATE.md; logs go beside it
# Goes on after a failed step; the exit code is 0 only if every step was run and passed.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
report=${1:-runs/gpu_check/$(date -u +%Y-%m-%dT%H%M%SZ).md}

# Not grep -q, which would end before nvidia-smi has listed every GPU.
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L | grep '^GPU' >/dev/null; then
  echo "gpu_check.sh: no NVIDIA GPU here (nvidia-smi lists none): nothing was checked" >&2
  exit 2
fi

export PARAMIXER_CUDA=ON  # fails where the kernels cannot be built
source scripts/environment.sh
set_up_environment train,factorize,dev
if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  fail "nvidia-smi lists a GPU, but torch.cuda.is_available() is False: nothing was checked"
fi

build=$(build_tree "$PYTHON")
kernel_test=$build/tests/cuda/cuda_kernel_test
logs=${report%.md}-logs
mkdir -p "$logs"
faults=0

# step NAME COMMAND..: runs the command into a log of that name and adds a line to the report. In a condition bash
# ignores set -e, inside functions too: theirs are chained with &&.
step() {
  local name=$1 result=passed begin=$SECONDS
  shift
  say "$name"
  if ! "$@" >"$logs/$name.log" 2>&1; then
    result="**FAILED**"
    faults=$((faults + 1))
    tail -n 30 "$logs/$name.log"
  fi
  printf '| %s | %s | %s s |\n' "$name" "$result" "$((SECONDS - begin))" | tee -a "$report"
}

sanitizer() {
  local PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
  if ! command -v compute-sanitizer; then
    echo "compute-sanitizer is neither on PATH nor in CUDA_HOME/bin; the CUDA toolkit brings it"
    return 1
  fi
  # The tensors beyond 2^31 elements would take hours here.
  compute-sanitizer --tool "$1" --error-exitcode 1 "$kernel_test" --gtest_filter='-LargeTensor*'
}

build_tests() {
  cmake -S . -B "$build" -DPARAMIXER_CUDA=ON -DPARAMIXER_TESTS=ON &&
    cmake --build "$build" --parallel "${MAX_JOBS:-$(nproc)}"
}

benchmark() {
  "$PYTHON" scripts/benchmark.py "$1" --device cuda --dtypes float32 bfloat16 --markdown \
    --json "$logs/benchmark-$1.json"
}

{
  echo "# GPU check of $(date -u +'%Y-%m-%d %H:%M UTC')"
  echo
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | sed 's/^/- GPU: /'
  "$PYTHON" -m paramixer.info | sed 's/^/- /'
  echo "- commit: $(git describe --always --dirty 2>/dev/null || echo unknown)"
  printf '\n| step | result | time |\n|---|---|---|\n'
} >"$report"

step build build_tests
step ctest ctest --test-dir "$build" --output-on-failure
step pytest "$PYTHON" -m pytest
for tool in memcheck racecheck initcheck synccheck; do
  step "$tool" sanitizer "$tool"
done
for level in factor chain rotation layer; do
  step "benchmark-$level" benchmark "$level"
done

for level in factor chain rotation layer; do
  printf '\n## Times, %s\n\n' "$level"
  cat "$logs/benchmark-$level.log"
done >>"$report"
printf '\n## Registers per thread\n\n```\n' >>"$report"
find "$build/cuda" -name '*.cu.o' -print0 |
  xargs -0 "$PYTHON" tests/cuda/check_resources.py >>"$report" || true
echo '```' >>"$report"

say "$report"
[ "$faults" -eq 0 ] || fail "$faults of the steps above failed; their logs are in $logs"
