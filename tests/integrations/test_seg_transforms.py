"""The transforms that published runs need and PaddleSeg lacks, against NumPy and the definitions of their sources."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paddleseg.cvlibs import manager
from paddleseg.transforms import Compose, Normalize

from paddle_vheat.integrations.seg_transforms import RandomBrightnessShift, RandomRescale, ToBGR

ROOT = Path(__file__).resolve().parents[2]


def sample(height, width, seed=0):
    """An image and a label whose every 4 x 4 block has one class."""
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, 19, (-(-height // 4), -(-width // 4))), np.ones((4, 4), int))[:height, :width]
    image = rng.integers(0, 256, (height, width, 3)).astype(np.float32)
    return {"img": image, "label": label.astype(np.uint8), "gt_fields": ["label"], "trans_info": []}


@pytest.mark.parametrize("transform", [ToBGR, RandomRescale, RandomBrightnessShift])
def test_registered(transform):
    assert manager.TRANSFORMS[transform.__name__] is transform


def test_a_name_that_somebody_else_has_taken_is_theirs(tmp_path):
    code = """
from paddleseg.cvlibs import manager
manager.TRANSFORMS.add_component(type("ToBGR", (), {}))
import paddle_vheat.integrations.seg_transforms
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SEG_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "RuntimeError: PaddleSeg already has a component 'ToBGR', from __main__" in done.stderr


def test_to_bgr_then_normalize():
    """mean[0] is blue's: what OpenCV reads is normalised channel by channel."""
    pixels = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)  # BGR, as read
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    given = Compose([ToBGR(), Normalize(mean, std)])({"img": pixels.astype(np.float32)})["img"]
    expected = (pixels.astype(np.float64) / 255 - mean) / std
    np.testing.assert_allclose(given, expected.transpose(2, 0, 1), rtol=0, atol=1e-6)  # two float32 roundings


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 4)])
def test_to_bgr_takes_three_channels(shape):
    with pytest.raises(ValueError, match=rf"ToBGR: expected an image \(H, W, 3\), got shape \[{shape[0]}, "):
        ToBGR()({"img": np.zeros(shape, np.float32)})


def test_rescale_draws_scale_and_aspect():
    """Of H' W' / (H W) = s^2 and (W' / W) / (H' / H) = a, both uniform and independent."""
    transform = RandomRescale([0.5, 2.0], [0.9, 1.1])
    random.seed(0)
    image = np.zeros((400, 800), np.uint8)
    sizes = np.array([transform({"img": image})["img"].shape[:2] for _ in range(1500)], float) / [400, 800]
    scale, aspect = np.sqrt(sizes.prod(axis=1)), sizes[:, 1] / sizes[:, 0]
    for drawn, low, high, rounding in ((scale, 0.5, 2.0, 0.002), (aspect, 0.9, 1.1, 0.005)):
        assert low - rounding <= drawn.min() <= low + 0.01 * (high - low) + rounding
        assert high + rounding >= drawn.max() >= high - 0.01 * (high - low) - rounding
        # Kolmogorov's distance to the uniform law: 1.95 / sqrt(n) is exceeded by one seed in a thousand.
        steps = np.abs((np.sort(drawn) - low) / (high - low) - np.arange(1, 1501) / 1500)
        assert steps.max() < 1.95 / np.sqrt(1500) + rounding / (high - low)
    assert abs(np.corrcoef(scale, aspect)[0, 1]) < 0.1  # 0.026 is its standard deviation


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    # mmsegmentation's (2048, 512) with keep_ratio: the short side to 512 unless the long one then exceeds 2048.
    [(600, 800, (512, 683)), (800, 600, (683, 512)), (100, 1000, (205, 2048)), (1024, 2048, (512, 1024))],
)
def test_rescale_fits_into_a_box(height, width, expected):
    data = RandomRescale([1.0, 1.0], fit=[2048, 512])(sample(height, width))
    assert data["img"].shape == (*expected, 3)
    assert data["label"].shape == expected
    assert RandomRescale([0.5, 0.5], fit=[512, 2048])(sample(height, width))["label"].shape == tuple(
        pytest.approx(side / 2, abs=1) for side in expected
    )


def test_rescale_by_one_changes_nothing():
    before = sample(12, 20)
    after = RandomRescale([1.0, 1.0], interp="CUBIC")(sample(12, 20))
    np.testing.assert_array_equal(after["img"], before["img"])
    np.testing.assert_array_equal(after["label"], before["label"])


def test_rescale_by_two():
    """Labels keep their values; the image stays within 0 to 255 where cubic weights overshoot."""
    before = sample(16, 24)
    before["img"] = np.where(before["img"] > 127, 255, 0).astype(np.float32)
    after = RandomRescale([2.0, 2.0], interp="CUBIC")({**before})
    np.testing.assert_array_equal(after["label"], before["label"].repeat(2, axis=0).repeat(2, axis=1))
    assert (after["img"].min(), after["img"].max()) == (0, 255)
    # Bilinear with centres at half: the value a quarter of the way between two pixels.
    linear = RandomRescale([2.0, 2.0])(sample(16, 24))["img"]
    x = sample(16, 24)["img"].astype(np.float64)
    along = 0.75 * x[:-1] + 0.25 * x[1:]
    expected = 0.75 * along[:, :-1] + 0.25 * along[:, 1:]
    np.testing.assert_allclose(linear[1:-1:2, 1:-1:2], expected, rtol=0, atol=1e-3)  # float32 of values up to 255


def test_shift_is_every_integer_alike():
    transform = RandomBrightnessShift(10)
    random.seed(0)
    image = np.full((2, 3, 3), 100, np.uint8)
    drawn = []
    for _ in range(4200):
        shifted = transform({"img": image})["img"]
        assert (shifted == shifted[0, 0, 0]).all()
        drawn.append(int(shifted[0, 0, 0]) - 100)
    values, counts = np.unique(drawn, return_counts=True)
    assert list(values) == list(range(-10, 11))
    # Chi-square of 20 degrees: 45.3 is exceeded by one seed in a thousand.
    assert ((counts - 200) ** 2 / 200).sum() < 45.3


def test_shift_stays_in_range_and_leaves_labels():
    random.seed(3)
    ends = set()
    for _ in range(40):
        data = {**sample(4, 4), "img": np.array([[[0, 3, 255]]], np.uint8)}
        shifted = RandomBrightnessShift(255)(data)
        assert shifted["img"].dtype == np.float32
        ends |= {float(shifted["img"].min()), float(shifted["img"].max())}
        np.testing.assert_array_equal(shifted["label"], sample(4, 4)["label"])
    assert {0.0, 255.0} <= ends <= {float(n) for n in range(256)}


@pytest.mark.parametrize("transform", [RandomRescale([0.5, 2], [0.9, 1.1]), RandomBrightnessShift()])
def test_python_s_random_decides(transform):
    results = []
    for seed in (5, 5, 6):
        random.seed(seed)
        np.random.seed(len(results))
        results.append(transform(sample(20, 30))["img"])
    np.testing.assert_array_equal(results[0], results[1])
    assert results[0].shape != results[2].shape or (results[0] != results[2]).any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandomRescale([2.0, 0.5]), r"RandomRescale: scale_range: expected \[min, max\] above 0"),
        (lambda: RandomRescale([0, 1]), "RandomRescale: scale_range: expected"),
        (lambda: RandomRescale(aspect_range=1.1), "RandomRescale: aspect_range: expected .* got 1.1"),
        (lambda: RandomRescale(fit=[2048, 0]), "RandomRescale: fit: expected"),
        (lambda: RandomRescale(interp="CUBICS"), "unknown interp 'CUBICS'; did you mean 'CUBIC'"),
        (lambda: RandomBrightnessShift(-1), "max_shift must be an integer of at least 0 and at most 255, got -1"),
        (lambda: RandomBrightnessShift(1.5), "max_shift must be an integer"),
        (lambda: RandomBrightnessShift(True), "max_shift must be an integer"),
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
