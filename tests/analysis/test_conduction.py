"""Conduction in NumPy against SciPy, closed forms and the operator itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import fft, ndimage

from paddle_vheat._paddle import paddle
from paddle_vheat.analysis import by_frequency, conduction, diffusivity_of, radial_frequency, reach
from paddle_vheat.ops import HeatConduction2D, conduct_heat, heat_decay


def decay_of(k, height, width, channels=1):
    """exp(-k w^2) in float64; k a number or (H, W, C)."""
    return np.exp(-np.broadcast_to(k, (height, width, channels)) * radial_frequency(height, width)[..., None] ** 2)


def random_decay(height=9, width=14, channels=5, seed=0):
    return decay_of(np.random.default_rng(seed).gamma(1.0, 3.0, (height, width, channels)), height, width, channels)


@pytest.mark.parametrize("patch", [(0, 0), (4, 7), (8, 13), (0, 6)])
def test_conducted_heat_equals_scipys_and_sums_to_one(patch):
    decay, times = random_decay(), (0.0, 0.25, 1.0, 4.0, 16.0)
    found = conduction(decay, patch, times)
    start = np.zeros((9, 14))
    start[patch] = 1
    modes = fft.dctn(start, type=2, norm="ortho")[..., None]
    for heat, time in zip(found, times):
        expected = fft.idctn(modes * decay**time, type=2, norm="ortho", axes=(0, 1)).mean(axis=-1)
        # products of 14 float64 numbers of at most 1
        np.testing.assert_allclose(heat, expected, atol=1e-13)
        assert heat.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(found[0], start, atol=1e-13)


@pytest.mark.parametrize("folded", [False, True])
def test_time_one_is_what_the_operator_does(folded):
    hco = HeatConduction2D(6, size=(10, 7))
    hco.frequency_embedding.set_value(paddle.randn([10, 7, 6]))
    with paddle.no_grad():
        decay = hco.decay(hco.frequency_embedding)
        heat = paddle.zeros([1, 10, 7, 6])
        heat[0, 3, 2] = 1.0
        expected = conduct_heat(heat, decay)[0].mean(axis=-1).numpy()
    decay = decay.numpy()
    if folded:  # from the k that a folded decay tells, back to a decay: -log and exp lose a few float32 roundings
        decay = np.nan_to_num(decay_of(diffusivity_of(decay), 10, 7, 6), nan=1.0)
    np.testing.assert_allclose(conduction(decay, (3, 2))[0], expected, atol=2e-6)


@pytest.mark.parametrize(("k", "sigma"), [(1, 1.414), (5, 3.162), (10, 4.472)])
def test_reach_of_a_constant_k_is_the_gaussians(k, sigma):
    decay = decay_of(k, 56, 56)
    assert reach(decay) == pytest.approx(math.sqrt(2 * k), rel=1e-5)  # what is cut off at six sigma
    assert reach(decay) == pytest.approx(sigma, abs=5e-4)
    impulse = np.zeros((56, 56))
    impulse[28, 28] = 1
    # A sampled Gaussian differs from the band-limited one by its modes beyond pi: exp(-k pi^2) of k = 1.
    gaussian = ndimage.gaussian_filter(impulse, math.sqrt(2 * k), truncate=12)
    np.testing.assert_allclose(conduction(decay, (28, 28))[0], gaussian, atol=2e-4)


def test_the_same_k_reaches_half_as_far_across_twice_the_resolution():
    shares = [reach(decay_of(4, side, side)) / side for side in (28, 56)]
    assert shares == pytest.approx([0.101, 0.0505], abs=1e-4)


def test_no_conduction_reaches_nowhere_and_negative_lobes_may_have_no_reach():
    assert reach(np.ones((8, 8, 2))) < 1e-6  # a root: rounding of the variance, 1e-15, is 3e-8 here
    ring = np.ones((16, 16, 1))
    ring[1:3, 1:3] = 1.5  # amplified low modes: a kernel that is negative far from its centre
    ring[0, 1:3] = ring[1:3, 0] = 1.5
    assert math.isnan(reach(ring))


def test_insulated_edges_reflect():
    """Heat from a corner is the sum of that of its mirror images on a map without edges."""
    corner = conduction(decay_of(2, 24, 24), (0, 0), (1.0,))[0]
    free = conduction(decay_of(2, 48, 48), (24, 24), (1.0,))[0]
    mirrored = free[24:, 24:] + free[24:, 23::-1] + free[23::-1, 24:] + free[23::-1, 23::-1]
    np.testing.assert_allclose(corner, mirrored, atol=1e-9)


def test_response_is_one_at_mode_zero_and_in_the_unit_interval():
    k = paddle.to_tensor(np.random.default_rng(1).gamma(1, 5, (7, 9, 4)).astype(np.float32))
    decay = heat_decay(k).numpy()
    assert (decay[0, 0] == 1).all()
    assert decay.min() >= 0
    assert decay.max() <= 1
    means = by_frequency(decay)
    assert means[0] == 1  # only mode 0 is below pi / 16 on so small a map
    assert np.nanmin(means) >= 0


def test_values_by_frequency_equal_those_picked_one_by_one():
    values = np.random.default_rng(2).standard_normal((12, 10, 3))
    values[0, 0] = np.nan
    expected: dict[int, list[float]] = {}
    for n in range(12):
        for m in range(10):
            bin_ = int(math.hypot(math.pi * n / 12, math.pi * m / 10) // (math.pi / 16))
            expected.setdefault(bin_, []).extend(v for v in values[n, m] if v == v)
    found = by_frequency(values, lambda v: np.quantile(v, [0.1, 0.5, 0.9]))
    assert found.shape == (23, 3)
    for i in range(23):
        if expected.get(i):
            np.testing.assert_allclose(found[i], np.quantile(expected[i], [0.1, 0.5, 0.9]))
        else:
            assert np.isnan(found[i]).all()


def test_k_of_a_folded_decay():
    k = np.random.default_rng(3).gamma(1.0, 3.0, (8, 6, 4))
    decay = decay_of(k, 8, 6, 4).astype(np.float32)
    decay[7, 5, 0] = 0  # underflowed
    decay[7, 4, 0] = -0.5  # a free filter
    found = diffusivity_of(decay)
    known = decay >= np.finfo(np.float32).tiny
    known[0, 0] = False
    assert known.mean() > 0.9
    np.testing.assert_array_equal(np.isnan(found), ~known)
    # E's relative rounding of 6e-8 becomes an error of 6e-8 / w^2 in k; the smallest w is pi / 8
    np.testing.assert_allclose(found[known], k[known], atol=1e-7 / (math.pi / 8) ** 2)


@pytest.mark.parametrize(("patch", "times", "message"), [
    ((9, 0), (1.0,), r"patch \(9, 0\) is outside the map of 9 x 14"),
    ((0, -1), (1.0,), "outside the map"),
    ((0, 0), (-1.0,), "at least 0"),
])  # fmt: skip
def test_impossible_arguments_are_refused(patch, times, message):
    with pytest.raises(ValueError, match=message):
        conduction(random_decay(), patch, times)
