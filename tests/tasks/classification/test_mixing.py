"""Mixup, CutMix, soft targets: exact weights, and the promised distributions."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest

from paddle_vheat._paddle import paddle
from paddle_vheat.config import ConfigError
from paddle_vheat.tasks.classification.mixing import (
    BatchTransform,
    CutmixOperator,
    MixupOperator,
    build_batch_ops,
    soft_targets,
)
from tests.tasks.classification.bounds import within

RECIPE = [{"OpSampler": {"MixupOperator": {"alpha": 0.8, "prob": 0.5}, "CutmixOperator": {"alpha": 1.0, "prob": 0.5}}}]
# One product or sum of numbers up to 1 in float32 is within 6e-8; there are at most three.
EXACT = {"rtol": 0, "atol": 2e-7}


def numbered(count: int, height: int, width: int) -> np.ndarray:
    """Image i is i everywhere: what comes from where can be read off."""
    return np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None, None], (count, 3, height, width)).copy()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def run(op, images: np.ndarray, labels: np.ndarray, generator) -> tuple[np.ndarray, np.ndarray]:
    """An operator or transform on tensors, which it must leave as they are."""
    given = paddle.to_tensor(images), paddle.to_tensor(labels)
    mixed, targets = op(*given, generator)
    for tensor, before in zip(given, (images, labels)):
        np.testing.assert_array_equal(tensor.numpy(), before)
    return mixed.numpy(), targets.numpy()


def targets_of(labels: list[int], num_classes: int, smoothing: float = 0.0) -> np.ndarray:
    return soft_targets(paddle.to_tensor(labels), num_classes, smoothing).numpy()


def test_soft_targets_are_smoothed_and_sum_to_one():
    np.testing.assert_array_equal(targets_of([2, 0, 2], 4), np.eye(4, dtype=np.float32)[[2, 0, 2]])
    targets = targets_of([3], 1000, 0.1)
    assert (targets.dtype, targets.shape) == (np.float32, (1, 1000))
    assert targets[0, 3] == np.float32(0.9 + 0.1 / 1000)
    assert set(np.delete(targets[0], 3)) == {np.float32(0.1 / 1000)}
    # A thousand terms, each within 6e-8 of itself.
    np.testing.assert_allclose(targets.sum(1, dtype=np.float64), 1, rtol=0, atol=1e-7)
    np.testing.assert_allclose(targets_of([1], 4, 1.0), 0.25, **EXACT)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("seed", range(6))
def test_mixing_is_numpys_arithmetic_in_float32(count: int, seed: int):
    """Equal in every bit: each product and sum is rounded once, on whatever computes it."""
    images, labels = rng(1).normal(size=(count, 3, 8, 6)).astype(np.float32), np.arange(count) * 3 % 4
    targets = targets_of(list(labels), 4, 0.1)
    share = rng(seed).beta(0.8, 0.8)

    def blended(values: np.ndarray, weight: float) -> np.ndarray:
        return values * np.float32(weight) + values[::-1] * np.float32(1 - weight)

    for given, result in zip((images, targets), run(MixupOperator(0.8), images, targets, rng(seed))):
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, blended(given, share))
    rows, columns = CutmixOperator(1.0).draw(8, 6, rng(seed))
    pasted = images.copy()
    pasted[:, :, rows, columns] = images[::-1, :, rows, columns]
    mixed, mixed_targets = run(CutmixOperator(1.0), images, targets, rng(seed))
    np.testing.assert_array_equal(mixed, pasted)
    area = (rows.stop - rows.start) * (columns.stop - columns.start) / 48
    np.testing.assert_array_equal(mixed_targets, blended(targets, 1 - area))


def test_mixup_weights_have_the_beta_distribution():
    class Recorder:
        def __init__(self) -> None:
            self.generator, self.drawn = rng(), []

        def beta(self, a: float, b: float) -> float:
            self.drawn.append(self.generator.beta(a, b))
            return self.drawn[-1]

    generator, trials = Recorder(), 2000
    targets, image, op = paddle.eye(2), paddle.zeros([2, 1, 1, 1]), MixupOperator(0.8)
    weights = np.array([float(op(image, targets, generator)[1][0, 0]) for _ in range(trials)])
    np.testing.assert_array_equal(weights, np.array(generator.drawn, np.float32))
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
        mixed, mixed_targets = run(op, images, targets, generator)
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


@pytest.mark.parametrize(
    ("weight", "middle", "share"), [(1.0, 5, 0.0), (0.0, 5, 1.0), (0.0, 0, 0.25), (0.0, 9, 0.36), (0.99999, 5, 0.0)]
)
def test_extreme_draws_keep_the_targets_right(weight: float, middle: int, share: float):
    class Fixed:
        def beta(self, a: float, b: float) -> float:
            return weight

        def integers(self, high: int) -> int:
            return middle

    mixed, targets = run(CutmixOperator(), numbered(2, 10, 10), np.eye(2, dtype=np.float32), Fixed())
    assert (mixed[0] == 1).mean() == share
    np.testing.assert_allclose(targets[0], [1 - share, share], **EXACT)


class Named(NamedTuple):
    name: str
    prob: float

    def __call__(self, images, targets, generator) -> tuple[str, None]:
        return self.name, None


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.5, 0.5), (0.2, 0.3), (0.0, 1.0), (0.0, 0.0)])
def test_one_of_them_is_chosen_for_each_batch(mixup: float, cutmix: float):
    transform = BatchTransform((Named("mixup", mixup), Named("cutmix", cutmix)), 2)
    labels, generator, trials = paddle.to_tensor([0]), rng(), 2000
    chosen = Counter(transform("none", labels, generator)[0] for _ in range(trials))
    for name, prob in (("mixup", mixup), ("cutmix", cutmix), ("none", 1 - mixup - cutmix)):
        assert within(chosen[name], trials, prob), (name, chosen)


def test_the_recipe_is_read():
    mixup, cutmix = build_batch_ops(RECIPE, 10).operators
    assert (type(mixup), mixup.alpha, mixup.prob) == (MixupOperator, 0.8, 0.5)
    assert (type(cutmix), cutmix.alpha, cutmix.prob) == (CutmixOperator, 1.0, 0.5)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_recipe_gives_soft_targets_decided_by_the_generator(count: int):
    transform = build_batch_ops(RECIPE, 10, smoothing=0.1)
    images, labels = rng(2).normal(size=(count, 3, 12, 16)).astype(np.float32), np.arange(count) % 10

    def several(seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
        generator = rng(seed)
        return [run(transform, images, labels, generator) for _ in range(10)]

    first, again, other = several(1), several(1), several(2)
    for (mixed, targets), (mixed_again, targets_again) in zip(first, again):
        assert (mixed.shape, mixed.dtype) == (images.shape, np.float32)
        assert (targets.shape, targets.dtype) == ((count, 10), np.float32)
        np.testing.assert_allclose(targets.sum(1, dtype=np.float64), 1, rtol=0, atol=1e-6)
        assert targets.min() >= 0.01 - 1e-7
        np.testing.assert_array_equal(mixed, mixed_again)
        np.testing.assert_array_equal(targets, targets_again)
    if count > 1:
        assert any((a[1] != b[1]).any() for a, b in zip(first, other))


@pytest.mark.parametrize("name", ["MixupOperator", "CutmixOperator"])
def test_smoothing_before_mixing_is_smoothing_after_it(name: str):
    images, labels = numbered(4, 8, 8), np.array([0, 1, 2, 3])
    sharp = run(build_batch_ops([{name: {"alpha": 1.0}}], 4), images, labels, rng(5))[1]
    smooth = run(build_batch_ops([{name: {"alpha": 1.0}}], 4, smoothing=0.1), images, labels, rng(5))[1]
    np.testing.assert_allclose(smooth, 0.9 * sharp + 0.1 / 4, **EXACT)


@pytest.mark.parametrize("config", [None, []])
def test_without_operators_only_the_labels_change(config):
    images, labels = paddle.to_tensor(numbered(3, 4, 4)), paddle.to_tensor([2, 0, 1])
    same, targets = build_batch_ops(config, 3, smoothing=0.3)(images, labels, rng())
    assert same is images
    np.testing.assert_allclose(targets.numpy(), 0.7 * np.eye(3)[[2, 0, 1]] + 0.1, **EXACT)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"OpSampler": {}}, "'x.yml' must be a list, got {'OpSampler': {}}"),
        (["OpSampler"], "'x.yml.0' must be one 'name: arguments', got 'OpSampler'"),
        ([{"OpSampler": {}}, {"MixupOperator": None}], "'x.yml' must be a list of one entry, got"),
        ([{"OpSampel": {}}], "'x.yml.0': nothing is called 'OpSampel'; did you mean 'OpSampler'? (known: OpSampler, M"),
        ([{"OpSampler": {"CutMixOperator": {"prob": 1}}}], "x.yml.0: 'CutMixOperator': nothing is called 'CutMixOpera"),
        ([{"OpSampler": {"MixupOperator": {"alpha": 1}}}], "x.yml.0: 'MixupOperator.prob' is missing"),
        ([{"OpSampler": {"MixupOperator": 1}}], "must be arguments by name, got 1"),
        (
            [{"OpSampler": {"MixupOperator": {"prob": 2}}}],
            "MixupOperator: 'prob' must be a number of at least 0 and at",
        ),
        ([{"OpSampler": {"MixupOperator": {"prob": 1, "alfa": 1}}}], "has no such argument; did you mean 'alpha'?"),
        ([{"MixupOperator": {"alpha": 0}}], "x.yml.0: 'alpha' must be a number of above 0, got 0"),
        (
            [{"OpSampler": {"MixupOperator": {"prob": 0.6}, "CutmixOperator": {"prob": 0.6}}}],
            "'x.yml': the probabilities sum to 1.2, expected at most 1",
        ),
    ],
)
def test_unusable_configurations_name_the_fault(config: object, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_batch_ops(config, 4, source="x.yml")
