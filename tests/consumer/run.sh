#!/usr/bin/env bash
# Configures, builds and runs the consumer against the installed package, on saved models.
#   run.sh PYTHON CMAKE BUILD_FOLDER [--aot-inductor]
set -euo pipefail
python=$1 cmake=$2 build=$3
shift 3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

prefixes=$("$python" -c "import torch, paramixer; print(torch.utils.cmake_prefix_path, paramixer.utils.cmake_prefix_path, sep=';')")
mkdir -p "$build"
# Without the toolkit's variables: a consumer needs none.
env -u CUDA_HOME -u CUDA_PATH "$cmake" -S "$here" -B "$build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$prefixes"
"$cmake" --build "$build"
"$python" "$here/save_models.py" "$build" "$@"
"$build/consumer" "$build"
