"""Boxes (x1, y1, x2, y2) in pixels: overlap, the coding that the networks learn, suppression.

A side is x2 - x1, without the added pixel of the oldest code.
"""

from __future__ import annotations

import math
from typing import Any

from paddle_vheat._paddle import paddle

Tensor = Any

MAX_LOG_RATIO = math.log(1000 / 16)  # a decoded side differs from its anchor's by this at most, either way


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every box of ``a`` (n, 4) with every one of ``b`` (m, 4): (n, m)."""
    if a.shape[0] == 0:
        return paddle.zeros([0, b.shape[0]])  # Paddle 2.6 computes with nothing that is empty
    ax1, ay1, ax2, ay2 = a.unsqueeze(1).unbind(2)
    bx1, by1, bx2, by2 = b.unsqueeze(0).unbind(2)
    width = (paddle.minimum(ax2, bx2) - paddle.maximum(ax1, bx1)).clip(min=0)
    height = (paddle.minimum(ay2, by2) - paddle.maximum(ay1, by1)).clip(min=0)
    shared = width * height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared
    return shared / union.clip(min=1e-6)


def _centres_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[:, :2] + boxes[:, 2:]) * 0.5, boxes[:, 2:] - boxes[:, :2]


def encode(anchors: Tensor, boxes: Tensor, std: tuple[float, float]) -> Tensor:
    """What a network must say at ``anchors`` (n, 4) for ``boxes`` (n, 4): (n, 4), dx dy dw dh.

    ``std`` is the deviation that dx and dy are divided by, and that of dw and dh.
    """
    centre, side = _centres_and_sides(anchors)
    box_centre, box_side = _centres_and_sides(boxes)
    return paddle.concat([(box_centre - centre) / side / std[0], paddle.log(box_side / side) / std[1]], axis=1)


def decode(anchors: Tensor, deltas: Tensor, std: tuple[float, float], size: Tensor) -> Tensor:
    """The boxes that a network means, the inverse of :func:`encode`, clipped to the image.

    Args:
        anchors: (n, 4).
        deltas: (n, 4).
        std: as for :func:`encode`.
        size: (2,) float32, height and width of the image without its padding.
    """
    centre, side = _centres_and_sides(anchors)
    centre = centre + side * (deltas[:, :2] * std[0])
    half = side * paddle.exp((deltas[:, 2:] * std[1]).clip(-MAX_LOG_RATIO, MAX_LOG_RATIO)) * 0.5
    limits = paddle.concat([size[1:], size[:1], size[1:], size[:1]])
    return paddle.minimum(paddle.concat([centre - half, centre + half], axis=1).clip(min=0), limits)


def grouped_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression within groups (levels, classes), which are moved apart so that none overlap.

    Args:
        boxes: (n, 4) without negative coordinates, n at least 1.
        scores: (n,).
        groups: (n,) float32, group of each box.
        threshold: a box is suppressed by a better one of its group with which its IoU is larger than this.

    Returns:
        (m,) int64, indices of the boxes kept, best first.
    """
    moved = boxes + (groups * (boxes.amax() + 1)).unsqueeze(1)
    return paddle.vision.ops.nms(moved, threshold, scores)
