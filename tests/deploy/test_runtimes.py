"""Options of the runtimes. GPUs are not run: a stub records what the libraries are asked for."""

from __future__ import annotations

import contextlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_vheat.deploy import runtimes
from paddle_vheat.deploy.description import Signature, Tensors
from paddle_vheat.deploy.runtimes import Options, load_onnx, load_paddle, onnx_providers
from tests.conftest import paddle

FILES = Path("model.pdmodel"), Path("model.pdiparams")
TAKES = Signature((Tensors("x", (None,), ("a",)),), (Tensors("y", (None,), ("a",)),))


@pytest.mark.parametrize(("device", "index"), [("cpu", None), ("gpu", 0), ("gpu:0", 0), ("gpu:12", 12)])
def test_devices(device, index):
    assert Options(device=device).gpu == index


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "device: expected 'cpu', 'gpu' or 'gpu:1', got 'cuda'"),
        ({"device": "gpu:"}, "device: expected"),
        ({"precision": "int4"}, "precision: expected one of fp32, fp16, bf16, int8, got 'int4'"),
        ({"precision": "int8", "device": "gpu"}, "'int8' is for the CPU; for device 'gpu' give 'fp16' or 'fp32'"),
        ({"precision": "fp16"}, "are for GPUs; give device='gpu' as well"),
        ({"tensorrt": True}, "are for GPUs"),
        ({"tensorrt": {}}, "are for GPUs"),
        ({"tensorrt": "yes", "device": "gpu"}, "tensorrt: expected True, False or a dict of options, got 'yes'"),
        ({"threads": 0}, "threads must be an integer of at least 1 and at most"),
        ({"threads": True}, "threads must be"),
        ({"threads": 1.5}, "threads must be"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)


class Recorder:
    """Stands for ``paddle.inference`` and writes down every call of its configuration."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.PrecisionType = paddle.inference.PrecisionType
        self.known = dir(paddle.inference.Config)

    def Config(self, *files: str) -> Any:
        self.calls.append(("Config", *files))
        return self

    def create_predictor(self, config: Any) -> Any:
        handle = types.SimpleNamespace()
        return types.SimpleNamespace(
            get_input_names=lambda: ["x"],
            get_output_names=lambda: ["y"],
            get_input_handle=lambda name: handle,
            get_output_handle=lambda name: handle,
        )

    def __getattr__(self, name: str) -> Any:
        if name not in self.known:
            raise AttributeError(name)  # a call that the installed Paddle does not have
        return lambda *args, **options: self.calls.append((name, *args, *options.items()))


@pytest.fixture
def recorded(monkeypatch) -> list[tuple[Any, ...]]:
    recorder = Recorder()
    monkeypatch.setattr(paddle, "inference", recorder)
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    return recorder.calls


REDUCED_CALLS = [
    ("enable_mkldnn",),
    ("delete_pass", "onednn_placement_pass"),
    ("delete_pass", "operator_reshape_onednn_fuse_pass"),
    ("delete_pass", "mkldnn_placement_pass"),
]


@pytest.mark.parametrize(
    ("onednn", "calls"),
    [("off", [("disable_mkldnn",)]), ("reduced", REDUCED_CALLS), ("full", [("enable_mkldnn",)])],
)
def test_paddle_on_a_cpu(recorded, onednn, calls):
    load_paddle(*FILES, TAKES, Options(onednn=onednn, threads=3))
    assert recorded == [
        ("Config", "model.pdmodel", "model.pdiparams"),
        ("disable_glog_info",),
        ("disable_gpu",),
        ("set_cpu_math_library_num_threads", 3),
        *calls,
    ]


def test_paddle_takes_all_cores(recorded, monkeypatch):
    monkeypatch.setattr(runtimes, "count_cores", lambda: 7)
    load_paddle(*FILES, TAKES)
    assert ("set_cpu_math_library_num_threads", 7) in recorded


def test_paddle_on_a_gpu(recorded):
    kinds = paddle.inference.PrecisionType
    load_paddle(*FILES, TAKES, Options(device="gpu:1"))
    assert recorded[1:] == [("disable_glog_info",), ("enable_use_gpu", 500, 1, kinds.Float32)]
    recorded.clear()
    load_paddle(*FILES, TAKES, Options(device="gpu", precision="fp16", tensorrt={"max_batch_size": 4}))
    assert recorded[2:] == [
        ("enable_use_gpu", 500, 0, kinds.Half),
        (
            "enable_tensorrt_engine",
            ("precision_mode", kinds.Half),
            ("use_calib_mode", False),
            ("max_batch_size", 4),
        ),
    ]


def test_the_real_config_takes_these_arguments():
    """The names of the arguments, by the library's own parser; nothing is run."""
    config = paddle.inference.Config()
    kinds = paddle.inference.PrecisionType
    options = {"precision_mode": kinds.Half, "use_calib_mode": False, "max_batch_size": 4}
    with contextlib.suppress(RuntimeError):  # a Paddle that is built without GPU or TensorRT says so, after the parser
        config.enable_tensorrt_engine(**options)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        config.enable_tensorrt_engine(precision="fp16")


def test_what_paddle_cannot_do(recorded, monkeypatch):
    with pytest.raises(ValueError, match=r"takes exports of Paddle 2 .*for model\.json use runtime='onnx'"):
        load_paddle(Path("model.json"), FILES[1], TAKES, Options(device="gpu", tensorrt=True))
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: False)
    with pytest.raises(ValueError, match="built without CUDA; install paddlepaddle-gpu"):
        load_paddle(*FILES, TAKES, Options(device="gpu"))
    assert recorded == []


def test_providers_of_onnx_runtime():
    cpu = "CPUExecutionProvider"
    assert onnx_providers(Options(None, "cpu", "fp32", False)) == [cpu]
    cuda = ("CUDAExecutionProvider", {"device_id": 2})
    assert onnx_providers(Options(None, "gpu:2", "fp32", False)) == [cuda, cpu]
    trt = {"device_id": 2, "trt_fp16_enable": True, "trt_engine_cache_enable": True}
    found = onnx_providers(Options(None, "gpu:2", "fp16", {"trt_engine_cache_enable": True}))
    assert found == [("TensorrtExecutionProvider", trt), cuda, cpu]
    with pytest.raises(ValueError, match="with tensorrt=True only"):
        onnx_providers(Options(None, "gpu", "fp16", False))


class Session:
    """Stands for ``onnxruntime.InferenceSession``."""

    def __init__(self, model: str, options: Any, providers: list[Any]) -> None:
        self.model, self.options, self.providers = model, options, providers
        Session.last = self

    last: Any = None

    def get_inputs(self) -> list[Any]:
        return [types.SimpleNamespace(name="x", type="tensor(float)", shape=["N"])]

    def get_outputs(self) -> list[Any]:
        return [types.SimpleNamespace(name="y", type="tensor(float)", shape=["N"])]

    def run(self, names: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [feed["x"] + 1]


def test_onnx_runtime_is_asked_for_a_gpu(monkeypatch):
    stub = types.ModuleType("onnxruntime")
    stub.SessionOptions = types.SimpleNamespace  # type: ignore[attr-defined]
    stub.InferenceSession = Session  # type: ignore[attr-defined]
    stub.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", stub)
    run = load_onnx(Path("model.onnx"), TAKES, Options(threads=3, device="gpu:1"))
    assert Session.last.providers == [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"]
    assert Session.last.options.intra_op_num_threads == 3
    assert run(np.zeros(2))["y"].tolist() == [1, 1]
    # Without the provider, ONNX Runtime itself would use the CPU with no more than a warning.
    with pytest.raises(ValueError, match=r"has no TensorrtExecutionProvider \(it has CUDA.*install onnxruntime-gpu"):
        load_onnx(Path("model.onnx"), TAKES, Options(device="gpu", tensorrt=True))


def test_onnx_runtime_without_a_gpu():
    import onnxruntime

    assert "CUDAExecutionProvider" not in onnxruntime.get_available_providers()
    with pytest.raises(ValueError, match="has no CUDAExecutionProvider"):
        load_onnx(Path("model.onnx"), TAKES, Options(device="gpu"))
