"""Exported detectors against the reference detector, in every runtime, and what is said of wrong ones."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml

from paddle_vheat import cli
from paddle_vheat._paddle import PADDLE_2
from paddle_vheat.deploy import Predictor
from paddle_vheat.engine.evaluate import evaluate, evaluate_exported
from paddle_vheat.errors import ConfigError, ExportError
from paddle_vheat.export import export_model, parse_input_shape
from paddle_vheat.tasks.detection import export
from paddle_vheat.tasks.detection.task import DetectionTask
from tests.engine import tiny
from tests.models.mask_rcnn.micro import unpack

RUNTIMES = ["paddle"] if PADDLE_2 else ["paddle", "onnx"]


@pytest.fixture(scope="module")
def exported(reference, tmp_path_factory):
    """What ``export.py`` writes of the reference detector, for any size."""
    folder = tmp_path_factory.mktemp("exported")
    path = tiny.write_config(folder / "reference.yml", reference.config)
    command = ["--config", path, "--model_path", reference.weights, "--save_dir", folder / "out", "--threshold", 0.2]
    format_ = "paddle" if PADDLE_2 else "both"
    assert cli.export([*map(str, command), "--format", format_, "--device", "cpu"]) == 0
    return folder / "out"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_predictor_gives_the_references_detections(exported, reference, runtime):
    data = reference.data
    found = Predictor(exported, runtime, threads=1).predict(reference.image)
    # The bounds of tests/models/mask_rcnn/test_golden.py.
    assert found["labels"].tolist() == data["a/det0_labels"].tolist()
    assert np.abs(found["boxes"] - data["a/det0_boxes"]).max() < 1e-2
    assert np.abs(found["scores"] - data["a/det0_scores"]).max() < 1e-4
    for mask, expected in zip(found["masks"], unpack(data["a/det0_masks_packed"], 160)):
        assert (mask != expected).sum() <= 1e-3 * mask.size


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_images_of_other_sizes_and_of_nothing(exported, reference, runtime):
    """A picture of twice the size has its boxes in its own pixels; a black one has few detections or none."""
    predictor = Predictor(exported, runtime, threads=1)
    large = np.repeat(np.repeat(reference.image, 2, axis=0), 2, axis=1)
    found = predictor.predict(large)
    assert found["boxes"][:, 2].max() > 200
    assert found["masks"][0].shape == (256, 320)
    black = predictor.predictions([np.zeros((40, 200, 3), np.uint8)])[0]
    assert len(black.value["scores"]) < 100
    assert black.draw(np.zeros((40, 200, 3), np.uint8))["detections"].shape == (40, 200, 3)
    assert black.masks.size == (40, 200)


def test_an_export_and_the_checkpoint_predict_alike(exported, reference, tmp_path):
    task = DetectionTask(reference.config)
    model = task.build_model()
    task.load(model, str(reference.weights))
    path = reference.root / "val" / "a.png"
    ours = task.predict(model, str(path))
    theirs = Predictor(exported, "paddle", threads=1).predictions([path])[0]
    assert (ours.threshold, theirs.threshold) == (0.4, 0.2)
    assert ours.names == theirs.names == [f"kind {i}" for i in range(5)]
    assert np.abs(ours.boxes - theirs.boxes).max() < 1e-2
    assert sum(one["score"] >= 0.4 for one in theirs.to_json()) == len(ours.to_json()) > 0


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_score_of_an_export_is_the_checkpoints(exported, reference, runtime):
    task = DetectionTask(reference.config)
    model = task.build_model()
    task.load(model, str(reference.weights))
    ours, theirs = evaluate(task, model), evaluate_exported(task, Predictor(exported, runtime, threads=1))
    assert ours.values["bbox_AP"] > 0
    for name, value in ours.values.items():
        # Boxes differ by hundredths of a pixel. Of sizes that no object has, COCO's figure is no number.
        assert theirs.values[name] == pytest.approx(value, abs=1e-3, nan_ok=True)


def test_a_prediction_needs_no_paddle(exported, reference, tmp_path):
    if PADDLE_2:
        pytest.skip("ONNX exports are made with Paddle 3")
    code = (
        "import sys; from paddle_vheat.deploy import Predictor\n"
        f"found = Predictor({str(exported)!r}, 'onnx', 1).predictions([{str(reference.root / 'val' / 'a.png')!r}])[0]\n"
        "found.draw(sys.argv[1]); found.to_json()\n"
        "print(len(found.scores), 'paddle' in sys.modules, 'pycocotools' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(reference.root / "val" / "a.png")]
    done = subprocess.run(command, cwd=tiny.REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["100", "False", "False"]


@pytest.mark.parametrize("size", [(128, 160), (150, 200)])
def test_an_export_of_fixed_size(reference, tmp_path, size):
    """Of the picture's size it gives the same; larger, the picture is padded, and no box is in the padding."""
    task = DetectionTask(reference.config)
    model = task.build_model()
    task.load(model, str(reference.weights))
    shape = parse_input_shape([1, 3, *size])
    said = []
    export_model(task.export_spec(model, shape, None), "detection", tmp_path / "out", shape, said.append)
    found = Predictor(tmp_path / "out", threads=1).predict(reference.image)
    boxes = reference.data["a/det0_boxes"]
    if size == (128, 160):
        assert np.abs(found["boxes"] - boxes).max() < 1e-2
    assert found["boxes"].max(axis=0)[2:].tolist() <= [160, 128]
    assert (found["boxes"][:, 2:] > found["boxes"][:, :2]).all()
    assert len(found["scores"]) > 50
    wide = Predictor(tmp_path / "out", threads=1).predict(np.zeros((100, 400, 3), np.uint8))
    assert wide["boxes"].shape[1] == 4


WHOLE = export.Whole


class Wrong(WHOLE):
    def forward(self, image, size):
        proposals, logits, boxes, scores, labels, masks = WHOLE.forward(self, image, size)
        return proposals, logits, boxes + 1, scores, labels, masks


def test_a_wrong_program_is_found(reference, tmp_path, monkeypatch):
    task = DetectionTask(reference.config)
    model = task.build_model()
    task.load(model, str(reference.weights))
    shape = parse_input_shape([1, 3, 128, 160])
    spec = task.export_spec(model, shape, None)
    monkeypatch.setattr(export, "Whole", Wrong)
    expected = spec.reference
    spoilt = dataclasses.replace(export.detection_spec(model, shape, task_options(spec), ()), reference=expected)
    monkeypatch.undo()
    with pytest.raises(ExportError, match=r"^detections by Paddle Inference differ from the trained model's"):
        export_model(spoilt, "detection", tmp_path / "out", shape, str)
    assert os.listdir(tmp_path) == []


def task_options(spec):
    from paddle_vheat.tasks.detection.deploy import Options

    return Options(**spec.options)


def rows(count, seed=0, columns=20):
    found = np.random.default_rng(seed).uniform(0, 100, (count, columns)).astype(np.float32)
    found[:, 4] = np.linspace(1, 0.1, count)
    return found


@pytest.mark.parametrize(
    ("change", "share"),
    [
        (lambda a: a, 0.0),
        (lambda a: a[::-1], 0.0),
        (lambda a: a + 1e-3, 0.0),
        (lambda a: np.where(np.arange(20) < 4, a + 1, a), 1.0),
        (lambda a: np.where(np.arange(20) == 5, a + 5, a), 1.0),
        (lambda a: np.full_like(a, np.nan), 1.0),
        (lambda a: a[:5], 1 / 3),
    ],
)
def test_what_counts_as_equal(change, share):
    found = rows(10)
    with np.errstate(all="ignore"):
        value = export.unmatched([np.ascontiguousarray(change(found))], [found], None)
    assert value == pytest.approx(share)
    assert export.unmatched([found[:0]], [found[:0]], 4) == 0
    assert export.unmatched([found], [], 4) == float("inf")
    # Weighted, the worst of ten counts 0.1 of 5.5 + 5.4.
    assert export.unmatched([found[:9]], [found], 4) == pytest.approx(0.1 / (5.5 + 5.4), rel=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_classes", "many", r"'Deploy\.options\.num_classes' must be an integer"),
        ("class_names", ["one"], r"'Deploy\.options\.class_names' must be 5 names"),
        ("scale", [100, 200], r"'Deploy\.options\.scale' must be \[longest, shortest\]"),
        ("thresold", 0.5, r"unknown key 'Deploy\.options\.thresold'; did you mean 'threshold'"),
        ("num_classes", 6, r"'Deploy\.programs\.\w+' is .*, but 'Deploy\.options' means"),
    ],
)
def test_a_changed_description_is_refused(exported, tmp_path, key, value, message):
    for path in exported.iterdir():
        os.symlink(path, tmp_path / path.name)
    content = yaml.safe_load((exported / "deploy.yaml").read_text(encoding="utf-8"))
    content["Deploy"]["options"][key] = value
    if key == "num_classes" and value == 6:
        content["Deploy"]["options"]["class_names"] = None
    (tmp_path / "deploy.yaml").unlink()
    (tmp_path / "deploy.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        Predictor(tmp_path)
