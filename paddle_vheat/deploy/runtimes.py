"""Paddle Inference, ONNX Runtime and OpenVINO behind one face: a function from arrays to arrays by name.

The options for GPUs and TensorRT are written from the libraries' documentation and were not run by us.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paddle_vheat._arguments import check_integer
from paddle_vheat.cpu import count_cores
from paddle_vheat.errors import UserError

if TYPE_CHECKING:
    from paddle_vheat.deploy.description import Description, Signature, Tensors

Run = Callable[..., dict[str, np.ndarray]]
"""Input arrays in order -> outputs by name."""

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
ON_CPU_ONLY = ("bf16", "int8")
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
MAX_THREADS = 256  # where there are fewer processors: a million is a mistake that takes all memory
GPU_MEMORY_MB = 500  # Paddle's first allocation; it grows
ONNX_NAME = "ONNX Runtime"
OPENVINO_NAME = "OpenVINO"
ONNX_RUNTIMES = {"onnx": ONNX_NAME, "openvino": OPENVINO_NAME}  # what runs an ONNX file, by its short name
ONNX_ERRORS_ONLY = 3
_ONNX_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}


def parse_device(device: str) -> int | None:
    """Index of a GPU ("gpu" is "gpu:0"); None for "cpu"."""
    match = re.fullmatch(r"cpu|gpu(?::(\d+))?", device)
    if match is None:
        raise UserError(f"device: expected 'cpu', 'gpu' or 'gpu:1', got {device!r}")
    return None if device == "cpu" else int(match[1] or 0)


def check_options(device: str, precision: str, tensorrt: bool | dict[str, Any], threads: int | None) -> None:
    """Raise a ValueError for options that cannot be, before anything is loaded."""
    gpu = parse_device(device)
    if precision not in PRECISIONS:
        raise UserError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    if not isinstance(tensorrt, (bool, dict)):
        raise UserError(f"tensorrt: expected True, False or a dict of options, got {tensorrt!r}")
    wants_tensorrt = tensorrt is not False
    if gpu is None and (wants_tensorrt or precision == "fp16"):
        raise UserError("tensorrt and precision 'fp16' are for GPUs; give device='gpu' as well")
    if gpu is not None and precision in ON_CPU_ONLY:
        raise UserError(f"precision {precision!r} is for the CPU; for device {device!r} give 'fp16' or 'fp32'")
    if threads is not None:
        check_integer("threads", threads, 1, max(MAX_THREADS, count_cores()))


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


def _cannot_run(model: Path, runtime: str, arrays: Sequence[np.ndarray], error: Exception) -> ValueError:
    shapes = ", ".join(str(list(array.shape)) for array in arrays)
    return ValueError(f"{model}: {runtime} cannot run it on {shapes}: {_summary(error)}")


def _compare(source: str, declared: Sequence[Tensors], found: Sequence[tuple[str, str, Sequence[Any]]]) -> None:
    """Raise a ValueError if a program's inputs or outputs, (name, dtype, shape), are not those of ``deploy.yaml``."""
    right = len(declared) == len(found) and all(
        (tensors.name, tensors.dtype, len(tensors.shape)) == (name, dtype, len(shape))
        and not any(isinstance(b, int) and None is not a != b for a, b in zip(tensors.shape, shape))
        for tensors, (name, dtype, shape) in zip(declared, found)
    )
    if not right:
        has = "; ".join(f"{name} {dtype} [{', '.join(map(str, shape))}]" for name, dtype, shape in found)
        raise UserError(f"{source}: has {has}, and deploy.yaml means {'; '.join(map(str, declared))}: export again")


def load_paddle(
    model: Path,
    params: Path,
    signature: Signature,
    *,
    onednn: str = "off",
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    tensorrt: bool | dict[str, Any] = False,
) -> Run:
    """A Paddle program, run by Paddle Inference.

    Args:
        model, params: ``model.json`` (``model.pdmodel`` of Paddle 2) and ``model.pdiparams``.
        signature: what it takes and gives. The files name the inputs only, so that the outputs' dtypes and shapes are
            compared when it has run.
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
        raise UserError(f"onednn: expected one of {', '.join(ONEDNN_NAMES)}, got {onednn!r}")
    gpu = parse_device(device)
    if tensorrt is not False and model.suffix == ".json":
        raise UserError(
            "tensorrt: Paddle's enable_tensorrt_engine takes exports of Paddle 2 (.pdmodel); "
            f"for {model.name} use runtime='onnx', or convert it with paddle.tensorrt yourself"
        )
    if gpu is not None and not paddle.is_compiled_with_cuda():
        raise UserError(f"device {device!r}: this Paddle is built without CUDA; install paddlepaddle-gpu")
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
        raise UserError(f"{model}, {params.name}: Paddle Inference cannot load it: {_summary(error)}") from error
    names = sorted(predictor.get_input_names()), len(predictor.get_output_names())
    if names != (sorted(tensors.name for tensors in signature.inputs), len(signature.outputs)):
        raise UserError(
            f"{model}: takes {', '.join(names[0])} and gives {names[1]} outputs, and deploy.yaml means {signature}: "
            "export again"
        )
    sources = [predictor.get_input_handle(tensors.name) for tensors in signature.inputs]
    results = [predictor.get_output_handle(name) for name in predictor.get_output_names()]

    def run(*arrays: np.ndarray) -> dict[str, np.ndarray]:
        for source, tensors, array in zip(sources, signature.inputs, arrays):
            source.reshape(array.shape)
            source.copy_from_cpu(np.ascontiguousarray(array, tensors.dtype))
        try:
            predictor.run()
        except (RuntimeError, ValueError, OSError, SystemError) as error:
            raise _cannot_run(model, "Paddle Inference", arrays, error) from error
        outputs = {tensors.name: result.copy_to_cpu() for tensors, result in zip(signature.outputs, results)}
        _compare(str(model), signature.outputs, [(n, str(a.dtype), a.shape) for n, a in outputs.items()])
        return outputs

    return run


def onnx_providers(device: str, precision: str, tensorrt: bool | dict[str, Any]) -> list[Any]:
    """ONNX Runtime's execution providers for these options, the preferred one first."""
    gpu = parse_device(device)
    if gpu is None:
        return ["CPUExecutionProvider"]
    cuda = ("CUDAExecutionProvider", {"device_id": gpu})
    if tensorrt is False:
        if precision == "fp16":
            raise UserError("precision 'fp16': ONNX Runtime has it for an export in fp32 with tensorrt=True only")
        return [cuda, "CPUExecutionProvider"]
    options = {"device_id": gpu, "trt_fp16_enable": precision == "fp16"}
    options.update(tensorrt if isinstance(tensorrt, dict) else {})
    return [("TensorrtExecutionProvider", options), cuda, "CPUExecutionProvider"]


def onnx_sees_gpu() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def load_onnx(
    model: Path,
    signature: Signature,
    *,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    tensorrt: bool | dict[str, Any] = False,
) -> Run:
    """An ONNX program, run by ONNX Runtime; arguments as of :func:`load_paddle`.

    ``tensorrt`` may be a dict of options of the TensorrtExecutionProvider.
    """
    import onnxruntime

    check_options(device, precision, tensorrt, threads)
    providers = onnx_providers(device, precision, tensorrt)
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    available = onnxruntime.get_available_providers()
    if wanted not in available:  # ONNX Runtime itself would only warn, and use the CPU
        raise UserError(
            f"device {device!r}: this ONNX Runtime has no {wanted} (it has {', '.join(available)}); "
            "install onnxruntime-gpu"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ONNX_ERRORS_ONLY
    options.intra_op_num_threads = threads or count_cores()
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=providers)
    except Exception as error:  # its exceptions have no common base but this
        raise UserError(f"{model}: ONNX Runtime cannot load it: {_summary(error)}") from error
    for declared, found in zip(signature, (session.get_inputs(), session.get_outputs())):
        kinds = [_ONNX_DTYPES.get(value.type, value.type[len("tensor(") : -1]) for value in found]
        _compare(str(model), declared, [(v.name, kind, v.shape) for v, kind in zip(found, kinds)])

    def run(*arrays: np.ndarray) -> dict[str, np.ndarray]:
        feed = {tensors.name: np.ascontiguousarray(a, tensors.dtype) for tensors, a in zip(signature.inputs, arrays)}
        try:
            return dict(zip((tensors.name for tensors in signature.outputs), session.run(None, feed)))
        except Exception as error:
            raise _cannot_run(model, ONNX_NAME, arrays, error) from error

    return run


def load_openvino(
    model: Path,
    signature: Signature,
    *,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    tensorrt: bool | dict[str, Any] = False,
) -> Run:
    """An ONNX program, run by OpenVINO on the CPU; arguments as of :func:`load_paddle`.

    ``precision`` "bf16" multiplies in bfloat16 where the processor can; otherwise products are in float32, or in int8
    where the file says so.
    """
    import openvino

    check_options(device, precision, tensorrt, threads)
    if device != "cpu":
        raise UserError(f"device {device!r}: with runtime 'openvino' expected 'cpu'; for a GPU use runtime='onnx'")
    config = {
        # Left to itself, OpenVINO takes bfloat16 on every processor that has it.
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": threads or count_cores(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        compiled = openvino.Core().compile_model(str(model), "CPU", config)
    except Exception as error:  # its exceptions have no common base but this
        raise UserError(f"{model}: {OPENVINO_NAME} cannot load it: {_summary(error)}") from error
    for declared, ports in zip(signature, (compiled.inputs, compiled.outputs)):
        shapes = [[side.get_length() if side.is_static else None for side in port.partial_shape] for port in ports]
        kinds = [port.element_type.to_dtype().name for port in ports]
        # A tensor may have several names, its node's among them.
        names = [t.name if t.name in port.names else port.any_name for t, port in zip(declared, ports)]
        _compare(str(model), declared, list(zip(names, kinds, shapes)) if len(ports) == len(declared) else [])
    request = compiled.create_infer_request()

    def run(*arrays: np.ndarray) -> dict[str, np.ndarray]:
        feed = {t.name: np.ascontiguousarray(array, t.dtype) for t, array in zip(signature.inputs, arrays)}
        try:
            results = request.infer(feed, share_inputs=True)
        except Exception as error:
            raise _cannot_run(model, OPENVINO_NAME, arrays, error) from error
        return {tensors.name: results[tensors.name] for tensors in signature.outputs}

    return run


def load_programs(
    description: Description,
    signatures: Any,
    runtime: str,
    *,
    onednn: str = "off",
    precision: str = "fp32",
    **options: Any,
) -> dict[str, Run]:
    """All programs that an export has for a runtime, "paddle", "onnx" or "openvino", by name; options as of
    :func:`load_paddle`. ``precision`` "int8" takes the quantised ones."""
    folder, options = description.path.parent, {**options, "precision": precision}
    if runtime != "paddle":
        load = load_onnx if runtime == "onnx" else load_openvino
        files = description.int8 if precision == "int8" else description.onnx
        return {name: load(folder / file, signatures[name], **options) for name, file in files.items()}
    return {
        name: load_paddle(folder / file, folder / description.params[name], signatures[name], onednn=onednn, **options)
        for name, file in description.model.items()
    }
