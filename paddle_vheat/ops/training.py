"""Training on a CPU: layers whose gradients are matrix products, and layers that have kernels of their own (fused.py).

Paddle's CPU kernels sum over rows in one thread (the gradients of a bias and of LayerNorm's scale), and the backward
pass of a depthwise convolution goes position by position. Written as products with a vector of ones, as a few
operations on whole arrays and as a convolution with the mirrored kernel, they take less time (docs/performance.md).
The results are equal up to rounding. With one exception: where LayerNorm's scale is frozen, Paddle's own gradient of
the input leaves the scale out (seen on 3.2.2), and this one is right.
"""

from __future__ import annotations

from typing import Any

from paddle_vheat._paddle import F, nn, no_autocast, paddle
from paddle_vheat.ops import fused, native
from paddle_vheat.ops.fold import affine, unwatched
from paddle_vheat.ops.fused import column_sums, needed, wanted
from paddle_vheat.ops.heat import HeatConduction2D

Tensor = Any

CHUNK_VALUES = 2**21
"""Neighbourhoods that a depthwise convolution's gradient lays out at a time: 8 MiB."""


FORMS: dict[type, Any] = {}
"""The form for training of each class of layers that has one."""


def trained_form(form: Any) -> Any:
    """Class decorator: have :func:`accelerate_training` use this form of its ``plain_form``; if it has a ``suits``,
    of the layers for which that is true."""
    FORMS[form.plain_form] = form
    return form


def accelerate_training(model: nn.Layer) -> nn.Layer:
    """Have a model's linear layers, LayerNorms and depthwise convolutions train faster on a CPU; in place.

    Where there are kernels for it (:mod:`paddle_vheat.ops.native`), so do heat conduction operators and the other parts
    of vHeat (:mod:`paddle_vheat.models.trained`).

    Parameters, their names and the results stay as they are; in evaluation, on a GPU and in a static graph so do the
    layers. ``paddle.grad`` with respect to some of the tensors only does not work through a model in this form (Paddle
    demands it of every PyLayer); ``backward()`` does. :func:`paddle_vheat.ops.fold` takes it back in its copy.

    Returns:
        The model.
    """
    for layer in model.sublayers(include_self=True):
        form = FORMS.get(type(layer))
        if form is None or "forward" in vars(layer) or (hasattr(form, "suits") and not form.suits(layer)):
            continue
        layer.__class__ = form
    return model


def fusible(x: Tensor, *layers: nn.Layer) -> bool:
    """Whether these layers are trained by kernels: in training, in float32, on a CPU, nobody watching them."""
    return (
        paddle.is_grad_enabled()
        and all(layer.training for layer in layers)
        and unwatched(*layers)
        and native.usable(x, *(layer.weight for layer in layers))
    )


def _trains(layer: nn.Layer, x: Tensor) -> bool:
    return (
        layer.training
        and paddle.in_dynamic_mode()
        and paddle.is_grad_enabled()
        and x.place.is_cpu_place()
        and 0 not in x.shape
        and x.dtype == layer.weight.dtype
    )


def _ones(rows: int, columns: int, dtype: Any) -> Tensor:
    return paddle.ones([rows, columns], dtype)


class _Linear(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.needed = needed(x, weight, bias)
        ctx.save_for_backward(x, weight)
        return affine(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensor()
        rows = gradient.reshape([-1, weight.shape[1]])
        return wanted(
            ctx,
            lambda: paddle.matmul(rows, weight, transpose_y=True).reshape(x.shape),
            lambda: paddle.matmul(x.reshape([-1, weight.shape[0]]), rows, transpose_x=True),
            lambda: column_sums(rows),
        )


class _LayerNorm(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        ctx.needed, ctx.epsilon = needed(x, weight, bias), epsilon
        ctx.save_for_backward(x, weight)
        return F.layer_norm(x, weight.shape, weight, bias, epsilon)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensor()
        width = weight.shape[0]
        rows, wide = gradient.reshape([-1, width]), _ones(1, width, x.dtype)
        values, share = x.reshape([-1, width]), paddle.full([width, 1], 1 / width, x.dtype)
        centred = paddle.addmm(values, paddle.matmul(values, share), wide, alpha=-1.0)
        scale = paddle.rsqrt(paddle.matmul(centred * centred, share) + ctx.epsilon)  # (N, 1), as all sums over a row
        product = rows * centred

        def of_input() -> Tensor:
            mean_weight = weight.unsqueeze(1) / width
            along = paddle.matmul(product, mean_weight) * scale * scale
            out = paddle.addmm(rows * weight, paddle.matmul(rows, mean_weight), wide, alpha=-1.0) - centred * along
            return (out * scale).reshape(x.shape)

        return wanted(
            ctx,
            of_input,
            lambda: paddle.matmul(scale, product, transpose_x=True).reshape([-1]),
            lambda: column_sums(rows),
        )


class _Depthwise(paddle.autograd.PyLayer):
    """3 x 3 with a margin of 1, or any odd kernel whose margin keeps the size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.needed = needed(x, weight, bias)
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=weight.shape[2] // 2, groups=weight.shape[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensor()
        batch, channels, height, width = x.shape
        kernel = weight.shape[2]
        maps, rows = x.reshape([-1, 1, height, width]), gradient.reshape([batch * channels, height * width])

        def of_weight() -> Tensor:
            chunk = max(1, CHUNK_VALUES // (height * width * kernel**2))
            parts = []
            for start in range(0, batch * channels, chunk):
                patches = F.unfold(maps[start : start + chunk], kernel, paddings=kernel // 2)
                parts.append(paddle.matmul(patches, rows[start : start + chunk].unsqueeze(2)))
            return paddle.concat(parts).reshape([batch, *weight.shape]).sum(axis=0)

        return wanted(
            ctx,
            lambda: F.conv2d(gradient, weight.flip([2, 3]), padding=kernel // 2, groups=channels),
            of_weight,
            lambda: paddle.matmul(rows, _ones(height * width, 1, x.dtype)).reshape([batch, channels]).sum(axis=0),
        )


@trained_form
class TrainedLinear(nn.Linear):
    plain_form = nn.Linear

    @staticmethod
    def suits(layer: Any) -> bool:
        return layer.bias is not None

    def forward(self, x: Tensor) -> Tensor:
        return _Linear.apply(x, self.weight, self.bias) if _trains(self, x) else nn.Linear.forward(self, x)


@trained_form
class TrainedLayerNorm(nn.LayerNorm):
    plain_form = nn.LayerNorm

    @staticmethod
    def suits(layer: Any) -> bool:
        return layer.weight is not None and layer.bias is not None and len(layer._normalized_shape) == 1

    def forward(self, x: Tensor) -> Tensor:
        if not _trains(self, x) or x.shape[-1] != self.weight.shape[0]:
            return nn.LayerNorm.forward(self, x)
        form = fused.LayerNorm if native.usable(x) else _LayerNorm
        return form.apply(x, self.weight, self.bias, self._epsilon)


@trained_form
class TrainedDepthwise(nn.Conv2D):
    plain_form = nn.Conv2D

    @staticmethod
    def suits(layer: Any) -> bool:
        height, width = layer.weight.shape[2:]
        return (
            layer.bias is not None
            and layer.weight.shape[1] == 1
            and layer._groups == layer._in_channels == layer._out_channels
            and height == width
            and height % 2 == 1
            and layer._padding in (height // 2, [height // 2] * 2)
            and list(layer._stride) == [1, 1] == list(layer._dilation)
            and layer._padding_mode == "zeros"
            and layer._data_format == "NCHW"
        )

    def forward(self, x: Tensor) -> Tensor:
        return _Depthwise.apply(x, self.weight, self.bias) if _trains(self, x) else nn.Conv2D.forward(self, x)


@trained_form
class TrainedHeatConduction2D(HeatConduction2D):
    plain_form = HeatConduction2D

    def forward(self, x: Tensor, frequency_embedding: Tensor | None = None) -> Tensor:
        if not self.is_fusible(x):
            return HeatConduction2D.forward(self, x, frequency_embedding)
        return self.by_kernels(x, frequency_embedding, *fused.ALONE)

    def is_fusible(self, x: Tensor) -> bool:
        return self.data_format == "NHWC" and fusible(x, *self._parts())

    def _parts(self) -> tuple[nn.Layer, ...]:
        return self.dwconv, self.linear, self.out_norm, self.out_linear

    def by_kernels(self, x: Tensor, frequency_embedding: Tensor | None, *branch: Any) -> Tensor:
        """The operator, or a residual branch with it: see :mod:`paddle_vheat.ops.fused`."""
        decay = self.decay_for(x, frequency_embedding)
        parameters = [parameter for part in self._parts() for parameter in (part.weight, part.bias)]
        return fused.HeatConduction.apply(x, decay, *parameters, self.out_norm._epsilon, *branch)

    def decay(self, frequency_embedding: Tensor) -> Tensor:
        if not fusible(frequency_embedding, self.to_k):
            return HeatConduction2D.decay(self, frequency_embedding)
        with no_autocast():
            return fused.Decay.apply(frequency_embedding, self.to_k.weight, self.to_k.bias)
