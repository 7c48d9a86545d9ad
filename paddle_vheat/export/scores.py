"""Exports of models that give a score for each class, of the image or of every pixel."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paddle_vheat._paddle import F, nn, paddle
from paddle_vheat.deploy.description import Shape
from paddle_vheat.deploy.scores import OUTPUT_NAMES, signature
from paddle_vheat.engine.task import Check, ExportSpec, Program, largest_difference
from paddle_vheat.errors import UserError
from paddle_vheat.export.program import inference_copy

# Differences of float32 results whose operations are reordered: some 1e-6 per layer over about a hundred
# layers, relative to the largest logit.
TOLERANCE = 1e-3


def first_output(output: Any) -> Any:
    """The logits: the first of what a model gives in a list, or all that it gives."""
    return output[0] if isinstance(output, (list, tuple)) else output


class ScoresLayer(nn.Layer):
    """A model's first output (N, classes[, H, W]), and what is done to it."""

    def __init__(self, model: Any, output_op: str) -> None:
        super().__init__()
        self.model = model
        self.output_op = output_op

    def forward(self, x: Any) -> Any:
        logits = first_output(self.model(x))
        if self.output_op == "argmax":
            return paddle.argmax(logits, axis=1, dtype="int32")
        return F.softmax(logits, axis=1) if self.output_op == "softmax" else logits


def shortfall(classes: np.ndarray, logits: np.ndarray) -> float:
    """By how much the logits (N, classes[, H, W]) of the chosen classes (N[, H, W]) fall short of the best ones."""
    if classes.shape != (logits.shape[0], *logits.shape[2:]) or classes.min() < 0 or classes.max() >= logits.shape[1]:
        return float("inf")
    # Two classes that are equally likely may change places; one that is less likely may not win.
    chosen = np.take_along_axis(logits, classes[:, None].astype(np.int64), axis=1)
    return float((logits.max(axis=1, keepdims=True) - chosen).max()) / max(float(np.abs(logits).max()), 1e-12)


def from_softmax(probabilities: np.ndarray, logits: np.ndarray) -> float:
    """Largest difference from the softmax of the logits."""
    if probabilities.shape != logits.shape:
        return float("inf")
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return float(np.abs(probabilities - shifted / shifted.sum(axis=1, keepdims=True)).max())


CHECKS = {
    "argmax": Check(TOLERANCE, shortfall, "by how much the chosen class falls short of the best, of the largest logit"),
    "softmax": Check(TOLERANCE, from_softmax, "of any probability"),
    "none": Check(TOLERANCE, largest_difference, "of any logit, of the largest logit"),
}


def scores_spec(
    model: Any,
    input_shape: Shape,
    output_op: str,
    num_classes: int,
    *,
    per_pixel: bool,
    transforms: Sequence[Mapping[str, Any]] = (),
    images: Sequence[Any] = (),
    channels: int = 3,
    min_size: int = 1,
    **options: Any,
) -> ExportSpec:
    """How such a model is exported: as one program, with ``output_op`` done to its scores.

    With a fixed size, the frequency embeddings and the decay are folded into constants; with a free size the whole
    operator is in the graph, for any height and width of at least ``min_size``.

    Args:
        model: gives logits (N, classes[, H, W]), or a list whose first entry they are.
        input_shape: (N, C, H, W), None for what is decided at run time.
        output_op: "argmax" gives int32 (N[, H, W]), "softmax" and "none" float32 (N, classes[, H, W]).
        options: class_names, palette: for ``deploy.yaml``; None where there are none.
    """
    if output_op not in OUTPUT_NAMES:
        raise UserError(f"--output_op: expected one of {', '.join(OUTPUT_NAMES)}, got {output_op!r}")
    takes = signature(output_op, num_classes, input_shape, per_pixel)
    name = takes.outputs[0].name

    @functools.lru_cache(None)
    def programs() -> dict[str, Program]:
        size = None if input_shape[2] is None else (input_shape[2], input_shape[3])
        return {"model": Program(ScoresLayer(inference_copy(model, size), output_op), *takes)}

    def reference(array: np.ndarray) -> dict[str, np.ndarray]:
        with paddle.no_grad():
            return {name: first_output(model(paddle.to_tensor(array))).numpy()}

    return ExportSpec(
        model=model,
        programs=lambda model_format: programs(),
        checks={name: CHECKS[output_op]},
        reference=reference,
        channels=channels,
        min_size=min_size,
        images=images,
        transforms=transforms,
        options={"output_op": output_op, "num_classes": num_classes, **options},
    )
