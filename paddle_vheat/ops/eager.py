"""Faster forms of linear layers and convolutions in dynamic graph mode on a CPU.

Measured on Paddle 3.2.2 (``benchmarks/inference.py``). Paddle's CPU kernels add a bias by broadcasting, in one
thread: for a 1x1 layer this takes half as long as the product itself, for a convolution of several images as long
as the convolution. And a transposition of maps whose planes are a multiple of 4096 bytes apart (192 x 192, as all
powers of two) takes longer than the product that follows. So here a bias is what a product is added to, is passed
on to the next layer where that is linear, and channels come last out of a product rather than of a transposition.

Those are for evaluation: where a gradient is wanted, on a GPU, in a static graph, or if a hook watches a layer that
would be passed over, the layers are called as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddle_vheat._paddle import F, nn, paddle

Tensor = Any


def _are_plain_on_cpu(x: Tensor, *layers: nn.Layer) -> bool:
    """Whether ``x`` is on a CPU, and the layers are what they seem: watched by no hook, replaced by no other class."""
    return x.place.is_cpu_place() and all(
        type(layer) in (nn.Conv2D, Linear) and not layer._forward_pre_hooks and not layer._forward_post_hooks
        for layer in layers
    )


def _is_evaluation_on_cpu(x: Tensor, *layers: nn.Layer) -> bool:
    """Whether nothing is differentiated or watched on a CPU.

    The forward pass of a layer in training whose activations are recomputed is not: it must equal the second pass.
    """
    return (
        not paddle.is_grad_enabled()
        and not any(layer.training for layer in layers)
        and _are_plain_on_cpu(x, *layers)
        and 0 not in x.shape
    )


# Each public function is one expression: the conversion to a static graph looks into branches that are not taken.


class Linear(nn.Linear):
    """``nn.Linear``: the same parameters, names and results."""

    def forward(self, x: Tensor) -> Tensor:
        return _linear(self, x) if paddle.in_dynamic_mode() else F.linear(x, self.weight, self.bias)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    if layer.bias is None or not _is_evaluation_on_cpu(x, layer):
        return F.linear(x, layer.weight, layer.bias)
    rows, columns = layer.weight.shape
    flat = paddle.addmm(layer.bias.unsqueeze(0), x.reshape([-1, rows]), layer.weight)
    return flat.reshape([*x.shape[:-1], columns])


def convolve_channels_last(convolution: nn.Conv2D, planes: Tensor) -> Tensor:
    """A convolution that is not grouped, (B, C, H, W) -> (B, H', W', D)."""
    return (
        _convolve_channels_last(convolution, planes)
        if paddle.in_dynamic_mode()
        else convolution(planes).transpose([0, 2, 3, 1])
    )


def _convolve_channels_last(convolution: nn.Conv2D, planes: Tensor) -> Tensor:
    if not _is_evaluation_on_cpu(planes, convolution):
        return convolution(planes).transpose([0, 2, 3, 1])
    weight = convolution.weight
    filters, _, height, width = weight.shape
    stride, padding = convolution._stride[0], convolution._padding
    rows = (planes.shape[2] + 2 * padding - height) // stride + 1
    columns = (planes.shape[3] + 2 * padding - width) // stride + 1
    patches = F.unfold(planes, [height, width], stride, padding)  # (B, C * height * width, rows * columns)
    out = paddle.matmul(patches, weight.reshape([filters, -1]), transpose_x=True, transpose_y=True)
    if convolution.bias is not None:
        out = out + convolution.bias
    return out.reshape([planes.shape[0], rows, columns, filters])


def depthwise_then_linear(depthwise: nn.Conv2D, linear: nn.Linear, planes: Tensor) -> Tensor:
    """``linear`` over the channels of ``depthwise`` of (B, C, H, W), both with a bias -> (B, H, W, D)."""
    return (
        _depthwise_then_linear(depthwise, linear, planes)
        if paddle.in_dynamic_mode()
        else linear(depthwise(planes).transpose([0, 2, 3, 1]))
    )


def _depthwise_then_linear(depthwise: nn.Conv2D, linear: nn.Linear, planes: Tensor) -> Tensor:
    if not _is_evaluation_on_cpu(planes, depthwise, linear):
        return linear(depthwise(planes).transpose([0, 2, 3, 1]))
    batch, channels, height, width = planes.shape
    spread = F.conv2d(planes, depthwise.weight, None, 1, depthwise._padding, 1, channels)
    out = paddle.matmul(spread.flatten(2), linear.weight, transpose_x=True)
    # What the convolution's bias becomes after the linear layer is the same everywhere.
    bias = paddle.addmm(linear.bias.unsqueeze(0), depthwise.bias.unsqueeze(0), linear.weight)
    # A bias of shape (1, D) would be added nine times more slowly than one of shape (D,).
    return (out + bias.squeeze(0)).reshape([batch, height, width, -1])


def convolve_concatenated(convolution: nn.Conv2D, maps: Sequence[Tensor]) -> Tensor:
    """A convolution, neither grouped nor biased, of maps (B, C_i, H, W) concatenated along their channels.

    On a CPU, in training too, as the sum of one convolution for each map: Paddle lays out every pixel's neighbourhood
    in memory first, which for the four maps of a feature pyramid of 512 channels at 128 x 128 is 1.2 GB.
    """
    return (
        _convolve_concatenated(convolution, maps)
        if paddle.in_dynamic_mode()
        else convolution(paddle.concat(list(maps), axis=1))
    )


def _convolve_concatenated(convolution: nn.Conv2D, maps: Sequence[Tensor]) -> Tensor:
    if not _are_plain_on_cpu(maps[0], convolution):
        return convolution(paddle.concat(list(maps), axis=1))
    out, start = None, 0
    for part in maps:
        end = start + part.shape[1]
        term = F.conv2d(part, convolution.weight[:, start:end], None, convolution._stride, convolution._padding)
        out, start = term if out is None else out + term, end
    return out
