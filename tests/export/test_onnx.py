"""ONNX exports: equal to the trained model, portable, and the traps on the way there."""

from __future__ import annotations

import errno
import inspect
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from paddle_vheat._paddle import PADDLE_2, F, nn
from paddle_vheat.deploy import Predictor, runtimes
from paddle_vheat.deploy.description import Signature, Tensors
from paddle_vheat.engine.task import Program
from paddle_vheat.errors import ExportError
from paddle_vheat.export import export_model, onnx
from paddle_vheat.export.onnx import convert_to_onnx
from paddle_vheat.export.parity import ONEDNN, ONNX, OPENVINO, PADDLE, REDUCED
from paddle_vheat.export.program import replace_pooling, save_program
from paddle_vheat.ops import adaptive_average_pool
from tests.conftest import ONEDNN_HERE, needs_onnx, paddle, relative_error
from tests.export import networks
from tests.export.networks import classification, inputs, logits_of, noise, quiet
from tests.export.test_model import CLOSE, changed, export, paddlesegs_upernet, replaced, run


def read_graph(folder: Path):
    import onnx

    model = onnx.load(str(folder / "model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    return model


def sizes(value) -> list:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@needs_onnx
def test_dynamic_size(segmentor, tmp_path, picture):
    differences = export(segmentor, tmp_path / "out", None, "none", model_format="both", images=[picture])
    # Neither the sizes nor the batches that the export tried; the last map is 1 x 2 to 7 x 5, the bins up to 6.
    for size in ((1, 32, 64), (3, 33, 50), (1, 97, 32), (1, 200, 150)):
        output = run(tmp_path / "out", inputs(*size), ONNX)
        assert output.dtype == np.float32
        assert relative_error(output, logits_of(segmentor, inputs(*size))) < CLOSE
    pictures = Predictor(tmp_path / "out", "onnx")
    for height, width in ((35, 50), (64, 128)):
        image = noise(height, width)
        assert networks.agree(pictures.predict(image), networks.classes_of(segmentor, image))
    right = [PADDLE, ONEDNN if ONEDNN_HERE == "full" else REDUCED, ONNX]
    assert {d.runtime for d in differences if d.ok} - {OPENVINO} == set(right)
    for runtime in right:
        found = [d for d in differences if d.runtime == runtime]
        assert sorted(d.size for d in found) == [(64, 128), (97, 203), (128, 160)]
        assert all(d.ok for d in found)
    model = read_graph(tmp_path / "out")
    (x,), (output,) = model.graph.input, model.graph.output
    assert (x.name, sizes(x)) == ("x", ["batch", 3, "height", "width"])
    assert (output.name, sizes(output)) == ("logits", ["batch", 19, "height", "width"])
    assert sorted(os.listdir(tmp_path / "out")) == ["deploy.yaml", "model.json", "model.onnx", "model.pdiparams"]


@needs_onnx
def test_fixed_size(segmentor, tmp_path):
    differences = export(segmentor, tmp_path / "out", [-1, 3, 49, 80], model_format="onnx")
    assert {d.runtime for d in differences} - {OPENVINO} == {ONNX}
    assert sorted(os.listdir(tmp_path / "out")) == ["deploy.yaml", "model.onnx"]
    for batch in (1, 3):
        x = inputs(batch, 49, 80)
        output, logits = run(tmp_path / "out", x, ONNX), logits_of(segmentor, x)
        assert (output.dtype, output.shape) == (np.int32, (batch, 49, 80))
        chosen = np.take_along_axis(logits, output[:, None].astype(int), axis=1)[:, 0]
        assert (logits.max(axis=1) - chosen).max() <= CLOSE * np.abs(logits).max()
    model = read_graph(tmp_path / "out")
    (x,), (output,) = model.graph.input, model.graph.output
    assert (x.name, sizes(x)) == ("x", ["batch", 3, 49, 80])
    assert (output.name, sizes(output)) == ("classes", ["batch", 49, 80])
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    # Cosine bases, decay and pooling are constants; LayerNorm is one node; every node is of ONNX itself.
    kinds = Counter(node.op_type for node in model.graph.node)
    assert not {"Cos", "Exp", "Range", "Where", "Floor", "BatchNormalization", "AveragePool"} & set(kinds)
    assert kinds["LayerNormalization"] == 21
    assert {node.domain for node in model.graph.node} == {""}
    deploy = yaml.safe_load((tmp_path / "out" / "deploy.yaml").read_text(encoding="utf-8"))["Deploy"]
    assert (deploy["onnx"], deploy["opset"]) == ("model.onnx", 17)
    assert not {"model", "params", "onednn"} & set(deploy)
    assert set(deploy["checked_on"]) - {"openvino"} == {"paddle", "onnxruntime"}


@needs_onnx
def test_a_fixed_batch_leaves_no_sizes_to_compute(segmentor, tmp_path):
    export(segmentor, tmp_path / "out", [1, 3, 64, 96], "none", model_format="onnx")
    kinds = Counter(node.op_type for node in read_graph(tmp_path / "out").graph.node)
    assert not {"Shape", "Gather", "Unsqueeze", "Cast", "Constant", "Identity"} & set(kinds)
    assert sum(kinds.values()) < 260
    x = inputs(1, 64, 96)
    assert relative_error(run(tmp_path / "out", x, ONNX), logits_of(segmentor, x)) < CLOSE


@needs_onnx
@pytest.mark.parametrize("shape", [pytest.param([-1, 3, 40, 40], marks=pytest.mark.slow), None])
def test_classification(tmp_path, shape):
    network, x = networks.classifier(), inputs(2, 40, 40)
    spec, task, shape = classification(network, shape)
    export_model(spec, task, tmp_path / "out", shape, quiet, "both")
    expected = F.softmax(paddle.to_tensor(logits_of(network, x)), axis=1).numpy()
    for runtime in (PADDLE, ONNX):
        assert relative_error(run(tmp_path / "out", x, runtime), expected) < CLOSE
    output = read_graph(tmp_path / "out").graph.output[0]
    assert (output.name, sizes(output)) == ("probabilities", ["batch", 7])


@needs_onnx
def test_the_pooling_of_paddlesegs_heads(tmp_path):
    """Two by three positions, up to six bins: what paddle2onnx by itself converts to a graph that does not load."""
    network = paddlesegs_upernet()
    assert any(isinstance(layer, nn.AdaptiveAvgPool2D) for layer in network.sublayers())
    export(network, tmp_path / "out", [1, 3, 64, 96], "none", model_format="onnx")
    x = inputs(1, 64, 96)
    assert relative_error(run(tmp_path / "out", x, ONNX), logits_of(network, x)) < CLOSE
    assert any(isinstance(layer, nn.AdaptiveAvgPool2D) for layer in network.sublayers())  # the export's was a copy


def test_which_pooling_is_replaced():
    model = nn.Sequential(*(nn.AdaptiveAvgPool2D(size) for size in (3, (2, 2), [6, 6], (1, 3), (None, 2))))
    replace_pooling(model)
    kinds = [type(layer).__name__ for layer in model]
    assert kinds == ["_Pool", "_Pool", "_Pool", "AdaptiveAvgPool2D", "AdaptiveAvgPool2D"]
    assert [layer.bins for layer in list(model)[:3]] == [3, 2, 6]


# --- what must not be written -----------------------------------------------------------------------


@needs_onnx
def test_a_wrong_onnx_export_is_not_written(tmp_path, monkeypatch):
    replaced(monkeypatch, lambda name, load: changed(load(), lambda logits: logits * 1.01))
    said: list[str] = []
    with pytest.raises(ExportError, match=r"by ONNX Runtime differ from the trained model's; nothing was written"):
        export(networks.pixelwise(), tmp_path / "out", [1, 3, 32, 64], "none", model_format="onnx", say=said.append)
    assert os.listdir(tmp_path) == []
    assert any("ONNX Runtime" in line and "WRONG" in line for line in said)


@needs_onnx
def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(model, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(onnx.importlib.import_module("onnx"), "save", full)
    spec, task, shape = networks.toy(networks.Toy(), [1, 3, 32, 32])
    with pytest.raises(OSError, match=r"No space left on device: '.*features\.onnx'"):
        export_model(spec, task, tmp_path / "out", shape, quiet, "onnx")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("model_format", ["onnx", "both"])
def test_paddle_2_has_no_onnx(tmp_path, monkeypatch, model_format):
    monkeypatch.setattr(paddle, "__version__", "2.6.2")  # in `make test-matrix`, once, it is
    spec, task, shape = networks.toy(networks.Toy(), [1, 3, 32, 64])
    with pytest.raises(ExportError, match=r"--format onnx needs Paddle 3.*here is 2\.6\.2.*or use --format paddle$"):
        export_model(spec, task, tmp_path / "out", shape, quiet, model_format)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["paddle2onnx", "onnx", "onnxruntime"])
def test_a_package_that_is_missing(monkeypatch, name):
    monkeypatch.setattr(paddle, "__version__", "3.2.2")  # with Paddle 2, that comes first
    find = onnx.importlib.util.find_spec
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda n: None if n == name else find(n))
    with pytest.raises(ExportError, match=f"needs the package {name};"):
        onnx.onnx_libraries()


# --- traps of the converter and the runtimes --------------------------------------------------------


class Pooled(nn.Layer):
    """A convolution and a pooling to three by three bins."""

    def __init__(self, pool) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2D(3, 4, 1), pool

    def forward(self, x):
        return self.pool(self.conv(x), 3)


class Odd(nn.Layer):
    """Has an operator that ONNX lacks."""

    def forward(self, x):
        return paddle.lgamma(x)


class ProductOfConvolution(nn.Layer):
    """A matrix times the four axes of a convolution's output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2D(3, 4, 1)
        self.matrix = self.create_parameter([8, 8])

    def forward(self, x):
        return paddle.matmul(self.matrix, self.conv(x))


def signature(*size: int) -> Signature:
    axes = ("batch", "channels", "height", "width")
    return Signature((Tensors("x", (1, 3, *size), axes),), (Tensors("y", (1, None, None, None), axes),))


def save(layer, folder: Path, *size: int) -> tuple[Path, Path]:
    return save_program(Program(layer, *signature(*size)), folder)


def run_paddle(folder: Path, x: np.ndarray, onednn: str) -> np.ndarray:
    program = folder / ("model.pdmodel" if PADDLE_2 else "model.json")
    files, options = (program, folder / "model.pdiparams"), runtimes.Options(onednn=onednn)
    return runtimes.load_paddle(*files, signature(*x.shape[2:]), options)(x)["y"]


def convert(layer, folder: Path, *size: int):
    takes = signature(*size)
    convert_to_onnx(*save(layer, folder, *size), folder / "model.onnx", *takes)
    return runtimes.load_onnx(folder / "model.onnx", takes)


@needs_onnx
@pytest.mark.parametrize("pool", [F.adaptive_avg_pool2d, adaptive_average_pool])
def test_trap_adaptive_pooling(tmp_path, pool):
    """paddle2onnx converts Paddle's adaptive pooling wrongly where the bins do not divide the map; ours right."""
    layer = Pooled(pool)
    x = inputs(1, 7, 8)
    wrong = relative_error(convert(layer, tmp_path, 7, 8)(x)["y"], layer(paddle.to_tensor(x)).numpy())
    if pool is adaptive_average_pool:
        assert wrong < 1e-6
    else:
        assert wrong > 0.01, "paddle2onnx is fixed: ops/pool.py need not replace adaptive pooling in graphs"


@needs_onnx
def test_trap_more_bins_than_positions(tmp_path):
    """There paddle2onnx writes strides of 0: ONNX Runtime refuses it, ONNX' own checker ends the process."""
    with pytest.raises(ExportError, match="ONNX Runtime does not load"):
        convert(Pooled(F.adaptive_avg_pool2d), tmp_path, 2, 2)
    onnx._convert(*save(Pooled(F.adaptive_avg_pool2d), tmp_path, 2, 2), tmp_path / "x.onnx")
    check = "import onnx, sys; onnx.checker.check_model(onnx.load(sys.argv[1]), full_check=True)"
    finished = subprocess.run([sys.executable, "-c", check, str(tmp_path / "x.onnx")], capture_output=True, check=False)
    assert finished.returncode == -signal.SIGFPE, "ONNX is fixed: the checker may come first in export/onnx.py"


@needs_onnx
def test_trap_a_converter_that_installs_packages():
    import paddle2onnx

    default = inspect.signature(paddle2onnx.export).parameters["optimize_tool"].default
    assert default == "polygraphy", "paddle2onnx no longer runs pip by default: optimize_tool need not be given"


@needs_onnx
def test_what_the_converter_says_is_told(tmp_path):
    with pytest.raises(ExportError, match=r"(?s)paddle2onnx cannot convert this model: .*unsupported operators"):
        convert(Odd(), tmp_path, 7, 8)


def test_trap_onednn_and_a_product_of_a_convolution(tmp_path):
    """Silently wrong on 2.6.2, 3.2.2 and 3.3.1; why pooling and DCT keep such products out of the graph."""
    layer, x = ProductOfConvolution(), inputs(1, 8, 8)
    save(layer, tmp_path, 8, 8)
    expected = layer(paddle.to_tensor(x)).numpy()
    assert relative_error(run_paddle(tmp_path, x, "off"), expected) < 1e-6
    wrong = relative_error(run_paddle(tmp_path, x, "full"), expected)
    assert wrong > 0.01, "oneDNN is fixed: a product with the four axes of a convolution's output is right"
    assert relative_error(run_paddle(tmp_path, x, "reduced"), expected) < 1e-6

    x, ours = inputs(1, 7, 8), Pooled(adaptive_average_pool)
    save(ours, tmp_path, 7, 8)
    assert relative_error(run_paddle(tmp_path, x, "full"), ours(paddle.to_tensor(x)).numpy()) < 1e-5
