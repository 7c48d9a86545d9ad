"""What models have in common that give a score for each class, of the image or of every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paddle_vheat.config.options import option
from paddle_vheat.deploy.description import Description, Shape, Signature, Tensors

OUTPUT_NAMES = {"argmax": "classes", "softmax": "probabilities", "none": "logits"}


@dataclass(frozen=True)
class ScoreOptions:
    """What ``deploy.yaml`` holds for them; ``output_op`` is what the program does to the scores."""

    num_classes: int = option(int, min=1, max=1 << 20)
    output_op: str = option(str, choices=tuple(OUTPUT_NAMES))
    class_names: Sequence[str] | None = option(list, None, items=str)

    def wrong_lengths(self, where: str) -> list[str]:
        """A problem for each list that should have an entry for each class."""
        return [
            f"'{where}.{key}' must have {self.num_classes} entries ('num_classes'), got {len(value)}"
            for key, value in vars(self).items()
            if isinstance(value, list) and len(value) != self.num_classes
        ]


def signature(output_op: str, num_classes: int, shape: Shape, per_pixel: bool) -> Signature:
    """Input "x" (N, C, H, W), and one output: classes, int32 (N[, H, W]), or scores, float32 (N, classes[, H, W])."""
    lengths, axes = [shape[0]], ["batch"]
    if output_op != "argmax":
        lengths, axes = [*lengths, num_classes], [*axes, "classes"]
    if per_pixel:
        lengths, axes = [*lengths, *shape[2:]], [*axes, "height", "width"]
    output = Tensors(
        OUTPUT_NAMES[output_op], tuple(lengths), tuple(axes), "int32" if output_op == "argmax" else "float32"
    )
    return Signature((Tensors("x", tuple(shape), ("batch", "channels", "height", "width")),), (output,))


def check_class(index: int, options: ScoreOptions, description: Description) -> None:
    """Raise a ConfigError for a class that ``deploy.yaml`` does not have: it belongs to another export."""
    if not 0 <= index < options.num_classes:
        raise description.error(
            f"'{description.options_at}.num_classes' is {options.num_classes}, and the model gives class {index}"
        )
