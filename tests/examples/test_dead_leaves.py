"""The generated pictures of the denoising demonstration depend on their seed alone and have a photograph's spectrum."""

from __future__ import annotations

import numpy as np
from PIL import Image

from examples import dead_leaves


def test_a_picture_is_the_seeds():
    first, again, other = (dead_leaves.picture(64, 48, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert (first != other).mean() > 0.9
    assert (first.shape, first.dtype) == ((64, 48), np.uint8)


def test_the_spectrum_falls_as_that_of_photographs():
    """Power of about f^-2 (photographs: 1.5 to 2.5); noise has an exponent of 0, a smooth slope one of 4."""
    power = np.zeros((96, 96))
    for seed in range(8):
        image = dead_leaves.picture(96, 96, np.random.default_rng(seed)).astype(float)
        power += np.abs(np.fft.fft2((image - image.mean()) * np.outer(np.hanning(96), np.hanning(96)))) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(96), np.fft.fftfreq(96)))
    inside = (frequency > 0.02) & (frequency < 0.2)  # above, the smooth edges of the drawing weigh in
    slope = np.polyfit(np.log(frequency[inside]), np.log(power[inside]), 1)[0]
    assert -2.8 < slope < -1.5


def test_written_pictures_are_those_and_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(dead_leaves, "COUNTS", {"train": 2, "val": 1})
    dead_leaves.write(tmp_path, size=32)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["train/000.png", "train/001.png", "val/000.png"]
    found = np.asarray(Image.open(tmp_path / "val" / "000.png"))
    assert np.array_equal(found, dead_leaves.picture(32, 32, np.random.default_rng([0, 1, 0])))
    before = (tmp_path / "train" / "000.png").stat().st_mtime_ns
    dead_leaves.write(tmp_path, size=32)
    assert (tmp_path / "train" / "000.png").stat().st_mtime_ns == before
