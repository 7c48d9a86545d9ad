"""Small building blocks and initialisation shared by the models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from paddle_vheat._paddle import F, nn, paddle
from paddle_vheat.ops.dct import known_size, size_of
from paddle_vheat.ops.fold import is_plain
from paddle_vheat.ops.heat import HeatConduction2D, published_normal, resized_embedding

Tensor = Any


class DropPath(nn.Layer):
    """Stochastic depth: in training, a whole residual branch of a sample is dropped with probability ``rate``."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors(x) if self._drops() else x

    def _drops(self) -> bool:
        return self.training and self.rate > 0.0

    def factors(self, x: Tensor) -> Tensor:
        """What the samples of ``x`` are multiplied by, (B, 1, ..., 1): 0, or the inverse of what is kept."""
        keep = 1.0 - self.rate
        shape = [size_of(x, 0)] + [1] * (x.ndim - 1)
        if not self._drops():
            return paddle.ones(shape, x.dtype)
        return (paddle.floor(paddle.rand(shape) + keep) / keep).astype(x.dtype)


class ChannelsLastConv2D(nn.Conv2D):
    """A 3 x 3 convolution with a margin of 1 of a map that is channels last: (B, H, W, C) -> (B, H, W, D)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.Conv2D.forward(self, x.transpose([0, 3, 1, 2])).transpose([0, 2, 3, 1])


class SharedEmbedding(nn.Layer):
    """Holds ``blocks`` whose heat conduction operators share one ``frequency_embedding`` (H, W, C).

    That is a parameter, or None where the operators need none: they have been folded, or mix in another way.
    """

    frequency_embedding: Any
    blocks: Any
    aligned_by_operators = False
    """Whether the operators bring the embedding to their maps' size themselves."""
    _folded = False

    def embedding_for(self, x: Tensor) -> Tensor | None:
        """The frequency embedding for the map ``x`` (B, H, W, C), at its size unless the operators see to that."""
        return (
            self.frequency_embedding
            if self.frequency_embedding is None or self.aligned_by_operators or self._keeps_decays(x)
            else resized_embedding(self.frequency_embedding, size_of(x, 1), size_of(x, 2))
        )

    def _keeps_decays(self, x: Tensor) -> bool:
        """Whether the operators keep the decay of every size, which they make of the embedding as it is."""
        return self._folded and paddle.in_dynamic_mode() and not paddle.is_grad_enabled()

    def fold(self, size: tuple[int, int]) -> None:
        """Make every operator one for maps of ``size``, in place."""
        with paddle.no_grad():
            for block in self.blocks:
                for name, layer in list(block.named_children()):
                    if isinstance(layer, HeatConduction2D):
                        setattr(block, name, layer.folded(self.frequency_embedding, size))
        self.frequency_embedding = None

    def fast_form(self) -> nn.Layer:
        self._folded = True
        return self


def init_layer(layer: Any, weight: Any) -> Any:
    """The layer, its weight filled by the initializer ``weight``, its bias with zeros."""
    weight(layer.weight)
    nn.initializer.Constant(0.0)(layer.bias)
    return layer


def init_uniform(weight: Any, bias: Any, fan_in: int) -> None:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weight and bias.

    This is PyTorch's default for convolutions, which the published model keeps; Paddle's default is wider
    (normal with std sqrt(2 / fan_in)) and would change the start of training.
    """
    bound = 1.0 / math.sqrt(fan_in)
    uniform = nn.initializer.Uniform(-bound, bound)
    uniform(weight)
    if bias is not None:
        uniform(bias)


def init_layers(model: nn.Layer) -> None:
    """:func:`published_normal` for all linear layers of a model, :func:`init_uniform` for all convolutions."""
    for layer in model.sublayers():
        if isinstance(layer, nn.Linear):
            init_layer(layer, published_normal())
        elif isinstance(layer, nn.Conv2D):
            _, channels_per_group, height, width = layer.weight.shape
            init_uniform(layer.weight, layer.bias, channels_per_group * height * width)


def spatial_size(x: Tensor) -> Any:
    """(H, W) of an NCHW map: ints where known, else a tensor (in a graph of dynamic size)."""
    height, width = known_size(x, 2), known_size(x, 3)
    return paddle.shape(x)[2:] if height is None or width is None else [height, width]


class ConvBNReLU(nn.Layer):
    """Convolution without bias, BatchNorm (eps 1e-5), ReLU: the ``ConvModule`` of the published heads."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2D(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias_attr=False)
        # torch's momentum 0.1 is the share of the new statistics; Paddle's 0.9 is the share of the old.
        self.bn = nn.BatchNorm2D(out_channels, momentum=0.9, epsilon=1e-5)
        nn.initializer.KaimingNormal()(self.conv.weight)

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """Of a map (B, C, H, W), or of maps (B, C_i, H, W) as if they were concatenated along their channels."""
        convolved = convolve_concatenated(self.conv, x) if isinstance(x, (list, tuple)) else self.conv(x)
        return F.relu(self.bn(convolved))


def convolve_concatenated(convolution: nn.Conv2D, maps: Sequence[Tensor]) -> Tensor:
    """A convolution of maps (B, C_i, H, W) concatenated along their channels.

    On a CPU as the sum of one convolution for each map, in training too: Paddle lays out every pixel's neighbourhood
    in memory first, so that a training step of UPerNet at 512 x 512 would take 900 MiB more, in the same time.
    """
    return (
        _convolve_each(convolution, maps)
        if paddle.in_dynamic_mode()
        and convolution.bias is None
        and convolution._groups == 1
        and is_plain(convolution)
        and maps[0].place.is_cpu_place()
        else convolution(paddle.concat(list(maps), axis=1))
    )


def _convolve_each(convolution: nn.Conv2D, maps: Sequence[Tensor]) -> Tensor:
    out, start = None, 0
    for part in maps:
        end = start + part.shape[1]
        term = F.conv2d(part, convolution.weight[:, start:end], None, convolution._stride, convolution._padding)
        out, start = term if out is None else out + term, end
    return out
