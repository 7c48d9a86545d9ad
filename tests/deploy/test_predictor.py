"""The predictor against the trained model's own predictions."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from paddleseg.core.infer import reverse_transform

from paddle_vheat._paddle import F
from paddle_vheat.config import ConfigError
from paddle_vheat.data.image_file import read_bgr
from paddle_vheat.data.image_ops import build_ops, pipeline
from paddle_vheat.deploy import Predictor, predictor, runtimes
from paddle_vheat.deploy.predictor import choose_runtime, safe_onednn
from paddle_vheat.engine.export import export_model
from paddle_vheat.engine.predict import predict_classes
from paddle_vheat.models import VHeatClassifier
from tests.conftest import ONEDNN_HERE, needs_onnx, paddle, relative_error
from tests.deploy.conftest import quiet
from tests.engine import tiny


def pictures(scenes: Path) -> list[Path]:
    return sorted((scenes / "leftImg8bit" / "val").rglob("*.png"))


def noise(*size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def agree(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two class maps are equal, up to a few pixels where rounding decides between two classes."""
    assert ours.dtype == np.int32
    assert ours.shape == theirs.shape
    assert len(np.unique(theirs)) > 2
    return bool((ours != theirs).mean() < 1e-3)


def test_paddle_inference(make_task, exported, scenes):
    task = make_task()
    predict = Predictor(exported, threads=1)
    for path in pictures(scenes):
        expected = predict_classes(task, task.model, read_bgr(path))
        assert agree(predict.predict(path), expected)
        assert agree(predict.predict(read_bgr(path)), expected)


@needs_onnx
def test_onnx_runtime(make_task, exported_onnx, scenes):
    task = make_task()
    predict = Predictor(str(exported_onnx), threads=1)
    assert predict.runtime == "ONNX Runtime"
    # Three images by a model that takes two at a time: the second batch is filled up, and what fills it is dropped.
    files = pictures(scenes)
    assert len(files) == 3
    found = predict.predict(files)
    assert len(found) == 3
    for path, classes in zip(files, found):
        assert agree(classes, predict_classes(task, task.model, read_bgr(path)))
    assert predict.predict([]) == []


def test_calls_from_several_threads(exported, scenes):
    predict, images = Predictor(exported, threads=1), [read_bgr(path) for path in pictures(scenes)]
    alone = [predict.predict(image) for image in images]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(5):
            if not np.array_equal(predict.predict(images[i]), alone[i]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(images))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_an_image_of_another_size(make_task, exported):
    """Resized to the size of the export, and its scores back: by Paddle's own resizing."""
    task, image = make_task(), noise(50, 90)
    data = task.val_transforms({"img": image.astype(np.float32), "gt_fields": []})
    with paddle.no_grad():
        fitted = F.interpolate(paddle.to_tensor(data["img"][None]), [64, 128], mode="bilinear")
        logits = F.interpolate(task.model(fitted)[0], [50, 90], mode="bilinear")
    assert agree(Predictor(exported).predict(image), logits.numpy()[0].argmax(0))
    strict = Predictor(exported, resize=False)
    assert strict.predict(noise(64, 128)).shape == (64, 128)
    with pytest.raises(ValueError, match=r"for 64 x 128 \(height x width\), the image has 50 x 90 .*resize is False"):
        strict.predict(image)


RESIZE = {"type": "ResizeByShort", "short_size": 40}
PAD = {"type": "Padding", "target_size": [120, 70]}


@pytest.mark.parametrize("output_op", ["none", "softmax", "argmax"])
def test_transforms_are_undone(make_task, tmp_path, output_op):
    task, image = make_task(RESIZE, PAD), noise(50, 90)
    export_model(task, tmp_path / "out", [1, 3, 70, 120], output_op, quiet)
    found = Predictor(tmp_path / "out").predict(image)
    data = task.val_transforms({"img": image.astype(np.float32), "gt_fields": []})
    with paddle.no_grad():
        logits = task.model(paddle.to_tensor(data["img"][None]))[0]
    if output_op == "none":
        expected = predict_classes(task, task.model, image)  # as the evaluation does it
    elif output_op == "softmax":
        expected = reverse_transform(F.softmax(logits, axis=1), data["trans_info"], "bilinear").numpy().argmax(1)[0]
    else:
        classes = logits.argmax(axis=1, keepdim=True).astype("int32")
        expected = reverse_transform(classes, data["trans_info"], "nearest").numpy()[0, 0]
    assert agree(found, expected)


def test_what_a_dynamic_size_does_not_take(exported, tmp_path):
    """Told before the model is run; the sizes that it takes are in tests/engine/test_export_onnx.py."""
    predict = Predictor(change(exported, tmp_path / "x", input_shape=[-1, 3, -1, -1]))
    with pytest.raises(ValueError, match="at least 32 pixels a side, got 20 x 50"):
        predict.predict(noise(20, 50))
    with pytest.raises(ValueError, match=r"one size after the transforms, got 40 x 40, 40 x 50 \(height x width\)"):
        predict.predict([noise(40, 50), noise(40, 40)])


# --- classification ---------------------------------------------------------------------------------


class Digits:
    """What export_model asks of a task."""

    kind, num_classes, class_names = "classification", 7, [f"digit {i}" for i in range(7)]
    export_transforms = [
        {"ResizeImage": {"resize_short": 40}},
        {"CropImage": {"size": 32}},
        {"NormalizeImage": {"order": ""}},
        {"ToCHWImage": None},
    ]

    def __init__(self) -> None:
        self.model = VHeatClassifier(7, embed_dim=8, depths=(1, 1, 1, 1), img_size=32)
        self.model.head.weight.set_value(paddle.randn(self.model.head.weight.shape) * 3)
        self.val_dataset = [{"img": self.prepare(noise(48, 48))}]

    def prepare(self, image: np.ndarray) -> np.ndarray:
        return pipeline(build_ops(self.export_transforms), takes="image")(image[..., ::-1])


@pytest.mark.parametrize("output_op", [None, "none", "argmax"])
def test_the_likeliest_classes(tmp_path, output_op):
    task, images = Digits(), [noise(50, 60, seed=i) for i in range(3)]
    export_model(task, tmp_path / "out", [-1, 3, 32, 32], output_op, quiet)
    found = Predictor(tmp_path / "out").predict(images)
    with paddle.no_grad():
        chances = F.softmax(task.model(paddle.to_tensor(np.stack([task.prepare(i) for i in images])))).numpy()
    for top, expected in zip(found, chances):
        order = np.argsort(-expected)[: 1 if output_op == "argmax" else 5]
        assert [one["class"] for one in top] == order.tolist()
        assert [one["name"] for one in top] == [f"digit {i}" for i in order]
        if output_op == "argmax":
            assert [one["score"] for one in top] == [None]
        else:
            assert relative_error(np.array([one["score"] for one in top]), expected[order]) < 1e-5


# --- choices ----------------------------------------------------------------------------------------


def change(folder: Path, target: Path, **values) -> Path:
    """A copy of an export with other values in deploy.yaml."""
    tiny.copy_tree(folder, target)
    content = yaml.safe_load((target / "deploy.yaml").read_text(encoding="utf-8"))
    content["Deploy"].update(values)
    (target / "deploy.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return target


def test_onednn_only_where_it_was_found_right(exported, tmp_path):
    """What was right on one version of Paddle crashes or is wrong on another."""
    here = paddle.__version__
    cases = [
        ("full", here, "full"),
        (True, here, "full"),  # so it was written before there was a reduced one
        ("reduced", here, "reduced"),
        ("off", here, "off"),
        (False, here, "off"),
        ("full", "3.1.4", "off"),
        ("reduced", "3.1.4", "off"),
        ("full", None, "off"),
    ]
    names = {"off": "Paddle Inference", "reduced": "Paddle Inference oneDNN reduced", "full": "Paddle Inference oneDNN"}
    plain = Predictor(change(exported, tmp_path / "plain", onednn="off")).predict(noise(64, 128))
    for i, (onednn, version, expected) in enumerate(cases):
        checked = {} if version is None else {"paddle": version}
        folder = change(exported, tmp_path / str(i), onednn=onednn, checked_on=checked)
        if list(names).index(expected) > list(names).index(ONEDNN_HERE):
            # So it is the export's check that keeps users of this version from it.
            with pytest.raises((ValueError, RuntimeError, NotImplementedError)):
                Predictor(folder).predict(noise(64, 128))
            continue
        predict = Predictor(folder)
        assert predict.runtime == names[expected]
        assert safe_onednn(predict.description) == expected
        assert agree(predict.predict(noise(64, 128)), plain)


def test_what_auto_chooses(exported, monkeypatch):
    described = Predictor(exported).description
    both = type(described)(**{**vars(described), "onnx": "model.onnx"})
    installed: set[str] = set()
    monkeypatch.setattr(runtimes, "is_installed", lambda package: package in installed)
    with pytest.raises(ValueError, match="to run it, install onnxruntime or paddle"):
        choose_runtime(both, "auto")
    installed.add("paddle")
    assert choose_runtime(both, "auto") == "paddle"
    with pytest.raises(ValueError, match="to run it, install onnxruntime"):
        choose_runtime(both, "onnx")
    installed.add("onnxruntime")
    assert choose_runtime(both, "auto") == choose_runtime(both, "onnx") == "onnx"
    assert choose_runtime(both, "paddle") == choose_runtime(described, "auto") == "paddle"
    monkeypatch.setattr(runtimes, "onnx_sees_gpu", lambda: False)
    assert choose_runtime(both, "auto", "gpu") == "paddle"
    monkeypatch.setattr(runtimes, "onnx_sees_gpu", lambda: True)
    assert choose_runtime(both, "auto", "gpu") == "onnx"
    with pytest.raises(ValueError, match="holds no onnx model, only paddle; export with --format onnx or both"):
        choose_runtime(described, "onnx")
    with pytest.raises(ValueError, match="expected one of auto, paddle, onnx, got 'tvm'"):
        choose_runtime(both, "tvm")


@pytest.mark.parametrize(("name", "size"), [("model.pdiparams", 0), ("model.pdiparams", 1000)])
def test_a_damaged_paddle_model(exported, tmp_path, name, size):
    folder = tiny.copy_tree(exported, tmp_path / "x")
    (folder / name).write_bytes((exported / name).read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\..*, model\.pdiparams: Paddle Inference cannot load it: "):
        Predictor(folder)


@needs_onnx
@pytest.mark.parametrize("size", [0, 1000])
def test_a_damaged_onnx_model(exported_onnx, tmp_path, size):
    folder = tiny.copy_tree(exported_onnx, tmp_path / "x")
    (folder / "model.onnx").write_bytes((exported_onnx / "model.onnx").read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.onnx: ONNX Runtime cannot load it: "):
        Predictor(folder)


@needs_onnx
def test_an_onnx_model_that_deploy_yaml_does_not_fit(exported_onnx, tmp_path):
    predict = Predictor(change(exported_onnx, tmp_path / "x", input_shape=[2, 3, 64, 64]))
    with pytest.raises(ValueError, match=r"model\.onnx: ONNX Runtime cannot run it on \[2, 3, 64, 64\]: "):
        predict.predict(noise(64, 64))


def test_transforms_that_are_not_known_here(exported, tmp_path):
    folder = change(exported, tmp_path / "x", transforms=[{"type": "RandomBlur"}])
    with pytest.raises(ConfigError, match=r"deploy\.yaml: 'Deploy\.transforms'\.0: no transform 'RandomBlur'.*known"):
        Predictor(folder)


def test_a_class_map_of_many_classes_is_the_argmax():
    """The running maximum, with ties, against NumPy's."""
    scores = np.random.default_rng(0).integers(0, 4, (7, 9, 11)).astype(np.float32)
    instance = object.__new__(Predictor)
    np.testing.assert_array_equal(instance._class_map(scores, []), scores.argmax(0))
    assert predictor.restore(scores[0], [("padding", (5, 6))], "LINEAR").shape == (5, 6)
