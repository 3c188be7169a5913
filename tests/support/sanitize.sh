#!/usr/bin/env bash
# The tests of the C++ passes with a library that checks each access to memory and all that C++ leaves undefined.
# $1: a Python with torch and the package's development tools
set -euo pipefail
python=$1
cd "$(dirname "$0")/../.."
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r src "$copy/src"
rm -f "$copy"/src/whatwhere/ops/_passes*.so
torch=$("$python" -c "import torch; print(torch.__path__[0])")
checks="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
# vectors are read at addresses of any alignment, through memcpy
# shellcheck disable=SC2086
g++ -O2 -g -std=c++20 -fPIC -shared -fvisibility=hidden $checks -DTORCH_STABLE_ONLY -DTORCH_TARGET_VERSION=0x020a000000000000 \
  -I"$torch/include" src/whatwhere/ops/csrc/*.cpp -L"$torch/lib" -ltorch_cpu -o "$copy/src/whatwhere/ops/_passes.abi3.so"
for instructions in "" avx2 baseline; do
  # torch's own exceptions cross the library; it has leaks of its own
  LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0 WHATWHERE_INSTRUCTIONS=$instructions \
    PYTHONPATH="$copy/src:tests/support" \
    "$python" -m pytest -p no:cacheprovider -q -x tests/ops/test_cpp.py tests/ops/test_fused.py \
    -k "(any_shape or any_sign or mixing or one_operator or threads or anywhere or finite or rules or refused or (both_routes and operator and not passes))"
done
