"""The package as a whole: what importing it costs, and what it exports."""

import subprocess
import sys

import xpreg


def test_importing_loads_numpy_and_array_api_compat_only():
    code = "import sys, xpreg; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    optional = ("scipy", "matplotlib", "tqdm", "cupy", "dask", "sklearn", "torch", "jax", "array_api_strict")
    assert "'numpy'" in out
    assert not [name for name in optional if f"'{name}'" in out]


def test_every_promised_name_is_there():
    assert sorted(xpreg.__all__) == sorted(set(xpreg.__all__))
    for name in xpreg.__all__:
        assert getattr(xpreg, name).__doc__, name
