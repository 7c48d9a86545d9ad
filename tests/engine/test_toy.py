"""A task of sixty lines trains, resumes, evaluates, exports and predicts, by the command lines."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import paddle_vheat
from paddle_vheat import cli
from paddle_vheat.engine.checkpoint import read_checkpoint
from paddle_vheat.engine.task import Scores
from tests.engine import toy

PACKAGE = Path(paddle_vheat.__file__).parent


@pytest.fixture
def config(tmp_path) -> str:
    path = tmp_path / "toy.yml"
    path.write_text(yaml.safe_dump({"task": "toy", "iters": 6}), encoding="utf-8")
    return str(path)


def test_every_command(config, tmp_path, capsys):
    run, straight = str(tmp_path / "run"), str(tmp_path / "straight")
    common = ["--config", config, "--do_eval", "--save_interval", "2"]
    assert cli.train([*common, "--save_dir", straight]) == 0
    assert cli.train([*common, "--save_dir", run, "--iters", "4"]) == 0
    assert cli.train([*common, "--save_dir", run, "--resume_model", "auto"]) == 0
    ours, theirs = (read_checkpoint(Path(folder) / "iter_6") for folder in (run, straight))
    for file, arrays in theirs[1].items():
        for name, value in arrays.items():
            np.testing.assert_array_equal(ours[1][file][name], value, err_msg=f"{file} {name}")
    assert ours[0]["best"] == theirs[0]["best"]
    model = ["--config", config, "--model_path", f"{run}/best_model"]
    assert cli.val([*model, "--json", str(tmp_path / "scores.json")]) == 0
    score = json.loads((tmp_path / "scores.json").read_text())["error"]
    assert score == pytest.approx(ours[0]["best"]["best_model"]["score"], abs=1e-6)  # the same weights, float32
    picture = (np.random.default_rng(0).random((8, 8, 3)) * 255).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    predict = ["--image_path", str(tmp_path / "picture.png"), "--save_dir"]
    assert cli.predict([*model, *predict, str(tmp_path / "a")]) == 0
    exported = str(tmp_path / "exported")
    assert cli.export([*model, "--save_dir", exported]) == 0
    capsys.readouterr()
    assert cli.val(["--config", config, "--exported", exported]) == 2
    assert "toy cannot score exported models (it has no method infer_exported)" in capsys.readouterr().err
    assert cli.predict(["--exported", exported, *predict, str(tmp_path / "b")]) == 0
    found = [json.loads((tmp_path / name / "predictions.json").read_text())["picture.png"] for name in "ab"]
    assert found[0] == pytest.approx(found[1], abs=1e-5)  # the export's own tolerance


def test_a_score_that_is_none(config, tmp_path, monkeypatch, capsys):
    assert cli.train(["--config", config, "--save_dir", str(tmp_path / "run"), "--iters", "2"]) == 0
    none = Scores({"error": float("nan")}, "error -", {"error": float("nan"), "classes": [1.0, float("inf")]}, 3)
    monkeypatch.setattr(toy.MeanError, "summarize", lambda self: none)
    capsys.readouterr()
    command = ["--config", config, "--model_path", str(tmp_path / "run" / "iter_2"), "--json", str(tmp_path / "s.json")]
    assert cli.val(command) == 0
    assert "warning: this is no score: nothing was there to evaluate error on" in capsys.readouterr().err

    def no_such(text):
        raise AssertionError(f"{text} is not JSON")

    report = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"), parse_constant=no_such)
    assert (report["error"], report["classes"]) == (None, [1.0, None])


def test_the_task_is_small():
    assert len(Path(toy.__file__).read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("package", ["engine", "export"])
def test_generic_code_names_no_task(package):
    named = re.compile(r"segment|classif|detect|restor(ation|er)|vheat_|VHeat|PaddleSeg|PaddleClas", re.IGNORECASE)
    allowed = re.compile(
        r"paddle[_-]vheat|as PaddleSeg and PaddleClas do|A PaddleSeg model may hold|PaddleSeg's layout"
        r"|as PaddleSeg's DeployConfig reads it"
    )
    for path in (PACKAGE / package).glob("*.py"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            assert not named.search(allowed.sub("", line)), f"{path}:{number}: {line}"


def test_the_loop_stays_small():
    source = (PACKAGE / "engine" / "trainer.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) < 200
    starts = [m.start() for m in re.finditer(r"^    def |^def ", source, re.MULTILINE)] + [len(source)]
    assert max(source[a:b].count("\n") for a, b in zip(starts, starts[1:])) <= 41  # the blank line after it
