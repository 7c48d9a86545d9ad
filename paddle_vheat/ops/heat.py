"""The Heat Conduction Operator (HCO) of vHeat (CVPR 2025, arXiv 2405.16555, section 3).

On a map of H x W with insulated edges, the heat equation du/dt = k (u_xx + u_yy) has cosines as
eigenfunctions. Conduction for a time t is therefore: transform by the DCT-II, multiply mode (n, m) by
exp(-k t (w_n^2 + w_m^2)) with w_n = pi n / H and w_m = pi m / W, transform back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from paddle_vheat._arguments import check_integer
from paddle_vheat._paddle import PADDLE_2, F, nn, no_autocast, paddle
from paddle_vheat.ops import evaluated
from paddle_vheat.ops.dct import check_products, cosine_basis, dtype_name, is_empty, known_size, size_of
from paddle_vheat.ops.fold import apply_linear, become, depthwise_then_linear, int_pair
from paddle_vheat.ops.lru import LRU
from paddle_vheat.ops.resize import resize_bicubic

Tensor = Any

# Values of decay that an operator keeps in evaluation, 16 MiB: of one map of 256 x 256 x 64, of many smaller ones.
KEPT_VALUES = 2**22


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
        thermal_diffusivity: ``k``, shape (H, W, C), values from 0 to infinity, any floating dtype. The time of
            conduction is part of it.

    Returns:
        Tensor (H, W, C), float32 or float64, values in [0, 1]; 1 at mode (0, 0), for infinite k too.

    Raises:
        ValueError: for another dtype.
    """
    if not thermal_diffusivity.is_floating_point():
        raise ValueError(f"heat_decay: expected a floating-point input, got {dtype_name(thermal_diffusivity.dtype)}")
    # The largest number of float32, as infinity times the zero of mode (0, 0) is no number.
    return _decay(paddle.clip(_wide(thermal_diffusivity), max=float(np.finfo(np.float32).max)))


def _wide(k: Tensor) -> Tensor:
    with no_autocast():
        return k if k.dtype == paddle.float64 else k.astype("float32")


def _decay(k: Tensor) -> Tensor:
    with no_autocast():
        return paddle.exp(-k * squared_frequencies(size_of(k, 0), size_of(k, 1), k.dtype))


def _dct_map(x: Tensor, inverse: bool) -> Tensor:
    """DCT-II (or its inverse) over the two middle axes of (B, H, W, C).

    Channels last makes both passes plain matrix products without a transposition: over H the row (W, C) is
    one long vector, over W each row of the map is a (W, C) matrix.
    """
    check_products(x, "conduct_heat")
    rows, columns = cosine_basis(size_of(x, 1), x.dtype), cosine_basis(size_of(x, 2), x.dtype)
    width, channels = known_size(x, 2), x.shape[3]
    flat = x.reshape([0, 0, -1 if width is None else width * channels])
    half = paddle.matmul(rows, flat, transpose_x=inverse)
    half = half.reshape([0, 0, size_of(x, 2), channels])
    return paddle.matmul(columns, half, transpose_x=inverse)


class _Transform(paddle.autograd.PyLayer):
    """:func:`_dct_map` that keeps nothing for its gradient, which is the opposite transform.

    It has one differentiable input only: Paddle refuses ``paddle.grad`` with respect to some of a PyLayer's inputs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, inverse: bool) -> Tensor:
        ctx.inverse, ctx.dtype = inverse, x.dtype
        return _dct_map(x, inverse)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Under AMP the gradient has the dtype of the products, which may not be that of the input.
        return _transform(gradient, not ctx.inverse).astype(ctx.dtype)


def _transform(x: Tensor, inverse: bool) -> Tensor:
    if paddle.in_dynamic_mode() and not x.stop_gradient:
        return _Transform.apply(x, inverse)
    return _dct_map(x, inverse)


def conduct_heat(heat: Tensor, decay: Tensor) -> Tensor:
    """Conduct heat on a map: transform, damp every mode, transform back.

    Args:
        heat: (B, H, W, C), channels last, float32 or float64, on a GPU float16 and bfloat16 too. A batch of 0 gives
            an empty result.
        decay: (H, W, C), factor per mode and channel as from :func:`heat_decay`.

    Returns:
        Tensor (B, H, W, C) of the dtype of ``heat`` (under AMP, of its matrix products).

    Raises:
        ValueError: if the two do not describe the same map and channels, and for another dtype.
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
                f"conduct_heat: the size of heat {list(heat.shape)} is not that of decay {list(decay.shape)}"
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


def published_normal() -> Any:
    """Initializer: normal of std 0.02, cut at -2 and 2 as in the published code.

    Paddle 2.6 cuts at two deviations instead, which would make it narrower; a plain normal never comes near +-2.
    """
    return nn.initializer.Normal(std=0.02) if PADDLE_2 else nn.initializer.TruncatedNormal(std=0.02)


def resized_embedding(embedding: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
    """A frequency embedding (H, W, C), resized bicubically to (height, width, C) where it is of another size."""
    # Under AMP too in the embedding's own precision, as what is made of it.
    with no_autocast():
        return resize_bicubic(embedding, height, width)


class HeatConduction2D(nn.Layer):
    """The Heat Conduction Operator: depthwise convolution, conduction of one half, gating by the other.

    ``out = Linear(LayerNorm(conduct(a)) * SiLU(z))`` with ``a, z = split(Linear(DWConv3x3(x)))``.

    Args:
        channels: number of channels C.
        size: int or (height, width) of the feature maps that it is made for; it then owns its frequency embedding,
            and takes maps of any size. None where several operators share one, which is given with each map.
        norm_epsilon: epsilon of the LayerNorm on the conducted heat.
        data_format: "NHWC" (as the backbone works) or "NCHW", of input and output alike; None for "NCHW" with a
            ``size`` and "NHWC" without.
        float32_transform: transform in float32 under mixed precision too, for what lives on small differences.
    """

    in_float = ("to_k",)
    """Layers that a quantised export leaves in float: an exponential follows."""

    def __init__(
        self,
        channels: int,
        size: int | Sequence[int] | None = None,
        norm_epsilon: float = 1e-5,
        data_format: str | None = None,
        float32_transform: bool = False,
    ) -> None:
        super().__init__()
        if data_format is None:
            data_format = "NHWC" if size is None else "NCHW"
        if data_format not in ("NHWC", "NCHW"):
            raise ValueError(f"HeatConduction2D: data_format must be 'NHWC' or 'NCHW', got {data_format!r}")
        check_integer("HeatConduction2D: channels", channels, 1)
        self.channels = channels
        self.data_format = data_format
        self.float32_transform = float32_transform
        self.dwconv = nn.Conv2D(channels, channels, 3, padding=1, groups=channels)
        self.linear = nn.Linear(channels, 2 * channels)
        self.to_k = nn.Linear(channels, channels)
        self.out_norm = nn.LayerNorm(channels, epsilon=norm_epsilon)
        self.out_linear = nn.Linear(channels, channels)
        self.frequency_embedding: Any = None
        if size is not None:
            shape = [*int_pair(size, "HeatConduction2D: size"), channels]
            self.frequency_embedding = self.create_parameter(shape, default_initializer=published_normal())

    def thermal_diffusivity(self, frequency_embedding: Tensor) -> Tensor:
        """k of every mode, float32 or float64 (H, W, C), from a frequency embedding (H, W, C)."""
        # Under AMP the product would overflow half precision long before the exponential forgives it.
        with no_autocast():
            embedding = _wide(frequency_embedding)
            weight, bias = self.to_k.weight.astype(embedding.dtype), self.to_k.bias.astype(embedding.dtype)
            return F.relu(F.linear(embedding, weight, bias))

    def decay(self, frequency_embedding: Tensor) -> Tensor:
        """Decay of every mode, float32 or float64 (H, W, C), from a frequency embedding (H, W, C)."""
        return _decay(self.thermal_diffusivity(frequency_embedding))

    def diffusivity_for(self, x: Tensor, frequency_embedding: Tensor | None = None) -> Tensor:
        """k as it is for the map ``x``; arguments as of :meth:`forward`."""
        return self.thermal_diffusivity(self._resized(x, self._checked(x, frequency_embedding)))

    def decay_for(self, x: Tensor, frequency_embedding: Tensor | None = None) -> Tensor:
        """The decay as it is for the map ``x``; arguments as of :meth:`forward`."""
        return self.decay(self._resized(x, self._checked(x, frequency_embedding)))

    def forward(self, x: Tensor, frequency_embedding: Tensor | None = None) -> Tensor:
        """Apply the operator.

        Args:
            x: (B, H, W, C) or (B, C, H, W) as ``data_format`` says.
            frequency_embedding: (H, W, C), resized bicubically where it is of another size than ``x`` (in a graph, one
                of unknown size is taken as it is); None for the operator's own.

        Returns:
            Tensor of the shape of ``x``.

        Raises:
            ValueError: for maps of another shape, and without any embedding.
        """
        return self.conduct(x, self.decay_for(x, frequency_embedding))

    # Where code is converted to a static graph, asking for a length would add operations to it.
    @paddle.jit.not_to_static
    def _checked(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """The embedding to be used."""
        if x.ndim != 4 or known_size(x, self.data_format.index("C")) not in (self.channels, None):
            raise ValueError(
                f"HeatConduction2D: expected {self.data_format} maps of {self.channels} channels, got {list(x.shape)}"
            )
        embedding = self.frequency_embedding if embedding is None else embedding
        if embedding is None:
            raise ValueError("HeatConduction2D: made without a size, it needs a frequency embedding with each map")
        return embedding

    @paddle.jit.not_to_static
    def _resized(self, x: Tensor, embedding: Tensor) -> Tensor:
        """The embedding at the size of ``x``."""
        rows = self.data_format.index("H")
        return (
            embedding
            if None in (known_size(embedding, 0), known_size(embedding, 1))
            else resized_embedding(embedding, size_of(x, rows), size_of(x, rows + 1))
        )

    def conduct(self, x: Tensor, decay: Tensor) -> Tensor:
        """The operator for a given decay (H, W, C)."""
        both = self._project(x if self.data_format == "NCHW" else x.transpose([0, 3, 1, 2]))
        heat, gate = both[..., : self.channels], both[..., self.channels :]
        heat = self.out_norm(self._conduct_heat(heat, decay))
        out = apply_linear(self.out_linear, heat * F.silu(gate))
        return out if self.data_format == "NHWC" else out.transpose([0, 3, 1, 2])

    def _conduct_heat(self, heat: Tensor, decay: Tensor) -> Tensor:
        if not self.float32_transform:
            return conduct_heat(heat, decay)
        with no_autocast():
            return conduct_heat(_wide(heat), decay).astype(heat.dtype)

    def _project(self, x: Tensor) -> Tensor:
        return depthwise_then_linear(self.dwconv, self.linear, x)

    def folded(self, frequency_embedding: Tensor, size: tuple[int, int]) -> nn.Layer:
        """The operator for maps of one size, with a constant decay."""
        return FoldedHeatConduction2D(self, self.decay(resized_embedding(frequency_embedding, *size)))

    def fast_form(self) -> nn.Layer:
        """See :mod:`paddle_vheat.ops.fold`."""
        return become(self, FastHeatConduction2D)


class FastHeatConduction2D(HeatConduction2D):
    """The operator in evaluation: the decay of an embedding is computed once for every size."""

    def forward(self, x: Tensor, frequency_embedding: Tensor | None = None) -> Tensor:
        return (
            self._conduct_evaluated(x, self.kept_decay(x, frequency_embedding))
            if paddle.in_dynamic_mode() and not paddle.is_grad_enabled()
            else HeatConduction2D.forward(self, x, frequency_embedding)
        )

    def kept_decay(self, x: Tensor, frequency_embedding: Tensor | None) -> Tensor:
        """:meth:`decay_for`, but kept for the next map of this size."""
        embedding = self._checked(x, frequency_embedding)

        def make() -> tuple[Tensor, Tensor]:
            return embedding, self.decay(self._resized(x, embedding))

        if not embedding.persistable:  # computed for this call
            self.__dict__["_unkept"] = True
            return make()[1]
        # The embedding is kept beside its decay, so that its id stays its own.
        key = (id(embedding), tuple(x.shape[1:]), str(embedding.dtype), str(embedding.place))
        return self._decays.get(key, make, math.prod(x.shape[1:]))[1]

    def _conduct_evaluated(self, x: Tensor, decay: Tensor) -> Tensor:
        return (
            evaluated.heat_conduction(self, x, decay)
            if paddle.in_dynamic_mode() and evaluated.takes_operator(self, x, decay)
            else self.conduct(x, decay)
        )

    @property
    def _decays(self) -> LRU:
        return self.__dict__.setdefault("_kept", LRU(KEPT_VALUES))

    def frozen(self) -> nn.Layer:
        """See :mod:`paddle_vheat.ops.fold`."""
        if len(self._decays.items) != 1 or "_unkept" in vars(self):
            return self
        (((_, decay), _),) = self._decays.items.values()
        return FoldedHeatConduction2D(self, decay)


class FoldedHeatConduction2D(nn.Layer):
    """The operator for maps of one size: the decay is a constant, ``to_k`` and the embedding are gone.

    Args:
        hco: the operator, whose layers it takes over.
        decay: (H, W, C), of maps of that size.
    """

    conduct, _conduct_heat = HeatConduction2D.conduct, HeatConduction2D._conduct_heat
    _project = HeatConduction2D._project
    _conduct_evaluated = FastHeatConduction2D._conduct_evaluated

    def __init__(self, hco: HeatConduction2D, decay: Tensor) -> None:
        super().__init__()
        for name in ("dwconv", "linear", "out_norm", "out_linear"):
            setattr(self, name, getattr(hco, name))
        self.channels, self.data_format, self.training = hco.channels, hco.data_format, hco.training
        self.float32_transform = hco.float32_transform
        # A parameter, so that it is counted, saved and moved with the others, but never trained.
        self.decay = self.create_parameter(decay.shape, dtype=decay.dtype)
        self.decay.set_value(decay)
        self.decay.stop_gradient = True
        self.decay.trainable = False
        self.folded_for = tuple(decay.shape[:2])

    def decay_for(self, x: Tensor, frequency_embedding: Tensor | None = None) -> Tensor:
        return self.decay

    kept_decay = decay_for

    def forward(self, x: Tensor, frequency_embedding: Tensor | None = None) -> Tensor:
        return self._conduct_evaluated(x, self.decay)
