#!/usr/bin/env bash
# Configures, builds and runs the consumer against the installed package, on saved models.
#   run.sh PYTHON CMAKE BUILD_FOLDER [--aot-inductor]
set -euo pipefail
python=$1 cmake=$2 build=$3
shift 3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

prefix=$("$python" -c "import paramixer; print(paramixer.utils.cmake_prefix_path)")
rm -rf "$build"
mkdir -p "$build"
# Without the toolkit: a consumer needs none.
toolkit_free=$(printf %s "$PATH" | tr ':' '\n' | grep -v cuda | paste -sd:)
env -u CUDA_HOME -u CUDA_PATH PATH="$toolkit_free" \
  "$cmake" -S "$here" -B "$build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$prefix"
"$cmake" --build "$build"
"$python" "$here/save_models.py" "$build" "$@"
"$build/consumer" "$build" "$@"
