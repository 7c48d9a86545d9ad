"""Faster forms of linear layers and convolutions in dynamic graph mode on a CPU.

Measured on Paddle 3.2.2 (``benchmarks/means.py``, docs/performance.md). Paddle's CPU kernels add a bias by
broadcasting, in one thread: for a 1x1 layer this takes a third as long as the product itself, for a depthwise
convolution of several images one and a half times as long as the convolution. And a transposition of maps whose planes
are a multiple of 4096 bytes apart (192 x 192, as all powers of two) takes longer than the product that follows. So here
a bias is what a product is added to, or is passed on to the next layer where that is linear, and channels come last out
of a product rather than of a transposition.

Those are for evaluation. Where a gradient is wanted, on a GPU, in a static graph, and for a layer that is watched by a
hook or has been replaced by another (quantisation does so), the layers are called as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddle_vheat._paddle import F, nn, paddle

Tensor = Any


# No generator expressions here: Paddle 3.2's tracing of bytecode (to_static with full_graph=False) stumbles over them.


def _are_plain_on_cpu(x: Tensor, *layers: nn.Layer) -> bool:
    """Whether ``x`` is on a CPU, and the layers compute what their parameters say: no hook, no other class, no option
    that the forms below do not know."""
    for layer in layers:
        if layer._forward_pre_hooks or layer._forward_post_hooks:
            return False
        if type(layer) is nn.Conv2D:
            if layer._padding_mode != "zeros" or list(layer._dilation) != [1, 1] or not isinstance(layer._padding, int):
                return False
        elif type(layer) is not nn.Linear:
            return False
    return x.place.is_cpu_place()


def _are_evaluated_on_cpu(x: Tensor, *layers: nn.Layer) -> bool:
    """Whether, besides, nothing is differentiated, and nothing empty.

    The forward pass of a layer in training whose activations are recomputed is not: it must equal the second pass.
    """
    if paddle.is_grad_enabled() or 0 in x.shape:
        return False
    for layer in layers:
        if layer.training:
            return False
    return _are_plain_on_cpu(x, *layers)


# Each public function is one expression, which asks for the mode first: the conversion to a static graph looks into
# branches that are not taken.


def apply_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer(x)``."""
    return (
        _apply_linear(layer, x)
        if paddle.in_dynamic_mode() and layer.bias is not None and _are_evaluated_on_cpu(x, layer)
        else layer(x)
    )


def _apply_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    rows, columns = layer.weight.shape
    flat = paddle.addmm(layer.bias.unsqueeze(0), x.reshape([-1, rows]), layer.weight)
    return flat.reshape([*x.shape[:-1], columns])


def convolve_channels_last(convolution: nn.Conv2D, planes: Tensor) -> Tensor:
    """A convolution of (B, C, H, W) that is not grouped -> (B, H', W', D)."""
    return (
        _convolve_channels_last(convolution, planes)
        if paddle.in_dynamic_mode() and convolution._groups == 1 and _are_evaluated_on_cpu(planes, convolution)
        else convolution(planes).transpose([0, 2, 3, 1])
    )


def _convolve_channels_last(convolution: nn.Conv2D, planes: Tensor) -> Tensor:
    weight, padding = convolution.weight, convolution._padding
    filters, _, height, width = weight.shape
    down, right = convolution._stride
    rows = (planes.shape[2] + 2 * padding - height) // down + 1
    columns = (planes.shape[3] + 2 * padding - width) // right + 1
    patches = F.unfold(planes, [height, width], [down, right], padding)  # (B, C * height * width, rows * columns)
    out = paddle.matmul(patches, weight.reshape([filters, -1]), transpose_x=True, transpose_y=True)
    if convolution.bias is not None:
        out = out + convolution.bias
    return out.reshape([planes.shape[0], rows, columns, filters])


def depthwise_then_linear(depthwise: nn.Conv2D, linear: nn.Linear, planes: Tensor) -> Tensor:
    """``linear`` over the channels of ``depthwise`` of (B, C, H, W) -> (B, H, W, D)."""
    return (
        _depthwise_then_linear(depthwise, linear, planes)
        if paddle.in_dynamic_mode()
        and depthwise.bias is not None
        and linear.bias is not None
        and _are_evaluated_on_cpu(planes, depthwise, linear)
        else linear(depthwise(planes).transpose([0, 2, 3, 1]))
    )


def _depthwise_then_linear(depthwise: nn.Conv2D, linear: nn.Linear, planes: Tensor) -> Tensor:
    spread = F.conv2d(planes, depthwise.weight, None, depthwise._stride, depthwise._padding, 1, depthwise._groups)
    batch, _, height, width = spread.shape
    out = paddle.matmul(spread.flatten(2), linear.weight, transpose_x=True)
    # What the convolution's bias becomes after the linear layer is the same everywhere.
    bias = paddle.addmm(linear.bias.unsqueeze(0), depthwise.bias.unsqueeze(0), linear.weight)
    # A bias of shape (1, D) would be added nine times more slowly than one of shape (D,).
    return (out + bias.squeeze(0)).reshape([batch, height, width, -1])


def convolve_concatenated(convolution: nn.Conv2D, maps: Sequence[Tensor]) -> Tensor:
    """A convolution of maps (B, C_i, H, W) concatenated along their channels.

    On a CPU, in training too, as the sum of one convolution for each map: Paddle lays out every pixel's neighbourhood
    in memory first, which for the four maps of a feature pyramid of 512 channels at 128 x 128 is 1.2 GB.
    """
    return (
        _convolve_concatenated(convolution, maps)
        if paddle.in_dynamic_mode()
        and convolution.bias is None
        and convolution._groups == 1
        and _are_plain_on_cpu(maps[0], convolution)
        else convolution(paddle.concat(list(maps), axis=1))
    )


def _convolve_concatenated(convolution: nn.Conv2D, maps: Sequence[Tensor]) -> Tensor:
    out, start = None, 0
    for part in maps:
        end = start + part.shape[1]
        term = F.conv2d(part, convolution.weight[:, start:end], None, convolution._stride, convolution._padding)
        out, start = term if out is None else out + term, end
    return out
