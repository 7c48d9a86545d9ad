"""Evaluation on a CPU by the kernels of ``products.c``: parts of a network as one call each.

Each function computes what the layers given to it do, up to rounding, for float32 maps (B, H, W, C). Ask first whether
the kernels take them: :func:`takes`, :func:`takes_operator`, :func:`takes_convolution`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paddle_vheat._paddle import nn, paddle
from paddle_vheat.ops import native
from paddle_vheat.ops.dct import cosine_basis
from paddle_vheat.ops.fold import are_evaluated_on_cpu, unwatched

Tensor = Any


def takes(x: Tensor, *layers: nn.Layer) -> bool:
    """Whether the kernels are there, and the layers are in evaluation, in float32 and unwatched; see :func:`fold`."""
    return are_evaluated_on_cpu(x, *layers) and native.usable(x, *[layer.weight for layer in layers])


def takes_operator(hco: Any, x: Tensor, decay: Tensor, *others: nn.Layer) -> bool:
    """:func:`takes` of a heat conduction operator for a decay, and of other layers."""
    layers = hco.dwconv, hco.linear, hco.out_norm, hco.out_linear, *others
    return (
        hco.data_format == "NHWC"
        and x.shape[1:] == decay.shape
        and takes(x, *layers)
        and native.usable(decay)
        and list(hco.dwconv.weight.shape) == [decay.shape[2], 1, 3, 3]
        and hco.dwconv.bias is not None
        and hco.dwconv._padding == 1
    )


def takes_convolution(x: Tensor, convolution: nn.Conv2D, *norm: nn.LayerNorm) -> bool:
    """:func:`takes` of a convolution 3 x 3, stride 1 or 2, margin 1, and perhaps of a LayerNorm over its channels."""
    filters, channels, *kernel = convolution.weight.shape
    return (
        takes(x, convolution, *norm)
        and [channels, *kernel] == [x.shape[3], 3, 3]
        and all(list(layer.weight.shape) == [filters] for layer in norm)
        and list(convolution._stride) in ([1, 1], [2, 2])
        and convolution._padding == 1
    )


def convolve(x: Tensor, convolution: nn.Conv2D, norm: nn.LayerNorm | None = None, activated: bool = False) -> Tensor:
    """Convolution 3 x 3, perhaps LayerNorm, and GELU if ``activated``: -> (B, ceil(H/stride), ceil(W/stride), D)."""
    (batch, height, width, _), stride = x.shape, convolution._stride[0]
    shape = [batch, (height + stride - 1) // stride, (width + stride - 1) // stride, convolution.weight.shape[0]]
    out = paddle.empty(shape, x.dtype)
    native.run(
        "convolution", x, convolution.weight, convolution.bias, *_norm(norm), int(activated), *x.shape, stride,
        shape[3], out,
    )  # fmt: skip
    return out


def takes_planes(maps: Sequence[Tensor], convolution: nn.Conv2D, norm: nn.BatchNorm2D) -> bool:
    """:func:`takes` of a convolution 3 x 3, stride 1, margin 1, of maps (B, C, H, W), and of a BatchNorm."""
    shapes = [x.shape for x in maps]
    return (
        type(norm) is nn.BatchNorm2D
        and norm.weight is not None
        and norm.bias is not None
        and not norm.training
        and unwatched(norm)
        and norm._use_global_stats is not False
        and norm._data_format == "NCHW"
        and type(convolution) is nn.Conv2D
        and takes(maps[0], convolution)
        and native.usable(*maps, norm.weight, norm.bias, norm._mean, norm._variance)
        and convolution.weight.shape[1:] == [sum(shape[1] for shape in shapes), 3, 3]
        and norm.weight.shape == convolution.weight.shape[:1]
        and all([shape[0], *shape[2:]] == [shapes[0][0], *shapes[0][2:]] for shape in shapes)
        and list(convolution._stride) == [1, 1]
        and convolution._padding == 1
        and convolution.bias is None
    )


def convolve_planes(maps: Sequence[Tensor], convolution: nn.Conv2D, norm: nn.BatchNorm2D) -> Tensor:
    """Convolution 3 x 3 of maps (B, C_i, H, W) as if they were concatenated, BatchNorm and ReLU: -> (B, D, H, W)."""
    filters, channels = convolution.weight.shape[:2]
    batch, _, *size = maps[0].shape
    out = paddle.empty([batch, filters, *size], maps[0].dtype)
    scale = norm.weight * paddle.rsqrt(norm._variance + norm._epsilon)
    ending = scale, norm.bias - norm._mean * scale
    first = 0
    for x in maps:
        end = first + x.shape[1]
        native.run(
            "convolution_planes", x, convolution.weight, first, channels, int(first > 0),
            *(ending if end == channels else (None, None)), *x.shape, filters, out,
        )  # fmt: skip
        first = end
    return out


def _norm(norm: nn.LayerNorm | None) -> tuple[Any, Any, float]:
    return (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm._epsilon)


@dataclass(frozen=True)
class Branch:
    """What is around an operator on a residual branch: LayerNorm ``first``; then the operator; then LayerNorm ``last``
    and a ``scale`` (C,) for each channel; then what the branch left from is added, if it ``joins``."""

    first: nn.LayerNorm | None = None
    last: nn.LayerNorm | None = None
    scale: Tensor | None = None
    joins: bool = True


ALONE = Branch(joins=False)


# No method of the class: Paddle's tracing of bytecode does not find those of a dataclass.
def _ending(around: Branch, x: Tensor, linear: nn.Linear) -> tuple[Any, ...]:
    """Arguments of a kernel for what follows the operator, its last linear layer included."""
    return linear.weight, linear.bias, *_norm(around.last), around.scale, None, 0, x if around.joins else None


def mlp(x: Tensor, fc1: nn.Linear, fc2: nn.Linear, around: Branch = ALONE) -> Tensor:
    """Linear, GELU, linear."""
    out = paddle.empty([*x.shape[:-1], fc2.weight.shape[1]], x.dtype)
    channels, hidden = fc1.weight.shape
    rows = math.prod(x.shape[:-1])
    native.run(
        "mlp",
        x,
        *_norm(around.first),
        fc1.weight,
        fc1.bias,
        *_ending(around, x, fc2),
        rows,
        channels,
        hidden,
        out,
        None,
    )
    return out


def heat_conduction(hco: Any, x: Tensor, decay: Tensor, around: Branch = ALONE) -> Tensor:
    """A heat conduction operator for a given decay (H, W, C)."""
    out, gate, heat = (paddle.empty(x.shape, x.dtype) for _ in range(3))
    native.run(
        "heat_conduction", x, *_norm(around.first), hco.dwconv.weight, hco.dwconv.bias, hco.linear.weight,
        hco.linear.bias, cosine_basis(x.shape[1]), cosine_basis(x.shape[2]), decay, hco.out_norm.weight,
        hco.out_norm.bias, hco.out_norm._epsilon, *_ending(around, x, hco.out_linear), *x.shape, out,
        None, None, gate, heat,
    )  # fmt: skip
    return out
