"""Features of boxes, each from the level of the pyramid that fits its area.

Paper: "Mask R-CNN", He et al., ICCV 2017, arXiv 1703.06870; "Feature Pyramid Networks", arXiv 1612.03144, eq. 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddle_vheat._paddle import paddle
from paddle_vheat.models.mask_rcnn.anchors import STRIDES

Tensor = Any

LEVELS = 4  # the fifth feeds proposals only
SIZE_OF_FIRST = 56  # pixels; a box of twice this side (the root of its area) goes to the second level
FAR = (-1000.0, -1000.0, -999.0, -999.0)


def box_levels(boxes: Tensor) -> Tensor:
    """Level of each box (n, 4), from 0 to 3, as (n,) float32."""
    side = (boxes[:, 2:] - boxes[:, :2]).clip(min=0)
    relative = paddle.sqrt(side[:, 0] * side[:, 1]) / SIZE_OF_FIRST + 1e-6
    # floor(log2(relative)) between 0 and 3, without a logarithm to round
    level: Any = sum((relative >= 2.0**i).astype("float32") for i in range(1, LEVELS))
    return level


def roi_features(pyramid: Sequence[Tensor], boxes: Tensor, counts: Tensor, size: int) -> Tensor:
    """RoIAlign: each box's part of its level, averaged over ``size`` x ``size`` cells.

    Every box is cut out of every level, but on all levels other than its own at a place far outside, which costs
    next to nothing and gives zeros, also for gradients. So nothing depends on how many boxes a level has: the same
    operations serve training, a traced graph and ONNX. A box without width or height has features of zero, as in the
    reference; from Paddle it would have NaN on a CPU.

    Args:
        pyramid: (B, C, H_i, W_i), at least four levels.
        boxes: (n, 4) in pixels, those of the first image first, n at least 1.
        counts: (B,) int32, boxes of each image.
        size: cells a side of the result.

    Returns:
        (n, C, size, size) float32.
    """
    level, far = box_levels(boxes), paddle.to_tensor(FAR)
    features: Any = 0.0
    for i, stride in enumerate(STRIDES[:LEVELS]):
        maps = pyramid[i].astype("float32")  # boxes need float32, and the operator one precision for both
        cells = boxes / stride - 0.5  # as the operator rounds them
        side = (cells[:, 2:] - cells[:, :2]).min(axis=1)
        here = (level == i).astype("float32") * (side > 0).astype("float32")
        narrow = _narrow_boxes(maps, here, side)
        placed = here * (1 - narrow) if narrow is not None else here
        placed = placed.unsqueeze(1)
        placed = boxes * placed + far * (1 - placed)
        features = features + paddle.vision.ops.roi_align(maps, placed, counts, size, 1 / stride)
        if narrow is not None:
            features = _add_narrow(features, maps, cells, counts, narrow, size)
    return features


# Paddle's backward pass on a CPU takes a box narrower than a cell for one of a whole cell, and so puts its gradient
# in the wrong place (3.2.2 and before; the forward pass and GPUs are right): such boxes are differentiated here as
# products with the bilinear weights of rows and of columns. ``test_paddle_still_misplaces_gradients`` fails when this
# is needed no more.


def _narrow_boxes(maps: Tensor, here: Tensor, side: Tensor) -> Tensor | None:
    return _find_narrow(maps, here, side) if paddle.in_dynamic_mode() else None


def _find_narrow(maps: Tensor, here: Tensor, side: Tensor) -> Tensor | None:
    if maps.stop_gradient or not maps.place.is_cpu_place():
        return None
    narrow = here * (side < 1).astype("float32")
    return narrow if float(narrow.sum()) else None


def _add_narrow(features: Tensor, maps: Tensor, cells: Tensor, counts: Tensor, narrow: Tensor, size: int) -> Tensor:
    ends = paddle.cumsum(counts.astype("int64"))
    for image in range(maps.shape[0]):
        start, end = int(ends[image] - counts[image]), int(ends[image])
        chosen = start + paddle.nonzero(narrow[start:end]).flatten()
        if chosen.shape[0]:
            part = _separable(maps[image], paddle.gather(cells, chosen), size)
            features = paddle.scatter_nd_add(features, chosen.unsqueeze(1), part)
    return features


def _separable(feature: Tensor, cells: Tensor, size: int) -> Tensor:
    """RoIAlign of boxes (n, 4), in cells, on one feature map (C, H, W) as two products: (n, C, size, size)."""
    channels, height, width = feature.shape
    rows, columns = (_bin_weights(cells[:, i], cells[:, i + 2], size, feature.shape[i - 1]) for i in (1, 0))
    n = cells.shape[0]
    reduced = paddle.matmul(rows.reshape([n * size, height]), feature.transpose([1, 0, 2]).reshape([height, -1]))
    cut = paddle.matmul(reduced.reshape([n, size * channels, width]), columns, transpose_y=True)
    return cut.reshape([n, size, channels, size]).transpose([0, 2, 1, 3])


def _bin_weights(start: Tensor, end: Tensor, bins: int, length: int) -> Tensor:
    """(n, bins, length): what each cell of a side contributes to each bin between ``start`` and ``end`` (n,)."""
    step = (end - start) / bins
    samples = paddle.ceil(step).clip(min=1)
    sample = paddle.arange(int(samples.max()), dtype="float32").reshape([1, 1, -1])
    within = (sample + 0.5) / samples.reshape([-1, 1, 1])
    first = paddle.arange(bins, dtype="float32").reshape([1, -1, 1])
    position = start.reshape([-1, 1, 1]) + (first + within) * step.reshape([-1, 1, 1])
    counted = (within < 1).astype("float32") * ((position >= -1) & (position <= length)).astype("float32")
    distance = position.clip(0, length - 1).unsqueeze(3) - paddle.arange(length, dtype="float32")
    weights = (1 - distance.abs()).clip(min=0) * counted.unsqueeze(3)
    return weights.sum(axis=2) / samples.reshape([-1, 1, 1])
