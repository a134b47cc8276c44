"""Checkpoints of minimize: a run that was stopped anywhere ends as one that was not, bit for bit."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
from support.problems import data
from support.relu import build
from support.relu import data as relu_data

import xpreg
from xpreg import cli
from xpreg.io import load_result
from xpreg.regressions import LOSSES
from xpreg.solvers import METHODS

RUNS = {name: {"method": name} for name in METHODS} | {
    "sampled": {"method": "approximate-newton", "rows_per_column": 5},
    "papers": {"method": "approximate-newton", "reading": "papers", "eps": 0.9, "delta": 0.9},
}


def stack(backend, rng, k=9, n=80, d=3, loss="softmax"):
    A, b, x = data(loss, rng, n, d, k)
    b = 0.9 * np.asarray(LOSSES[loss](A, b).predict(1.5 * x)) + 0.1 * b
    return LOSSES[loss](backend.array(A), backend.array(b), weights=0.05)


def assert_same(backend, got, want):
    for name in ("x", "grad", "fun", "status", "converged"):
        a, b = (getattr(result, name) for result in (got, want))
        if hasattr(a, "shape"):
            np.testing.assert_array_equal(backend.numpy(a), backend.numpy(b), err_msg=name)
        else:
            assert a == b, name
    for name in ("success", "message", "nit", "nfev", "ngev", "nhev"):
        assert getattr(got, name) == getattr(want, name), name
    untimed = [[repr(dataclasses.replace(r, seconds=0.0)) for r in run.history] for run in (got, want)]
    assert untimed[0] == untimed[1]


def interrupted_at(nit, kind=KeyboardInterrupt, seen=None):
    def callback(record):
        if seen is not None:
            seen.append(record.nit)
        if record.nit == nit:
            raise kind

    return callback


@pytest.mark.parametrize("name", RUNS)
def test_a_stack_interrupted_at_any_iteration_ends_as_if_it_were_not(backend, rng, tmp_path, name):
    problem, path = stack(backend, rng), tmp_path / "run.npz"
    options = {**RUNS[name], "maxiter": 8}
    whole = xpreg.minimize(problem, **options)
    if "newton" in name:
        assert len({record.active for record in whole.history}) > 2  # the stack is thinned out on the way
    for nit in range(whole.nit + 1) if backend.name == "numpy" else (2,):
        with pytest.raises(KeyboardInterrupt):
            xpreg.minimize(problem, **options, checkpoint=path, callback=interrupted_at(nit))
        seen = []
        resumed = xpreg.minimize(
            problem, **options, checkpoint=path, resume=True, callback=interrupted_at(-1, seen=seen)
        )
        assert seen == list(range(nit + 1, whole.nit + 1))
        assert_same(backend, resumed, whole)
    assert [file.name for file in tmp_path.iterdir()] == ["run.npz"]


@pytest.mark.parametrize("name", ["newton", "newton-cg", "papers"])
@pytest.mark.parametrize("loss", ["softmax", "resnet-softmax", "exp"])
def test_one_problem_of_every_kind_goes_on(backend, rng, tmp_path, name, loss):
    A, b, x = data(loss, rng, 200, 3)
    problem = LOSSES[loss](backend.array(A), backend.array(b), weights=0.05)
    start, path = backend.array(0.3 * x), tmp_path / "run.npz"
    options = {**RUNS[name], "maxiter": 8}
    whole = xpreg.minimize(problem, start, **options)
    for nit in range(0, whole.nit, 2) if backend.name == "numpy" else (1,):
        with pytest.raises(KeyboardInterrupt):
            xpreg.minimize(problem, start, **options, checkpoint=path, callback=interrupted_at(nit))
        assert_same(backend, xpreg.minimize(problem, start, **options, checkpoint=path, resume=True), whole)


@pytest.mark.parametrize("condition", [1.0, 1e3])
def test_a_chosen_method_and_what_was_chosen_go_on(backend, rng, tmp_path, monkeypatch, condition):
    monkeypatch.setattr("xpreg.solvers.auto.NARROW", 0)
    monkeypatch.setattr("xpreg.solvers.auto.SMALL", 0)
    Q = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    A = rng.standard_normal((400, 12)) * np.logspace(0, -np.log10(condition), 12) @ Q
    b = rng.dirichlet(np.ones(400))
    problem, path = xpreg.SoftmaxRegression(backend.array(A), backend.array(b)), tmp_path / "run.npz"
    whole = xpreg.minimize(problem, maxiter=12)
    for nit in range(whole.nit) if backend.name == "numpy" else (1, 3):
        with pytest.raises(KeyboardInterrupt):
            xpreg.minimize(problem, maxiter=12, checkpoint=path, callback=interrupted_at(nit))
        assert_same(backend, xpreg.minimize(problem, maxiter=12, checkpoint=path, resume=True), whole)


@pytest.mark.parametrize("name", ["newton", "newton-cg", "sampled"])
def test_two_layers_and_their_kinks_go_on(backend, rng, tmp_path, name):
    A1, A2, b, _ = relu_data(rng, n=12, d=3, m=90, k=4)
    problem, path = build(backend, A1, A2, b, weights=0.05), tmp_path / "run.npz"
    whole = xpreg.minimize(problem, **RUNS[name])
    for nit in (1, whole.nit // 2):
        with pytest.raises(KeyboardInterrupt):
            xpreg.minimize(problem, **RUNS[name], checkpoint=path, callback=interrupted_at(nit))
        assert_same(backend, xpreg.minimize(problem, **RUNS[name], checkpoint=path, resume=True), whole)


def test_a_large_stack_goes_on_in_the_part_where_it_was(backend, rng, tmp_path, monkeypatch):
    monkeypatch.setattr("xpreg.solvers.entry._part_size", lambda problem: 4)
    problem, path = stack(backend, rng, k=10), tmp_path / "run.npz"
    whole = xpreg.minimize(problem)
    for stop in range(1, len(whole.history), 3):
        count = iter(range(stop))

        def callback(record, count=count):
            if next(count, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            xpreg.minimize(problem, checkpoint=path, callback=callback)
        assert_same(backend, xpreg.minimize(problem, checkpoint=path, resume=True), whole)


def test_a_stop_by_the_callback_or_by_maxiter_is_no_end(backend, rng, tmp_path):
    problem, path = stack(backend, rng), tmp_path / "run.npz"
    whole = xpreg.minimize(problem)
    stopped = xpreg.minimize(problem, checkpoint=path, callback=interrupted_at(1, StopIteration))
    assert not stopped.success
    assert_same(backend, xpreg.minimize(problem, checkpoint=path, resume=True), whole)
    assert not xpreg.minimize(problem, checkpoint=path, maxiter=1).success
    assert_same(backend, xpreg.minimize(problem, checkpoint=path, resume=True), whole)
    assert_same(backend, xpreg.minimize(problem, checkpoint=path, resume=True), whole)  # of a run that had ended


def test_fewer_saves_go_on_from_the_last_one(backend, rng, tmp_path):
    problem, path = stack(backend, rng), tmp_path / "run.npz"
    whole = xpreg.minimize(problem)
    with pytest.raises(KeyboardInterrupt):
        xpreg.minimize(problem, checkpoint=path, checkpoint_every=2, callback=interrupted_at(3))
    seen = []
    resumed = xpreg.minimize(problem, checkpoint=path, resume=True, callback=interrupted_at(-1, seen=seen))
    assert seen[0] == 3
    assert_same(backend, resumed, whole)


def test_sparse_rows_go_on(rng, tmp_path):
    A, b, _ = data("softmax", rng, 60, 4, 5)
    problem, path = xpreg.SoftmaxRegression(sp.csr_array(A * (rng.random(A.shape) < 0.4)), b), tmp_path / "run.npz"
    whole = xpreg.minimize(problem)
    with pytest.raises(KeyboardInterrupt):
        xpreg.minimize(problem, checkpoint=path, callback=interrupted_at(3))
    resumed = xpreg.minimize(problem, checkpoint=path, resume=True)
    np.testing.assert_array_equal(resumed.x, whole.x)


def test_a_killed_process_goes_on(tmp_path):
    """kill -9 in the middle of a run, by the run itself."""
    script = """
import os, signal, sys, numpy as np, xpreg
rng = np.random.default_rng(0)
problem = xpreg.SoftmaxRegression(rng.standard_normal((50, 3)), rng.dirichlet(np.ones(50), 4))
def callback(record):
    if sys.argv[2] == "kill" and record.nit == 3:
        os.kill(os.getpid(), signal.SIGKILL)
options = {} if sys.argv[2] == "whole" else {"checkpoint": sys.argv[1], "resume": sys.argv[2] == "resume"}
print(xpreg.minimize(problem, callback=callback, **options).x.tobytes().hex())
"""
    path = str(tmp_path / "run.npz")
    results = {
        mode: subprocess.run([sys.executable, "-c", script, path, mode], capture_output=True, text=True, check=False)
        for mode in ("whole", "kill", "resume")
    }
    assert results["kill"].returncode == -signal.SIGKILL
    assert results["resume"].returncode == 0, results["resume"].stderr
    assert results["resume"].stdout == results["whole"].stdout != ""
    assert os.listdir(tmp_path) == ["run.npz"]


# -- what is refused ------------------------------------------------------------------------------


def test_checkpoints_of_other_runs_are_refused_and_say_what_differs(backend, rng, tmp_path):
    A, b, x = data("softmax", rng, 30, 3)
    path = tmp_path / "run.npz"

    def problem(A=A, b=b, loss="softmax", weights=0.1):
        return LOSSES[loss](backend.array(A), backend.array(b), weights=weights)

    xpreg.minimize(problem(), checkpoint=path, maxiter=1)
    A2 = A.copy()
    A2[17, 1] *= 1.001
    for arguments, message in (
        ((problem(A=A2),), "A differ"),
        ((problem(b=b[::-1].copy()),), "data differ"),
        ((problem(weights=0.2),), "data differ"),
        ((problem(), backend.array(0.1 * x)), "data differ"),
        ((problem(loss="softmax-kl"),), "problem differ"),
        ((problem(A=A[:, :2]),), "data, sizes differ"),
    ):
        with pytest.raises(xpreg.InvalidArgumentError, match=message):
            xpreg.minimize(*arguments, checkpoint=path, resume=True)
    for options, message in (
        ({"method": "newton-cg"}, "method differ"),
        ({"tol": 1e-6}, "tol differ"),
        ({"method": "newton-cg", "max_products": 3}, "method, options differ"),
    ):
        with pytest.raises(xpreg.InvalidArgumentError, match=f"belongs to another run: {message}"):
            xpreg.minimize(problem(), checkpoint=path, resume=True, **options)
    assert xpreg.minimize(problem(), checkpoint=path, resume=True).success


def test_an_earlier_part_that_ended_by_maxiter_binds_maxiter(rng, tmp_path, monkeypatch):
    from conftest import make_backend

    monkeypatch.setattr("xpreg.solvers.entry._part_size", lambda problem: 4)
    problem, path = stack(make_backend("numpy"), rng), tmp_path / "run.npz"
    xpreg.minimize(problem, checkpoint=path, maxiter=1)
    with pytest.raises(xpreg.InvalidArgumentError, match=r"maxiter is 9, .* ended at 1"):
        xpreg.minimize(problem, checkpoint=path, resume=True, maxiter=9)


def test_missing_broken_and_impossible_files_are_named(rng, tmp_path):
    A, b, _ = data("softmax", rng)
    problem, path = xpreg.SoftmaxRegression(A, b), tmp_path / "run.npz"
    with pytest.raises(xpreg.InvalidArgumentError, match="no such file"):
        xpreg.minimize(problem, checkpoint=path, resume=True)
    with pytest.raises(xpreg.InvalidArgumentError, match="folder"):
        xpreg.minimize(problem, checkpoint=tmp_path / "nowhere" / "run.npz")
    with pytest.raises(xpreg.InvalidArgumentError, match="checkpoint is None"):
        xpreg.minimize(problem, resume=True)
    with pytest.raises(xpreg.InvalidArgumentError, match="checkpoint_every is 0"):
        xpreg.minimize(problem, checkpoint=path, checkpoint_every=0)
    np.savez(path, x=1.0)
    with pytest.raises(xpreg.InvalidArgumentError, match=r"no checkpoint of xpreg.minimize: it has no 'meta'"):
        xpreg.minimize(problem, checkpoint=path, resume=True)
    with pytest.raises(xpreg.InvalidArgumentError, match="is not replaced: give the checkpoint another name"):
        xpreg.minimize(problem, checkpoint=path)
    np.testing.assert_array_equal(np.load(path)["x"], 1.0)
    with pytest.raises(xpreg.InvalidArgumentError, match="checkpoint is a int, but the path"):
        xpreg.minimize(problem, checkpoint=5)
    path.unlink()
    xpreg.minimize(problem, checkpoint=path)
    for broken in ("loop_f", "x", "order"):
        arrays = dict(np.load(path))
        meta = json.loads(str(arrays["meta"]))
        if broken == "order":
            meta["order"].pop("x")
        elif broken == "x":
            arrays["x"] = arrays["x"] * np.nan
        else:
            del arrays[broken]
        np.savez(tmp_path / "damaged.npz", **(arrays | {"meta": np.array(json.dumps(meta))}))
        with pytest.raises(xpreg.InvalidArgumentError, match="is damaged"):
            xpreg.minimize(problem, checkpoint=tmp_path / "damaged.npz", resume=True)
    meta["order"]["x"], meta["version"] = [0, 1], 999
    np.savez(tmp_path / "later.npz", **(dict(np.load(path)) | {"meta": np.array(json.dumps(meta))}))
    with pytest.raises(xpreg.InvalidArgumentError, match="has version 999, but this release writes 1"):
        xpreg.minimize(problem, checkpoint=tmp_path / "later.npz", resume=True)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(xpreg.InvalidArgumentError, match=r"no .npz file"):
        xpreg.minimize(problem, checkpoint=path, resume=True)


# -- the command line -----------------------------------------------------------------------------


def test_the_command_line_keeps_and_resumes_a_run(rng, tmp_path):
    A, b, _ = data("softmax", rng, k=4)
    np.savez(tmp_path / "data.npz", A=A, b=b)
    solve = ["solve", str(tmp_path / "data.npz"), "--loss", "softmax", "--quiet"]
    keep = ["--checkpoint", str(tmp_path / "run.npz")]
    assert cli.main([*solve, *keep, "--maxiter", "2"]) == 1
    assert cli.main([*solve, *keep, "--resume", "--out", str(tmp_path / "resumed.npz")]) == 0
    assert cli.main([*solve, "--out", str(tmp_path / "whole.npz")]) == 0
    whole, resumed = (load_result(tmp_path / f"{name}.npz") for name in ("whole", "resumed"))
    np.testing.assert_array_equal(resumed.x, whole.x)
    assert [r.nit for r in resumed.history] == [r.nit for r in whole.history]
    assert cli.main([*solve, "--resume"]) == 2
    assert cli.main([*solve, "--checkpoint", str(tmp_path / "data.npz")]) == 2
