"""The example that needs nothing of this project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddle_vheat.deploy import Predictor
from tests.conftest import needs_onnx
from tests.deploy.handmade import write_export
from tests.export.networks import noise

SCRIPT = Path(__file__).parents[2] / "examples" / "onnx_only.py"
# As run where the package is not installed: it cannot be imported.
ALONE = f"import runpy, sys; sys.modules['paddle_vheat'] = None; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"


@needs_onnx
@pytest.mark.parametrize("fixed", [True, False])
def test_the_classes_are_those_of_the_predictor(exported_onnx, tmp_path, fixed):
    folder = exported_onnx if fixed else write_export(tmp_path / "free", None, "none")
    Image.fromarray(noise(64, 128)).save(tmp_path / "a.png")
    command = [sys.executable, "-c", ALONE, str(folder), str(tmp_path / "a.png"), str(tmp_path / "classes.png")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = Predictor(folder, "onnx", threads=1).predict(tmp_path / "a.png")
    found = Image.open(tmp_path / "classes.png")
    assert found.mode == "P"
    assert np.array_equal(np.asarray(found), expected)
    shares = [float(line.split(": ")[1].rstrip("%")) for line in done.stdout.splitlines()]
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares))  # each is rounded to a tenth


def test_it_is_short():
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 60
