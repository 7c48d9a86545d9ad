"""Paddle Inference and ONNX Runtime behind one face: a function from an array to an array.

The options for GPUs and TensorRT are written from the libraries' documentation and were not run by us.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat.cpu import count_cores

Run = Callable[[np.ndarray], np.ndarray]

PRECISIONS = ("fp32", "fp16")
# How much of oneDNN, and what Paddle Inference is called with it.
ONEDNN_NAMES = {
    "off": "Paddle Inference",
    "reduced": "Paddle Inference oneDNN reduced",
    "full": "Paddle Inference oneDNN",
}
# Left out of the reduced oneDNN: what hands it single operators, among them interpolation, which crashes on Paddle 3.3,
# and products that are silently wrong, and what merges reshapes into them. Fused convolutions and products remain.
# Each Paddle ignores the name that it does not know: the last one is what 2.6 calls the first.
ONEDNN_LEFT_OUT = ("onednn_placement_pass", "operator_reshape_onednn_fuse_pass", "mkldnn_placement_pass")
GPU_MEMORY_MB = 500  # Paddle's first allocation; it grows
ONNX_ERRORS_ONLY = 3


def parse_device(device: str) -> int | None:
    """Index of a GPU ("gpu" is "gpu:0"); None for "cpu"."""
    match = re.fullmatch(r"cpu|gpu(?::(\d+))?", device)
    if match is None:
        raise ValueError(f"device: expected 'cpu', 'gpu' or 'gpu:1', got {device!r}")
    return None if device == "cpu" else int(match[1] or 0)


def check_options(device: str, precision: str, tensorrt: bool | dict[str, Any], threads: int | None) -> None:
    """Raise a ValueError for options that cannot be, before anything is loaded."""
    gpu = parse_device(device)
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    if not isinstance(tensorrt, (bool, dict)):
        raise ValueError(f"tensorrt: expected True, False or a dict of options, got {tensorrt!r}")
    wants_tensorrt = tensorrt is not False
    if gpu is None and (wants_tensorrt or precision != "fp32"):
        raise ValueError("tensorrt and precision are for GPUs; give device='gpu' as well")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ValueError(f"threads: expected a positive whole number, got {threads!r}")


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def paddle_version() -> str:
    from paddle_vheat._paddle import paddle

    return str(paddle.__version__)


def _summary(error: Exception) -> str:
    """The line of a native library's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Error" not in line and not line.startswith(("-", "["))]
    return (telling or lines or [type(error).__name__])[0][:300]


def load_paddle(
    model: Path,
    params: Path,
    *,
    onednn: str = "off",
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    tensorrt: bool | dict[str, Any] = False,
) -> Run:
    """A Paddle export, run by Paddle Inference.

    Args:
        model, params: ``model.json`` (``model.pdmodel`` of Paddle 2) and ``model.pdiparams``.
        onednn: "full", which is wrong or crashes for some graphs on some versions of Paddle, "reduced", which is slower
            and right for more of them, or "off".
        threads: of the CPU; default all cores.
        device: "cpu", "gpu" or "gpu:1".
        precision: "fp32" or, on a GPU, "fp16".
        tensorrt: True, or arguments of ``Config.enable_tensorrt_engine``.
    """
    from paddle_vheat._paddle import paddle

    check_options(device, precision, tensorrt, threads)
    if onednn not in ONEDNN_NAMES:
        raise ValueError(f"onednn: expected one of {', '.join(ONEDNN_NAMES)}, got {onednn!r}")
    gpu = parse_device(device)
    if tensorrt is not False and model.suffix == ".json":
        raise ValueError(
            "tensorrt: Paddle's enable_tensorrt_engine takes exports of Paddle 2 (.pdmodel); "
            f"for {model.name} use runtime='onnx', or convert it with paddle.tensorrt yourself"
        )
    if gpu is not None and not paddle.is_compiled_with_cuda():
        raise ValueError(f"device {device!r}: this Paddle is built without CUDA; install paddlepaddle-gpu")
    inference = paddle.inference
    config = inference.Config(str(model), str(params))
    config.disable_glog_info()
    if gpu is None:
        config.disable_gpu()
        config.set_cpu_math_library_num_threads(threads or count_cores())
        # On a CPU it is on unless it is switched off.
        config.disable_mkldnn() if onednn == "off" else config.enable_mkldnn()
        for name in ONEDNN_LEFT_OUT if onednn == "reduced" else ():
            config.delete_pass(name)
    else:
        half = inference.PrecisionType.Half if precision == "fp16" else inference.PrecisionType.Float32
        config.enable_use_gpu(GPU_MEMORY_MB, gpu, half)
        if tensorrt is not False:
            options = tensorrt if isinstance(tensorrt, dict) else {}
            config.enable_tensorrt_engine(**{"precision_mode": half, "use_calib_mode": False, **options})
    try:
        predictor = inference.create_predictor(config)
    except (RuntimeError, ValueError, OSError, SystemError) as error:
        raise ValueError(f"{model}, {params.name}: Paddle Inference cannot load it: {_summary(error)}") from error
    source = predictor.get_input_handle(predictor.get_input_names()[0])
    result = predictor.get_output_handle(predictor.get_output_names()[0])

    def run(array: np.ndarray) -> np.ndarray:
        source.reshape(array.shape)
        source.copy_from_cpu(np.ascontiguousarray(array))
        predictor.run()
        return result.copy_to_cpu()

    return run


def onnx_providers(device: str, precision: str, tensorrt: bool | dict[str, Any]) -> list[Any]:
    """ONNX Runtime's execution providers for these options, the preferred one first."""
    gpu = parse_device(device)
    if gpu is None:
        return ["CPUExecutionProvider"]
    cuda = ("CUDAExecutionProvider", {"device_id": gpu})
    if tensorrt is False:
        if precision == "fp16":
            raise ValueError("precision 'fp16': ONNX Runtime has it for an export in fp32 with tensorrt=True only")
        return [cuda, "CPUExecutionProvider"]
    options = {"device_id": gpu, "trt_fp16_enable": precision == "fp16"}
    options.update(tensorrt if isinstance(tensorrt, dict) else {})
    return [("TensorrtExecutionProvider", options), cuda, "CPUExecutionProvider"]


def onnx_sees_gpu() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def load_onnx(
    model: Path,
    *,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    tensorrt: bool | dict[str, Any] = False,
) -> Run:
    """An ONNX export, run by ONNX Runtime; arguments as of :func:`load_paddle`.

    ``tensorrt`` may be a dict of options of the TensorrtExecutionProvider.
    """
    import onnxruntime

    check_options(device, precision, tensorrt, threads)
    providers = onnx_providers(device, precision, tensorrt)
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    available = onnxruntime.get_available_providers()
    if wanted not in available:  # ONNX Runtime itself would only warn, and use the CPU
        raise ValueError(
            f"device {device!r}: this ONNX Runtime has no {wanted} (it has {', '.join(available)}); "
            "install onnxruntime-gpu"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ONNX_ERRORS_ONLY
    options.intra_op_num_threads = threads or count_cores()
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=providers)
    except Exception as error:  # its exceptions have no common base but this
        raise ValueError(f"{model}: ONNX Runtime cannot load it: {_summary(error)}") from error
    name = session.get_inputs()[0].name

    def run(array: np.ndarray) -> np.ndarray:
        try:
            return session.run(None, {name: array})[0]
        except Exception as error:
            raise ValueError(
                f"{model}: ONNX Runtime cannot run it on {list(array.shape)}: {_summary(error)}"
            ) from error

    return run
