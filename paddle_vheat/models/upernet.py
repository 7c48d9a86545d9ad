"""UPerNet in the layout of the published vHeat segmentation checkpoints (that of mmsegmentation).

Paper: "Unified Perceptual Parsing for Scene Understanding", Xiao et al., ECCV 2018, arXiv 1807.10221.
PaddleSeg has a UPerNet of its own, whose pooling (``align_corners=True``), widths and output differ; the
published ADE20K weights do not fit that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddle_vheat._paddle import nn, paddle
from paddle_vheat.models.layers import ConvBNReLU, init_layer, spatial_size
from paddle_vheat.models.vheat import check_parameter_count
from paddle_vheat.ops import fold, resize_bilinear

Tensor = Any

POOL_SIZES = (1, 2, 3, 6)


class PyramidPooling(nn.Layer):
    """Average pooling to one bin size, 1x1 convolution; the caller resizes the result back."""

    def __init__(self, in_channels: int, channels: int, bins: int) -> None:
        super().__init__()
        self.bins = bins
        self.pool = nn.AdaptiveAvgPool2D(bins)
        self.project = ConvBNReLU(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.pool(x))


class UPerHead(nn.Layer):
    """Pyramid pooling on the last map, a feature pyramid over all four, and the pixel classifier.

    Args:
        in_channels: channels of the four maps.
        channels: width of the decoder.
        num_classes: channels of the logits.
        dropout: probability of the channel dropout before the classifier.

    Shapes:
        maps (B, C_i, H / 2^i, W / 2^i) -> logits (B, num_classes, H, W), at the size of the first map.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, num_classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        last = in_channels[-1]
        self.pyramid = nn.LayerList([PyramidPooling(last, channels, bins) for bins in POOL_SIZES])
        self.bottleneck = ConvBNReLU(last + len(POOL_SIZES) * channels, channels, 3)
        self.laterals = nn.LayerList([ConvBNReLU(width, channels, 1) for width in in_channels[:-1]])
        self.fpn = nn.LayerList([ConvBNReLU(channels, channels, 3) for _ in in_channels[:-1]])
        self.fuse = ConvBNReLU(len(in_channels) * channels, channels, 3)
        self.dropout = nn.Dropout2D(dropout)
        self.classifier = init_layer(nn.Conv2D(channels, num_classes, 1), nn.initializer.Normal(0.0, 0.01))

    def forward_features(self, maps: Sequence[Tensor]) -> Tensor:
        """The fused map (B, channels, H, W) that the classifier reads."""
        last = maps[-1]
        size = spatial_size(last)
        pooled = [last] + [resize_bilinear(branch(last), size) for branch in self.pyramid]
        levels = [lateral(feature) for lateral, feature in zip(self.laterals, maps)]
        levels.append(self.bottleneck(paddle.concat(pooled, axis=1)))
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + resize_bilinear(levels[i], spatial_size(levels[i - 1]))
        levels = [conv(level) for conv, level in zip(self.fpn, levels)] + levels[-1:]
        size = spatial_size(levels[0])
        resized = levels[:1] + [resize_bilinear(level, size) for level in levels[1:]]
        return self.fuse(resized)

    def classify(self, features: Tensor) -> Tensor:
        """Logits of the map that :meth:`forward_features` gives."""
        return self.classifier(self.dropout(features))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.classify(self.forward_features(maps))


class FCNHead(nn.Layer):
    """Auxiliary head: 3x3 convolution, channel dropout, pixel classifier."""

    def __init__(self, in_channels: int, channels: int, num_classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv = ConvBNReLU(in_channels, channels, 3)
        self.dropout = nn.Dropout2D(dropout)
        self.classifier = init_layer(nn.Conv2D(channels, num_classes, 1), nn.initializer.Normal(0.0, 0.01))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.conv(x)))


class UPerNet(nn.Layer):
    """A backbone with :class:`UPerHead` and, in training, an auxiliary :class:`FCNHead` on its third map.

    Args:
        num_classes: number of classes.
        backbone: layer that maps images (B, C, H, W) to four NCHW maps and names their widths in
            ``feat_channels``.
        channels: width of the decoder (512 in the published recipe).
        aux_channels: width of the auxiliary head (256 in the published recipe); 0 leaves it out.
        dropout: probability of the channel dropout before both classifiers.

    Returns of ``forward``:
        in training ``[logits, auxiliary logits]``, in evaluation ``[logits]``, each (B, num_classes, H, W) at
        the size of the image, as PaddleSeg expects.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Any,
        channels: int = 512,
        aux_channels: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        widths = list(backbone.feat_channels)
        if len(widths) != 4:
            raise ValueError(f"UPerNet: the backbone must give four maps, its feat_channels are {widths}")
        if num_classes < 1 or channels < 1 or aux_channels < 0:
            raise ValueError(
                "UPerNet: expected num_classes and channels of at least 1 and aux_channels of at least 0, got "
                f"{num_classes}, {channels} and {aux_channels}"
            )
        count = 36 * channels**2 + 9 * (sum(widths) + aux_channels) * channels + (channels + aux_channels) * num_classes
        check_parameter_count(count, f"UPerNet of channels {channels}, aux_channels {aux_channels}")
        self.num_classes = num_classes
        self.backbone = backbone
        self.decode_head = UPerHead(widths, channels, num_classes, dropout)
        self.auxiliary_head = FCNHead(widths[2], aux_channels, num_classes, dropout) if aux_channels > 0 else None

    def forward_features(self, x: Tensor) -> Tensor:
        """The map (B, channels, H / 4, W / 4) that the pixel classifier reads."""
        return self.decode_head.forward_features(self.backbone(x))

    def forward(self, x: Tensor) -> list[Tensor]:
        size = spatial_size(x)
        maps = self.backbone(x)
        logits = [self.decode_head(maps)]
        if self.training and self.auxiliary_head is not None:
            logits.append(self.auxiliary_head(maps[2]))
        return [resize_bilinear(logit, size) for logit in logits]

    fold = fold
