"""The form of a network for evaluation: constants computed once, and layers in forms that are faster on a CPU.

A layer takes part in :func:`fold` by having one of these methods; both are called on a copy in evaluation mode.

- ``fold_for(size)``: its input is the image; from now on images of (height, width) pixels only. In place.
- ``fast_form()``: gives the layer to be evaluated in its place; :func:`become` makes most of them.
- ``frozen()``, of what ``fast_form()`` gave: the layer for the only size that it has met.

The faster forms (docs/performance.md): Paddle's CPU kernels add a bias by
broadcasting, in one thread, which for a 1x1 layer takes a third as long as the product itself, for a depthwise
convolution of several images one and a half times as long as the convolution. And transposing maps whose channels are a
multiple of 4096 bytes apart (192 x 192, as all powers of two) takes longer than the product that follows. So a bias is
what a product is added to, or is passed on to the next layer where that is linear, and channels come last out of a
product rather than of a transposition.

Where there are kernels in C, they evaluate heat conduction and vHeat's other parts instead
(:mod:`paddle_vheat.ops.evaluated`).

Both are for evaluation. Where a gradient is wanted, on a GPU, in a static graph, and for a layer that is watched by a
hook or has been replaced by another (quantisation does so), the layers are called as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from paddle_vheat._paddle import F, nn, paddle
from paddle_vheat.ops import native

Tensor = Any


def int_pair(size: int | Sequence[int], name: str) -> tuple[int, int]:
    """(height, width) from an int or a pair of ints."""
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, Sequence) else ()
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"{name}: expected a positive int or (height, width), got {size!r}")
    return pair[0], pair[1]


def fold(model: Any, size: int | Sequence[int] | None = None) -> Any:
    """A copy of a network for evaluation, with equal outputs; any network with heat conduction in it.

    Args:
        model: a layer; it is left as it is, so that it can be folded again.
        size: int or (height, width) in pixels of the images that the copy will be given: the decay exp(-k w^2) is
            then a constant of each operator, ``to_k`` and the frequency embeddings are dropped. None for images of
            any size: the decay is computed once for every size of a feature map, and kept.

    Returns:
        The copy, in evaluation mode. Its weights are those of now: values of ``to_k`` or of an embedding that are
        set later are not seen where a decay has been kept.

    Raises:
        ValueError: with a ``size``, if the model has been folded for a size already, or holds nothing to fold.
    """
    if size is None:
        return _replaced(_evaluated(model), "fast_form")
    size = int_pair(size, "fold")
    for layer in model.sublayers(include_self=True):
        if getattr(layer, "folded_for", None) is not None:
            height, width = layer.folded_for
            raise ValueError(
                f"fold: the model is already folded for {height} x {width}, and a folded decay cannot be resized; "
                "fold the original model"
            )
    folded = _evaluated(model)
    owners = [layer for layer in folded.sublayers(include_self=True) if hasattr(layer, "fold_for")]
    for layer in owners:
        layer.fold_for(size)
    folded = _replaced(folded, "fast_form")
    if any(hasattr(layer, "frozen") for layer in folded.sublayers(include_self=True)):
        # Operators of another network: what sizes their maps have is seen by running it.
        convolutions = [layer for layer in model.sublayers(include_self=True) if isinstance(layer, nn.Conv2D)]
        channels = getattr(model, "in_channels", convolutions[0]._in_channels)
        with paddle.no_grad():
            folded(paddle.zeros([1, channels, *size], convolutions[0].weight.dtype))
    elif not owners:
        raise ValueError(f"fold: {type(model).__name__} holds no heat conduction operator")
    return _replaced(folded, "frozen")


def _evaluated(model: Any) -> Any:
    native.missing()  # Loads the kernels: Paddle's tracing of bytecode cannot follow how that is done.
    model = copy.deepcopy(model)
    model.eval()
    for layer in model.sublayers(include_self=True):
        layer.__class__ = getattr(layer, "plain_form", type(layer))  # see ops/training.py
        if is_plain(layer):
            layer.was_plain = True  # when folded; a layer that is put in its place later has no such mark
    return model


def _replaced(layer: Any, method: str) -> Any:
    """The layer, with itself and every layer in it replaced by what its method of this name gives."""
    for parent in layer.sublayers(include_self=True):
        for name, child in list(parent._sub_layers.items()):
            if hasattr(child, method):
                parent._sub_layers[name] = getattr(child, method)()
    return getattr(layer, method)() if hasattr(layer, method) else layer


def become(layer: nn.Layer, form: type) -> nn.Layer:
    """The layer, from now on of the class ``form`` if that is a subclass of its own; otherwise as it is."""
    if issubclass(form, type(layer)) and "forward" not in vars(layer):
        layer.__class__ = form
    return layer


def unwatched(*layers: nn.Layer) -> bool:
    """Whether no hook watches these layers."""
    for layer in layers:  # noqa: SIM110 - no generator expression: see are_evaluated_on_cpu
        if layer._forward_pre_hooks or layer._forward_post_hooks:
            return False
    return True


def is_plain(layer: nn.Layer) -> bool:
    """Whether this is a linear layer, a LayerNorm or a convolution that computes what its parameters say, without a
    hook, and has no option that the faster forms do not know."""
    if type(layer) is nn.Conv2D:
        known = layer._padding_mode == "zeros" and list(layer._dilation) == [1, 1] and isinstance(layer._padding, int)
    elif type(layer) is nn.LayerNorm:
        known = layer.weight is not None and layer.bias is not None and len(layer._normalized_shape) == 1
    else:
        known = type(layer) is nn.Linear and layer.bias is not None
    return known and unwatched(layer)


def are_evaluated_on_cpu(x: Tensor, *layers: nn.Layer) -> bool:
    """Whether nothing is differentiated, nothing empty, and the layers were plain and have got no hook since.

    The forward pass of a layer in training whose activations are recomputed is not: it must equal the second pass.
    """
    if paddle.is_grad_enabled() or 0 in x.shape:
        return False
    # No generator expression, and the place at the end: otherwise Paddle 3.2's tracing of bytecode (to_static with
    # full_graph=False) fails.
    for layer in layers:
        if layer.training or not unwatched(layer):
            return False
        if not hasattr(layer, "was_plain"):
            return False
    return x.place.is_cpu_place()


# Each of these functions is one expression, which asks for the mode first: the conversion to a static graph looks into
# branches that are not taken.


def apply_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer(x)``."""
    return (
        affine(x, layer.weight, layer.bias) if paddle.in_dynamic_mode() and are_evaluated_on_cpu(x, layer) else layer(x)
    )


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(..., C) -> (..., D): a linear layer, its bias being what the product is added to."""
    rows, columns = weight.shape
    return paddle.addmm(bias.unsqueeze(0), x.reshape([-1, rows]), weight).reshape([*x.shape[:-1], columns])


def convolve_channels_last(convolution: nn.Conv2D, x: Tensor) -> Tensor:
    """A convolution of (B, C, H, W) -> (B, H', W', D)."""
    return (
        _convolve_channels_last(convolution, x)
        if paddle.in_dynamic_mode() and convolution._groups == 1 and are_evaluated_on_cpu(x, convolution)
        else convolution(x).transpose([0, 2, 3, 1])
    )


def _convolve_channels_last(convolution: nn.Conv2D, x: Tensor) -> Tensor:
    weight, padding = convolution.weight, convolution._padding
    filters, _, height, width = weight.shape
    down, right = convolution._stride
    rows = (x.shape[2] + 2 * padding - height) // down + 1
    columns = (x.shape[3] + 2 * padding - width) // right + 1
    patches = F.unfold(x, [height, width], [down, right], padding)  # (B, C * height * width, rows * columns)
    out = paddle.matmul(patches, weight.reshape([filters, -1]), transpose_x=True, transpose_y=True)
    if convolution.bias is not None:
        out = out + convolution.bias
    return out.reshape([x.shape[0], rows, columns, filters])


def depthwise_then_linear(depthwise: nn.Conv2D, linear: nn.Linear, x: Tensor) -> Tensor:
    """``linear`` over the channels of ``depthwise`` of (B, C, H, W) -> (B, H, W, D)."""
    return (
        _depthwise_then_linear(depthwise, linear, x)
        if paddle.in_dynamic_mode() and are_evaluated_on_cpu(x, depthwise, linear)
        else linear(depthwise(x).transpose([0, 2, 3, 1]))
    )


def _depthwise_then_linear(depthwise: nn.Conv2D, linear: nn.Linear, x: Tensor) -> Tensor:
    spread = F.conv2d(x, depthwise.weight, None, depthwise._stride, depthwise._padding, 1, depthwise._groups)
    batch, _, height, width = spread.shape
    out = paddle.matmul(spread.flatten(2), linear.weight, transpose_x=True)
    bias = linear.bias
    if depthwise.bias is not None:  # what it becomes after the linear layer is the same everywhere
        # Of shape (1, D) it would be added nine times more slowly than of shape (D,).
        bias = paddle.addmm(bias.unsqueeze(0), depthwise.bias.unsqueeze(0), linear.weight).squeeze(0)
    return (out + bias).reshape([batch, height, width, -1])
