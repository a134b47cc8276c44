#!/usr/bin/env bash
# Benchmarks on a GPU, beside PyTorch and JAX where they are installed; writes a dated log to ci/bench/results/.
# Arguments go to ci/bench/gpu.py (--quick, --out FOLDER, ...). XPREG_BENCH_PEERS=0 does not install the peers.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source ci/gpu-environment.sh
if [ -z "${XPREG_PYTHON:-}" ] && [ "${XPREG_BENCH_PEERS:-1}" = 1 ]; then
    "$PYTHON" -m pip install --quiet torch "jax[cuda$cuda]"
fi
# JAX would take most of the memory at its first use, and TF32 is left off everywhere
export XLA_PYTHON_CLIENT_PREALLOCATE=false NVIDIA_TF32_OVERRIDE=0
"$PYTHON" ci/bench/gpu.py --device cuda "$@"
