#!/usr/bin/env bash
# The torch-free kernels and their tests under AddressSanitizer with UBSan, and under ThreadSanitizer.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"
export PATH="$VENV/bin:$PATH"
for sanitizer in address,undefined thread; do
  build=build/sanitize-${sanitizer%%,*}
  # -O1: g++ needs nine minutes for the CPU kernels of one instruction set even so, of AddressSanitizer.
  cmake -S . -B "$build" -DPARAMIXER_OPS=OFF -DPARAMIXER_CUDA=OFF -DPARAMIXER_TESTS=ON -DCMAKE_BUILD_TYPE=None \
    -DCMAKE_CXX_FLAGS="-O1 -g1 -fsanitize=$sanitizer -fno-sanitize-recover=all -fno-omit-frame-pointer"
  cmake --build "$build" --parallel "${MAX_JOBS:-$(nproc)}"
  ctest --test-dir "$build" --output-on-failure --exclude-regex kernels_share_no_symbols
done
