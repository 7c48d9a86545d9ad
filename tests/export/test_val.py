"""val.py --exported: the scores of what is deployed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from paddle_vheat import cli
from paddle_vheat.config import load_config
from paddle_vheat.tasks.classification.task import ClassificationTask
from paddle_vheat.weights.loading import save_weights
from tests.conftest import needs_onnx
from tests.engine import toy  # noqa: F401 - registers its task
from tests.engine.test_cli import one_error
from tests.export.test_cli import DIGITS, SMALL, exported, project  # noqa: F401 - fixtures


def val(tmp_path, *options):
    scores = tmp_path / "scores.json"
    assert cli.val([*map(str, options), "--json", str(scores), "--device", "cpu"]) == 0
    return json.loads(scores.read_text())


@needs_onnx
@pytest.mark.parametrize("runtime", ["onnx", "paddle"])
def test_segmentation(project, exported, tmp_path, capsys, runtime):  # noqa: F811
    config = "--config", project / "tiny.yml"
    expected = val(tmp_path, *config, "--model_path", project / "model.pdparams")
    found = val(tmp_path, *config, "--exported", exported, "--runtime", runtime, "--threads", 1)
    said = capsys.readouterr().out
    assert f"{exported}: {'ONNX Runtime' if runtime == 'onnx' else 'Paddle Inference'}" in said
    assert said.count(f"{found['images']} images") == 2
    assert found["exported"] == str(exported)
    for name in ("mIoU", "Acc", "Kappa", "mDice"):  # rounding decides between equally likely classes
        assert found[name] == pytest.approx(expected[name], abs=1e-3)
    assert 0 < found["Acc"] < 1


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folders of three classes of four random pictures each, and a configuration and a model for them."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(12):
        path = folder / "val" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    config = load_config(DIGITS, [*SMALL[1:], "Arch.class_num=3", "Metric.Eval.0.TopkAcc.topk=[1, 2]"])
    ops = [{"DecodeImage": None}, {"NormalizeImage": {"order": ""}}]
    for part in ("Train", "Eval"):
        dataset = {"name": "ImageNetDataset", "image_root": str(folder / "val"), "transform_ops": ops}
        config["DataLoader"][part]["dataset"] = dataset
    (folder / "three.yml").write_text(yaml.safe_dump(config))
    save_weights(ClassificationTask(config, "three").build_model(), folder / "model.pdparams")
    return folder, ["--config", str(folder / "three.yml")]


@pytest.mark.parametrize("output_op", ["none", "softmax"])
def test_classification_from_files(pictures, tmp_path, output_op):
    folder, config = pictures
    model = "--model_path", str(folder / "model.pdparams")
    exporting = ["--save_dir", str(tmp_path / "out"), "--input_shape", "-1", "3", "32", "32", "--output_op", output_op]
    assert cli.export([*config, *model, *exporting, "--device", "cpu"]) == 0
    expected = val(tmp_path, *config, *model)
    found = val(tmp_path, *config, "--exported", tmp_path / "out")
    assert (found["images"], found["top1"], found["top2"]) == (12, expected["top1"], expected["top2"])
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)  # float32 through a softmax and a logarithm


def test_what_cannot_be_scored(pictures, project, tmp_path, capsys):  # noqa: F811
    folder, config = pictures
    model = "--model_path", str(folder / "model.pdparams")
    exporting = ["--save_dir", str(tmp_path / "out"), "--input_shape", "-1", "3", "32", "32", "--output_op", "argmax"]
    assert cli.export([*config, *model, *exporting, "--device", "cpu"]) == 0
    exported = "--exported", str(tmp_path / "out")  # noqa: F811
    seg = ["--config", str(project / "tiny.yml")]
    cases = [
        ([*config, *exported], "gives the best class alone"),
        ([*seg, *exported], "is an export for classification, and"),
        ([*seg, *exported, "--aug_eval"], "--exported: the folder says all that is needed, and takes no --aug_eval"),
        ([*config, *exported, *model], "takes no --model_path"),
        ([*config, *model, "--runtime", "onnx"], "--runtime and --threads are for --exported, which is not given"),
        ([*seg, "--exported", "/no/such"], "/no/such: no such folder; give the folder that export.py wrote"),
    ]
    for options, message in cases:
        assert message in one_error(cli.val([*options, "--device", "cpu"]), capsys.readouterr().err), options


def test_a_task_that_scores_no_exports(tmp_path, capsys):
    (tmp_path / "toy.yml").write_text("task: toy\niters: 2\n")
    config = ["--config", str(tmp_path / "toy.yml"), "--device", "cpu"]
    assert cli.train([*config, "--save_dir", str(tmp_path / "run")]) == 0
    model = str(tmp_path / "run" / "iter_2")
    assert cli.export([*config, "--model_path", model, "--save_dir", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    code = cli.val([*config, "--exported", str(tmp_path / "out")])
    assert "toy cannot score exported models (it has no method infer_exported)" in one_error(
        code, capsys.readouterr().err
    )
