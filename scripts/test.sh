#!/usr/bin/env bash
# Sets everything up and runs every test: format, lint and types, CTest, pytest, and the quick start's job in short.
#   test.sh          what continuous integration runs
#   test.sh --slow   and the long checks: AOTInductor, the newest torch, sanitizer builds
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
case "${1:-}" in
  "" | --slow) ;;
  *) fail "usage: test.sh [--slow] (got '$1')" ;;
esac
set_up_environment train,factorize,dev
cd "$ROOT"

say "Format, lint, types"
git -c safe.directory="$ROOT" ls-files '*.h' '*.cpp' '*.inl' '*.cu' '*.cuh' | xargs "$VENV/bin/clang-format" --dry-run --Werror
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy

say "C++ tests"
build=$(build_tree "$PYTHON")
cmake -S . -B "$build" -DPARAMIXER_TESTS=ON | grep paramixer:
cmake --build "$build" --parallel "${MAX_JOBS:-$(nproc)}"
ctest --test-dir "$build" --output-on-failure

say "Python tests"
"$PYTHON" -m pytest -m "not slow"

say "The quick start, shortened"
"$PYTHON" scripts/quickstart.py --short --out runs/quickstart-short

if [ "${1:-}" = --slow ]; then
  say "Slow: C++ consumer with an AOTInductor package"
  bash tests/consumer/run.sh "$PYTHON" cmake "$build/tests/consumer" --aot-inductor
  say "Slow: Python tests that take minutes"
  "$PYTHON" -m pytest -m slow || [ $? -eq 5 ]  # 5: there are none
  say "Slow: torch-free kernels under sanitizers"
  bash scripts/sanitize.sh
  say "Slow: the newest torch"
  bash scripts/newest_torch.sh
fi
say "All tests passed"
