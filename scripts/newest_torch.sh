#!/usr/bin/env bash
# Builds and tests the library with the newest torch, in an environment of its own (.venv-newest).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
torch=${1:-2.15.0}
venv=.venv-newest
[ -e "$venv/bin/python" ] || "${PARAMIXER_PYTHON:-python3}" -m venv "$venv"
export PATH="$PWD/$venv/bin:$PATH"
python -m pip install -q "torch==$torch" numpy cmake ninja "setuptools>=77,<81" wheel pytest hypothesis
# A wheel and not an editable install: that one belongs to .venv, in the same source tree.
python -m pip wheel -q --no-build-isolation --no-deps -w build/wheels .
python -m pip install -q --no-deps --force-reinstall build/wheels/paramixer-*.whl
build=$(python -c 'import sys, torch; print("build/cp%d%d-torch%s" % (*sys.version_info[:2], ".".join(torch.__version__.split(".")[:2])))')
cmake -S . -B "$build" -DPARAMIXER_TESTS=ON
cmake --build "$build" --parallel "${MAX_JOBS:-$(nproc)}"
ctest --test-dir "$build" --output-on-failure
python -m pytest -m "not slow" tests/python --ignore tests/python/training --ignore tests/python/tasks
