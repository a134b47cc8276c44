"""One suite for every backend: a test that asks for ``backend`` runs on NumPy, array-api-strict and CuPy.

pytest --backend numpy          one backend only (may be repeated)
XPREG_REQUIRE_GPU=1 pytest      a missing GPU fails the run instead of leaving CuPy out
"""

from __future__ import annotations

import collections
import dataclasses
import importlib
import os
from typing import Any

import numpy as np
import pytest

import xpreg.backend

NAMES = ("numpy", "strict", "cupy", "fakegpu")


@dataclasses.dataclass(frozen=True)
class Backend:
    """An array library under test, and how to get arrays in and out of it."""

    name: str
    xp: Any
    device: Any

    def array(self, values, dtype="float64"):
        """Make a device array from anything NumPy understands."""
        values = np.array(values, dtype=dtype)
        if self.name == "cupy":
            return self.xp.asarray(values)
        return self.xp.asarray(values, device=self.device)

    def numpy(self, x):
        """Copy to the host; fails when ``x`` is not native, so that a silent fallback cannot pass."""
        self.assert_native(x)
        return xpreg.backend.to_numpy(x)

    def assert_native(self, x):
        assert xpreg.backend.namespace(x) is xpreg.backend.namespace(self.array(0.0)), type(x)
        assert xpreg.backend.device(x) == xpreg.backend.device(self.array(0.0))


def make_backend(name):
    if name == "numpy":
        return Backend(name, importlib.import_module("array_api_compat.numpy"), "cpu")
    if name == "strict":  # not its CPU device: it then refuses what a GPU refuses
        xp = importlib.import_module("array_api_strict")
        return Backend(name, xp, xp.Device("device1"))
    if name == "cupy":
        return Backend(name, importlib.import_module("array_api_compat.cupy"), None)
    fakegpu = importlib.import_module("support.fakegpu")
    return Backend(name, fakegpu.xp, fakegpu.DEVICE)


def pytest_addoption(parser):
    parser.addoption("--backend", action="append", choices=NAMES, help="run the shared tests on this backend only")


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a real GPU")
    found = xpreg.backend.cuda_is_available()  # loads CuPy, whose warnings about its installation are no errors of ours
    if os.environ.get("XPREG_REQUIRE_GPU") == "1" and not found:
        raise pytest.UsageError("XPREG_REQUIRE_GPU=1, but CuPy finds no GPU: see `xpreg info`.")


def chosen_backends(config):
    chosen = config.getoption("--backend")
    if chosen:
        return chosen
    return ["numpy", "strict"] + (["cupy"] if xpreg.backend.cuda_is_available() else [])


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", chosen_backends(metafunc.config), indirect=True, scope="session")


@pytest.fixture(scope="session")
def backend(request):
    return make_backend(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(20261122)


def pytest_terminal_summary(terminalreporter, config):
    counts = collections.Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            if report.when == "call":
                parameters = report.nodeid.partition("[")[2].rstrip("]").split("-")
                counts[next((name for name in NAMES if name in parameters), "no backend")] += 1
    shown = ", ".join(f"{name}: {counts[name]}" for name in (*NAMES, "no backend") if counts[name])
    terminalreporter.write_line(f"tests per backend: {shown or 'none'}")
    if not xpreg.backend.cuda_is_available():
        terminalreporter.write_line("CuPy: no GPU on this machine, nothing ran on it")
