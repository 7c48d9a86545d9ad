"""Feature pyramid network.

Paper: "Feature Pyramid Networks for Object Detection", Lin et al., CVPR 2017, arXiv 1612.03144.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddle_vheat._paddle import F, nn
from paddle_vheat.models.layers import init_layer, spatial_size

Tensor = Any


class FPN(nn.Layer):
    """Four feature maps made into a pyramid of five with equal channels; no normalisation, no activation.

    Shapes:
        (B, C_i, H_i, W_i), four of them -> (B, channels, H_i, W_i) and (B, channels, ceil(H_3 / 2), ceil(W_3 / 2)).
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        xavier = nn.initializer.XavierUniform()
        self.laterals = nn.LayerList([init_layer(nn.Conv2D(width, channels, 1), xavier) for width in in_channels])
        self.outputs = nn.LayerList(
            [init_layer(nn.Conv2D(channels, channels, 3, padding=1), xavier) for _ in in_channels]
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        levels = [lateral(feature) for lateral, feature in zip(self.laterals, maps)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], spatial_size(levels[i - 1]), mode="nearest")
        pyramid = [output(level) for output, level in zip(self.outputs, levels)]
        return [*pyramid, F.max_pool2d(pyramid[-1], 1, 2)]
