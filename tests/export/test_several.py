"""Several outputs of different dtypes, and several programs with NumPy in between: parity for each output."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
import yaml

from paddle_vheat._paddle import nn
from paddle_vheat.deploy import Predictor
from paddle_vheat.deploy.description import Signature, Tensors
from paddle_vheat.engine.task import Program
from paddle_vheat.errors import ExportError
from paddle_vheat.export import export_model
from paddle_vheat.export.parity import ONNX, PADDLE
from paddle_vheat.export.program import save_program
from tests.conftest import needs_onnx, paddle, relative_error
from tests.export import networks
from tests.export.networks import Toy, noise, quiet, toy


@needs_onnx
@pytest.mark.parametrize("shape", [None, [2, 3, 32, 48]])
def test_every_output_in_every_runtime(tmp_path, shape):
    network = Toy()
    spec, task, shape = toy(network, shape, images=[noise(30, 50)])
    said = []
    differences = export_model(spec, task, tmp_path / "out", shape, said.append, "both")
    files = ["deploy.yaml", "features.onnx", "heads.onnx", "model.json", "model.pdiparams"]
    assert sorted(os.listdir(tmp_path / "out")) == files
    for runtime in (PADDLE, ONNX):
        found = [(d.output, d.size, d.tolerance) for d in differences if d.runtime == runtime and d.ok]
        sizes = [(128, 160), (97, 203), (30, 50)] if shape[2] is None else [(32, 48), (32, 48)]
        assert found == [(*one, t) for size in sizes for one, t in ((("labels", size), 1e-3), (("scores", size), 1e-5))]
    assert said[1:3] == ["  labels: the share of other labels", "  scores: any value, relative to the largest"]
    deploy = yaml.safe_load((tmp_path / "out" / "deploy.yaml").read_text(encoding="utf-8"))["Deploy"]
    assert (deploy["model"], deploy["onnx"]) == ("model.json", {"features": "features.onnx", "heads": "heads.onnx"})
    assert list(deploy["programs"]) == ["model", "features", "heads"]
    # Three images, where the size is fixed by a model that takes two at a time.
    images = [noise(32, 48, seed=i) for i in range(3)]
    x = np.float32(0.01) * np.stack(images).transpose(0, 3, 1, 2).astype(np.float32)
    labels, scores = (value.numpy() for value in network(paddle.to_tensor(x)))
    assert len(np.unique(labels)) > 2
    for runtime in ("paddle", "onnx"):
        found = Predictor(tmp_path / "out", runtime, threads=1).predict(images)
        assert all(one[0].dtype == np.int32 for one in found)
        assert (np.stack([one[0] for one in found]) != labels).mean() < 1e-3
        assert relative_error(np.stack([one[1] for one in found]), scores) < 1e-5


class Shifted(nn.Layer):
    """The right outputs but for one."""

    def __init__(self, network: Toy, wrong: str) -> None:
        super().__init__()
        self.network, self.wrong = network, wrong

    def forward(self, x):
        labels, scores = self.network(x)
        return (labels + 1, scores) if self.wrong == "labels" else (labels, scores * 1.01)


@pytest.mark.parametrize("wrong", ["labels", "scores"])
def test_one_wrong_output_is_found(tmp_path, wrong):
    spec, task, shape = toy(Toy(), [1, 3, 32, 32])
    takes = networks.toy_programs(shape)["model"]
    spoilt = dataclasses.replace(spec, programs=lambda _: {"model": Program(Shifted(spec.model, wrong), *takes)})
    said: list[str] = []
    with pytest.raises(ExportError, match=rf"^{wrong} by Paddle Inference differ from .*; nothing was written$"):
        export_model(spoilt, task, tmp_path / "out", shape, said.append)
    assert os.listdir(tmp_path) == []
    right = {"labels": "scores", "scores": "labels"}[wrong]
    verdicts = {
        name: [line for line in said if f" {name} " in line and "Inference " in line] for name in (right, wrong)
    }
    assert all("WRONG" in line for line in verdicts[wrong])
    assert all(line.endswith("ok") for line in verdicts[right])


@needs_onnx
def test_a_wrong_program_of_two_is_found(tmp_path):
    spec, task, shape = toy(Toy(), [1, 3, 32, 32])
    other = toy(Toy(), [1, 3, 32, 32])[0]

    def mixed(model_format):
        return {**spec.programs("onnx"), "heads": other.programs("onnx")["heads"]}

    with pytest.raises(ExportError, match=r"^scores by ONNX Runtime differ"):  # the labels come of the other program
        export_model(dataclasses.replace(spec, programs=mixed), task, tmp_path / "out", shape, quiet, "onnx")
    assert os.listdir(tmp_path) == []


def test_an_output_without_a_check(tmp_path):
    spec, task, shape = toy(Toy(), [1, 3, 32, 32])
    spec = dataclasses.replace(spec, checks={"labels": spec.checks["labels"]})
    with pytest.raises(ExportError, match="the export gives labels, scores, and the task has checks for labels"):
        export_model(spec, task, tmp_path / "out", shape, quiet)
    assert os.listdir(tmp_path) == []


def test_programs_that_are_not_what_they_are_declared_to_be(tmp_path):
    spec, task, shape = toy(Toy(), [1, 3, 32, 32])
    takes = networks.toy_programs(shape)["model"]
    turned = Signature(takes.inputs, (takes.outputs[1], takes.outputs[0]))  # scores first
    spec = dataclasses.replace(spec, programs=lambda _: {"model": Program(spec.model, *turned)})
    with pytest.raises(
        ValueError, match=r"'Deploy\.programs\.model' is 'x .* -> scores .*labels.*means x .* -> labels"
    ):
        export_model(spec, task, tmp_path / "out", shape, quiet)
    assert os.listdir(tmp_path) == []


@needs_onnx
def test_one_name_for_two_programs(tmp_path):
    spec, task, shape = toy(Toy(), [1, 3, 32, 32])

    def programs(model_format):
        return {"model": Program(Toy(), *networks.toy_programs(shape)["model"])}  # another layer each time

    with pytest.raises(ValueError, match="the program 'model' is not the same for Paddle and ONNX"):
        export_model(dataclasses.replace(spec, programs=programs), task, tmp_path / "out", shape, quiet, "both")
    assert os.listdir(tmp_path) == []


class Many(nn.Layer):
    """Twelve outputs, of which the tenth is x + 10: in the order of their names as texts, it would come second."""

    def forward(self, x, y):
        return tuple(x + i * y for i in range(12))


@needs_onnx
def test_the_order_of_many_inputs_and_outputs(tmp_path):
    from paddle_vheat.deploy import runtimes
    from paddle_vheat.export.onnx import convert_to_onnx

    takes = Signature(
        (Tensors("z", (2,), ("a",)), Tensors("b", (2,), ("a",))),
        tuple(Tensors(f"out{i}", (2,), ("a",)) for i in range(12)),
    )
    files = save_program(Program(Many(), *takes), tmp_path)
    convert_to_onnx(*files, tmp_path / "model.onnx", *takes)
    x, y = np.array([0.5, 0.25], np.float32), np.array([1, 2], np.float32)
    for run in (runtimes.load_paddle(*files, takes), runtimes.load_onnx(tmp_path / "model.onnx", takes)):
        found = run(x, y)
        for i in range(12):
            np.testing.assert_allclose(found[f"out{i}"], x + i * y, rtol=1e-6)
