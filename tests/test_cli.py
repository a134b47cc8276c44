"""The command line as scripts see it: what it writes, prints and returns."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import xpreg
from xpreg import cli, io


@pytest.fixture
def data(tmp_path, rng):
    A = rng.standard_normal((40, 4))
    x = rng.standard_normal((3, 4))
    b = np.asarray(xpreg.SoftmaxRegression(A, np.full((3, 40), 1 / 40)).predict(x))
    path = tmp_path / "data.npz"
    np.savez(path, A=A, b=b)
    return path, x


def run(*arguments):
    return cli.main([str(a) for a in arguments])


def test_solve_writes_a_result_a_plot_and_a_summary(data, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path, x = data
    out, plot = tmp_path / "r.npz", tmp_path / "p.png"
    assert run("solve", path, "--loss", "softmax", "--method", "newton", "--out", out, "--plot", plot) == 0
    result = io.load_result(out)
    np.testing.assert_allclose(result.x, x, atol=1e-6)
    assert result.success
    assert result.history[-1].active == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr()
    assert "solved: 3 of 3 problems" in printed.out
    assert str(out) in printed.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.npz", "p.png", "r.npz"]
    assert json.loads(str(np.load(out)["header"]))["method"] == "newton"


def test_an_unfinished_run_is_exit_code_1_and_still_written(data, tmp_path, capsys):
    out = tmp_path / "r.npz"
    assert run("solve", data[0], "--loss", "softmax", "--maxiter", 1, "--out", out) == 1
    assert not io.load_result(out).success
    assert "NOT SOLVED" in capsys.readouterr().out


def test_quiet_prints_nothing(data, capsys):
    assert run("solve", data[0], "--loss", "softmax", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_a_missing_gpu_is_exit_code_3(data, tmp_path, capsys):
    if xpreg.backend.cuda_is_available():
        pytest.skip("this machine has a GPU")
    out = tmp_path / "r.npz"
    assert run("solve", data[0], "--loss", "softmax", "--device", "cuda", "--out", out) == 3
    assert "cuda" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"A": np.ones((3, 2))}, "has no array b: it holds A"),
        ({"A": np.ones((3, 2)), "b": np.ones(4)}, r"b has shape (4,), but A has 3 rows"),
        ({"A": np.ones((3, 2), dtype=int), "b": np.ones(3)}, "A has dtype int64"),
        ({"A": np.ones((3, 2)), "b": np.ones(3), "x0": np.ones(5)}, "x0 has shape (5,)"),
        ({"A": np.ones((3, 2)), "b": np.array([None] * 3)}, "no .npz file of plain arrays"),
        ({"A": np.ones((3, 2)), "b": np.ones(3), "weights": np.ones(7)}, "weights has shape (7,)"),
        ({"A": np.ones((3, 2)), "b": np.ones(3), "weights": "heavy"}, "weights has dtype"),
        ({"A": np.ones((3, 2), dtype="f2"), "b": np.ones(3)}, "A has dtype float16"),
    ],
)
def test_bad_files_are_exit_code_2_and_leave_nothing_behind(tmp_path, capsys, arrays, message):
    path, out = tmp_path / "bad.npz", tmp_path / "r.npz"
    np.savez(path, **arrays)
    assert run("solve", path, "--loss", "exp", "--out", out) == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["bad.npz"]


def test_wrong_paths_are_exit_code_2(data, tmp_path, capsys):
    path, _ = data
    assert run("solve", tmp_path / "none.npz", "--loss", "exp") == 2
    assert "no such file" in capsys.readouterr().err
    assert run("solve", path, "--loss", "exp", "--out", tmp_path / "no" / "r.npz") == 2
    assert "does not exist; create it first" in capsys.readouterr().err
    assert run("solve", path, "--loss", "exp", "--out", path) == 2
    assert "is the input" in capsys.readouterr().err
    assert run("solve", path, "--loss", "exp", "--plot", tmp_path / "p.bmp") == 2
    assert ".png" in capsys.readouterr().err
    half = tmp_path / "half.npz"
    half.write_bytes(path.read_bytes()[:900])
    assert run("solve", half, "--loss", "exp") == 2
    assert "no .npz file" in capsys.readouterr().err
    text = tmp_path / "text.npz"
    text.write_text("A = 1")
    assert run("solve", text, "--loss", "exp") == 2
    assert "no .npz file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [("solve",), ("solve", "x.npz", "--loss", "hinge"), ("slove",), (), ("solve", "x.npz", "--los", "exp")]
)
def test_a_typo_gets_a_usage_message(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    assert "usage: xpreg" in capsys.readouterr().err


def test_two_layers_from_a_file(tmp_path, rng):
    A1, A2 = rng.standard_normal((12, 3)), rng.standard_normal((9, 12))
    b = np.asarray(xpreg.SoftmaxReLURegression(A1, A2, np.full(9, 1 / 9)).predict(np.array([0.5, -0.4, 0.3])))
    np.savez(tmp_path / "two.npz", A1=A1, A2=A2, b=b)
    assert run("solve", tmp_path / "two.npz", "--loss", "softmax-relu", "--out", tmp_path / "r.npz") in (0, 1)
    assert io.load_result(tmp_path / "r.npz").x.shape == (3,)
    assert run("solve", tmp_path / "two.npz", "--loss", "softmax") == 2


@pytest.mark.parametrize("flag", ["--out", "--plot", "--checkpoint"])
def test_the_rows_are_never_overwritten(tmp_path, rng, capsys, flag):
    A, folder = rng.standard_normal((20, 3)), tmp_path / "blocks"
    folder.mkdir()
    np.savez(tmp_path / "b.npz", b=np.full(20, 0.05))
    for path in (tmp_path / "A.npy", folder / "0.npy"):
        np.save(path, A)
    for rows, out in ((tmp_path / "A.npy", tmp_path / "A.npy"), (folder, folder / "0.npy"), (folder, folder / "1.npy")):
        arguments = ["solve", str(tmp_path / "b.npz"), "--loss", "softmax", "--rows", str(rows), flag, str(out)]
        assert cli.main(arguments) == 2
        assert str(out) in capsys.readouterr().err
    np.testing.assert_array_equal(np.load(tmp_path / "A.npy"), A)
    assert [path.name for path in folder.iterdir()] == ["0.npy"]


def test_only_regular_files_are_replaced_and_links_stay_links(data, tmp_path, capsys):
    target, link = tmp_path / "target.npz", tmp_path / "link.npz"
    target.write_text("old")
    link.symlink_to(target)
    assert run("solve", data[0], "--loss", "softmax", "--out", link) == 0
    assert link.is_symlink()
    assert io.load_result(target).success
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert run("solve", data[0], "--loss", "softmax", "--out", pipe) == 2
    assert "no regular file" in capsys.readouterr().err
    assert run("solve", data[0], "--loss", "softmax", "--out", tmp_path / "a.png", "--plot", tmp_path / "a.png") == 2
    assert "different names" in capsys.readouterr().err


def test_an_error_of_our_own_is_exit_code_70_with_a_traceback(data, capsys, monkeypatch):
    monkeypatch.setattr(cli, "minimize", lambda *a, **k: 1 / 0)
    assert run("solve", data[0], "--loss", "softmax") == 70
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("header", ["[1]", "{oops", "{}", '{"format": "xpreg result 1"}'])
def test_a_damaged_result_file_is_named(tmp_path, header):
    np.savez(tmp_path / "r.npz", header=header)
    with pytest.raises(xpreg.InvalidArgumentError, match=r"r\.npz is"):
        io.load_result(tmp_path / "r.npz")


def test_unused_arrays_are_named(data, tmp_path, capsys):
    arrays = dict(np.load(data[0]))
    path = tmp_path / "more.npz"
    np.savez(path, weight=1.0, **arrays)
    assert run("solve", path, "--loss", "softmax") == 0
    assert "not used from" in (err := capsys.readouterr().err)
    assert "weight" in err


def test_info(capsys):
    assert run("info") == 0
    out = capsys.readouterr().out
    assert "numpy" in out
    assert "cuda" in out


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "r.npz"
    path.write_text("old")

    def fail():
        with io.atomic_path(path) as temporary:
            temporary.write_text("new")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.npz"]


def test_results_survive_a_file_from_every_backend(backend, rng, tmp_path):
    A, b = rng.standard_normal((20, 3)), rng.dirichlet(np.ones(20), 4)
    for targets in (b, b[0]):
        result = xpreg.minimize(xpreg.SoftmaxRegression(backend.array(A), backend.array(targets)))
        io.save_result(tmp_path / "r.npz", result)
        loaded = io.load_result(tmp_path / "r.npz")
        np.testing.assert_array_equal(loaded.x, backend.numpy(result.x))
        assert loaded.message == result.message
        assert loaded.history[1:] == result.history[1:]
        assert type(loaded.status) is type(result.status) or targets is b


def test_the_module_runs(data):
    code = subprocess.run(
        [sys.executable, "-m", "xpreg", "solve", str(data[0]), "--loss", "softmax"],
        capture_output=True,
        text=True,
        check=False,
        cwd=pathlib.Path(xpreg.__file__).parent.parent,
    )
    assert code.returncode == 0
    assert "solved" in code.stdout
    assert code.stderr == ""


def test_the_certificate_is_printed(data, capsys):
    assert run("solve", data[0], "--loss", "softmax", "--certify") == 0
    assert "proved" in capsys.readouterr().out


def test_an_unsolved_run_says_why_even_when_quiet(data, capsys):
    assert run("solve", data[0], "--loss", "softmax", "--maxiter", "1", "--quiet") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "the iteration limit was reached first" in captured.err


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--version")
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("xpreg ")


def test_a_name_with_dollars_is_a_title_all_the_same(data, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "a$b_{$.npz"
    path.write_bytes(data[0].read_bytes())
    assert run("solve", path, "--loss", "softmax", "--quiet", "--plot", tmp_path / "p.png") == 0


def test_a_result_keeps_its_certificate_and_activation(rng, tmp_path):
    A1, A2 = rng.standard_normal((4, 2)), rng.standard_normal((6, 4))
    b = np.asarray(xpreg.SoftmaxReLURegression(A1, A2, np.ones(6) / 6).predict(np.ones(2)))
    result = xpreg.minimize(xpreg.SoftmaxReLURegression(A1, A2, b), certify=True)
    io.save_result(tmp_path / "r.npz", result)
    loaded = io.load_result(tmp_path / "r.npz")
    np.testing.assert_array_equal(loaded.activation, result.activation)
    assert loaded.certificate == result.certificate


def test_replacing_a_file_keeps_its_permissions(data, tmp_path):
    path = tmp_path / "r.npz"
    assert run("solve", data[0], "--loss", "softmax", "--quiet", "--out", path) == 0
    path.chmod(0o600)
    assert run("solve", data[0], "--loss", "softmax", "--quiet", "--out", path) == 0
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("change", "message"), [
    ({"status": np.array(99)}, "99 is no status"),
    ({"header": np.array(json.dumps({"format": "xpreg result 1"}))}, "its header has no success"),
])  # fmt: skip
def test_a_damaged_result_says_what_is_wrong(rng, tmp_path, change, message):
    problem = xpreg.SoftmaxRegression(rng.standard_normal((9, 2)), np.full(9, 1 / 9))
    io.save_result(tmp_path / "r.npz", xpreg.minimize(problem))
    np.savez(tmp_path / "r.npz", **(dict(np.load(tmp_path / "r.npz")) | change))
    with pytest.raises(xpreg.InvalidArgumentError, match=message):
        io.load_result(tmp_path / "r.npz")
