"""Export to Paddle Inference, proven equal to the trained model before it is called done."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from paddle_vheat._paddle import F, nn, paddle
from paddle_vheat.config import ConfigError
from paddle_vheat.engine.checkpoint import replace_folder
from paddle_vheat.models.vheat import MIN_SIZE, VHeat, fold_model

OUTPUT_OPS = ("argmax", "softmax", "none")
EXPORT_FILES = ("model.json", "model.pdmodel", "model.pdiparams", "model.pdiparams.info", "deploy.yaml")
# Differences of float32 results whose operations are reordered: some 1e-6 per layer over about a hundred
# layers, relative to the largest logit.
TOLERANCE = 1e-3


class ExportError(RuntimeError):
    """The exported model does not do what the trained one does."""


def _first(output: Any) -> Any:
    """A segmentation model's logits are the first of a list, a classifier's are all it gives."""
    return output[0] if isinstance(output, (list, tuple)) else output


class _Exported(nn.Layer):
    """A model with one output, and what is done to it."""

    def __init__(self, model: Any, output_op: str) -> None:
        super().__init__()
        self.model = model
        self.output_op = output_op

    def forward(self, x: Any) -> Any:
        logits = _first(self.model(x))
        if self.output_op == "argmax":
            return paddle.argmax(logits, axis=1, dtype="int32")
        return F.softmax(logits, axis=1) if self.output_op == "softmax" else logits


@dataclass(frozen=True)
class Difference:
    """How far a runtime's output is from the trained model's, at one input."""

    runtime: str
    size: tuple[int, int]
    value: float  # largest difference over the largest magnitude

    @property
    def ok(self) -> bool:
        return self.value <= TOLERANCE  # False for NaN

    def __str__(self) -> str:
        verdict = "ok" if self.ok else f"WRONG (bound {TOLERANCE:g})"
        return f"{self.runtime:<24} {self.size[0]:>5} x {self.size[1]:<5} {self.value:.2e}  {verdict}"


def _has_trunk(model: Any) -> bool:
    return any(isinstance(layer, VHeat) for layer in model.sublayers(include_self=True))


def parse_input_shape(shape: Sequence[int] | None) -> list[Any]:
    """[N, C, H, W] with None for what is decided at run time (given as -1); all but C if not given."""
    if shape is None:
        return [None, 3, None, None]
    if len(shape) != 4:
        raise ValueError(f"--input_shape: expected N C H W, got {list(shape)}")
    if any(side == 0 or side < -1 for side in shape):
        raise ValueError(f"--input_shape: expected numbers of at least 1, or -1, got {list(shape)}")
    parsed: list[Any] = [side if side > 0 else None for side in shape]
    for name, side in (("H", parsed[2]), ("W", parsed[3])):
        if side is not None and side < MIN_SIZE:
            raise ValueError(f"--input_shape: {name} must be at least {MIN_SIZE} pixels, got {side}")
    if (parsed[2] is None) != (parsed[3] is None):
        raise ValueError(f"--input_shape: H and W must both be fixed or both be -1, got {list(shape)}")
    if parsed[1] is None:
        raise ValueError("--input_shape: the number of channels must be given")
    return parsed


def _model_file(folder: Path) -> str:
    """Name of the program file: Paddle 3 writes ``model.json``, Paddle 2 ``model.pdmodel``."""
    for name in ("model.json", "model.pdmodel"):
        if (folder / name).is_file():
            return name
    raise ExportError(f"paddle.jit.save wrote no program into {folder}")


def load_runtime(folder: Path, onednn: bool = False) -> Any:
    """A function from an array (N, C, H, W) to the exported model's output, run by Paddle Inference on the CPU."""
    from paddle import inference

    config = inference.Config(str(folder / _model_file(folder)), str(folder / "model.pdiparams"))
    config.disable_gpu()
    config.disable_glog_info()
    config.enable_mkldnn() if onednn else config.disable_mkldnn()
    predictor = inference.create_predictor(config)

    def run(array: np.ndarray) -> np.ndarray:
        handle = predictor.get_input_handle(predictor.get_input_names()[0])
        handle.reshape(array.shape)
        handle.copy_from_cpu(np.ascontiguousarray(array))
        predictor.run()
        return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()

    return run


def _difference(output: np.ndarray, logits: np.ndarray, output_op: str) -> float:
    """Largest difference from the trained model's logits (N, C, H, W), relative to their magnitude."""
    scale = max(float(np.abs(logits).max()), 1e-12)
    if output_op == "argmax":
        if output.shape != (logits.shape[0], *logits.shape[2:]) or output.min() < 0 or output.max() >= logits.shape[1]:
            return float("inf")
        # Two classes that are equally likely may change places; one that is less likely may not win.
        chosen = np.take_along_axis(logits, output[:, None].astype(np.int64), axis=1)
        return float((logits.max(axis=1, keepdims=True) - chosen).max()) / scale
    if output_op == "softmax":
        shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        logits, scale = shifted / shifted.sum(axis=1, keepdims=True), 1.0
    if output.shape != logits.shape:
        return float("inf")
    return float(np.abs(output - logits).max()) / scale


def compare(
    folder: Path, model: Any, inputs: Sequence[np.ndarray], output_op: str, runtimes: Sequence[str]
) -> list[Difference]:
    """Run an exported model and the trained one on the same inputs."""
    differences = []
    for runtime in runtimes:
        run = load_runtime(folder, onednn=runtime.endswith("oneDNN"))
        for array in inputs:
            with paddle.no_grad():
                logits = _first(model(paddle.to_tensor(array))).numpy()
            size = (array.shape[2], array.shape[3])
            differences.append(Difference(runtime, size, _difference(run(array), logits, output_op)))
    return differences


def check_inputs(task: Any, shape: Sequence[Any]) -> list[np.ndarray]:
    """What an export is tried on: random images, and the first validation image where there is one."""
    rng = np.random.default_rng(0)
    batch = shape[0] or 1
    sizes = [(shape[2], shape[3])] if shape[2] else [(128, 160), (97, 203)]
    inputs = [rng.standard_normal((batch, shape[1], *size)).astype(np.float32) for size in sizes]
    with contextlib.suppress(FileNotFoundError, ConfigError):  # an export does not need the data
        image = task.val_dataset[0]["img"][None].astype(np.float32)
        if shape[2]:
            fitted = paddle.to_tensor(image)
            image = F.interpolate(fitted, [shape[2], shape[3]], mode="bilinear").numpy()
        if image.shape[1] == shape[1]:
            inputs.append(np.repeat(image, batch, axis=0))
    return inputs


def export_model(
    task: Any,
    save_dir: str | Path,
    input_shape: Sequence[int] | None = None,
    output_op: str = "argmax",
    say: Any = print,
) -> list[Difference]:
    """Write ``model.json`` (or ``.pdmodel``), ``model.pdiparams`` and ``deploy.yaml`` into ``save_dir``.

    With a fixed size, the frequency embeddings and the decay are folded into constants; with a dynamic size the
    whole operator is in the graph, for any height and width of at least 32. The export is run by Paddle
    Inference, without and with oneDNN, and compared with the model before ``save_dir`` is touched.

    Args:
        task: with its trained model loaded.
        save_dir: folder to write; replaced if it is an earlier export, else it must be empty or absent.
        input_shape: N C H W, -1 for what is decided at run time.
        output_op: "argmax" gives int32 (N, H, W), "softmax" and "none" float32 (N, C, H, W).
        say: prints a line.

    Returns:
        The differences found. That of the runtime without oneDNN is within the bound; where that with oneDNN is
        not, ``deploy.yaml`` says so.

    Raises:
        ExportError: if the plain runtime's results differ from the model's; nothing is then written.
    """
    if output_op not in OUTPUT_OPS:
        raise ValueError(f"--output_op: expected one of {', '.join(OUTPUT_OPS)}, got {output_op!r}")
    save_dir = Path(save_dir)
    if save_dir.exists() and not save_dir.is_dir():
        raise ValueError(f"{save_dir} is a file; give an empty or new folder")
    foreign = sorted(p.name for p in save_dir.iterdir() if p.name not in EXPORT_FILES) if save_dir.is_dir() else []
    if foreign:
        raise ValueError(f"{save_dir} holds {foreign[0]}, which is no part of an export; give an empty or new folder")
    shape = parse_input_shape(input_shape)
    model = task.model
    model.eval()
    for trunk in (layer for layer in model.sublayers(include_self=True) if isinstance(layer, VHeat)):
        if trunk.in_channels != shape[1]:
            raise ValueError(f"--input_shape: C must be {trunk.in_channels}, the model's channels, got {shape[1]}")
    fixed = shape[2] is not None
    core = fold_model(model, (shape[2], shape[3])) if fixed and _has_trunk(model) else model
    differences: list[Difference] = []

    def write(folder: Path) -> None:
        wrapped = _Exported(core, output_op)
        wrapped.eval()
        spec = [paddle.static.InputSpec(shape=list(shape), dtype="float32", name="x")]
        with warnings.catch_warnings():
            # Paddle's own operators ask graph values for their place, which have none.
            warnings.filterwarnings("ignore", message="Value do not have 'place'")
            static = paddle.jit.to_static(wrapped, input_spec=spec, full_graph=True)
            paddle.jit.save(static, str(folder / "model"))
        inputs = check_inputs(task, shape)
        say("largest difference from the trained model, relative to its largest output, on random images and, if the")
        what = "by how much the chosen class falls short of the best" if output_op == "argmax" else "of any value"
        say(f"data is there, on the first validation image ({what}):")
        for runtime in ("Paddle Inference", "Paddle Inference oneDNN"):
            try:
                found = compare(folder, model, inputs, output_op, [runtime])
            except Exception as error:
                # oneDNN passes of some Paddle versions crash on sound graphs; the plain runtime must not.
                if runtime == "Paddle Inference":
                    raise ExportError(f"the exported model does not run: {error}") from error
                say(f"{runtime:<24} does not run this model: {str(error).strip().splitlines()[-1][:160]}")
                found = [Difference(runtime, (0, 0), float("nan"))]
            for difference in found:
                if np.isfinite(difference.value) or runtime == "Paddle Inference":
                    say(f"  {difference}")
            differences.extend(found)
        if not all(d.ok for d in differences if d.runtime == "Paddle Inference"):
            raise ExportError("the exported model's results differ from the trained model's; nothing was written")
        onednn_ok = all(d.ok for d in differences if d.runtime.endswith("oneDNN"))
        if not onednn_ok:
            say("oneDNN is not safe for this model on this Paddle: deploy.yaml says so, switch it off")
        (folder / "deploy.yaml").write_text(_deploy_yaml(task, folder, shape, output_op, onednn_ok), encoding="utf-8")

    replace_folder(save_dir, write)
    return differences


def _deploy_yaml(task: Any, folder: Path, shape: list[int | None], output_op: str, onednn_ok: bool) -> str:
    deploy = {
        "model": _model_file(folder),
        "params": "model.pdiparams",
        "transforms": task.export_transforms,
        "input_shape": [side or -1 for side in shape],
        "output_op": output_op,
        "output_dtype": "int32" if output_op == "argmax" else "float32",
        "num_classes": task.num_classes,
        "class_names": task.class_names,
        "onednn": onednn_ok,
    }
    return yaml.safe_dump({"Deploy": deploy}, sort_keys=False, allow_unicode=True)
