"""vHeat: a vision backbone whose token mixer is heat conduction.

Paper: "Building Vision Models upon Heat Conduction", Wang et al., CVPR 2025, arXiv 2405.16555.
The architecture is written from the paper and from the published checkpoints' shapes; no code is shared with
the authors' release. Activations are channels last, (B, H, W, C), between the blocks: LayerNorm, the linear
layers and both passes of the DCT then work on the memory as it lies; only convolutions see NCHW.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from paddle_vheat._arguments import check_integer
from paddle_vheat._paddle import PADDLE_2, F, nn, paddle
from paddle_vheat.models.layers import DropPath, SharedEmbedding, init_layers, init_uniform
from paddle_vheat.ops import HeatConduction2D, fold
from paddle_vheat.ops.dct import check_products, dtype_name, known_size
from paddle_vheat.ops.fold import int_pair
from paddle_vheat.ops.heat import published_normal

Tensor = Any

MIN_SIZE = 32  # pixels a side: the backbone's total stride
MAX_BLOCKS = 1000
MAX_PARAMETERS = 10**9  # the largest of the paper has a tenth of it


@dataclass(frozen=True)
class Variant:
    """What tells one vHeat from another."""

    embed_dim: int
    depths: tuple[int, int, int, int]
    post_norm: bool
    layer_scale: float | None
    drop_path_rate: float  # of the ImageNet recipe

    def options(self, **changes: Any) -> dict[str, Any]:
        """Arguments of :class:`VHeat`; a change that is None is none."""
        return {**asdict(self), **{name: value for name, value in changes.items() if value is not None}}


# ImageNet-1k top-1 82.2, 83.6 and 83.9 (84.0 in the paper) at 224 x 224. The paper's table prints
# 68M parameters / 11.2G for base; the released configuration and weights are of D = 128, 87.5M / 14.9G.
VARIANTS: dict[str, Variant] = {
    "vheat_tiny": Variant(96, (2, 2, 6, 2), post_norm=False, layer_scale=None, drop_path_rate=0.1),
    "vheat_small": Variant(96, (2, 2, 18, 2), post_norm=True, layer_scale=1e-5, drop_path_rate=0.3),
    "vheat_base": Variant(128, (2, 2, 18, 2), post_norm=True, layer_scale=1e-5, drop_path_rate=0.5),
}


def size_pair(size: int | Sequence[int], name: str = "img_size") -> tuple[int, int]:
    """(height, width) in pixels from an int or a pair, each at least ``MIN_SIZE``."""
    height, width = int_pair(size, name)
    if min(height, width) < MIN_SIZE:
        raise ValueError(f"{name}: vHeat needs at least {MIN_SIZE} pixels a side, got {height} x {width}")
    return height, width


def stage_sizes(size: int | Sequence[int]) -> list[tuple[int, int]]:
    """(height, width) of the four stages' maps for an input of ``size``; each halving rounds up."""
    height, width = size_pair(size)
    sizes = []
    for step in range(5):
        height, width = (height + 1) // 2, (width + 1) // 2
        if step:
            sizes.append((height, width))
    return sizes


class Stem(nn.Layer):
    """Two strided convolutions to a quarter of the resolution: (B, 3, H, W) -> (B, H/4, W/4, D)."""

    def __init__(self, in_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2D(in_channels, embed_dim // 2, 3, stride=2, padding=1)
        self.norm1 = nn.LayerNorm(embed_dim // 2, epsilon=1e-6)
        self.conv2 = nn.Conv2D(embed_dim // 2, embed_dim, 3, stride=2, padding=1)
        self.norm2 = nn.LayerNorm(embed_dim, epsilon=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(self.conv1(x).transpose([0, 2, 3, 1])))
        return self.norm2(self.conv2(x.transpose([0, 3, 1, 2])).transpose([0, 2, 3, 1]))


class Downsample(nn.Layer):
    """Strided 3x3 convolution without bias and LayerNorm: (B, H, W, C) -> (B, H/2, W/2, 2C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2D(channels, 2 * channels, 3, stride=2, padding=1, bias_attr=False)
        self.norm = nn.LayerNorm(2 * channels, epsilon=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.transpose([0, 3, 1, 2])).transpose([0, 2, 3, 1]))


class MLP(nn.Layer):
    """C -> hidden (4C unless said) -> C with the exact (erf) GELU; the published weights are of 1x1 convolutions."""

    def __init__(self, channels: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = 4 * channels if hidden is None else hidden
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Layer):
    """Heat conduction and an MLP, each on a residual branch, normalised before it or (post-norm) after."""

    def __init__(self, channels: int, drop_path: float, post_norm: bool, layer_scale: float | None) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.norm1 = nn.LayerNorm(channels, epsilon=1e-5)
        self.hco = HeatConduction2D(channels)
        self.norm2 = nn.LayerNorm(channels, epsilon=1e-5)
        self.mlp = MLP(channels)
        self.drop_path = DropPath(drop_path)
        self.has_layer_scale = layer_scale is not None
        if layer_scale is not None:
            scale = nn.initializer.Constant(layer_scale)
            self.gamma1 = self.create_parameter([channels], default_initializer=scale)
            self.gamma2 = self.create_parameter([channels], default_initializer=scale)

    def forward(self, x: Tensor, frequency_embedding: Tensor | None) -> Tensor:
        conducted = self.hco(x if self.post_norm else self.norm1(x), frequency_embedding)
        x = x + self.drop_path(self._after(conducted, self.norm1, "gamma1"))
        mixed = self.mlp(x if self.post_norm else self.norm2(x))
        return x + self.drop_path(self._after(mixed, self.norm2, "gamma2"))

    def _after(self, branch: Tensor, norm: nn.LayerNorm, scale: str) -> Tensor:
        if self.post_norm:
            branch = norm(branch)
        return branch * getattr(self, scale) if self.has_layer_scale else branch


def check_parameter_count(count: float, what: str) -> None:
    """Raise a ValueError for a model larger than anybody means, before memory is taken for it."""
    if count > MAX_PARAMETERS:
        raise ValueError(
            f"{what} would have about {count:.1e} parameters; more than {MAX_PARAMETERS:.0e} are not built"
        )


class Stage(SharedEmbedding):
    """``depth`` blocks that share one frequency embedding, and the downsample that follows them."""

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        drop_paths: Sequence[float],
        post_norm: bool,
        layer_scale: float | None,
        downsample: bool,
    ) -> None:
        super().__init__()
        # (H, W, C), one value per mode and channel, for the resolution that the model is made for.
        self.frequency_embedding = self.create_parameter([*size, channels], default_initializer=published_normal())
        self.blocks = nn.LayerList([Block(channels, rate, post_norm, layer_scale) for rate in drop_paths])
        self.downsample = Downsample(channels) if downsample else None
        self.recompute = False

    def forward(self, x: Tensor) -> Tensor:
        embedding = self.embedding_for(x)
        # Paddle 2.6 cannot recompute in a static graph.
        recompute = self.recompute and self.training and (paddle.in_dynamic_mode() or not PADDLE_2)
        for block in self.blocks:
            if recompute and not x.stop_gradient:
                # The reentrant form crashes in the backward pass of DataParallel(find_unused_parameters=True); Paddle
                # 2.6 has the other on a GPU only.
                reentrant = PADDLE_2 and x.place.is_cpu_place()
                x = paddle.distributed.fleet.utils.recompute(block, x, embedding, use_reentrant=reentrant)
            else:
                x = block(x, embedding)
        return x


class VHeat(nn.Layer):
    """The vHeat backbone: four stages of feature maps at strides 4, 8, 16 and 32.

    Args:
        embed_dim: channels D of the first stage; the stages have D, 2D, 4D and 8D.
        depths: number of blocks of each stage.
        post_norm: LayerNorm after a branch (small, base) rather than before it (tiny).
        layer_scale: initial value of the per-channel scale on every branch, None for no scale.
        drop_path_rate: stochastic depth; the rate rises linearly from 0 at the first block to this at the last.
        img_size: int or (height, width) in pixels that the frequency embeddings are made for. Any other input
            size of at least 32 pixels a side works too: the embeddings are then resized bicubically.
        in_channels: channels of the image.
        out_norms: whether the stages' outputs go through a LayerNorm each (dense prediction) or are raw.
        out_indices: which stages' maps ``forward`` gives; stages after the last of them are not run.
        recompute: whether training recomputes each block's activations in the backward pass (gradient
            checkpointing): less memory, about a third more time, the same results.
        ablation: what of the operator is replaced, see :func:`paddle_vheat.models.ablation.read_ablation`.

    Shapes:
        image (B, in_channels, H, W) -> a map (B, D * 2^i, ceil(H / 2^(i+2)), ceil(W / 2^(i+2))) for each i of
        ``out_indices``, whose widths are in ``feat_channels``; in ``feature_info`` their strides and names too.
    """

    def __init__(
        self,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        post_norm: bool = False,
        layer_scale: float | None = None,
        drop_path_rate: float = 0.1,
        img_size: int | Sequence[int] = 224,
        in_channels: int = 3,
        out_norms: bool = True,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        recompute: bool = False,
        ablation: Any = None,
    ) -> None:
        super().__init__()
        if len(depths) != 4 or min(depths) < 1 or sum(depths) > MAX_BLOCKS:
            raise ValueError(
                f"VHeat: depths must be four positive numbers of at most {MAX_BLOCKS} in all, got {tuple(depths)}"
            )
        if embed_dim < 2 or embed_dim % 2:
            raise ValueError(f"VHeat: embed_dim must be even and positive, got {embed_dim}")
        if not 0.0 <= drop_path_rate < 1.0:
            raise ValueError(f"VHeat: drop_path_rate must be in [0, 1), got {drop_path_rate}")
        if not out_indices or list(out_indices) != sorted({i for i in out_indices if i in range(4)}):
            raise ValueError(f"VHeat: out_indices must be rising numbers from 0 to 3, got {tuple(out_indices)}")
        check_integer("VHeat: in_channels", in_channels, 1)
        self.img_size = size_pair(img_size)
        widths = [embed_dim * 2**i for i in range(4)]
        blocks = sum(12 * width**2 * depth for width, depth in zip(widths, depths))
        embeddings = sum(width * h * w for width, (h, w) in zip(widths, stage_sizes(self.img_size)))
        check_parameter_count(blocks + embeddings, f"VHeat of embed_dim {embed_dim}, depths {tuple(depths)}")
        self.in_channels = in_channels
        self.out_indices = tuple(out_indices)
        self.feat_channels = [widths[i] for i in self.out_indices]
        self.feature_info = [
            {"num_chs": widths[i], "reduction": 4 * 2**i, "module": f"stages.{i}"} for i in self.out_indices
        ]
        total = sum(depths)
        rates = [drop_path_rate * i / max(total - 1, 1) for i in range(total)]
        self.stem = Stem(in_channels, embed_dim)
        self.stages = nn.LayerList()
        for i, (channels, size) in enumerate(zip(widths, stage_sizes(self.img_size))):
            start = sum(depths[:i])
            stage_rates = rates[start : start + depths[i]]
            self.stages.append(Stage(channels, size, stage_rates, post_norm, layer_scale, downsample=i < 3))
        self.out_norms = out_norms
        if out_norms:
            for i, channels in enumerate(widths):
                self.add_sublayer(f"outnorm{i}", nn.LayerNorm(channels, epsilon=1e-5))
        self.folded_for: tuple[int, int] | None = None
        if ablation is not None:
            from paddle_vheat.models.ablation import ablate

            ablate(self, ablation)
        for stage in self.stages:
            stage.recompute = recompute
        self._init_weights()

    def _init_weights(self) -> None:
        init_layers(self)
        for layer in self.sublayers():
            if isinstance(layer, MLP):  # published as 1x1 convolutions, which keep their own initialisation
                for linear in (layer.fc1, layer.fc2):
                    init_uniform(linear.weight, linear.bias, linear.weight.shape[0])

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the published recipe does not decay: 1-D ones (norms, biases, scales)."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim == 1}

    def check_input(self, x: Tensor) -> None:
        """Raise a ValueError that says what is wrong with an image batch (B, C, H, W)."""
        if x.ndim != 4:
            raise ValueError(f"VHeat: expected images (B, {self.in_channels}, H, W), got shape {list(x.shape)}")
        batch, channels, height, width = (known_size(x, axis) for axis in range(4))
        if batch == 0:
            raise ValueError("VHeat: the batch is empty (B = 0)")
        if channels is not None and channels != self.in_channels:
            raise ValueError(f"VHeat: expected {self.in_channels} channels, got {channels}")
        ours, theirs = self.stem.conv1.weight.dtype, x.dtype
        # Under AMP the two may differ, but no precision of its own is float64.
        if not x.is_floating_point() or (theirs != ours and paddle.float64 in (ours, theirs)):
            raise ValueError(
                f"VHeat: expected images of the model's {dtype_name(ours)}, got {dtype_name(theirs)}; cast the images, "
                f"or the model by model.to(dtype=...)"
            )
        check_products(x, "VHeat")
        if self.folded_for is not None:
            if (height, width) != self.folded_for:
                raise ValueError(
                    f"VHeat: this model was folded for {self.folded_for[0]} x {self.folded_for[1]} pixels and "
                    f"cannot take {height} x {width}; fold the original model for that size"
                )
            return
        for side, length in (("rows", height), ("columns", width)):
            if length is not None and length < MIN_SIZE:
                raise ValueError(
                    f"VHeat: needs at least {MIN_SIZE} pixels a side, got {height} x {width}; pad the image by "
                    f"{MIN_SIZE - length} {side}"
                )

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """Raw outputs of the stages up to the last that is asked for, channels last (B, H, W, C)."""
        self.check_input(x)
        x = self.stem(x)
        outputs: list[Tensor] = []
        for stage in self.stages[: self.out_indices[-1] + 1]:
            if outputs:
                x = self.stages[len(outputs) - 1].downsample(x)
            x = stage(x)
            outputs.append(x)
        return outputs

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """The NCHW maps of ``out_indices``, normalised if the backbone has output norms."""
        maps = self.forward_stages(x)
        indices = [i for i in self.out_indices if i < len(maps)]
        if self.out_norms:
            return [getattr(self, f"outnorm{i}")(maps[i]).transpose([0, 3, 1, 2]) for i in indices]
        return [maps[i].transpose([0, 3, 1, 2]) for i in indices]

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.forward_features(x)

    def fold_for(self, size: tuple[int, int]) -> None:
        """See :mod:`paddle_vheat.ops.fold`."""
        self.folded_for = size_pair(size, "fold")
        for stage, stage_size in zip(self.stages, stage_sizes(size)):
            stage.fold(stage_size)

    fold = fold
