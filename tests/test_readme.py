"""What the README shows runs as it stands there."""

import pathlib
import re

import numpy as np
import pytest

import xpreg

README = pathlib.Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_twelve_lines_recover_what_they_hid(capsys):
    names = {}
    exec(BLOCKS[0], names)
    assert names["result"].success
    assert np.abs(names["result"].x - names["x_true"]).max() < 1e-9  # as it says
    assert capsys.readouterr().out.startswith("True")
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 12


@pytest.mark.parametrize("block", [b for b in BLOCKS[1:] if "cupy" not in b])
def test_every_other_block_runs_after_it(block, tmp_path, monkeypatch):
    if "dask" in block:
        pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(BLOCKS[0], names)
    exec(block, names)


def test_every_loss_of_the_command_line_is_in_the_readme():
    text = README.read_text(encoding="utf-8")
    for loss in xpreg.regressions.LOSSES:
        assert f"`{loss.removesuffix('-rescaled')}`" in text
    for status in xpreg.Status:
        assert f"`{status.name}`" in text
