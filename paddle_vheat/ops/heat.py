"""The Heat Conduction Operator (HCO) of vHeat (CVPR 2025, arXiv 2405.16555, section 3).

On a plate of H x W with insulated edges, the heat equation du/dt = k (u_xx + u_yy) has cosines as
eigenfunctions. Conduction for a time t is therefore: transform by the DCT-II, multiply mode (n, m) by
exp(-k t (w_n^2 + w_m^2)) with w_n = pi n / H and w_m = pi m / W, transform back.
"""

from __future__ import annotations

import math
from typing import Any

from paddle_vheat._paddle import F, nn, no_autocast, paddle
from paddle_vheat.ops.dct import cosine_basis, is_empty, known_size, size_of
from paddle_vheat.ops.eager import apply_linear, depthwise_then_linear

Tensor = Any


def squared_frequencies(height: int | Tensor, width: int | Tensor, dtype: Any = "float32") -> Tensor:
    """w_n^2 + w_m^2 of every mode, (H, W, 1); w runs over [0, pi) at every resolution."""

    def squares(n: int | Tensor) -> Tensor:
        # int64 first because some deployments lack a float range
        count = paddle.arange(0, n, 1, dtype="int64").astype(dtype)
        size = float(n) if isinstance(n, int) else n.astype(dtype)
        pi = paddle.full([], math.pi, dtype)  # a graph would round a Python number to float32
        return (count * (pi / size)) ** 2

    return (squares(height).unsqueeze(1) + squares(width).unsqueeze(0)).unsqueeze(-1)


def heat_decay(thermal_diffusivity: Tensor) -> Tensor:
    """exp(-k (w_n^2 + w_m^2)), always computed in float32 (float64 for float64 input).

    Written as a power of exp(-w^2) the factor underflows in half precision and its gradient at k = 0 is not
    finite; in this form the gradient, -w^2 exp(-k w^2), is bounded for every k >= 0.

    Args:
        thermal_diffusivity: ``k``, shape (H, W, C), values of at least 0, any floating dtype. The time of
            conduction is part of it.

    Returns:
        Tensor (H, W, C), float32 or float64, values in [0, 1].
    """
    k = thermal_diffusivity
    with no_autocast():
        if k.dtype != paddle.float64:
            k = k.astype("float32")
        return paddle.exp(-k * squared_frequencies(size_of(k, 0), size_of(k, 1), k.dtype))


def _dct_plate(x: Tensor, inverse: bool) -> Tensor:
    """DCT-II (or its inverse) over the two middle axes of (B, H, W, C).

    Channels last makes both passes plain matrix products without a transposition: over H the row (W, C) is
    one long vector, over W each row of the plate is a (W, C) matrix.
    """
    rows, columns = cosine_basis(size_of(x, 1), x.dtype), cosine_basis(size_of(x, 2), x.dtype)
    width, channels = known_size(x, 2), x.shape[3]
    flat = x.reshape([0, 0, -1 if width is None else width * channels])
    half = paddle.matmul(rows, flat, transpose_x=inverse)
    half = half.reshape([0, 0, size_of(x, 2), channels])
    return paddle.matmul(columns, half, transpose_x=inverse)


class _Transform(paddle.autograd.PyLayer):
    """:func:`_dct_plate` that keeps nothing for its gradient, which is the opposite transform.

    It has one differentiable input only: Paddle refuses ``paddle.grad`` with respect to some of a PyLayer's inputs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, inverse: bool) -> Tensor:
        ctx.inverse, ctx.dtype = inverse, x.dtype
        return _dct_plate(x, inverse)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Under AMP the gradient has the dtype of the products, which may not be that of the input.
        return _transform(gradient, not ctx.inverse).astype(ctx.dtype)


def _transform(x: Tensor, inverse: bool) -> Tensor:
    if paddle.in_dynamic_mode() and not x.stop_gradient:
        return _Transform.apply(x, inverse)
    return _dct_plate(x, inverse)


def conduct_heat(heat: Tensor, decay: Tensor) -> Tensor:
    """Conduct heat on a plate: transform, damp every mode, transform back.

    Args:
        heat: (B, H, W, C), channels last, any floating dtype. A batch of 0 gives an empty result.
        decay: (H, W, C), factor per mode and channel as from :func:`heat_decay`.

    Returns:
        Tensor (B, H, W, C) of the dtype of ``heat`` (under AMP, of its matrix products).

    Raises:
        ValueError: if the two do not describe the same plate and channels.
    """
    if heat.ndim != 4 or decay.ndim != 3:
        raise ValueError(
            f"conduct_heat: expected heat (B, H, W, C) and decay (H, W, C), got {list(heat.shape)} and "
            f"{list(decay.shape)}"
        )
    for axis in range(3):
        ours, theirs = known_size(heat, axis + 1), known_size(decay, axis)
        if ours is not None and theirs is not None and ours != theirs:
            raise ValueError(
                f"conduct_heat: the plate of heat {list(heat.shape)} is not that of decay {list(decay.shape)}"
            )
    if is_empty(heat):
        return heat
    modes = _transform(heat, inverse=False)
    if known_size(heat, 0) == 1:
        decay = decay.unsqueeze(0)  # the product of equal shapes is three times faster on a CPU
    if heat.stop_gradient and decay.stop_gradient:
        damped = modes * decay.astype(modes.dtype)
    else:
        # In half precision, the products of the decay's gradient (mode times gradient of the mode) would overflow.
        wide = paddle.float64 if paddle.float64 in (modes.dtype, decay.dtype) else paddle.float32
        with no_autocast():
            damped = (modes.astype(wide) * decay.astype(wide)).astype(modes.dtype)
    return _transform(damped, inverse=True)


class HeatConduction2D(nn.Layer):
    """The Heat Conduction Operator: depthwise convolution, conduction of one half, gating by the other.

    ``out = Linear(LayerNorm(conduct(a)) * SiLU(z))`` with ``a, z = split(Linear(DWConv3x3(x)))``.

    Args:
        channels: number of channels C.
        norm_epsilon: epsilon of the LayerNorm on the conducted heat.
        data_format: "NHWC" (as the backbone works) or "NCHW", of input and output alike.
    """

    def __init__(self, channels: int, norm_epsilon: float = 1e-5, data_format: str = "NHWC") -> None:
        super().__init__()
        if data_format not in ("NHWC", "NCHW"):
            raise ValueError(f"HeatConduction2D: data_format must be 'NHWC' or 'NCHW', got {data_format!r}")
        self.channels = channels
        self.data_format = data_format
        self.dwconv = nn.Conv2D(channels, channels, 3, padding=1, groups=channels)
        self.linear = nn.Linear(channels, 2 * channels)
        self.to_k = nn.Linear(channels, channels)
        self.out_norm = nn.LayerNorm(channels, epsilon=norm_epsilon)
        self.out_linear = nn.Linear(channels, channels)

    def decay(self, frequency_embedding: Tensor) -> Tensor:
        """Decay of every mode, float32 (H, W, C), from the frequency embedding (H, W, C) of the stage."""
        # Under AMP the product would overflow half precision long before the exponential forgives it.
        with no_autocast():
            working = "float64" if frequency_embedding.dtype == paddle.float64 else "float32"
            k = F.linear(
                frequency_embedding.astype(working),
                self.to_k.weight.astype(working),
                self.to_k.bias.astype(working),
            )
            return heat_decay(F.relu(k))

    def forward(self, x: Tensor, frequency_embedding: Tensor) -> Tensor:
        """Apply the operator.

        Args:
            x: (B, H, W, C) or (B, C, H, W) as ``data_format`` says.
            frequency_embedding: (H, W, C) of the same plate.

        Returns:
            Tensor of the shape of ``x``.
        """
        return self.conduct(x, self.decay(frequency_embedding))

    def conduct(self, x: Tensor, decay: Tensor) -> Tensor:
        """The operator for a given decay (H, W, C)."""
        planes = x if self.data_format == "NCHW" else x.transpose([0, 3, 1, 2])
        both = depthwise_then_linear(self.dwconv, self.linear, planes)
        heat, gate = both[..., : self.channels], both[..., self.channels :]
        heat = self.out_norm(conduct_heat(heat, decay))
        out = apply_linear(self.out_linear, heat * F.silu(gate))
        return out if self.data_format == "NHWC" else out.transpose([0, 3, 1, 2])
