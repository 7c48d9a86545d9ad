"""Paddle Inference, ONNX Runtime and OpenVINO behind one face: a function from arrays to arrays by name.

The options for GPUs and TensorRT are written from the libraries' documentation and were not run by us.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
ONEDNN = ("off", "reduced", "full")  # how much of it
NAMES = {  # by the runtime's short name and how much of oneDNN it uses
    ("paddle", "off"): "Paddle Inference",
    ("paddle", "reduced"): "Paddle Inference oneDNN reduced",
    ("paddle", "full"): "Paddle Inference oneDNN",
    ("onnx", "off"): "ONNX Runtime",
    ("openvino", "off"): "OpenVINO",
}
# Left out of the reduced oneDNN: what hands it single operators, among them interpolation, which crashes on Paddle 3.3,
# and products that are silently wrong, and what merges reshapes into them. Fused convolutions and products remain.
# Each Paddle ignores the name that it does not know: the last one is what 2.6 calls the first.
ONEDNN_LEFT_OUT = ("onednn_placement_pass", "operator_reshape_onednn_fuse_pass", "mkldnn_placement_pass")
MAX_THREADS = 256  # where there are fewer processors: a million is a mistake that takes all memory
GPU_MEMORY_MB = 500  # Paddle's first allocation; it grows
ONNX_ERRORS_ONLY = 3
_ONNX_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}


@dataclass(frozen=True)
class Options:
    """How a program is run.

    Attributes:
        threads: of the CPU; default all cores.
        device: "cpu", "gpu" or "gpu:1".
        precision: "fp32"; on a GPU "fp16"; on the CPU "bf16" (OpenVINO) or "int8" (the quantised programs).
        tensorrt: True, or arguments of Paddle's ``Config.enable_tensorrt_engine`` or options of ONNX Runtime's
            TensorrtExecutionProvider.
        onednn: of Paddle on a CPU: "full", which is wrong or crashes for some graphs on some versions of Paddle,
            "reduced", which is slower and right for more of them, or "off".

    Raises:
        UserError: for what cannot be, before anything is loaded.
    """

    threads: int | None = None
    device: str = "cpu"
    precision: str = "fp32"
    tensorrt: bool | dict[str, Any] = False
    onednn: str = "off"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UserError(f"precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if not isinstance(self.tensorrt, (bool, dict)):
            raise UserError(f"tensorrt: expected True, False or a dict of options, got {self.tensorrt!r}")
        if self.gpu is None and (self.tensorrt is not False or self.precision == "fp16"):
            raise UserError("tensorrt and precision 'fp16' are for GPUs; give device='gpu' as well")
        if self.gpu is not None and self.precision in ON_CPU_ONLY:
            raise UserError(
                f"precision {self.precision!r} is for the CPU; for device {self.device!r} give 'fp16' or 'fp32'"
            )
        if self.threads is not None:
            check_integer("threads", self.threads, 1, max(MAX_THREADS, count_cores()))

    @property
    def gpu(self) -> int | None:
        """Index of the GPU ("gpu" is "gpu:0"); None for "cpu"."""
        match = re.fullmatch(r"cpu|gpu(?::(\d+))?", self.device)
        if match is None:
            raise UserError(f"device: expected 'cpu', 'gpu' or 'gpu:1', got {self.device!r}")
        return None if self.device == "cpu" else int(match[1] or 0)


DEFAULTS = Options()


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


def _function(
    model: Path, runtime: str, signature: Signature, infer: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
) -> Run:
    """A program as a function of arrays in order, by one of arrays by name; an error names the file."""

    def run(*arrays: np.ndarray) -> dict[str, np.ndarray]:
        feed = {t.name: np.ascontiguousarray(array, t.dtype) for t, array in zip(signature.inputs, arrays)}
        try:
            return infer(feed)
        except UserError:
            raise
        except Exception as error:  # the runtimes' exceptions have no common base but this
            shapes = ", ".join(str(list(array.shape)) for array in arrays)
            raise ValueError(f"{model}: {runtime} cannot run it on {shapes}: {_summary(error)}") from error

    return run


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


def load_paddle(model: Path, params: Path, signature: Signature, options: Options = DEFAULTS) -> Run:
    """A Paddle program, run by Paddle Inference.

    Args:
        model, params: ``model.json`` (``model.pdmodel`` of Paddle 2) and ``model.pdiparams``.
        signature: what it takes and gives. The files name the inputs only, so that the outputs' dtypes and shapes are
            compared when it has run.
    """
    from paddle_vheat._paddle import paddle

    gpu, tensorrt = options.gpu, options.tensorrt
    if tensorrt is not False and model.suffix == ".json":
        raise UserError(
            "tensorrt: Paddle's enable_tensorrt_engine takes exports of Paddle 2 (.pdmodel); "
            f"for {model.name} use runtime='onnx', or convert it with paddle.tensorrt yourself"
        )
    if gpu is not None and not paddle.is_compiled_with_cuda():
        raise UserError(f"device {options.device!r}: this Paddle is built without CUDA; install paddlepaddle-gpu")
    inference = paddle.inference
    config = inference.Config(str(model), str(params))
    config.disable_glog_info()
    if gpu is None:
        config.disable_gpu()
        config.set_cpu_math_library_num_threads(options.threads or count_cores())
        # On a CPU it is on unless it is switched off.
        config.disable_mkldnn() if options.onednn == "off" else config.enable_mkldnn()
        for name in ONEDNN_LEFT_OUT if options.onednn == "reduced" else ():
            config.delete_pass(name)
    else:
        kinds = inference.PrecisionType
        half = kinds.Half if options.precision == "fp16" else kinds.Float32
        config.enable_use_gpu(GPU_MEMORY_MB, gpu, half)
        if tensorrt is not False:
            given = tensorrt if isinstance(tensorrt, dict) else {}
            config.enable_tensorrt_engine(**{"precision_mode": half, "use_calib_mode": False, **given})
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
    sources = {name: predictor.get_input_handle(name) for name in names[0]}
    results = [predictor.get_output_handle(name) for name in predictor.get_output_names()]

    def infer(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, array in feed.items():
            sources[name].reshape(array.shape)
            sources[name].copy_from_cpu(array)
        predictor.run()
        outputs = {tensors.name: result.copy_to_cpu() for tensors, result in zip(signature.outputs, results)}
        _compare(str(model), signature.outputs, [(n, str(a.dtype), a.shape) for n, a in outputs.items()])
        return outputs

    return _function(model, "Paddle Inference", signature, infer)


def onnx_providers(options: Options) -> list[Any]:
    """ONNX Runtime's execution providers for these options, the preferred one first."""
    if options.gpu is None:
        return ["CPUExecutionProvider"]
    cuda = ("CUDAExecutionProvider", {"device_id": options.gpu})
    if options.tensorrt is False:
        if options.precision == "fp16":
            raise UserError("precision 'fp16': ONNX Runtime has it for an export in fp32 with tensorrt=True only")
        return [cuda, "CPUExecutionProvider"]
    trt = {"device_id": options.gpu, "trt_fp16_enable": options.precision == "fp16"}
    trt.update(options.tensorrt if isinstance(options.tensorrt, dict) else {})
    return [("TensorrtExecutionProvider", trt), cuda, "CPUExecutionProvider"]


def onnx_sees_gpu() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def load_onnx(model: Path, signature: Signature, options: Options = DEFAULTS) -> Run:
    """An ONNX program, run by ONNX Runtime."""
    import onnxruntime

    providers = onnx_providers(options)
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    available = onnxruntime.get_available_providers()
    if wanted not in available:  # ONNX Runtime itself would only warn, and use the CPU
        raise UserError(
            f"device {options.device!r}: this ONNX Runtime has no {wanted} (it has {', '.join(available)}); "
            "install onnxruntime-gpu"
        )
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = ONNX_ERRORS_ONLY
    settings.intra_op_num_threads = options.threads or count_cores()
    try:
        session = onnxruntime.InferenceSession(str(model), settings, providers=providers)
    except Exception as error:  # its exceptions have no common base but this
        raise UserError(f"{model}: ONNX Runtime cannot load it: {_summary(error)}") from error
    for declared, found in zip(signature, (session.get_inputs(), session.get_outputs())):
        kinds = [_ONNX_DTYPES.get(value.type, value.type[len("tensor(") : -1]) for value in found]
        _compare(str(model), declared, [(v.name, kind, v.shape) for v, kind in zip(found, kinds)])

    def infer(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip((tensors.name for tensors in signature.outputs), session.run(None, feed)))

    return _function(model, "ONNX Runtime", signature, infer)


def load_openvino(model: Path, signature: Signature, options: Options = DEFAULTS) -> Run:
    """An ONNX program, run by OpenVINO on the CPU.

    With ``precision`` "bf16" products are in bfloat16 where the processor can; otherwise in float32, or in int8 where
    the file says so.
    """
    import openvino

    if options.device != "cpu":
        raise UserError(
            f"device {options.device!r}: with runtime 'openvino' expected 'cpu'; for a GPU use runtime='onnx'"
        )
    config = {
        # Left to itself, OpenVINO takes bfloat16 on every processor that has it.
        "INFERENCE_PRECISION_HINT": "bf16" if options.precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": options.threads or count_cores(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        compiled = openvino.Core().compile_model(str(model), "CPU", config)
    except Exception as error:  # its exceptions have no common base but this
        raise UserError(f"{model}: OpenVINO cannot load it: {_summary(error)}") from error
    for declared, ports in zip(signature, (compiled.inputs, compiled.outputs)):
        shapes = [[side.get_length() if side.is_static else None for side in port.partial_shape] for port in ports]
        kinds = [port.element_type.to_dtype().name for port in ports]
        # A tensor may have several names, its node's among them.
        names = [t.name if t.name in port.names else port.any_name for t, port in zip(declared, ports)]
        _compare(str(model), declared, list(zip(names, kinds, shapes)) if len(ports) == len(declared) else [])
    request = compiled.create_infer_request()

    def infer(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = request.infer(feed, share_inputs=True)
        return {tensors.name: results[tensors.name] for tensors in signature.outputs}

    return _function(model, "OpenVINO", signature, infer)


def load_programs(
    description: Description, signatures: Any, runtime: str, options: Options = DEFAULTS
) -> dict[str, Run]:
    """All programs that an export has for a runtime, "paddle", "onnx" or "openvino", by name."""
    folder = description.path.parent
    if runtime == "paddle":
        files = {name: (folder / file, folder / description.params[name]) for name, file in description.model.items()}
        return {name: load_paddle(*both, signatures[name], options) for name, both in files.items()}
    load = load_onnx if runtime == "onnx" else load_openvino
    onnx = description.int8 if options.precision == "int8" else description.onnx
    return {name: load(folder / file, signatures[name], options) for name, file in onnx.items()}
