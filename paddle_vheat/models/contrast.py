"""Segmentors with a projection head, for the pixel contrast loss.

Paper: "Exploring Cross-Image Pixel Contrast for Semantic Segmentation", Wang et al., ICCV 2021, arXiv 2101.11939,
sections 3.1 and 4.1. The names of the parameters are those of PaddleSeg's ``HRNetW48Contrast`` checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddle_vheat._arguments import check_integer
from paddle_vheat._paddle import F, nn, paddle
from paddle_vheat.models.layers import spatial_size
from paddle_vheat.models.upernet import UPerNet
from paddle_vheat.ops import fold, resize_bilinear

Tensor = Any


class _ConvBNReLU(nn.Layer):
    """Convolution with bias, BatchNorm, ReLU, under the names of PaddleSeg's checkpoints."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self._conv = nn.Conv2D(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self._batch_norm = nn.BatchNorm2D(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self._batch_norm(self._conv(x)))


class ProjectionHead(nn.Layer):
    """1x1 convolution, BatchNorm, ReLU, 1x1 convolution; every pixel is brought to length 1, in float32.

    Shapes:
        (B, in_channels, H, W) -> float32 (B, proj_dim, H, W).
    """

    def __init__(self, in_channels: int, proj_dim: int) -> None:
        super().__init__()
        check_integer("proj_dim", proj_dim, 1)
        self.proj = nn.Sequential(_ConvBNReLU(in_channels, in_channels, 1), nn.Conv2D(in_channels, proj_dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        projected = self.proj(x)
        # The squares of half-precision numbers, summed over the channels, would overflow.
        with paddle.amp.auto_cast(enable=False):
            return F.normalize(projected.astype("float32"), axis=1)


class PixelContrastSegmentor(nn.Layer):
    """A backbone with a segmentation head and a projection head on the same feature map.

    The feature map is the backbone's only one (HRNet), or several of its maps, resized to the first of them and
    concatenated.

    Args:
        num_classes: number of classes.
        backbone: layer that maps images (B, C, H, W) to a list of NCHW maps and names their widths in
            ``feat_channels``; any PaddleSeg backbone.
        proj_dim: width of the embedding; 256 in the paper, 720 in the PaddleSeg reproduction.
        drop_prob: probability of the channel dropout before the classifier.
        backbone_indices: which of the maps are used; None for all.
        align_corners: of the resizing of logits, as in PaddleSeg; False suits even sizes.

    Returns of ``forward``:
        in training ``[logits, {"seg": small logits, "embed": embedding}]``, in evaluation ``[logits]``; logits
        (B, num_classes, H, W) at the size of the image, small logits and the embedding (B, proj_dim, h, w), of
        length 1 in every pixel, at that of the feature map. Evaluation does not run the projection head.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Any,
        proj_dim: int = 256,
        drop_prob: float = 0.1,
        backbone_indices: Sequence[int] | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        widths = list(backbone.feat_channels)
        indices = list(range(len(widths))) if backbone_indices is None else list(backbone_indices)
        wrong = [i for i in indices if not isinstance(i, int) or not 0 <= i < len(widths)]
        if wrong or not indices:
            raise ValueError(
                f"PixelContrastSegmentor: backbone_indices {indices}: the backbone has maps 0 to {len(widths) - 1}"
            )
        self.num_classes = num_classes
        self.backbone_indices = indices
        self.align_corners = align_corners
        self.backbone = backbone
        channels = sum(widths[i] for i in indices)
        self.cls_head = nn.Sequential(
            _ConvBNReLU(channels, channels, 3),
            nn.Dropout2D(drop_prob),
            nn.Conv2D(channels, num_classes, 1, bias_attr=False),
        )
        self.proj_head = ProjectionHead(channels, proj_dim)

    def forward_features(self, x: Tensor) -> Tensor:
        """The feature map (B, channels, h, w) that both heads read."""
        found = self.backbone(x)
        if len(found) <= max(self.backbone_indices):
            raise ValueError(
                f"PixelContrastSegmentor: the backbone names {max(self.backbone_indices) + 1} or more maps in its "
                f"feat_channels and gives {len(found)}; choose with backbone_indices"
            )
        maps = [found[i] for i in self.backbone_indices]
        if len(maps) == 1:
            return maps[0]
        size = spatial_size(maps[0])
        return paddle.concat(maps[:1] + [resize_bilinear(feature, size) for feature in maps[1:]], axis=1)

    def forward(self, x: Tensor) -> list[Any]:
        features = self.forward_features(x)
        small = self.cls_head(features)
        if self.align_corners:
            logits = F.interpolate(small, spatial_size(x), mode="bilinear", align_corners=True)
        else:
            logits = resize_bilinear(small, spatial_size(x))
        if self.training:
            return [logits, {"seg": small, "embed": self.proj_head(features)}]
        return [logits]

    fold = fold


class UPerNetContrast(UPerNet):
    """:class:`UPerNet` with a projection head on the map that its pixel classifier reads.

    Args:
        num_classes, backbone, channels, aux_channels, dropout: see :class:`UPerNet`.
        proj_dim: width of the embedding.

    Returns of ``forward``:
        in training ``[logits, {"seg": small logits, "embed": embedding}, auxiliary logits]`` (without the last if
        ``aux_channels`` is 0), in evaluation ``[logits]``. The small logits and the embedding, of length 1 in every
        pixel, are at a quarter of the image's size. Evaluation does not run the projection head.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Any,
        channels: int = 512,
        aux_channels: int = 256,
        dropout: float = 0.1,
        proj_dim: int = 256,
    ) -> None:
        super().__init__(num_classes, backbone, channels, aux_channels, dropout)
        self.proj_head = ProjectionHead(channels, proj_dim)

    def forward(self, x: Tensor) -> list[Any]:
        size = spatial_size(x)
        maps = self.backbone(x)
        features = self.decode_head.forward_features(maps)
        small = self.decode_head.classify(features)
        outputs: list[Any] = [resize_bilinear(small, size)]
        if self.training:
            outputs.append({"seg": small, "embed": self.proj_head(features)})
        if self.training and self.auxiliary_head is not None:
            outputs.append(resize_bilinear(self.auxiliary_head(maps[2]), size))
        return outputs
