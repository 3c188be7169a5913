#!/usr/bin/env bash
# The wheel in dist/ in fresh environments, with the oldest torch that it is for and with the pinned one.
# $1: a Python to make them with
set -euo pipefail
python=$1
cd "$(dirname "$0")/../.."
wheel=$(echo "$PWD"/dist/*.whl)
oldest=$(sed -n 's/^  "torch>=\([0-9.]*\)",$/\1/p' pyproject.toml)
for with in "torch==$oldest.*" "--constraint=$PWD/constraints.txt"; do
  place=$(mktemp -d)
  trap 'rm -rf "$place"' EXIT
  # the tests without the sources beside them
  cp -r tests pyproject.toml "$place"
  "$python" -m venv "$place/venv"
  "$place/venv/bin/python" -m pip install --quiet "$wheel[dev]" "$with"
  (
    cd "$place"
    venv/bin/python -c "import torch, whatwhere; print(torch.__version__, whatwhere.__file__)"
    venv/bin/whatwhere backends
    venv/bin/python -m pytest -p no:cacheprovider -q -n 2 tests/ops/test_cpp.py tests/ops/test_sums.py
  )
  rm -rf "$place"
done
