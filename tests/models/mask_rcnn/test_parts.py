"""The parts of the detector that need no weights, against slow and plain float64 forms."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_vheat._paddle import paddle
from paddle_vheat.models.mask_rcnn.anchors import STRIDES, are_inside, grid_anchors
from paddle_vheat.models.mask_rcnn.assign import IGNORED, NEGATIVE, assign, random_sampler, sample
from paddle_vheat.models.mask_rcnn.boxes import decode, encode, iou
from paddle_vheat.models.mask_rcnn.masks import mask_targets
from paddle_vheat.models.mask_rcnn.roi_align import _by_operator, _by_products, _groups, roi_features


def random_boxes(n, height, width, seed=0, smallest=1.0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, [width - smallest, height - smallest], (n, 2))
    side = rng.uniform(smallest, np.maximum([width, height] - corner, smallest + 1e-3), (n, 2))
    return np.concatenate([corner, np.minimum(corner + side, [width, height])], axis=1).astype(np.float32)


def plain_iou(a, b):
    x1, y1, x2, y2 = np.maximum(a[0], b[0]), np.maximum(a[1], b[1]), np.minimum(a[2], b[2]), np.minimum(a[3], b[3])
    shared = max(x2 - x1, 0) * max(y2 - y1, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def test_anchors_are_in_the_order_of_rows_columns_ratios():
    for stride in STRIDES:
        anchors = grid_anchors(2, 3, stride).numpy().reshape(2, 3, 3, 4)
        for row, column, r in np.ndindex(2, 3, 3):
            root = np.sqrt((0.5, 1.0, 2.0)[r])
            centre, side = np.asarray([column, row]) * stride, 8 * stride / np.asarray([root, 1 / root])
            expected = np.concatenate([centre - side / 2, centre + side / 2])
            assert np.allclose(anchors[row, column, r], expected, rtol=1e-6)  # float32


def test_anchors_in_a_larger_neighbours_padding_are_not_inside():
    inside = are_inside(10, 14, 16, (131, 170)).numpy().reshape(10, 14, 3)  # padded to 160 x 192 by itself
    assert inside[:, :12].all()
    assert not inside[:, 12:].any()
    assert are_inside(3, 4, 64, (131, 170)).numpy().reshape(3, 4, 3)[..., 0].tolist() == [[True] * 3 + [False]] * 3


def test_iou_and_coding():
    a, b = random_boxes(20, 90, 130, 1), random_boxes(30, 90, 130, 2)
    expected = [[plain_iou(x, y) for y in b.astype(np.float64)] for x in a.astype(np.float64)]
    assert np.allclose(iou(paddle.to_tensor(a), paddle.to_tensor(b)).numpy(), expected, atol=1e-5)  # float32
    size, std = paddle.to_tensor([90.0, 130.0]), (0.1, 0.2)
    coded = encode(paddle.to_tensor(b[:20]), paddle.to_tensor(a), std)
    assert np.allclose(decode(paddle.to_tensor(b[:20]), coded, std, size).numpy(), a, atol=1e-3)  # exp of float32


def test_decoding_limits_sides_both_ways_and_clips():
    anchors = paddle.to_tensor([[10.0, 10, 26, 26]] * 2)
    deltas = paddle.to_tensor([[0.0, 0, 99, 99], [0, 0, -99, -99]])
    large, small = decode(anchors, deltas, (1.0, 1.0), paddle.to_tensor([40.0, 50.0])).numpy()
    assert large.tolist() == [0, 0, 50, 40]
    assert np.allclose(small[2:] - small[:2], 16 * 16 / 1000, rtol=1e-3)  # the difference of numbers of 18


def plain_assign(overlaps, positive, negative, tied, valid):
    result = np.full(overlaps.shape[1], IGNORED)
    for j in np.flatnonzero(valid):
        best = overlaps[:, j].max(initial=0)
        if best < negative:
            result[j] = NEGATIVE
        elif best >= positive:
            result[j] = overlaps[:, j].argmax()
    for i, row in enumerate(overlaps):
        if valid.any() and row[valid].max() >= tied:
            result[valid & (row == row[valid].max())] = i
    return result


@pytest.mark.parametrize("truths", [0, 1, 4])
@pytest.mark.parametrize("limits", [(0.7, 0.3, 0.3), (0.5, 0.5, 0.5)])
def test_assignment(truths, limits):
    rng = np.random.default_rng(truths)
    overlaps = (rng.integers(0, 12, (truths, 300)) / 10 * 0.9).astype(np.float32)  # with ties, as a grid has
    valid = rng.random(300) < 0.8
    ours = assign(paddle.to_tensor(overlaps).reshape([truths, 300]), *limits, paddle.to_tensor(valid)).numpy()
    assert np.array_equal(ours, plain_assign(overlaps, *(np.float32(limit) for limit in limits), valid))


def test_sampling():
    assigned = paddle.to_tensor(np.repeat([0, NEGATIVE, IGNORED, 2], [30, 500, 20, 10]))
    sampler = random_sampler(np.random.default_rng(5))
    positive, negative = sample(assigned, 64, 0.25, sampler)
    assert positive.shape == [16]
    assert negative.shape == [48]
    assert (assigned.numpy()[positive.numpy()] >= 0).all()
    assert (assigned.numpy()[negative.numpy()] == NEGATIVE).all()
    assert len(set(negative.tolist())) == 48
    again = sample(assigned, 64, 0.25, random_sampler(np.random.default_rng(5)))
    assert (again[1].numpy() == negative.numpy()).all()  # the choice is the generator's alone
    assert [len(part) for part in sample(assigned, 900, 0.25, sampler)] == [40, 500]  # all that there are


def plain_roi_align(feature, box, bins):
    """(C, bins, bins) in float64, sample by sample; box in cells."""
    channels, height, width = feature.shape
    out = np.zeros((channels, bins, bins))
    (x1, y1), side = box[:2], (box[2:] - box[:2]) / bins
    columns, rows = np.ceil(side).astype(int)
    for i, j in np.ndindex(bins, bins):
        for sy, sx in np.ndindex(rows, columns):
            y, x = y1 + (i + (sy + 0.5) / rows) * side[1], x1 + (j + (sx + 0.5) / columns) * side[0]
            if -1 <= y <= height and -1 <= x <= width:
                y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
                top, left = int(y), int(x)
                below, right = min(top + 1, height - 1), min(left + 1, width - 1)
                v, u = y - top, x - left
                upper = (1 - u) * feature[:, top, left] + u * feature[:, top, right]
                lower = (1 - u) * feature[:, below, left] + u * feature[:, below, right]
                out[:, i, j] += ((1 - v) * upper + v * lower) / (rows * columns)
    return out


ODD = np.asarray(  # narrower than a cell, beyond the edges, of a level each, without width, without anything
    [[3, 5, 5, 90], [20, 20, 21, 21.5], [-30, -20, 40, 60], [100, 60, 190, 150], [9, 9, 9, 50], [0, 0, 0, 0]],
    np.float32,
)  # fmt: skip


@pytest.mark.parametrize("form", ["operator", "products"])
@pytest.mark.parametrize("size", [7, 14])
def test_roi_align(form, size):
    rng = np.random.default_rng(3)
    maps = [rng.standard_normal((2, 5, -(-100 // s), -(-150 // s))).astype(np.float32) for s in STRIDES[:4]]
    boxes = np.concatenate([ODD, random_boxes(12, 100, 150), [[0, 0, 150, 100]], ODD]).astype(np.float32)
    counts = [len(boxes) - len(ODD) - 1, len(ODD) + 1]
    tensors = [paddle.to_tensor(feature) for feature in maps]
    if form == "operator":
        ours = _by_operator(tensors, paddle.to_tensor(boxes), paddle.to_tensor(counts, "int32"), size).numpy()
    else:
        ours = _by_products(tensors, boxes, counts, size).numpy()
    side = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).astype(np.float64)
    level = np.clip(np.floor(np.log2(np.sqrt(side.prod(axis=1)) / 56 + 1e-6)), 0, 3).astype(int)
    for n, box in enumerate(boxes.astype(np.float64)):
        feature = maps[level[n]][int(n >= counts[0])].astype(np.float64)
        expected = plain_roi_align(feature, box / STRIDES[level[n]] - 0.5, size)
        assert np.abs(ours[n] - expected).max() < 1e-4  # positions in float32


def test_gradients_of_the_products_are_those_of_a_linear_map():
    boxes, counts = np.concatenate([ODD, random_boxes(10, 100, 150)]), [16]
    sizes = [(1, 2, -(-100 // s), -(-150 // s)) for s in STRIDES[:4]]
    maps, others = [[paddle.randn(size) for size in sizes] for _ in range(2)]
    for feature in maps:
        feature.stop_gradient = False
    weights = paddle.randn([16, 2, 7, 7])
    (_by_products(maps, boxes, counts, 7) * weights).sum().backward()
    # A linear map L has <w, L m> = <gradient, m> for every m: so for another m than it was computed at.
    inner = sum(float((m.grad * o).sum()) for m, o in zip(maps, others) if m.grad is not None)
    assert inner == pytest.approx(float((_by_products(others, boxes, counts, 7) * weights).sum()), rel=1e-4)


def test_paddle_misplaces_gradients():
    """Fails when Paddle's RoIAlign on a CPU is right for boxes narrower than a cell, and then one reason for having
    another is gone."""
    feature, other = paddle.randn([1, 1, 8, 8]), paddle.randn([1, 1, 8, 8])
    feature.stop_gradient = False
    arguments = paddle.to_tensor([[3.1, 3.1, 3.4, 6.0]]), paddle.to_tensor([1], "int32"), 7
    weights = paddle.randn([1, 1, 7, 7])
    (paddle.vision.ops.roi_align(feature, *arguments) * weights).sum().backward()
    true = float((paddle.vision.ops.roi_align(other, *arguments) * weights).sum())
    assert float((feature.grad * other).sum()) != pytest.approx(true, rel=1e-2)


def test_features_are_float32_under_mixed_precision():
    maps = [paddle.ones([1, 2, 64 // s, 64 // s]).astype("float16") for s in STRIDES[:4]]
    features = roi_features(maps, paddle.to_tensor([[8.0, 8, 40, 40]]), paddle.to_tensor([1], "int32"), 7)
    assert features.dtype == paddle.float32
    assert np.allclose(features.numpy(), 1, atol=1e-6)  # weights of a bin sum to one


def test_windows_are_taken_few_at_a_time(monkeypatch):
    monkeypatch.setattr("paddle_vheat.models.mask_rcnn.roi_align.MAX_VALUES", 3 * 16 * 16 * 8)
    cells = np.tile(np.asarray([[2.0, 3.0, 14.5, 15.5]], np.float32), (7, 1))
    assert [(group.tolist(), rows, columns) for group, rows, columns in _groups(cells, 40, 40, 8)] == [
        ([0, 1, 2], 16, 16), ([3, 4, 5], 16, 16), ([6], 16, 16),
    ]  # fmt: skip


def test_mask_targets():
    rng = np.random.default_rng(0)
    masks = (rng.random((3, 6, 9)) < 0.5).repeat(5, axis=1).repeat(5, axis=2)  # (3, 30, 45), blocks of 5 pixels
    boxes, owners = random_boxes(12, 30, 45, 7), np.asarray([2, 0, 0, 2] * 3)  # one truth is nobody's
    ours = mask_targets(
        paddle.to_tensor(masks.astype(np.uint8)), paddle.to_tensor(boxes), paddle.to_tensor(owners), 28, (32, 64)
    ).numpy()
    padded = np.pad(masks, ((0, 0), (0, 2), (0, 19))).astype(np.float64)
    differ = 0
    for target, box, owner in zip(ours, boxes.astype(np.float64), owners):
        expected = plain_roi_align(padded[owner][None], box - 0.5, 28)[0]
        differ += ((expected >= 0.5) != target)[np.abs(expected - 0.5) > 1e-4].sum()  # but for ties in float32
    assert differ == 0
