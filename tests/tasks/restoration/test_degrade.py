"""Degraded images: the published noise and JPEG bytes, and the statistics of what is drawn."""

from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
import pytest

from paddle_vheat.tasks.restoration import degrade
from paddle_vheat.tasks.restoration.metrics import luma
from tests.conftest import golden

DATA = golden("restoration_metrics")


def picture(height, width, channels=None):
    """No two rows, columns or channels alike, smooth enough for JPEG."""
    y, x = np.mgrid[:height, :width]
    gray = 100 + 40 * np.sin(x / 5) + 0.4 * y + 30 * np.cos((x + 2 * y) / 9)
    planes = gray if channels is None else np.stack([gray + 9 * c for c in range(channels)], -1)
    return planes.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("clean", "noisy", "sigma"),
    [
        ("noise.gray_clean", "noise.gray_sigma25_float64", 25),
        ("noise.color_clean_bgr", "noise.color_sigma50_bgr_float64", 50),
    ],
)
def test_scored_noise_is_the_published_one_whatever_was_drawn_before(clean, noisy, sigma):
    np.random.rand(5)
    before = np.random.get_state()[1].copy()
    for _ in range(2):
        assert np.array_equal(degrade.scored_noise(DATA[clean], sigma), DATA[noisy].astype(np.float32))
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("quality", [10, 40])
def test_jpeg_is_the_published_one(quality):
    assert np.array_equal(degrade.compress_jpeg(DATA["ycbcr.y_uint8"], quality), DATA[f"jpeg_q{quality}.a"])


def test_jpeg_of_colours_keeps_their_order():
    image = np.zeros((16, 16, 3), np.uint8)
    image[..., 0] = 200
    assert np.abs(degrade.compress_jpeg(image, 95).astype(int) - image).max() < 10


def test_noise_is_normal_unclipped_and_fresh():
    np.random.seed(3)
    image = np.zeros((200, 200), np.uint8)
    noisy, clean = degrade.noise_pair(image, 25, 200)
    assert noisy.dtype == clean.dtype == np.float32
    values = (noisy - clean) * 255
    # Five deviations of the estimates from 40,000 numbers.
    assert abs(values.mean()) < 5 * 25 / 200
    assert abs(values.std() / 25 - 1) < 5 / np.sqrt(80_000)
    assert abs((values < 0).mean() - 0.5) < 5 * 0.5 / 200
    assert abs((np.abs(values) > 50).mean() - 0.0455) < 5 * 0.0455**0.5 / 200
    assert len(np.unique(noisy)) > 39_000  # neither clipped nor rounded
    again, _ = degrade.noise_pair(image, 25, 200)
    assert abs(np.corrcoef(noisy.ravel(), again.ravel())[0, 1]) < 5 / 200


@pytest.mark.parametrize("channels", [None, 3])
def test_the_global_state_decides_everything(channels):
    """The data loading seeds it for every sample."""
    image = picture(60, 70, channels)
    drawn = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        drawn.append((*degrade.noise_pair(image, 15, 32), *degrade.jpeg_pair(image, 30, 32)))
    same, other = zip(drawn[0], drawn[1]), zip(drawn[0], drawn[2])
    assert all(np.array_equal(a, b) for a, b in same)
    assert not any(np.array_equal(a, b) for a, b in other)
    assert drawn[0][0].shape == ((32, 32) if channels is None else (32, 32, 3))
    assert drawn[0][2].shape == (32, 32)


def test_the_eight_augmentations_are_the_symmetries_of_the_square():
    image = np.arange(9).reshape(3, 3)
    results = {degrade.augment(image, mode).tobytes() for mode in range(degrade.AUGMENTATIONS)}
    expected = {np.rot90(side, turns).tobytes() for side in (image, image.T) for turns in range(4)}
    assert results == expected
    assert len(expected) == 8
    assert np.array_equal(degrade.augment(image, 0), image)


def test_crops_and_augmentations_are_uniform():
    image = np.arange(16, dtype=np.uint8).reshape(4, 4)
    corners, modes = Counter(), Counter()
    np.random.seed(0)
    for _ in range(4000):
        corners[int(degrade.random_crop(image, 2)[0, 0])] += 1
        modes[degrade.noise_pair(image[:2, :2], 0, 2)[1].tobytes()] += 1
    # Five deviations of a binomial count.
    for counts, cases in ((corners, 9), (modes, 8)):
        assert len(counts) == cases
        mean = 4000 / cases
        assert max(abs(count - mean) for count in counts.values()) < 5 * np.sqrt(mean * (1 - 1 / cases))


def grid_phase(compressed, clean):
    """(row, column) of the first corner of JPEG's grid: the only cut at which compressing again changes nothing."""
    size = clean.shape[0] - 8
    for top in range(8):
        for left in range(8):
            part = (slice(top, top + size // 8 * 8 - 8), slice(left, left + size // 8 * 8 - 8))
            again = degrade.compress_jpeg(compressed[part], 10)
            if np.abs(again.astype(int) - compressed[part]).max() <= 2:
                return top, left
    raise AssertionError("no grid found")


def test_the_grid_begins_anywhere_half_of_the_time():
    np.random.seed(0)
    image = picture(72, 72)
    phases = Counter()
    for _ in range(300):
        compressed, clean = (np.round(part * 255).astype(np.uint8) for part in degrade.jpeg_pair(image, 10, 64))
        assert compressed.shape == clean.shape == (64, 64)
        phases[grid_phase(compressed, clean)] += 1
    # 1/2, and of the other half the 4 of 81 offsets that are multiples of 8.
    share = 0.5 + 0.5 * 4 / 81
    assert abs(phases[0, 0] / 300 - share) < 5 * np.sqrt(share * (1 - share) / 300)
    assert len(phases) > 40


@pytest.mark.parametrize(("drawn", "top", "left"), [([0.1, 0.999, 0.0], 8, 0), ([0.1, 0.0, 0.5], 0, 4), ([0.5], 0, 0)])
def test_compressed_and_clean_are_cut_alike(drawn, top, left, monkeypatch):
    numbers = [0.0, 0.0, 0.0, *drawn]  # the first three: corner of the crop, augmentation
    monkeypatch.setattr(np.random, "random", lambda: numbers.pop(0))
    image = picture(40, 40)
    compressed, clean = degrade.jpeg_pair(image, 10, 32)
    part = (slice(top, top + 32), slice(left, left + 32))
    assert np.array_equal(clean, degrade.as_float(image[part]))
    assert np.array_equal(compressed, degrade.as_float(degrade.compress_jpeg(image, 10)[part]))
    assert numbers == []


def test_gray_is_either_of_two():
    image = picture(40, 40, 3)
    image[..., 2] //= 2
    np.random.seed(0)
    means = Counter(round(float(degrade.jpeg_pair(image, 90, 32)[1].mean() * 255)) for _ in range(200))
    candidates = [luma(image[4:36, 4:36]).mean(), cv2.cvtColor(image[4:36, 4:36], cv2.COLOR_BGR2GRAY).mean()]
    assert abs(candidates[0] - candidates[1]) > 2
    near = Counter(int(abs(mean - candidates[0]) > abs(mean - candidates[1])) for mean in means.elements())
    assert abs(near[0] - 100) < 5 * np.sqrt(50)
    compressed, clean = degrade.jpeg_pair(image, 90, 32, gray=False)
    assert compressed.shape == clean.shape == (32, 32, 3)


def test_a_fitting_image_is_taken_whole():
    assert degrade.noise_pair(picture(33, 33), 15, 33)[0].shape == (33, 33)
    assert degrade.jpeg_pair(picture(33, 33), 10, 25)[0].shape == (25, 25)


def test_no_paddle_is_needed():
    import subprocess
    import sys

    code = "import sys, paddle_vheat.tasks.restoration.degrade as d; sys.exit('paddle' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
