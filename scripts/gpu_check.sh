#!/usr/bin/env bash
# For a machine with an NVIDIA GPU, a CUDA toolkit and torch: builds the package for that GPU alone,
# runs what needs one, and writes a report. Needs no network where a Python with torch is at hand.
#
#   gpu_check.sh [--again] [--out FOLDER] [PART ..]       default: every part; runs/gpu_check
#
#   build      the package, the kernel tests, the sweep's programs, in build/gpu
#   tests      the kernel tests, and all Python tests that run on CUDA
#   sanitize   the kernel tests under compute-sanitizer: memcheck, racecheck, initcheck, synccheck
#   sweep      variants of the kernels' knobs: resources and times of a few chains; what ncu counts of them
#   benchmark  one product, chains, rotations and layers beside every peer
#   report     FOLDER/report.md anew from what the parts left; every part ends with it
#
# A step that failed does not stop those behind it; the exit code is 0 only if all have passed. Where
# the time is up, the rest waits for the next call: that one builds what changed and repeats no step
# that has passed (--again: it does), so that short calls add up to one report.
#
#   GPU_CHECK_SECONDS     of one call (default 540)
#   PARAMIXER_PYTHON      a Python that has torch with CUDA (default python3); where it has none, .venv
#                         is made and filled from the network
#   PARAMIXER_GOOGLETEST  sources of GoogleTest (default: build/googletest or /usr/src/googletest if
#                         there, else CMake downloads them); without, no kernel test is built
#   MAX_JOBS              compilers at a time
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT=$PWD
readonly PARTS=(build tests sanitize sweep benchmark)
# Files of steps, in the report's order.
readonly STEPS=(build tests memcheck racecheck initcheck synccheck sweep benchmark)
build=build/gpu

usage() {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0" >&2
  exit 2
}
say() { printf '\n== %s\n' "$*"; }
stop() {
  printf 'gpu_check.sh: %s\n' "$*" >&2
  exit 2
}

limit=${GPU_CHECK_SECONDS:-540}
out=runs/gpu_check
again=
parts=()
while [ $# -gt 0 ]; do
  case $1 in
    --again) again=yes ;;
    --out) out=${2:?--out needs a folder} && shift ;;
    build | tests | sanitize | sweep | benchmark | report) parts+=("$1") ;;
    *) usage ;;
  esac
  shift
done
[ ${#parts[@]} -gt 0 ] || parts=("${PARTS[@]}")
mkdir -p "$out"
out=$(cd "$out" && pwd)
faults=0

# step PART NAME COMMAND..: runs the command into FOLDER/NAME.log, and keeps a line about it for the report. In a
# condition bash ignores set -e, inside functions too: theirs are chained with &&.
step() {
  local part=$1 name=$2 result=passed begin=$SECONDS lines=$out/$1.steps
  shift 2
  if grep -F "| $name | passed |" "$lines" >/dev/null 2>&1; then
    say "$name has passed before"
    return
  fi
  say "$name"
  if [ "$SECONDS" -ge "$limit" ]; then
    result="not run: the time was up"
  elif ! "$@" >"$out/$name.log" 2>&1; then
    result="**FAILED**"
    tail -n 30 "$out/$name.log"
  fi
  [ "$result" = passed ] || faults=$((faults + 1))
  { grep -vF "| $name |" "$lines" 2>/dev/null || true; } >"$lines.new"
  printf '| %s | %s | %s s |\n' "$name" "$result" "$((SECONDS - begin))" | tee -a "$lines.new"
  mv "$lines.new" "$lines"
}

# Runs a command that must end before the time is up.
within() { timeout -k 5 "$((limit > SECONDS ? limit - SECONDS : 1))" "$@"; }

has_gpu() {
  # Not grep -q, which would end before nvidia-smi has listed every GPU.
  command -v nvidia-smi >/dev/null && nvidia-smi -L | grep '^GPU' >/dev/null
}

# Sets PYTHON, and PATH so that the tools of its environment and of the toolkit are found.
find_tools() {
  PYTHON=${PARAMIXER_PYTHON:-python3}
  if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    source scripts/environment.sh
    PARAMIXER_CUDA=ON set_up_environment train,factorize,dev
    trap - ERR
  fi
  local scripts
  scripts=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
  PATH=$scripts:${CUDA_HOME:-/usr/local/cuda}/bin:$PATH
  export PATH PYTHONPATH=$ROOT/python${PYTHONPATH:+:$PYTHONPATH}
  local missing=() tool
  for tool in cmake ninja nvcc c++; do command -v "$tool" >/dev/null || missing+=("$tool"); done
  [ ${#missing[@]} -eq 0 ] || stop "missing on PATH, beside $PYTHON and in CUDA_HOME: ${missing[*]}"
}

# Whether the Python has these modules; says which it lacks.
has_modules() {
  "$PYTHON" - "$@" <<'CODE'
import importlib.util, sys
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
sys.exit(f"this Python lacks: {', '.join(missing)}; install them or carry their wheels" if missing else 0)
CODE
}

# ---- build

# $1: ON or OFF, with or without tests.
configure_with() {
  local googletest capability options=()
  for googletest in "${PARAMIXER_GOOGLETEST:-build/googletest}" /usr/src/googletest; do
    [ -e "$googletest/CMakeLists.txt" ] || continue
    options=(-DFETCHCONTENT_SOURCE_DIR_GOOGLETEST="$(cd "$googletest" && pwd)")
    break
  done
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .) || return
  cmake -S . -B "$build" -G Ninja -DPARAMIXER_CUDA=ON -DPARAMIXER_CUDA_ARCHITECTURES="$capability-real" \
    -DPARAMIXER_TESTS="$1" -DPARAMIXER_EDITABLE=ON -DCMAKE_INSTALL_PREFIX="$ROOT/python/paramixer" \
    -DPython_EXECUTABLE="$(command -v "$PYTHON")" "${options[@]}"
}

configure() {
  configure_with ON && return
  echo "No tests are built: see above. PARAMIXER_GOOGLETEST names a folder with GoogleTest's sources."
  configure_with OFF
  return 1
}

# $@: targets.
compile() { within cmake --build "$build" --parallel "${MAX_JOBS:-$(nproc)}" --target "$@"; }

package() {
  compile paramixer _C && cmake --install "$build" >/dev/null && "$PYTHON" -m paramixer.info | tee "$out/info" &&
    grep 'usable on' "$out/info" >/dev/null && ! grep 'NOT usable' "$out/info"
}

# What passed with another build has to pass again.
forget_other_builds() {
  local built file
  built=$({ cat "$build/tests/cuda/cuda_kernel_test" python/paramixer/lib/libparamixer.so || true; } 2>/dev/null |
    sha256sum)
  [ "$built" != "$(cat "$out/built" 2>/dev/null)" ] || return 0
  for file in "${STEPS[@]}"; do [ "$file" = build ] || rm -f "$out/$file.steps"; done
  echo "$built" >"$out/built"
}

part_build() {
  rm -f "$out/build.steps"  # what has changed since is built
  step build configure configure
  step build package package
  step build kernel-tests compile cuda_kernel_test plans
  forget_other_builds
}

# ---- tests

python_tests() {
  has_modules pytest hypothesis || return
  local options=()
  # Several processes share the GPU, where the plugin for it is at hand.
  ! has_modules xdist 2>/dev/null || options=(-n 4)
  # Without those that configure builds, install packages or train: they need no GPU, but more than torch.
  local without
  for without in test_build.py test_install.py training tasks; do options+=(--ignore "tests/python/$without"); done
  within "$PYTHON" -m pytest -p no:cacheprovider -k cuda "${options[@]}"
}

part_tests() {
  step tests kernels within "$build/tests/cuda/cuda_kernel_test"
  step tests resources ctest --test-dir "$build" --output-on-failure -R cuda_resources
  step tests pytest python_tests
}

# ---- sanitize

sanitizer() {
  local tool=$1
  if ! command -v compute-sanitizer >/dev/null; then
    echo "compute-sanitizer is neither on PATH nor in CUDA_HOME/bin; the CUDA toolkit brings it"
    return 1
  fi
  # The tensors beyond 2^31 elements would take hours here; rings of thousands of rows, minutes.
  within compute-sanitizer --tool "$tool" --error-exitcode 1 "$build/tests/cuda/cuda_kernel_test" \
    --gtest_filter='-LargeTensor*:*LongRings*'
}

# The tools side by side: most of their time is the host's.
part_sanitize() {
  local tool
  for tool in memcheck racecheck initcheck synccheck; do
    step "$tool" "$tool" sanitizer "$tool" &
  done
  wait
  for tool in memcheck racecheck initcheck synccheck; do
    grep -F '| passed |' "$out/$tool.steps" >/dev/null || faults=$((faults + 1))
  done
}

# ---- sweep

# Time, instructions of warps and bytes of every launch, to be held against what the model says of them.
counters() {
  if ! command -v ncu >/dev/null; then
    echo "ncu is neither on PATH nor in CUDA_HOME/bin; Nsight Compute brings it"
    return 1
  fi
  local metrics=gpu__time_duration.sum,smsp__inst_executed.sum,dram__bytes.sum,lts__t_bytes.sum
  local dtype
  for dtype in float32 bfloat16; do
    within ncu --clock-control none --metrics "$metrics" --csv --kernel-name 'regex:chain_tile|band|mix' \
      build/tuning/variant0/kernel_benchmark --once "8,16384,128,cdil,3,$dtype,none" || return
  done
}

part_sweep() {
  step sweep sweep within "$PYTHON" scripts/tune.py sweep --jobs "${MAX_JOBS:-$(nproc)}"
  step sweep counters counters
  [ ! -e build/tuning/sweep.json ] || cp build/tuning/sweep.json "$out"
}

# ---- benchmark

# benchmark NAME DTYPE LEVEL OPTION..: few calls of each peer, and no peak memory, which takes a process a peer.
benchmark() {
  local name=$1 dtype=$2
  shift 2
  has_modules rich matplotlib || return
  within "$PYTHON" scripts/benchmark.py "$@" --device cuda --dtypes "$dtype" --budget 0.1 --no-memory --markdown \
    --json "$out/benchmark-$name.json"
}

# The most wanted first. Every peer takes part; torch.compile compiles a minute and more for a chain.
part_benchmark() {
  local level dtype
  for level in chain factor rotation layer; do
    for dtype in bfloat16 float32; do
      step benchmark "benchmark-$level-$dtype" benchmark "$level-$dtype" "$dtype" "$level"
    done
  done
}

# ---- report

# section TITLE FILE: the file under a heading, if there is one.
section() {
  [ ! -s "$out/$2" ] || { printf '\n## %s\n\n' "$1" && cat "$out/$2"; }
}

# The ends of the logs of steps that failed.
failures() {
  local name
  sed -n 's/^| \(.*\) | \*\*FAILED.*/\1/p' "$1" | while read -r name; do
    printf '\n## %s failed\n\n```\n' "$name"
    tail -n 60 "$out/$name.log"
    echo '```'
  done
}

part_report() {
  local file files=() level
  for file in "${STEPS[@]}"; do
    [ ! -s "$out/$file.steps" ] || files+=("$out/$file.steps")
  done
  {
    echo "# GPU check of $(date -u +'%Y-%m-%d %H:%M UTC')"
    echo
    ! has_gpu || nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader |
      sed 's/^/- GPU: /'
    [ ! -e "$out/info" ] || sed 's/^/- /' "$out/info"
    echo "- commit: $(git describe --always --dirty 2>/dev/null || echo unknown)"
    printf '\n| step | result | time |\n|---|---|---|\n'
    for file in "${files[@]}"; do cat "$file"; done
    for file in "${files[@]}"; do failures "$file"; done
    section "The knobs" sweep.log
    section "Counters" counters.log
    for level in chain factor rotation layer; do
      section "Times, $level, bfloat16" "benchmark-$level-bfloat16.log"
      section "Times, $level, float32" "benchmark-$level-float32.log"
    done
    section "What was predicted" predictions.md
  } >"$out/report.md"
}

if [ "${parts[*]}" != report ]; then
  has_gpu || stop "no NVIDIA GPU here (nvidia-smi lists none): nothing was checked"
  find_tools
fi
[ -z "$again" ] || rm -f "$out"/*.steps
cp scripts/benchmarks/predictions.md "$out"
for part in "${parts[@]}"; do
  "part_$part"
done
part_report
say "$out/report.md"
if [ "$faults" -gt 0 ]; then
  echo "gpu_check.sh: $faults of the steps above did not pass; their logs are in $out" >&2
  exit 1
fi
