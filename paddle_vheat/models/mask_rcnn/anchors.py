"""Anchors of the region proposal network.

Paper: "Faster R-CNN", Ren et al., NeurIPS 2015, arXiv 1506.01497, with one size a level as in "Feature Pyramid
Networks", Lin et al., CVPR 2017, arXiv 1612.03144.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paddle_vheat._paddle import paddle

Tensor = Any

STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)  # height over width
SCALE = 8  # an anchor's side in strides
PAD_MULTIPLE = 32  # pixels; each image of a batch is padded to a multiple of this, then to the largest


def base_anchors(stride: int) -> np.ndarray:
    """The anchors of the cell at the origin: (3, 4) float32, x1 y1 x2 y2, centred on (0, 0)."""
    heights = SCALE * stride * np.sqrt(np.asarray(RATIOS, np.float32))
    widths = SCALE * stride / np.sqrt(np.asarray(RATIOS, np.float32))
    return np.stack([-widths, -heights, widths, heights], axis=1).astype(np.float32) / 2


def _positions(height: Any, width: Any) -> tuple[Tensor, Tensor]:
    """Row (H, 1) and column (1, W) of every cell, float32."""
    rows, columns = paddle.arange(0, height, 1, dtype="int64"), paddle.arange(0, width, 1, dtype="int64")
    return rows.astype("float32").unsqueeze(1), columns.astype("float32").unsqueeze(0)


def grid_anchors(height: Any, width: Any, stride: int) -> Tensor:
    """Every anchor of a feature map.

    Args:
        height, width: size of the map; ints, or scalar tensors in a graph of dynamic size.
        stride: pixels between two cells.

    Returns:
        (H * W * 3, 4) float32, x1 y1 x2 y2 in pixels, in the order of rows, columns, ratios.
    """
    rows, columns = _positions(height, width)
    y, x = (rows + 0 * columns) * stride, (columns + 0 * rows) * stride
    centres = paddle.stack([x, y, x, y], axis=2).unsqueeze(2)  # (H, W, 1, 4)
    return (centres + paddle.to_tensor(base_anchors(stride))).reshape([-1, 4])


def are_inside(height: int, width: int, stride: int, image_size: tuple[int, int]) -> Tensor:
    """Whether an anchor's cell lies in its image's own padded area rather than in what a larger neighbour adds.

    Args:
        height, width: size of the feature map.
        stride: pixels between two cells.
        image_size: (height, width) of the image before padding.

    Returns:
        (H * W * 3,) bool, in the order of :func:`grid_anchors`.
    """
    padded = [-(-side // PAD_MULTIPLE) * PAD_MULTIPLE for side in image_size]
    rows, columns = _positions(height, width)
    inside = paddle.logical_and(rows < -(-padded[0] // stride), columns < -(-padded[1] // stride))
    return inside.unsqueeze(2).expand([-1, -1, len(RATIOS)]).reshape([-1])
