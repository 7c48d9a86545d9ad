"""Mixup, CutMix, soft targets: exact weights, and the promised distributions.

Statistical bounds are five standard deviations: with correct code, one comparison in 1.7 million fails, and the
seeds are fixed.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from paddle_vheat.config import ConfigError
from paddle_vheat.data.batch_ops import (
    BatchTransform,
    Choice,
    CutmixOperator,
    MixupOperator,
    build_batch_ops,
    soft_targets,
)

RECIPE = [{"OpSampler": {"MixupOperator": {"alpha": 0.8, "prob": 0.5}, "CutmixOperator": {"alpha": 1.0, "prob": 0.5}}}]
# One product or sum of numbers up to 1 in float32 is within 6e-8; there are at most three.
EXACT = {"rtol": 0, "atol": 2e-7}


def within(count: int, trials: int, prob: float) -> bool:
    return abs(count - trials * prob) <= 5 * math.sqrt(trials * prob * (1 - prob))


def numbered(count: int, height: int, width: int) -> np.ndarray:
    """Image i is i everywhere: what comes from where can be read off."""
    return np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None, None], (count, 3, height, width)).copy()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_soft_targets_are_smoothed_and_sum_to_one():
    targets = soft_targets(np.array([2, 0, 2]), 4)
    np.testing.assert_array_equal(targets, np.eye(4, dtype=np.float32)[[2, 0, 2]])
    targets = soft_targets(np.array([3]), 1000, 0.1)
    assert (targets.dtype, targets.shape) == (np.float32, (1, 1000))
    np.testing.assert_allclose(targets[0, 3], 0.9 + 0.1 / 1000, **EXACT)
    np.testing.assert_allclose(np.delete(targets[0], 3), 0.1 / 1000, **EXACT)
    # A thousand terms, each within 6e-8 of itself.
    np.testing.assert_allclose(targets.sum(1, dtype=np.float64), 1, rtol=0, atol=1e-7)
    np.testing.assert_allclose(soft_targets(np.array([1]), 4, 1.0), 0.25, **EXACT)


@pytest.mark.parametrize(
    ("labels", "smoothing", "message"),
    [
        ([0, 4], 0.0, "expected classes 0 to 3, got 4"),
        ([-1], 0.0, "expected classes 0 to 3, got -1"),
        ([0.5], 0.0, r"expected integers \(N,\), got float64 \(1,\)"),
        ([[1]], 0.0, r"expected integers \(N,\), got int64 \(1, 1\)"),
        ([1], 1.5, "smoothing: expected a share from 0 to 1"),
    ],
)
def test_impossible_labels_are_refused(labels: list, smoothing: float, message: str):
    with pytest.raises(ValueError, match=message):
        soft_targets(np.array(labels), 4, smoothing)


def test_mixup_weights_images_and_targets_alike():
    images = rng(1).normal(size=(5, 3, 8, 6)).astype(np.float32)
    targets = soft_targets(np.array([0, 1, 2, 3, 4]), 5, 0.1)
    before = images.copy(), targets.copy()
    mixed, mixed_targets = MixupOperator(0.8)(images, targets, rng(7))
    weight = rng(7).beta(0.8, 0.8)
    assert 0.01 < weight < 0.99
    # Images are normal numbers, up to 5 in magnitude.
    np.testing.assert_allclose(mixed, weight * images + (1 - weight) * images[::-1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(mixed_targets, weight * targets + (1 - weight) * targets[::-1], **EXACT)
    assert mixed.dtype == mixed_targets.dtype == np.float32
    np.testing.assert_array_equal(images, before[0])
    np.testing.assert_array_equal(targets, before[1])
    np.testing.assert_allclose(mixed[2], images[2], rtol=0, atol=1e-6)  # the middle one is its own partner


def test_mixup_weights_have_the_beta_distribution():
    targets, image = np.eye(2, dtype=np.float32), np.zeros((2, 1, 1, 1), np.float32)
    generator, op, trials = rng(), MixupOperator(0.8), 4000
    weights = np.array([op(image, targets, generator)[1][0, 0] for _ in range(trials)])
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)); the fourth central moment 3 / (16 (2 a + 1) (2 a + 3)).
    variance, fourth = 1 / (4 * 2.6), 3 / (16 * 2.6 * 4.6)
    assert abs(weights.mean() - 0.5) < 5 * math.sqrt(variance / trials)
    assert abs(weights.var() - variance) < 5 * math.sqrt((fourth - variance**2) / trials)


def test_cutmix_weights_are_the_areas_of_the_clipped_boxes():
    height, width, count = 20, 30, 4
    images, targets = numbered(count, height, width), np.eye(count, dtype=np.float32)
    generator, op = rng(), CutmixOperator(1.0)
    clipped = whole = 0
    for _ in range(300):
        mixed, mixed_targets = op(images, targets, generator)
        for i, partner in ((0, 3), (1, 2), (2, 1), (3, 0)):
            replaced = (mixed[i] == partner).all(0)
            assert ((mixed[i] == i).all(0) | replaced).all()
            share = replaced.sum() / (height * width)
            np.testing.assert_allclose(mixed_targets[i, [i, partner]], [1 - share, share], **EXACT)
        assert (mixed_targets > 0).sum() <= 2 * count
        np.testing.assert_allclose(mixed_targets.sum(1, dtype=np.float64), 1, **EXACT)
        rows, columns = np.flatnonzero(replaced.any(1)), np.flatnonzero(replaced.any(0))
        if len(rows):
            assert replaced.sum() == len(rows) * len(columns)  # one full rectangle
            touches = 0 in rows or 0 in columns or height - 1 in rows or width - 1 in columns
            clipped, whole = clipped + touches, whole + (not touches)
    assert clipped > 30
    assert whole > 30
    np.testing.assert_array_equal(images, numbered(count, height, width))


def test_cutmix_boxes_have_the_promised_size_and_place():
    generator, trials, side = rng(), 4000, 1000
    boxes = [CutmixOperator(1.0).draw(side, side, generator) for _ in range(trials)]
    inside = [(r, c) for r, c in boxes if r.start > 0 and c.start > 0 and r.stop < side and c.stop < side]
    assert all((r.stop - r.start) == (c.stop - c.start) for r, c in inside)
    # The area before clipping is uniform, so the side's square is; a side s stays inside with (1 - s)^2. Hence the
    # share of boxes that are inside, the integral of (1 - sqrt(a))^2, is 1/6, to within the rounding of s.
    assert abs(len(inside) / trials - 1 / 6) < 5 * math.sqrt(5 / 36 / trials) + 4 / side
    # The centre is uniform: rows and columns each lie in the first half (centre below side / 2) half of the time.
    for axis in (0, 1):
        first = sum(box[axis].start + box[axis].stop < side for box in boxes)
        tied = sum(box[axis].start + box[axis].stop == side for box in boxes)
        assert within(first + tied // 2, trials, 0.5)
    # Beta(4, 4) is never far from 1/2 where Beta(1, 1) is uniform.
    narrow = [CutmixOperator(4.0).draw(side, side, generator)[0] for _ in range(500)]
    assert max(box.stop - box.start for box in narrow) < side


def test_extreme_draws_keep_the_targets_right():
    class Fixed:
        def __init__(self, weight: float, middle: int) -> None:
            self.weight, self.middle = weight, middle

        def beta(self, a: float, b: float) -> float:
            return self.weight

        def integers(self, high: int) -> int:
            return self.middle

    images, targets = numbered(2, 10, 10), np.eye(2, dtype=np.float32)
    for weight, middle, share in ((1.0, 5, 0.0), (0.0, 5, 1.0), (0.0, 0, 0.25), (0.0, 9, 0.36), (0.99999, 5, 0.0)):
        mixed, mixed_targets = CutmixOperator()(images, targets, Fixed(weight, middle))
        assert (mixed[0] == 1).mean() == share
        np.testing.assert_allclose(mixed_targets[0], [1 - share, share], **EXACT)


def test_one_of_them_is_chosen_for_each_batch():
    images = rng(3).normal(size=(2, 1, 6, 6)).astype(np.float32)
    for mixup, cutmix in ((0.5, 0.5), (0.2, 0.3), (0.0, 1.0), (0.0, 0.0)):
        entry = {"MixupOperator": {"alpha": 0.8, "prob": mixup}, "CutmixOperator": {"alpha": 1.0, "prob": cutmix}}
        transform = build_batch_ops([{"OpSampler": entry}], 2)
        generator, trials, counts = rng(), 2000, {"none": 0, "mixup": 0, "cutmix": 0}
        for _ in range(trials):
            mixed, _ = transform(images, np.array([0, 1]), generator)
            kept = ((mixed == images) | (mixed == images[::-1])).mean()
            counts["none" if mixed is images else "cutmix" if kept == 1 else "mixup"] += 1
        for name, prob in (("mixup", mixup), ("cutmix", cutmix), ("none", 1 - mixup - cutmix)):
            assert within(counts[name], trials, prob), (name, counts)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_recipe_gives_soft_targets_decided_by_the_generator(count: int):
    transform = build_batch_ops(RECIPE, 10, smoothing=0.1)
    images, labels = rng(2).normal(size=(count, 3, 12, 16)).astype(np.float32), np.arange(count) % 10

    def run(seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
        generator = rng(seed)
        return [transform(images, labels, generator) for _ in range(10)]

    first, again, other = run(1), run(1), run(2)
    for (mixed, targets), (mixed_again, targets_again) in zip(first, again):
        assert (mixed.shape, mixed.dtype) == (images.shape, np.float32)
        assert (targets.shape, targets.dtype) == ((count, 10), np.float32)
        np.testing.assert_allclose(targets.sum(1, dtype=np.float64), 1, rtol=0, atol=1e-6)
        assert targets.min() >= 0.01 - 1e-7
        np.testing.assert_array_equal(mixed, mixed_again)
        np.testing.assert_array_equal(targets, targets_again)
    if count > 1:
        assert any((a[1] != b[1]).any() for a, b in zip(first, other))


def test_smoothing_before_mixing_is_smoothing_after_it():
    images, labels = numbered(4, 8, 8), np.array([0, 1, 2, 3])
    for name in ("MixupOperator", "CutmixOperator"):
        sharp = build_batch_ops([{name: {"alpha": 1.0}}], 4)(images, labels, rng(5))[1]
        smooth = build_batch_ops([{name: {"alpha": 1.0}}], 4, smoothing=0.1)(images, labels, rng(5))[1]
        np.testing.assert_allclose(smooth, 0.9 * sharp + 0.1 / 4, **EXACT)


def test_without_operators_only_the_labels_change():
    images, labels = numbered(3, 4, 4), np.array([2, 0, 1])
    for config in (None, []):
        same, targets = build_batch_ops(config, 3, smoothing=0.3)(images, labels, rng())
        assert same is images
        np.testing.assert_allclose(targets, 0.7 * np.eye(3)[labels] + 0.1, **EXACT)


def test_wrong_batches_are_refused():
    transform = build_batch_ops(RECIPE, 4)
    for images, labels, message in (
        (np.zeros((2, 3, 4, 4)), [0, 1], "images: expected float32 (N, C, H, W), got float64 (2, 3, 4, 4)"),
        (np.zeros((3, 4, 4), np.float32), [0], "images: expected float32 (N, C, H, W), got float32 (3, 4, 4)"),
        (numbered(2, 4, 4), [0, 1, 2], "2 images, but 3 labels"),
        (numbered(2, 4, 4), [0, 4], "labels: expected classes 0 to 3, got 4"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            transform(images, np.array(labels), rng())
    with pytest.raises(ValueError, match=r"sum to 1\.1"):
        BatchTransform([Choice(0.6, MixupOperator()), Choice(0.5, CutmixOperator())], 4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"OpSampler": {}}, "x.yml: expected a list of operators"),
        (["OpSampler"], "x.yml: expected one 'name: arguments', got 'OpSampler'"),
        ([{"OpSampler": {}}, {"MixupOperator": None}], "x.yml: only one entry is supported; put the operators into"),
        ([{"OpSampel": {}}], "x.yml: 0: no operator 'OpSampel'; did you mean 'OpSampler'?; known are OpSampler, Mixup"),
        ([{"FmixOperator": {}}], "known are OpSampler, MixupOperator, CutmixOperator"),
        ([{"OpSampler": {"CutMixOperator": {"prob": 1}}}], "no operator 'CutMixOperator'; did you mean 'CutmixOper"),
        ([{"OpSampler": {"MixupOperator": {"alpha": 1}}}], "x.yml: 0.OpSampler.MixupOperator: prob is missing"),
        ([{"OpSampler": {"MixupOperator": 1}}], "MixupOperator: expected arguments by name, got 1"),
        ([{"OpSampler": {"MixupOperator": {"prob": 2}}}], "prob: expected a probability from 0 to 1, got 2"),
        ([{"OpSampler": {"MixupOperator": {"prob": 1, "alfa": 1}}}], "no argument 'alfa'; did you mean 'alpha'?"),
        ([{"MixupOperator": {"alpha": 0}}], "x.yml: 0.MixupOperator: alpha: expected a number above 0, got 0"),
        (
            [{"OpSampler": {"MixupOperator": {"prob": 0.6}, "CutmixOperator": {"prob": 0.6}}}],
            "x.yml: the probabilities sum to 1.2, expected at most 1",
        ),
    ],
)
def test_unusable_configurations_name_the_fault(config: object, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_batch_ops(config, 4, source="x.yml")
