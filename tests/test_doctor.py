"""The report on this machine, and what it says of others."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from paddle_vheat import doctor
from paddle_vheat.ops import native


def test_here_everything_works(capfd, monkeypatch, tmp_path):
    native.missing()  # the kernels are compiled on first use, and kept
    monkeypatch.setenv("PADDLE_VHEAT_HOME", str(tmp_path / "home"))
    assert doctor.main() == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[-1] == "everything works"
    report = {line[6:20].strip(): line[20:] for line in lines if line.startswith(("ok", "note"))}
    assert "numpy" in report["packages"]
    for name in ("operator", "training", "export"):
        assert report[name].endswith("s)")
    assert re.search("Paddle Inference.* right; oneDNN in use: (full|reduced) ", report["export"])
    assert not (tmp_path / "home").exists()  # asking leaves nothing


@pytest.mark.parametrize(
    ("versions", "level", "message"),
    [
        ({"paddlepaddle": "3.2.2", "paddlepaddle-gpu": "3.2.2"}, "WRONG", "paddlepaddle and paddlepaddle-gpu are"),
        ({"opencv-python": "4.5.5.64", "opencv-python-headless": "4.10"}, "WRONG", "opencv-python and opencv-python-h"),
        ({"pillow": "13.0.0"}, "WRONG", "install pillow<13"),
        ({"paddleseg": "2.8.0", "numpy": "2.2.6"}, "note", "install numpy<2"),
        ({"paddlepaddle": "3.1.0"}, "note", "3.1.0 was not tested; 2.6.2, 3.2.2, 3.3.1 were"),
        ({"paddlepaddle": "2.6.2", "paddle2onnx": "2.1.0"}, "note", "export to ONNX needs Paddle 3"),
    ],
)
def test_sets_of_packages(versions, level, message):
    found = [finding for finding in doctor.packages(versions) if finding.level != "ok"]
    assert [finding.level for finding in found] == [level]
    assert message in found[0].text


def test_sets_that_go_together():
    versions = {"paddlepaddle-gpu": "2.6.2.post120", "numpy": "1.24.4", "pillow": "12.0.0", "opencv-python": "4.5.5.64"}
    assert [finding.level for finding in doctor.packages(versions)] == ["ok"]


@pytest.mark.parametrize(("archs", "level"), [([70, 80], "ok"), ([75, 80, 86], "WRONG"), (["80"], "WRONG")])
def test_a_gpu_and_what_the_build_holds(archs, level):
    cuda = SimpleNamespace(
        device_count=lambda: 1, get_device_capability=lambda i: (7, 0), get_device_name=lambda i: "Tesla V100"
    )
    paddle = SimpleNamespace(
        is_compiled_with_cuda=lambda: True,
        version=SimpleNamespace(cuda=lambda: "12.6", cuda_archs=lambda: archs),
        device=SimpleNamespace(cuda=cuda),
    )
    build, gpu = doctor.graphics(paddle)
    assert build.level == "ok"
    assert (gpu.level, gpu.name) == (level, "gpu 0")
    assert "Tesla V100, sm_70" in gpu.text
    assert ("not among those of the build" in gpu.text) == (level == "WRONG")


def test_what_is_broken_is_found(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PADDLE_VHEAT_HOME", str(tmp_path / "file"))  # no folder can be made in a file
    monkeypatch.setattr(doctor, "check_training", lambda: 1 / 0)
    monkeypatch.setattr(doctor, "check_export", lambda: "done")
    assert doctor.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("WRONG")] == [
        f"WRONG folder        weights: {tmp_path / 'file' / 'weights'} cannot be written (Not a directory)",
        "WRONG training      ZeroDivisionError: division by zero",
    ]
    assert lines[-1] == "2 of these will not work here"
