#!/usr/bin/env bash
# Builds the wheel and uses it outside the checkout with nothing but the two run-time dependencies.
EXTRAS="dev"
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python -m build --wheel --outdir "$work" . >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
rm -rf build
python -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$work"/*.whl
cd "$work"
venv/bin/python - <<'PY'
import pathlib, subprocess, sys
import numpy as np
import xpreg

assert "site-packages" in xpreg.__file__, xpreg.__file__
rng = np.random.default_rng(0)
A, x = rng.standard_normal((50, 4)), rng.standard_normal((3, 4))
b = xpreg.SoftmaxRegression(A, np.full((3, 50), 0.02)).predict(x)
np.savez("data.npz", A=A, b=b)
subprocess.run([pathlib.Path(sys.executable).parent / "xpreg", "solve", "data.npz", "--loss", "softmax", "--out", "r.npz"], check=True)
assert abs(xpreg.io.load_result("r.npz").x - x).max() < 1e-6
PY
venv/bin/python -m pip list --disable-pip-version-check --format freeze | grep -v -i -E '^(pip|setuptools)=='
