# Sourced by quickstart.sh and test.sh: checks this machine, makes .venv, installs pinned dependencies, builds the package.
#
#   set_up_environment train[,dev]      leaves PYTHON set to the environment's python
#
# PARAMIXER_PYTHON names the Python to make .venv with (default python3), PARAMIXER_VENV another folder than .venv.
set -Eeuo pipefail  # E: the trap below holds inside functions
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${PARAMIXER_VENV:-$ROOT/.venv}
NEEDED_GIB=12  # torch with its CUDA libraries, the training packages, the build
export CMAKE_GENERATOR=Ninja  # comes from PyPI; a fresh machine has no make

say() { printf '\n== %s\n' "$*"; }

fail() {
  printf '\nparamixer: %s\n' "$*" >&2
  exit 1
}
trap 'code=$?; printf "\nparamixer: stopped at line %s of %s: %s (exit code %s)\n" "$LINENO" "${BASH_SOURCE[0]##*/}" "$BASH_COMMAND" "$code" >&2; exit "$code"' ERR

# Everything that is missing is said at once, before anything is installed.
check_machine() {
  local base=${PARAMIXER_PYTHON:-python3} missing=() free
  if ! command -v "$base" >/dev/null; then
    missing+=("Python >= 3.11 ('$base' was not found): apt install python3 python3-venv python3-dev")
  elif ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    missing+=("Python >= 3.11 ($("$base" --version) was found): install a newer one and set PARAMIXER_PYTHON to it")
  else
    "$base" -c 'import ensurepip, venv' 2>/dev/null || missing+=("Python's venv module: apt install python3-venv")
    [ -e "$("$base" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
      missing+=("Python's C headers (Python.h): apt install python3-dev")
  fi
  if ! command -v "${CXX:-c++}" >/dev/null; then
    missing+=("a C++ compiler ('${CXX:-c++}' was not found): apt install g++")
  elif ! echo '#include <concepts>
      template <std::integral T> T twice(T x) { return 2 * x; }
      typedef float Four __attribute__((vector_size(16)));
      Four reverse(Four x) { return __builtin_shufflevector(x, x, 3, 2, 1, 0); } int main() { return twice(0); }' |
    "${CXX:-c++}" -std=c++20 -x c++ -fsyntax-only - 2>/dev/null; then
    missing+=("a C++20 compiler ($("${CXX:-c++}" --version | head -n 1) is too old): apt install g++, version 12 or newer")
  fi
  mkdir -p "$VENV"
  free=$(df -Pk "$VENV" | awk 'NR == 2 { print int($4 / 1048576) }')
  if ! compgen -G "$VENV/paramixer-*.stamp" >/dev/null && [ "$free" -lt "$NEEDED_GIB" ]; then
    missing+=("$NEEDED_GIB GiB of free disk space under $VENV ($free GiB are free)")
  fi
  if [ "${#missing[@]}" -gt 0 ]; then
    printf '\nparamixer: this machine lacks:\n' >&2
    printf '  - %s\n' "${missing[@]}" >&2
    exit 1
  fi
}

set_up_environment() {
  local extras=$1 stamp
  check_machine
  if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then  # none yet, or half of one
    say "Making $VENV"
    "${PARAMIXER_PYTHON:-python3}" -m venv --clear "$VENV"
  fi
  PYTHON=$VENV/bin/python
  export PATH="$VENV/bin:$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1

  # What was installed last, so that a second run needs neither time nor a network.
  stamp=$VENV/paramixer-$extras.stamp
  if ! cat "$ROOT/pyproject.toml" "$ROOT/scripts/constraints.txt" | cmp -s - "$stamp"; then
    say "Installing torch and the build tools (several GB the first time)"
    "$PYTHON" -m pip install -c "$ROOT/scripts/constraints.txt" torch numpy cmake ninja setuptools wheel |
      sed '/already satisfied/d'
    say "Building paramixer (some minutes the first time), installing it with [$extras]"
    "$PYTHON" -m pip install -c "$ROOT/scripts/constraints.txt" --no-build-isolation -e "$ROOT[$extras]" |
      sed '/already satisfied/d'
    cat "$ROOT/pyproject.toml" "$ROOT/scripts/constraints.txt" >"$stamp"
  else
    say "Building what changed"
    "$PYTHON" -m pip install -q --no-build-isolation --no-deps -e "$ROOT"
  fi
  "$PYTHON" -m paramixer.info
}

# The build tree of a Python's torch, as setup.py names it.
build_tree() {
  "$1" -c 'import sys, torch; print("build/cp%d%d-torch%s" % (*sys.version_info[:2], ".".join(torch.__version__.split(".")[:2])))'
}
