#!/usr/bin/env bash
# Run the whole suite on the CuPy backend, on any machine with an NVIDIA GPU. Arguments go to pytest.
#
#   bash ci/gpu.sh                     everything
#   bash ci/gpu.sh -k kernels          a part of it
#   XPREG_PYTHON=python3 bash ci/gpu.sh      in an environment of your own, as it is
#
# It fails when a test fails, when CuPy finds no GPU, and when no test ran on CuPy.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source ci/gpu-environment.sh

log=$(mktemp)
trap 'rm -f "$log"' EXIT
XPREG_REQUIRE_GPU=1 "$PYTHON" -m pytest -q -rs --backend cupy "$@" 2>&1 | tee "$log"

ran=$(sed -n 's/^tests per backend:.*cupy: \([0-9]*\).*/\1/p' "$log" | tail -n 1)
echo "tests that ran on CuPy: ${ran:-0}"
if [ "${ran:-0}" -eq 0 ]; then
    echo "No test ran on CuPy: this run shows nothing about the GPU." >&2
    exit 1
fi
