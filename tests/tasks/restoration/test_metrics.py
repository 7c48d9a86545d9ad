"""The scores against SwinIR's and KAIR's functions (tests/golden) and against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paddle_vheat.tasks.restoration.metrics import luma, psnr, psnr_b, ssim, to_uint8
from tests.conftest import golden

DATA = golden("restoration_metrics")
PAIRS = sorted({name[:-2] for name in DATA if name.endswith(".a")})


@pytest.mark.parametrize("name", PAIRS)
def test_equals_the_published_scores(name):
    output, target = DATA[f"{name}.a"], DATA[f"{name}.b"]
    # float64 on both sides; a variance is a difference of moments of up to 255^2, which costs four digits.
    for score, key in ((psnr(output, target), "psnr"), (psnr_b(output, target), "psnrb")):
        assert score == pytest.approx(float(DATA[f"{name}.{key}"]), rel=1e-12)
    assert ssim(output, target) == pytest.approx(float(DATA[f"{name}.ssim"]), abs=1e-11)
    inside = slice(4, -4), slice(4, -4)
    assert psnr(output[inside], target[inside]) == pytest.approx(float(DATA[f"{name}.psnr_border4"]), rel=1e-12)


def test_all_pairs_are_compared():
    assert len(PAIRS) == 7


def test_equal_images():
    image = DATA["jpeg_q10.a"]
    assert psnr(image, image) == math.inf == float(DATA["identical.psnr"])
    assert ssim(image, image) == pytest.approx(1.0, abs=1e-15)


def test_luma():
    bgr = DATA["ycbcr.bgr"]
    assert luma(bgr).dtype == np.uint8
    assert np.array_equal(luma(bgr), DATA["ycbcr.y_uint8"])
    ends = luma(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8))
    assert ends.tolist() == [[16, 235]]


def test_psnr_b_is_of_the_outputs_blocks():
    """Steps of the output on the grid count, elsewhere or in the target they do not."""
    smooth = np.full((32, 40), 100, np.uint8)
    blocks = smooth.copy()
    blocks[:, 8:] += 10
    between = smooth.copy()
    between[:, 12:] += 10
    assert psnr_b(smooth, blocks) == psnr(smooth, blocks)
    assert psnr_b(between, smooth) == psnr(between, smooth)
    # One step of 10 in each of 32 rows, over 32 x 4 and 40 x 3 places on the grid; log2 8 / log2 32 = 3/5.
    error = (0.8 * 100) + 0.6 * 32 * 100 / (32 * 4 + 40 * 3)
    assert psnr_b(blocks, smooth) == pytest.approx(10 * math.log10(255**2 / error))


def test_to_uint8_clamps_and_rounds():
    values = np.array([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 100.4 / 255, 1.0, 1.2])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 100, 255, 255]


@pytest.mark.parametrize("score", [psnr, ssim, psnr_b])
def test_errors_name_the_shapes(score):
    with pytest.raises(ValueError, match=rf"{score.__name__}: expected two images .* got \(16, 16\) and \(16, 17\)"):
        score(np.zeros((16, 16)), np.zeros((16, 17)))
