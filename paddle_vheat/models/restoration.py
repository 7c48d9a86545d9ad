"""Image restoration with one body and two mixers: heat conduction (vHeatIR) or shifted windows (SwinIR).

Papers: "SwinIR: Image Restoration Using Swin Transformer", Liang et al., ICCVW 2021, arXiv 2108.10257 (code and weights
Apache-2.0); "Building Vision Models upon Heat Conduction", Wang et al., CVPR 2025, arXiv 2405.16555, section 4.5:
SwinIR with its attention replaced by the Heat Conduction Operator. Of vHeatIR neither code, weights nor further details
are published. What the paper leaves open is decided here as follows:

- The operator works on the whole map, not within windows, so it takes any size without padding.
- A group's blocks share one frequency embedding, as a stage of vHeat does. Of the training patch's size (128) and the
  published width it has 2.9 M numbers, 17.7 M in all, more than all the rest; so its grid is a setting (``freq_size``).
- For a map of another size, the embedding is resized bicubically. A pixel keeps its scale, and the frequency of a mode
  is in radians per pixel, so a block filters alike at every size.

Parameters in millions, without embeddings, gray: vHeatIR 11.53, SwinIR 11.50. Multiply-adds per pixel at the published
width: SwinIR 12.3 M; vHeatIR 10.35 M + 12960 (H + W), 13.7 M at 128 x 128. Maps are channels last between convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from paddle_vheat._paddle import F, nn, paddle
from paddle_vheat.models.layers import ChannelsLastConv2D, DropPath, SharedEmbedding, init_layers
from paddle_vheat.models.registry import register_model
from paddle_vheat.models.vheat import MLP, check_parameter_count
from paddle_vheat.ops import HeatConduction2D
from paddle_vheat.ops.dct import known_size, size_of
from paddle_vheat.ops.fold import apply_linear, int_pair
from paddle_vheat.ops.heat import published_normal

Tensor = Any

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K
# A folded group keeps its decays of up to so many values (128 MiB), at the published width for 176 x 176 pixels. Those
# of a photograph would take gigabytes in all, and computing them again is less than a tenth of the work.
KEPT_VALUES = 2**25


@lru_cache(maxsize=8)
def _relative_positions(window: int) -> np.ndarray:
    """Row of the bias table for every pair of positions in a window, (N, N) with N = window^2."""
    rows, columns = np.divmod(np.arange(window * window), window)
    down, right = rows[:, None] - rows, columns[:, None] - columns
    return (down + window - 1) * (2 * window - 1) + right + window - 1


class WindowAttention(nn.Layer):
    """Self-attention within the windows of a map (B, H, W, C), with a learned bias for every relative position.

    Args:
        shift: pixels by which the map is rolled up and left before it is cut. What the roll puts beside pixels that it
            was not beside before is masked.
    """

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = self.create_parameter(
            [(2 * window - 1) ** 2, heads], default_initializer=published_normal()
        )

    def _cut(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, windows, N, C)."""
        batch, height, width, channels = x.shape
        w = self.window
        x = x.reshape([batch, height // w, w, width // w, w, channels]).transpose([0, 1, 3, 2, 4, 5])
        return x.reshape([batch, -1, w * w, channels])

    def _mask(self, height: int, width: int) -> Tensor:
        """(windows, 1, N, N): -100 for pairs that are neighbours by the roll alone, else 0."""
        regions = []
        for size in (height, width):
            place = np.arange(size)
            regions.append((place >= size - self.window).astype(np.int32) + (place >= size - self.shift))
        labels = self._cut(paddle.to_tensor(3 * regions[0][:, None] + regions[1]).reshape([1, height, width, 1]))
        labels = labels.squeeze([0, 3])
        apart = labels.unsqueeze(1) != labels.unsqueeze(2)
        return -100.0 * apart.unsqueeze(1).astype(self.qkv.weight.dtype)

    def forward(self, x: Tensor, frequency_embedding: None = None) -> Tensor:
        """Of a map whose sides are multiples of the window; the embedding is the other mixer's."""
        batch, height, width, channels = x.shape
        if self.shift:
            x = paddle.roll(x, [-self.shift, -self.shift], [1, 2])
        n, heads = self.window**2, self.heads
        qkv = apply_linear(self.qkv, self._cut(x)).reshape([batch, -1, n, 3, heads, channels // heads])
        query, key, value = qkv.transpose([3, 0, 1, 4, 2, 5]).unbind(0)  # each (B, windows, heads, N, C / heads)
        index = paddle.to_tensor(_relative_positions(self.window).reshape(-1))
        bias = self.relative_position_bias_table[index].reshape([n, n, heads]).transpose([2, 0, 1])
        scores = paddle.matmul(query * (channels // heads) ** -0.5, key, transpose_y=True) + bias
        if self.shift:
            scores = scores + self._mask(height, width)
        mixed = paddle.matmul(F.softmax(scores), value).transpose([0, 1, 3, 2, 4])
        mixed = apply_linear(self.proj, mixed.reshape([batch, -1, n, channels]))
        w = self.window
        mixed = mixed.reshape([batch, height // w, width // w, w, w, channels]).transpose([0, 1, 3, 2, 4, 5])
        mixed = mixed.reshape([batch, height, width, channels])
        return paddle.roll(mixed, [self.shift, self.shift], [1, 2]) if self.shift else mixed


class Block(nn.Layer):
    """A mixer and an MLP, each on a residual branch, normalised before it."""

    def __init__(self, mixer: nn.Layer, channels: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, epsilon=1e-5)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(channels, epsilon=1e-5)
        self.mlp = MLP(channels, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, frequency_embedding: Tensor | None) -> Tensor:
        x = x + self.drop_path(self.mixer(self.norm1(x), frequency_embedding))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Group(SharedEmbedding):
    """Blocks and a 3x3 convolution on a residual branch: (B, H, W, C) -> (B, H, W, C).

    Args:
        blocks: of either mixer.
        channels: C.
        freq_size: (height, width) of the frequency embedding that heat conduction needs, else None.
    """

    def __init__(self, blocks: Sequence[Block], channels: int, freq_size: tuple[int, int] | None) -> None:
        super().__init__()
        self.frequency_embedding = None
        if freq_size is not None:
            self.frequency_embedding = self.create_parameter(
                [*freq_size, channels], default_initializer=published_normal()
            )
        self.blocks = nn.LayerList(blocks)
        self.conv = ChannelsLastConv2D(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        embedding = self.embedding_for(x)
        out = x
        for block in self.blocks:
            out = block(out, embedding)
        return x + self.conv(out)

    def _keeps_decays(self, x: Tensor) -> bool:
        """If those of this size are not too large."""
        return SharedEmbedding._keeps_decays(self, x) and x[0].size * len(self.blocks) <= KEPT_VALUES


def _pad_by_reflection(x: Tensor, multiple: int) -> Tensor:
    """(B, C, H, W) continued downwards and to the right by reflection, the edge not repeated, to a multiple."""
    for axis in (2, 3):
        size = x.shape[axis]
        if size % multiple:
            period = max(2 * size - 2, 1)
            index = np.arange(size + -size % multiple) % period
            x = paddle.index_select(x, paddle.to_tensor(np.minimum(index, period - index)), axis)
    return x


class RestorationNet(nn.Layer):
    """The body of SwinIR without upsampling: predicts what is to be added to a degraded image.

    Args:
        make_mixer: gives the mixer of a group's i-th block.
        in_channels: 1 (gray) or 3 (RGB).
        width: channels D of the maps.
        depths: number of blocks of each group.
        mlp_ratio: hidden channels of an MLP, in multiples of D.
        drop_path_rate: stochastic depth; rises linearly from 0 at the first block to this at the last.
        img_range: factor on the image, whose values are in [0, 1]; published 1 for denoising, 255 for JPEG.
        freq_size: int or (height, width) of the frequency embeddings; None for mixers that need none.
        multiple: the image is padded by reflection, at the bottom and right, to a multiple of this; cropped at the end.

    Shapes:
        image (B, in_channels, H, W) of any size -> the same; not clamped to [0, 1].
    """

    def __init__(
        self,
        make_mixer: Callable[[int], nn.Layer],
        in_channels: int,
        width: int,
        depths: Sequence[int],
        mlp_ratio: float,
        drop_path_rate: float,
        img_range: float,
        freq_size: int | Sequence[int] | None = None,
        multiple: int = 1,
    ) -> None:
        super().__init__()
        if in_channels not in (1, 3):
            raise ValueError(f"RestorationNet: in_channels must be 1 (gray) or 3 (RGB), got {in_channels}")
        if not depths or min(depths) < 1:
            raise ValueError(f"RestorationNet: depths must be positive numbers, got {tuple(depths)}")
        if not 0.0 <= drop_path_rate < 1.0:
            raise ValueError(f"RestorationNet: drop_path_rate must be in [0, 1), got {drop_path_rate}")
        grid = None if freq_size is None else int_pair(freq_size, "RestorationNet: freq_size")
        total, hidden = sum(depths), int(width * mlp_ratio)
        count = total * (4 * width**2 + 2 * width * hidden) + len(depths) * width * (9 * width + math.prod(grid or [0]))
        check_parameter_count(count, f"RestorationNet of width {width}, depths {tuple(depths)}, freq_size {freq_size}")
        self.in_channels, self.img_range, self.multiple = in_channels, float(img_range), multiple
        self.folded_for: tuple[int, int] | None = None
        mean = RGB_MEAN if in_channels == 3 else (0.0,)
        # Not of the state dict: the published checkpoints do not hold it.
        self.register_buffer("mean", paddle.to_tensor(mean).reshape([1, in_channels, 1, 1]), persistable=False)
        self.conv_first = ChannelsLastConv2D(in_channels, width)
        self.first_norm = nn.LayerNorm(width, epsilon=1e-5)
        self.groups = nn.LayerList()
        for g, depth in enumerate(depths):
            rates = [drop_path_rate * (sum(depths[:g]) + i) / max(total - 1, 1) for i in range(depth)]
            blocks = [Block(make_mixer(i), width, hidden, rate) for i, rate in enumerate(rates)]
            self.groups.append(Group(blocks, width, grid))
        self.norm = nn.LayerNorm(width, epsilon=1e-5)
        self.conv_after_body = ChannelsLastConv2D(width, width)
        self.conv_last = ChannelsLastConv2D(width, in_channels)
        init_layers(self)

    def forward(self, image: Tensor) -> Tensor:
        if image.ndim != 4 or known_size(image, 1) not in (None, self.in_channels):
            raise ValueError(f"RestorationNet: expected (B, {self.in_channels}, H, W), got shape {list(image.shape)}")
        height, width = size_of(image, 2), size_of(image, 3)
        if self.folded_for is not None and (height, width) != self.folded_for:
            raise ValueError(f"RestorationNet: folded for {self.folded_for}, cannot take {(height, width)} pixels")
        if self.multiple > 1:
            image = _pad_by_reflection(image, self.multiple)
        x = (image - self.mean) * self.img_range
        first = self.conv_first(x.transpose([0, 2, 3, 1]))
        tokens = self.first_norm(first)
        for group in self.groups:
            tokens = group(tokens)
        residual = self.conv_last(self.conv_after_body(self.norm(tokens)) + first)
        restored = (x + residual.transpose([0, 3, 1, 2])) / self.img_range + self.mean
        return restored[:, :, :height, :width] if self.multiple > 1 else restored

    def fold_for(self, size: tuple[int, int]) -> None:
        """See :mod:`paddle_vheat.ops.fold`."""
        self.folded_for = size
        for group in self.groups:
            group.fold(size)


def build_vheat_ir(
    in_channels: int = 1,
    width: int = 180,
    depths: Sequence[int] = (6,) * 6,
    freq_size: int | Sequence[int] = 128,
    mlp_ratio: float = 2.0,
    drop_path_rate: float = 0.1,
    img_range: float = 1.0,
) -> RestorationNet:
    """vHeatIR; the defaults are SwinIR's published ones. See :class:`RestorationNet` for the arguments."""

    def heat(i: int) -> HeatConduction2D:
        return HeatConduction2D(width, float32_transform=True)

    return RestorationNet(heat, in_channels, width, depths, mlp_ratio, drop_path_rate, img_range, freq_size)


def build_swin_ir(
    in_channels: int = 1,
    width: int = 180,
    depths: Sequence[int] = (6,) * 6,
    heads: int = 6,
    window: int = 8,
    mlp_ratio: float = 2.0,
    drop_path_rate: float = 0.1,
    img_range: float = 1.0,
) -> RestorationNet:
    """SwinIR; published with window 8 and img_range 1 for denoising, 7 and 255 for JPEG. Fixed sizes only in a graph.

    Args:
        heads: attention heads of every block; divides ``width``.
        window: pixels a side; every second block's windows are shifted by half of it.
    """
    if heads < 1 or width % heads:
        raise ValueError(f"build_swin_ir: heads must divide width, got {heads} and {width}")
    if window < 1:
        raise ValueError(f"build_swin_ir: window must be at least 1, got {window}")

    def attention(i: int) -> WindowAttention:
        return WindowAttention(width, heads, window, shift=window // 2 if i % 2 else 0)

    return RestorationNet(attention, in_channels, width, depths, mlp_ratio, drop_path_rate, img_range, multiple=window)


# The published size, and one of 0.12 M parameters (embeddings apart) for a CPU.
LIGHT: dict[str, Any] = {"width": 32, "depths": (2, 2, 2, 2)}
MODELS: dict[str, Callable[..., RestorationNet]] = {
    "vheat_ir": build_vheat_ir,
    "vheat_ir_light": partial(build_vheat_ir, freq_size=48, **LIGHT),
    "swin_ir": build_swin_ir,
    "swin_ir_light": partial(build_swin_ir, heads=4, **LIGHT),
}
for _name, _builder in MODELS.items():
    register_model(_name, _builder)
