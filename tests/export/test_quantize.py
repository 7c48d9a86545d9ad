"""`--quantize int8`: what becomes int8, what stays in float, how close it is, and that it must be asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from paddle_vheat import cli
from paddle_vheat.config import load_config
from paddle_vheat.deploy import Predictor
from paddle_vheat.engine.task import Metric, Scores
from paddle_vheat.errors import ExportError, UserError
from paddle_vheat.export import Quantization, export_model, quantize
from paddle_vheat.tasks.classification.task import ClassificationTask
from paddle_vheat.weights.loading import save_weights
from tests.conftest import needs_onnx, paddle, relative_error
from tests.engine import tiny
from tests.engine.test_cli import one_error
from tests.export import networks

pytestmark = needs_onnx

DIGITS = str(tiny.REPOSITORY / "configs" / "demo_digits.yml")
SMALL = ["Arch.embed_dim=8", "Arch.depths=[1,1,1,1]"]
BUDGET = 0.05
"""Of the largest logit. Rounding to 255 steps of a range is off by 0.1 to 0.4 % of its largest value, weights by
channel less; some 25 such products on the way, independent of each other, add up to five times that: 2 %, doubled."""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A checkpoint of a small classifier of digits, with a head that tells them apart somehow."""
    folder = tmp_path_factory.mktemp("quantized")
    paddle.seed(0)
    model = ClassificationTask(load_config(DIGITS, SMALL), DIGITS).build_model()
    model.head.weight.set_value(3 * paddle.randn(model.head.weight.shape))
    save_weights(model, folder / "model.pdparams")
    return folder


def export(project: Path, name: str, *options: Any) -> int:
    words = ["--config", DIGITS, "--model_path", project / "model.pdparams", "--save_dir", project / name]
    return cli.export([*map(str, [*words, "--device", "cpu", *options, "--opts", *SMALL])])


@pytest.fixture(scope="module")
def fixed(project, tmp_path_factory) -> tuple[Path, str]:
    """An export of 32 x 32 with its int8 form, and what was printed."""
    import contextlib
    import io

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        options = "--format", "onnx", "--input_shape", -1, 3, 32, 32, "--output_op", "none"
        assert export(project, "fixed", *options, "--quantize", "int8", "--calibration_images", 20) == 0
    return project / "fixed", said.getvalue()


def graph(path: Path) -> Any:
    import onnx

    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}  # other programs run it too
    return model.graph


def constants(graph: Any) -> dict[str, np.ndarray]:
    from onnx import numpy_helper

    return {value.name: numpy_helper.to_array(value) for value in graph.initializer}


def is_transform(matrix: np.ndarray) -> bool:
    """Whether it is a cosine transform: orthogonal, which no weights are by chance."""
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    return square and np.allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-4)


def test_what_is_in_int8(fixed):
    folder, _ = fixed
    assert sorted(path.name for path in folder.iterdir()) == ["deploy.yaml", "model.int8.onnx", "model.onnx"]
    before, after = graph(folder / "model.onnx"), graph(folder / "model.int8.onnx")
    values, made_by = constants(after), {name: node for node in after.node for name in node.output}

    def from_int8(name: str) -> bool:
        return name in made_by and made_by[name].op_type == "DequantizeLinear"

    transforms = dense = 0
    for node in after.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        if node.op_type != "Conv" and not any(map(from_int8, node.input)):
            # Of a map of one pixel, the matrix of the inverse is no constant of its own.
            assert all(is_transform(values[name]) for name in node.input if name in values), node.name
            transforms += 1
        elif node.op_type == "Conv" and node.input[1] in values:
            assert values[node.input[1]].shape[1] == 1, "a convolution in float that is not depthwise"
        else:
            weight = made_by[node.input[1]]
            assert from_int8(node.input[0])
            assert values[weight.input[0]].dtype == np.int8
            assert values[weight.input[1]].size > 1  # a scale for each channel
            dense += 1
    # Each of four blocks has two transforms to the frequencies and two back, and four linear layers beside to_k, which
    # is part of the folded decay. The others: the head, two convolutions of the stem and three between the stages.
    assert (transforms, dense) == (4 * 4, 4 * 4 + 1 + 2 + 3)
    assert sum(is_transform(value) for value in constants(before).values()) > 0


def test_it_is_close_and_never_chosen(fixed):
    folder, _ = fixed
    images = [np.asarray(i)[..., ::-1] for i in tiny_digits(16)]
    plain = Predictor(folder)
    assert plain.runtime == "ONNX Runtime"
    quantised = Predictor(folder, precision="int8")
    assert quantised.runtime == "ONNX Runtime int8"
    expected = np.stack([output["logits"] for output in plain.outputs(images)])
    found = np.stack([output["logits"] for output in quantised.outputs(images)])
    assert 0 < relative_error(found, expected) < BUDGET
    if "openvino" in plain.description.checked_on:
        other = Predictor(folder, "openvino", precision="int8")
        found = np.stack([output["logits"] for output in other.outputs(images)])
        assert relative_error(found, expected) < BUDGET


def tiny_digits(count: int) -> list[Any]:
    dataset = ClassificationTask(load_config(DIGITS, SMALL), DIGITS).dataset("val")
    return [dataset.image(index) for index in range(count)]


def test_accuracy_and_speed_are_said_together(fixed, tmp_path):
    folder, said = fixed
    lines = said[said.index("int8: 22 products, calibrated on 20 validation images (seed 0)") :].splitlines()
    assert lines[1].split() == ["fp32", "int8"]
    rows = {line.split()[0]: line for line in lines[2:]}
    assert "on 340 validation images" in rows["top1"]
    assert rows["logits"].startswith("  logits off by")
    assert "ms" in rows["ONNX"]
    # The same by val.py, which scores all images.
    words = ["--config", DIGITS, "--exported", str(folder), "--device", "cpu", "--opts", *SMALL]
    found = {}
    for precision in ("fp32", "int8"):
        options = ["--json", str(tmp_path / "scores.json"), "--runtime", "onnx", "--precision", precision]
        assert cli.val([*words[:-3], *options, *words[-3:]]) == 0
        found[precision] = json.loads((tmp_path / "scores.json").read_text())
    assert found["int8"]["images"] == found["fp32"]["images"] == 360
    assert found["int8"]["loss"] == pytest.approx(found["fp32"]["loss"], rel=BUDGET)
    assert found["int8"]["loss"] != found["fp32"]["loss"]


def test_to_k_stays_in_float():
    """Where the size is free, the decay is computed in the graph, from a product with learned weights."""
    model = networks.classifier()
    left_out = {parameter.name for parameter in model.parameters()} - quantize.learned_weights(model)
    names = [name for name, parameter in model.named_parameters() if parameter.name in left_out]
    assert len(names) == 4 * 2  # a weight and a bias in each block
    assert all(name.endswith(("to_k.weight", "to_k.bias")) for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quantize", "int4"], "invalid choice: 'int4' (choose from "),
        (["--quantize", "int8"], "--quantize int8 is of the ONNX model: expected --format onnx or both, got 'paddle'"),
        (["--calibration_images", 3], "--calibration_images 3: expected at least 1, and --quantize int8 with it"),
        (["--quantize", "int8", "--calibration_images", 0], "--calibration_images 0: expected at least 1"),
    ],
)
def test_mistakes(project, capsys, options, message):
    try:
        code = export(project, "wrong", *options)
    except SystemExit as stop:
        code = stop.code
    assert message in one_error(code, capsys.readouterr().err)
    assert not (project / "wrong").exists()


def test_asking_for_what_is_not_there(fixed, tmp_path):
    folder, _ = fixed
    with pytest.raises(
        UserError, match="precision 'int8': expected runtime='onnx' or 'openvino' with it, got 'paddle'"
    ):
        Predictor(both := with_paddle(folder, tmp_path / "both"), "paddle", precision="int8")
    with pytest.raises(UserError, match="precision 'bf16': expected runtime='openvino' with it, got 'auto'"):
        Predictor(both, precision="bf16")
    with pytest.raises(UserError, match="precision 'int8' is for the CPU; for device 'gpu' give 'fp16' or 'fp32'"):
        Predictor(both, precision="int8", device="gpu")
    deploy = yaml.safe_load((folder / "deploy.yaml").read_text(encoding="utf-8"))
    deploy["Deploy"]["int8"] = {"other": "model.int8.onnx"}
    (both / "deploy.yaml").write_text(yaml.safe_dump(deploy), encoding="utf-8")
    with pytest.raises(ValueError, match=r"'Deploy\.int8' must have a file for each program of 'Deploy\.onnx'"):
        Predictor(both)


def with_paddle(folder: Path, copied: Path) -> Path:
    """The export as if it had been made for both formats; the files of the other are not read here."""
    shutil.copytree(folder, copied)
    deploy = yaml.safe_load((copied / "deploy.yaml").read_text(encoding="utf-8"))
    deploy["Deploy"].update(model="model.json", params="model.pdiparams")
    (copied / "deploy.yaml").write_text(yaml.safe_dump(deploy), encoding="utf-8")
    for name in ("model.json", "model.pdiparams"):
        (copied / name).touch()
    return copied


def test_a_package_that_is_missing(monkeypatch):
    def refuse(name: str) -> Any:
        raise ImportError("No module named 'ml_dtypes'")

    quantize.onnx_libraries()
    monkeypatch.setattr(quantize, "onnx_libraries", lambda: None)
    monkeypatch.setattr(quantize.importlib, "import_module", refuse)
    with pytest.raises(ExportError, match=r"does not load \(No module named 'ml_dtypes'\); requirements\.txt has"):
        quantize.quantizer()


# --- a task of several programs -----------------------------------------------------------------------


class ToyTask:
    """Two programs with NumPy between them; the score is the mean of all scores."""

    name, source, metric = "toy_network", "toy.yml", Metric("mean")

    def dataset(self, split: str) -> list[dict[str, Any]]:
        return [{"image": networks.noise(32, 32, seed=i)} for i in range(6)]

    def eval_batches(self, dataset: Any, indices: Any) -> list[list[int]]:
        return [list(indices[i : i + 2]) for i in range(0, len(indices), 2)]

    def collate(self, samples: Any) -> Any:
        return {"image": np.stack([s["image"] for s in samples]), "meta": [s["meta"] for s in samples]}

    def infer_exported(self, predictor: Any, batch: Any) -> list[np.ndarray]:
        return [output["scores"] for output in predictor.outputs(list(batch["image"].numpy()))]

    def evaluator(self) -> Any:
        found: list[np.ndarray] = []
        scores = lambda: Scores({"mean": float(np.mean(found))}, "", {}, len(found))  # noqa: E731
        return SimpleNamespace(update=lambda outputs, batch: found.extend(outputs), summarize=scores)


def test_several_programs(tmp_path):
    spec, task, shape = networks.toy(networks.Toy(), [2, 3, 32, 32])
    said: list[str] = []
    quantization = Quantization(ToyTask(), images=3)  # type: ignore[arg-type]
    export_model(spec, task, tmp_path / "out", shape, said.append, "onnx", quantization)
    deploy = yaml.safe_load((tmp_path / "out" / "deploy.yaml").read_text(encoding="utf-8"))["Deploy"]
    assert deploy["int8"] == {"features": "features.int8.onnx", "heads": "heads.int8.onnx"}
    assert any("int8: 2 products, calibrated on 3 validation images" in line for line in said)
    image = networks.noise(32, 32, seed=9)
    (_, expected), (_, found) = (
        Predictor(tmp_path / "out", "onnx", precision=p).predict(image) for p in ("fp32", "int8")
    )
    assert 0 < relative_error(found, expected) < BUDGET
    # An earlier export is replaced, its int8 files too.
    export_model(spec, task, tmp_path / "out", shape, networks.quiet, "onnx")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["deploy.yaml", "features.onnx", "heads.onnx"]
