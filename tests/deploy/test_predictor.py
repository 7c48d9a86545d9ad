"""The predictor against the trained model's own predictions."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml

from paddle_vheat._paddle import PADDLE_2, F
from paddle_vheat.config import ConfigError
from paddle_vheat.data.image_file import read_bgr
from paddle_vheat.deploy import Predictor, runtimes
from paddle_vheat.deploy.predictor import choose_runtime, safe_onednn
from paddle_vheat.export import export_model
from paddle_vheat.tasks.segmentation.deploy import best
from paddle_vheat.tasks.segmentation.transforms import restore
from tests.conftest import needs_onnx, paddle, relative_error
from tests.deploy.conftest import export
from tests.export import networks
from tests.export.networks import agree, classes_of, noise, quiet


def test_paddle_inference(segmentor, exported, files):
    predict = Predictor(exported, threads=1)
    for path in files:
        expected = classes_of(segmentor, read_bgr(path))
        assert agree(predict.predict(path), expected)
        assert agree(predict.predict(str(path)), expected)
        assert agree(predict.predict(read_bgr(path)), expected)


@needs_onnx
def test_onnx_runtime(segmentor, exported_onnx, files):
    predict = Predictor(str(exported_onnx), threads=1)
    assert predict.runtime == "ONNX Runtime"
    # Three images by a model that takes two at a time: the second batch is filled up, and what fills it is dropped.
    assert len(files) == 3
    found = predict.predict(files)
    assert len(found) == 3
    for path, classes in zip(files, found):
        assert agree(classes, classes_of(segmentor, read_bgr(path)))
    assert predict.predict([]) == []


def test_calls_from_several_threads(exported, files):
    predict, images = Predictor(exported, threads=1), [read_bgr(path) for path in files]
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


def test_an_image_of_another_size(segmentor, exported):
    """Resized to the size of the export, and its scores back: by Paddle's own resizing."""
    image = noise(50, 90)
    x, _ = networks.paddlesegs(image, networks.NORMALIZE)
    fitted = F.interpolate(paddle.to_tensor(x), [64, 128], mode="bilinear")
    logits = paddle.to_tensor(networks.logits_of(segmentor, fitted.numpy()))
    logits = F.interpolate(logits, [50, 90], mode="bilinear")
    assert agree(Predictor(exported).predict(image), logits.numpy()[0].argmax(0))
    strict = Predictor(exported, resize=False)
    assert strict.predict(noise(64, 128)).shape == (64, 128)
    with pytest.raises(ValueError, match=r"for 64 x 128 \(height x width\), the image has 50 x 90 .*resize is False"):
        strict.predict(image)


RESIZE = {"type": "ResizeByShort", "short_size": 40}
PAD = {"type": "Padding", "target_size": [120, 70]}


@pytest.mark.parametrize("output_op", ["none", "softmax", "argmax"])
def test_transforms_are_undone(segmentor, tmp_path, output_op):
    image = noise(50, 90)
    export(segmentor, tmp_path / "out", [1, 3, 70, 120], output_op, RESIZE, PAD)
    found = Predictor(tmp_path / "out").predict(image)
    assert agree(found, classes_of(segmentor, image, RESIZE, PAD, output_op=output_op))
    first = first_layout(tmp_path / "out", tmp_path / "first")
    np.testing.assert_array_equal(Predictor(first).predict(image), found)


def first_layout(folder: Path, target: Path) -> Path:
    """The export as it was described before there could be several programs."""
    shutil.copytree(folder, target)
    deploy = yaml.safe_load((target / "deploy.yaml").read_text(encoding="utf-8"))["Deploy"]
    deploy.update(deploy.pop("options"), output_dtype="float32")
    del deploy["programs"]
    deploy["onednn"] = deploy["onednn"] == "full"
    (target / "deploy.yaml").write_text(yaml.safe_dump({"Deploy": deploy}, sort_keys=False), encoding="utf-8")
    return target


def test_what_a_dynamic_size_does_not_take(exported, tmp_path):
    """Told before the model is run; the sizes that it takes are in tests/export/test_onnx.py."""
    predict = Predictor(change(first_layout(exported, tmp_path / "x"), tmp_path / "y", input_shape=[-1, 3, -1, -1]))
    with pytest.raises(ValueError, match="at least 32 pixels a side, got 20 x 50"):
        predict.predict(noise(20, 50))
    with pytest.raises(ValueError, match=r"one size after the transforms, got 40 x 40, 40 x 50 \(height x width\)"):
        predict.predict([noise(40, 50), noise(40, 40)])


# --- classification ---------------------------------------------------------------------------------


@pytest.mark.parametrize("output_op", ["softmax", "none", "argmax"])
def test_the_likeliest_classes(tmp_path, output_op):
    from paddle_vheat.tasks.classification.transforms import build_ops, pipeline

    network, images = networks.Average(), [noise(50, 60, seed=i) for i in range(3)]
    spec, task, shape = networks.classification(network, [-1, 3, 32, 32], output_op, images=[noise(48, 48)])
    export_model(spec, task, tmp_path / "out", shape, quiet)
    prepare = pipeline(build_ops(networks.DIGIT_OPS), takes="image")
    x = np.stack([prepare(image[..., ::-1]) for image in images])
    chances = F.softmax(paddle.to_tensor(networks.logits_of(network, x))).numpy()
    predictions = Predictor(tmp_path / "out").predictions(images)
    for prediction, expected in zip(predictions, chances):
        top = prediction.value
        order = np.argsort(-expected)[: 1 if output_op == "argmax" else 5]
        assert [one["class"] for one in top] == order.tolist()
        assert [one["name"] for one in top] == [f"digit {i}" for i in order]
        if output_op == "argmax":
            assert [one["score"] for one in top] == [None]
        else:
            assert relative_error(np.array([one["score"] for one in top]), expected[order]) < 1e-5
        assert prediction.to_json() == top
        assert prediction.draw(images[0]) == {}
    first = first_layout(tmp_path / "out", tmp_path / "first")
    assert Predictor(first).predict(images) == [prediction.value for prediction in predictions]
    nameless = change(first, tmp_path / "nameless", class_names=None)
    assert [one["name"] for one in Predictor(nameless).predict(images[0])] == [
        str(one["class"]) for one in predictions[0].value
    ]


# --- deploy.yaml and files that do not belong together -------------------------------------------------


def fewer(folder: Path, target: Path) -> Path:
    """One class fewer, in every list, in an export of the first layout."""
    deploy = yaml.safe_load((folder / "deploy.yaml").read_text(encoding="utf-8"))["Deploy"]
    lists = {key: deploy[key][:-1] for key in ("class_names", "palette")}
    return change(folder, target, num_classes=deploy["num_classes"] - 1, **lists)


def test_one_class_too_few_of_scores(exported, tmp_path):
    """Paddle's files do not tell, so it is noticed when the model has run."""
    predict = Predictor(fewer(first_layout(exported, tmp_path / "x"), tmp_path / "y"))
    message = r"model\..*: has logits float32 \[1, 19, 64, 128\], and deploy.yaml means logits float32 \[batch, 18, "
    with pytest.raises(ValueError, match=message):
        predict.predict(noise(64, 128))


@needs_onnx
def test_another_onnx_model_than_deploy_yamls(segmentor, exported_onnx, tmp_path):
    """Noticed when it is loaded, by names, dtypes, ranks and fixed lengths."""
    first = change(exported_onnx, tmp_path / "x")
    content = yaml.safe_load((first / "deploy.yaml").read_text(encoding="utf-8"))
    deploy = content["Deploy"]
    deploy.update(deploy.pop("options"))
    del deploy["programs"]
    (first / "deploy.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert Predictor(first).predict(noise(64, 128)).shape == (64, 128)
    cases = [
        ({"output_op": "softmax"}, r"has classes int32 \[2, 64, 128\], and deploy.yaml means probabilities float32"),
        (
            {"input_shape": [2, 3, 64, 64]},
            r"has x float32 \[2, 3, 64, 128\], and deploy.yaml means x float32 \[2, 3, 64,",
        ),
    ]
    for i, (values, message) in enumerate(cases):
        with pytest.raises(ValueError, match=rf"model\.onnx: {message}"):
            Predictor(change(first, tmp_path / str(i), **values))
    # Of classes, only those that the model gives tell.
    predict = Predictor(change(first, tmp_path / "one", num_classes=1, class_names=["a"], palette=[[0, 0, 0]]))
    with pytest.raises(ConfigError, match=r"'Deploy\.num_classes' is 1, and the model gives class "):
        predict.predict(noise(64, 128))


def test_softmax_declared_on_an_argmax_graph(segmentor, tmp_path):
    export(segmentor, tmp_path / "out", [1, 3, 32, 64], "argmax")
    options = {"output_op": "softmax", "num_classes": networks.CLASSES}
    with pytest.raises(ConfigError, match=r"'Deploy.programs.model' is .*classes int32.*means .*probabilities float32"):
        Predictor(change(tmp_path / "out", tmp_path / "x", options=options))
    first = first_layout(tmp_path / "out", tmp_path / "first")
    predict = Predictor(change(first, tmp_path / "y", output_op="softmax"))
    with pytest.raises(ValueError, match=r"has probabilities int32 \[1, 32, 64\], and deploy.yaml means probabilities"):
        predict.predict(noise(32, 64))


def test_an_input_of_another_name(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "x")
    described = Predictor(exported).description
    (name,) = described.model.values()
    text = (tmp_path / "x" / name).read_bytes()
    if name.endswith(".json"):
        (tmp_path / "x" / name).write_bytes(text.replace(b'"x"', b'"y"'))
        with pytest.raises(ValueError, match=r"takes y and gives 1 outputs, and deploy\.yaml means x float32"):
            Predictor(tmp_path / "x")


# --- choices ----------------------------------------------------------------------------------------


def change(folder: Path, target: Path, **values) -> Path:
    """A copy of an export with other values in deploy.yaml."""
    shutil.copytree(folder, target)
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
        if PADDLE_2 and expected == "reduced":  # its passes do not suit a network this small; an export's check tells
            with pytest.raises(ValueError, match="cannot load it"):
                Predictor(folder)
            continue
        predict = Predictor(folder)
        assert predict.runtime == names[expected]
        assert safe_onednn(predict.description) == expected
        assert agree(predict.predict(noise(64, 128)), plain)


def test_what_auto_chooses(exported, monkeypatch):
    described = Predictor(exported).description
    both = dataclasses.replace(described, onnx={"model": "model.onnx"})
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
    with pytest.raises(ValueError, match="expected one of auto, paddle, onnx, openvino, got 'tvm'"):
        choose_runtime(both, "tvm")


@pytest.mark.parametrize(("name", "size"), [("model.pdiparams", 0), ("model.pdiparams", 1000)])
def test_a_damaged_paddle_model(exported, tmp_path, name, size):
    folder = Path(shutil.copytree(exported, tmp_path / "x"))
    (folder / name).write_bytes((exported / name).read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\..*, model\.pdiparams: Paddle Inference cannot load it: "):
        Predictor(folder)


@needs_onnx
@pytest.mark.parametrize("size", [0, 1000])
def test_a_damaged_onnx_model(exported_onnx, tmp_path, size):
    folder = Path(shutil.copytree(exported_onnx, tmp_path / "x"))
    (folder / "model.onnx").write_bytes((exported_onnx / "model.onnx").read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.onnx: ONNX Runtime cannot load it: "):
        Predictor(folder)


def test_transforms_that_are_not_known_here(exported, tmp_path):
    folder = change(exported, tmp_path / "x", transforms=[{"type": "RandomBlur"}])
    with pytest.raises(ConfigError, match=r"deploy\.yaml: 'Deploy\.transforms\.0': nothing is called 'RandomBlur'"):
        Predictor(folder)


def test_a_class_map_of_many_classes_is_the_argmax():
    """The running maximum, with ties, against NumPy's."""
    scores = np.random.default_rng(0).integers(0, 4, (7, 9, 11)).astype(np.float32)
    np.testing.assert_array_equal(best(scores, []), scores.argmax(0))
    assert restore(scores[0], [("padding", (5, 6))], "LINEAR").shape == (5, 6)
