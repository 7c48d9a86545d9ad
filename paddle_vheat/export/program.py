"""Networks in the form that is exported, and saving them for Paddle Inference."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

from paddle_vheat._paddle import nn, paddle
from paddle_vheat.engine.task import Program
from paddle_vheat.ops import adaptive_average_pool, fold


class _Pool(nn.Layer):
    """``nn.AdaptiveAvgPool2D`` as a matrix product."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Any) -> Any:
        return adaptive_average_pool(x, self.bins)


def replace_pooling(model: Any) -> None:
    """In place: the pooling of pyramid heads in the form that converters get right (``ops/pool.py``)."""
    for layer in model.sublayers(include_self=True):
        for name, child in list(layer.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2D):
                size = child._output_size
                bins = size[0] if isinstance(size, (list, tuple)) and size[0] == size[1] else size
                if isinstance(bins, int):
                    layer.add_sublayer(name, _Pool(bins))


def inference_copy(model: Any, size: tuple[int, int] | None) -> Any:
    """A copy in evaluation mode to export: pooling as products, and folded where the size (height, width) is fixed."""
    foldable = any(hasattr(layer, "fold_for") for layer in model.sublayers(include_self=True))
    copied = fold(model, size) if foldable and size is not None else copy.deepcopy(model)
    copied.eval()
    replace_pooling(copied)
    return copied


def save_program(program: Program, folder: Path, name: str = "model") -> tuple[Path, Path]:
    """Write ``NAME.json`` (``NAME.pdmodel`` with Paddle 2) and ``NAME.pdiparams``; returns the two."""
    program.layer.eval()
    spec = [paddle.static.InputSpec(list(tensors.shape), tensors.dtype, tensors.name) for tensors in program.inputs]
    with warnings.catch_warnings():
        # Paddle's own operators ask graph values for their place, which have none; 2.6's warn of their own attribute.
        warnings.filterwarnings("ignore", message=r"Value do not have 'place'|The Attr\(force_cpu\)")
        static = paddle.jit.to_static(program.layer, input_spec=spec, full_graph=True)
        paddle.jit.save(static, str(folder / name))
    suffix = ".json" if (folder / f"{name}.json").is_file() else ".pdmodel"
    return folder / f"{name}{suffix}", folder / f"{name}.pdiparams"
