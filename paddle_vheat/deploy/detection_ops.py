"""What lies between a detector's networks, without Paddle: anchors, decoding, suppression, pasting of masks.

For runtimes that run the networks only (ONNX Runtime); :mod:`paddle_vheat.models.mask_rcnn` has the same steps as
part of its graph, and the tests compare them. Boxes are x1 y1 x2 y2 in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)  # height over width
ANCHOR_SCALE = 8  # an anchor's side in strides
RPN_STD, BOX_STD = (1.0, 1.0), (0.1, 0.2)  # of dx and dy, of dw and dh
RPN_NMS, BOX_NMS = 0.7, 0.5
NMS_BLOCK = 128  # boxes that are compared with all others at a time
MAX_LOG_RATIO = math.log(1000 / 16)


def grid_anchors(height: int, width: int, stride: int) -> np.ndarray:
    """Anchors of a feature map, (H * W * 3, 4) float32, in the order of rows, columns, ratios."""
    root = np.sqrt(np.asarray(RATIOS, np.float32))
    half_width, half_height = ANCHOR_SCALE * stride / root / 2, ANCHOR_SCALE * stride * root / 2
    base = np.stack([-half_width, -half_height, half_width, half_height], axis=1).astype(np.float32)
    y, x = np.mgrid[:height, :width].astype(np.float32) * stride
    return (np.stack([x, y, x, y], axis=2)[:, :, None] + base).reshape(-1, 4)


def decode(anchors: np.ndarray, deltas: np.ndarray, std: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """Boxes (n, 4) float32 from anchors (n, 4) and coded deltas (n, 4), clipped to ``size`` (height, width)."""
    deltas = deltas * np.asarray([std[0], std[0], std[1], std[1]], np.float32)
    centre, side = (anchors[:, :2] + anchors[:, 2:]) * np.float32(0.5), anchors[:, 2:] - anchors[:, :2]
    centre = centre + side * deltas[:, :2]
    half = side * np.exp(np.clip(deltas[:, 2:], -MAX_LOG_RATIO, MAX_LOG_RATIO)) * np.float32(0.5)
    limits = np.asarray([size[1], size[0]] * 2, np.float32)
    return np.clip(np.concatenate([centre - half, centre + half], axis=1), 0, limits)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # 1 / (1 + inf) is right
        return 1 / (1 + np.exp(-logits.astype(np.float32)))


def grouped_nms(boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, threshold: float, count: int) -> np.ndarray:
    """Non-maximum suppression within groups (levels, classes).

    Args:
        boxes: (n, 4) float32 without negative coordinates.
        scores: (n,).
        groups: (n,) integers.
        threshold: a box is suppressed by a better one of its group with which its IoU is larger than this.
        count: most boxes.

    Returns:
        (m,) indices of the boxes kept, best first.
    """
    order = np.argsort(-scores, kind="stable")
    if not len(order):
        return order
    # Groups are moved apart so that none overlap, in float32 as in the reference, whose rounding decides close cases.
    boxes = (boxes + (groups.astype(np.float32) * (boxes.max() + np.float32(1)))[:, None])[order]
    kept: list[int] = []
    while len(order) and len(kept) < count:
        suppresses = _overlap(boxes[:NMS_BLOCK], boxes, threshold)
        alive = np.ones(len(order), bool)
        for i, row in enumerate(suppresses):
            if alive[i]:
                alive[i + 1 :] &= ~row[i + 1 :]
        kept.extend(order[:NMS_BLOCK][alive[:NMS_BLOCK]])
        order, boxes = order[NMS_BLOCK:][alive[NMS_BLOCK:]], boxes[NMS_BLOCK:][alive[NMS_BLOCK:]]
    return np.asarray(kept[:count], np.int64)


def _overlap(a: np.ndarray, b: np.ndarray, threshold: float) -> np.ndarray:
    """(n, m): whether the IoU of boxes (n, 4) and (m, 4) is larger than the threshold."""
    width = np.minimum(a[:, None, 2], b[:, 2]) - np.maximum(a[:, None, 0], b[:, 0])
    height = np.minimum(a[:, None, 3], b[:, 3]) - np.maximum(a[:, None, 1], b[:, 1])
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    areas_a, areas_b = ((c[:, 2] - c[:, 0]) * (c[:, 3] - c[:, 1]) for c in (a, b))
    # As a product: boxes without area have an IoU of 0 / 0, which suppresses nothing.
    return shared > np.float32(threshold) * (areas_a[:, None] + areas_b - shared)


def select_proposals(
    scores: Sequence[np.ndarray],
    deltas: Sequence[np.ndarray],
    size: tuple[int, int],
    per_level: int = 1000,
    count: int = 1000,
) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of one image that the second stage looks at.

    Args:
        scores: for each level (3, H, W), logits.
        deltas: for each level (12, H, W).
        size: height and width of the image without its padding.
        per_level: how many anchors of each level are considered, the best by score.
        count: how many boxes are kept after the suppression within each level.

    Returns:
        Boxes (n, 4) and scores (n,), float32, best first.
    """
    boxes, probabilities, levels = [], [], []
    for i, (level_scores, level_deltas) in enumerate(zip(scores, deltas)):
        anchors = grid_anchors(level_scores.shape[1], level_scores.shape[2], STRIDES[i])
        probability = _sigmoid(level_scores.transpose(1, 2, 0).reshape(-1))
        best = np.argsort(-probability, kind="stable")[:per_level]
        coded = level_deltas.transpose(1, 2, 0).reshape(-1, 4)[best]
        boxes.append(decode(anchors[best], coded, RPN_STD, size))
        probabilities.append(probability[best])
        levels.append(np.full(len(best), i))
    box, score, level = (np.concatenate(parts) for parts in (boxes, probabilities, levels))
    has_area = (box[:, 2:] > box[:, :2]).all(axis=1)
    box, score, level = box[has_area], score[has_area], level[has_area]
    kept = grouped_nms(box, score, level, RPN_NMS, count)
    return box[kept], score[kept]


def select_detections(
    boxes: np.ndarray,
    scores: np.ndarray,
    deltas: np.ndarray,
    size: tuple[int, int],
    threshold: float = 0.05,
    count: int = 100,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detections of one image.

    Args:
        boxes: (n, 4), the proposals.
        scores: (n, classes + 1), logits, the background last.
        deltas: (n, 4 * classes).
        size: height and width of the image without its padding.
        threshold: probability that has to be exceeded.
        count: most detections.

    Returns:
        Boxes (m, 4), probabilities (m,) float32 and labels (m,) int64, best first.
    """
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities = (exponentials / exponentials.sum(axis=1, keepdims=True))[:, :-1]
    proposal, label = np.nonzero(probabilities > threshold)
    coded = deltas.reshape(*probabilities.shape, 4)[proposal, label]
    found, score = decode(boxes[proposal], coded, BOX_STD, size), probabilities[proposal, label]
    kept = grouped_nms(found, score, label, BOX_NMS, count)
    return found[kept], score[kept], label[kept].astype(np.int64)


def _interpolation(start: float, end: float, length: int, cells: int) -> tuple[int, np.ndarray]:
    """First pixel that a box's side from ``start`` to ``end`` can touch, and the (pixels, cells) bilinear weights."""
    first, last = max(math.floor(start) - 1, 0), min(math.ceil(end) + 1, length)
    centres = np.arange(first, max(first, last), dtype=np.float32) + np.float32(0.5)
    position = (centres - start) / np.float32(max(end - start, 1e-6)) * cells - np.float32(0.5)
    return first, np.maximum(1 - np.abs(position[:, None] - np.arange(cells, dtype=np.float32)), 0)


def paste_mask(logits: np.ndarray, box: np.ndarray, size: tuple[int, int], threshold: float = 0.5) -> np.ndarray:
    """A mask of the image's size from the mask head's logits for one box.

    Bilinear at the centres of the image's pixels, zero outside of the box; as two products, since the bilinear
    weights are those of rows times those of columns.

    Args:
        logits: (h, w) of the detected class.
        box: (4,) in pixels of the image that the mask is for.
        size: its height and width.
        threshold: least probability of the object's pixels.

    Returns:
        (height, width) bool.
    """
    probabilities = _sigmoid(logits)
    x1, y1, x2, y2 = box.astype(np.float32).tolist()
    top, rows = _interpolation(y1, y2, size[0], logits.shape[0])
    left, columns = _interpolation(x1, x2, size[1], logits.shape[1])
    mask = np.zeros(size, bool)
    mask[top : top + len(rows), left : left + len(columns)] = rows @ probabilities @ columns.T >= threshold
    return mask
