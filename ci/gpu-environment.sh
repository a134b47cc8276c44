# Sourced by ci/gpu.sh and ci/bench/gpu.sh: sets PYTHON to one that has xpreg, CuPy and the test tools, and describes
# the machine. Set XPREG_PYTHON to use an environment of your own as it is; otherwise .venv-gpu is made or updated.

if ! command -v nvidia-smi > /dev/null; then
    echo "There is no nvidia-smi on this machine: no NVIDIA driver, so nothing can run on a GPU." >&2
    exit 1
fi
nvidia-smi --query-gpu=index,name,driver_version,memory.total,compute_cap --format=csv

if [ -n "${XPREG_PYTHON:-}" ]; then
    PYTHON=$XPREG_PYTHON
else
    # the newest CUDA that the driver can run decides which CuPy is installed
    cuda=$(nvidia-smi | sed -nE 's/.*CUDA( UMD)? Version: *([0-9]+).*/\2/p' | head -n 1)
    if [ "${cuda:-0}" -ge 13 ]; then cuda=13; else cuda=12; fi
    EXTRAS="cuda$cuda,sparse,plot,progress,sklearn,test"
    XPREG_VENV=${XPREG_VENV:-.venv-gpu}
    . ci/setup.sh
    PYTHON=$VIRTUAL_ENV/bin/python
fi
export CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-$PWD/.cupy-cache}
"$PYTHON" -c 'import xpreg.backend as B; print("\n".join(f"{name}: {fact}" for name, fact in B.info().items()))'
