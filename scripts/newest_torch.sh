#!/usr/bin/env bash
# Builds and tests the library with the newest torch, or the one named, in an environment of its own.
#   newest_torch.sh [VERSION]
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"
torch=${1:-2.15.0}
venv=.venv-torch$torch
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "${PARAMIXER_PYTHON:-python3}" -m venv --clear "$venv"
export PATH="$PWD/$venv/bin:$PATH"
python -m pip install -q "torch==$torch" numpy cmake ninja "setuptools>=77" wheel pytest hypothesis
# A wheel and not an editable install: that one belongs to .venv, in the same source tree.
wheels=$(mktemp -d)
python -m pip wheel -q --no-build-isolation --no-deps -w "$wheels" .
python -m pip install -q --no-deps --force-reinstall "$wheels"/paramixer-*.whl
python -m pip install -q "$(echo "$wheels"/paramixer-*.whl)[factorize]"
rm -r "$wheels"
build=$(build_tree python)
cmake -S . -B "$build" -DPARAMIXER_TESTS=ON | grep paramixer:
cmake --build "$build" --parallel "${MAX_JOBS:-$(nproc)}"
ctest --test-dir "$build" --output-on-failure
# What Lightning trains is tested with the pinned torch.
python -m pytest -m "not slow" --ignore tests/python/training --ignore tests/python/tasks
