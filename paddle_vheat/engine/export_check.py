"""Running an export and comparing it with the trained model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat._paddle import F, paddle
from paddle_vheat.config import ConfigError
from paddle_vheat.deploy import runtimes

PADDLE, REDUCED, ONEDNN = (runtimes.ONEDNN_NAMES[onednn] for onednn in ("off", "reduced", "full"))
ONNX = "ONNX Runtime"
MAY_FAIL = (ONEDNN, REDUCED)  # passes of some Paddle versions are wrong or crash on sound graphs
ONNX_FILE = "model.onnx"
# Differences of float32 results whose operations are reordered: some 1e-6 per layer over about a hundred
# layers, relative to the largest logit.
TOLERANCE = 1e-3


class ExportError(RuntimeError):
    """The exported model does not do what the trained one does."""


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
        return f"{self.runtime:<31} {self.size[0]:>5} x {self.size[1]:<5} {self.value:.2e}  {verdict}"


def first_output(output: Any) -> Any:
    """A segmentation model's logits are the first of a list, a classifier's are all it gives."""
    return output[0] if isinstance(output, (list, tuple)) else output


def program_file(folder: Path) -> str:
    """Name of the program file: Paddle 3 writes ``model.json``, Paddle 2 ``model.pdmodel``."""
    for name in ("model.json", "model.pdmodel"):
        if (folder / name).is_file():
            return name
    raise ExportError(f"paddle.jit.save wrote no program into {folder}")


def load_runtime(folder: Path, runtime: str = PADDLE, threads: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """A function from an array (N, C, H, W) to the exported model's output, run on the CPU."""
    if runtime == ONNX:
        return runtimes.load_onnx(folder / ONNX_FILE, threads=threads)
    onednn = next(key for key, name in runtimes.ONEDNN_NAMES.items() if name == runtime)
    files = folder / program_file(folder), folder / "model.pdiparams"
    return runtimes.load_paddle(*files, onednn=onednn, threads=threads)


def difference(output: np.ndarray, logits: np.ndarray, output_op: str) -> float:
    """Largest difference from the trained model's logits (N, C[, H, W]), relative to their magnitude."""
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


def check_inputs(task: Any, shape: Sequence[Any]) -> list[np.ndarray]:
    """What an export is tried on: random images, and the first validation image where there is one."""
    rng = np.random.default_rng(0)
    # Where the batch is free, two: a graph that has the batch of its making built in would fail.
    batch = shape[0] or 2
    sizes = [(shape[2], shape[3])] if shape[2] else [(128, 160), (97, 203)]
    inputs = [rng.standard_normal((batch, shape[1], *size)).astype(np.float32) for size in sizes]
    with contextlib.suppress(FileNotFoundError, ConfigError):  # an export does not need the data
        image = task.val_dataset[0]["img"][None].astype(np.float32)
        if shape[2]:
            fitted = paddle.to_tensor(image)
            image = F.interpolate(fitted, [shape[2], shape[3]], mode="bilinear").numpy()
        if image.shape[1] == shape[1]:
            inputs.append(np.repeat(image, shape[0] or 1, axis=0))
    return inputs


def trained_logits(model: Any, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The trained model's own results."""
    with paddle.no_grad():
        return [first_output(model(paddle.to_tensor(array))).numpy() for array in inputs]


def right_onednn(differences: Sequence[Difference]) -> str:
    """How much of oneDNN is right for the model: "full", "reduced" or "off"."""
    for onednn in ("full", "reduced"):
        found = [d.ok for d in differences if d.runtime == runtimes.ONEDNN_NAMES[onednn]]
        if found and all(found):
            return onednn
    return "off"


def check_runtimes(
    folder: Path, model: Any, inputs: Sequence[np.ndarray], output_op: str, names: Sequence[str], say: Any
) -> list[Difference]:
    """Run an export by each of the runtimes and compare it with the trained model.

    Args:
        names: of the runtimes; the reduced oneDNN is run only if the full one, which is before it, is not right.

    Returns:
        The differences; for oneDNN, full or reduced, NaN where it does not run the model.

    Raises:
        ExportError: if a runtime other than these two does not run the model or is off by more than ``TOLERANCE``.
    """
    say("largest difference from the trained model, relative to its largest output, on random images and, if the")
    what = "by how much the chosen class falls short of the best" if output_op == "argmax" else "of any value"
    say(f"data is there, on the first validation image ({what}):")
    expected = trained_logits(model, inputs)
    differences: list[Difference] = []
    for name in names:
        if name == REDUCED and right_onednn(differences) == "full":
            continue
        try:
            run = load_runtime(folder, name)
            found = [
                Difference(name, (array.shape[2], array.shape[3]), difference(run(array), logits, output_op))
                for array, logits in zip(inputs, expected)
            ]
        except Exception as error:
            if name not in MAY_FAIL:
                raise ExportError(f"{name} does not run the exported model: {error}") from error
            say(f"  {name:<31} does not run this model: {str(error).strip().splitlines()[-1][:160]}")
            differences.append(Difference(name, (0, 0), float("nan")))
            continue
        for one in found:
            say(f"  {one}")
        differences.extend(found)
    wrong = sorted({d.runtime for d in differences if d.runtime not in MAY_FAIL and not d.ok})
    if wrong:
        raise ExportError(
            f"the export's results by {' and '.join(wrong)} differ from the trained model's; nothing was written"
        )
    return differences
