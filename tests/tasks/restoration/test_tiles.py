"""Tiles put together, and what they cost in quality."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_vheat._paddle import paddle
from paddle_vheat.models import build_vheat_ir
from paddle_vheat.tasks.restoration.tiles import restore_tiled
from tests.conftest import relative_error


@pytest.mark.parametrize(
    ("tile", "overlap", "count"),
    [((16, 16), 0, 6), ((16, 16), 6, 12), ((40, 40), 8, 2), ((64, 64), 8, 1), ((9, 9), 6, 117), ((40, 16), 4, 4)],
)
def test_tiles_put_together(tile, overlap, count):
    """A pointwise function gives the same as on the whole image, and each overlap is averaged."""
    image = np.random.rand(2, 1, 32, 45).astype(np.float32)
    sizes = []

    def double(part):
        sizes.append(part.shape[2:])
        return 2 * part

    restored = restore_tiled(double, image, tile, overlap)
    assert relative_error(restored, 2 * image) < 2e-6  # float32 sums of up to 9 tiles
    assert sizes == [(min(tile[0], 32), min(tile[1], 45))] * count

    serial = iter(range(count))
    numbered = restore_tiled(lambda part: np.full_like(part, next(serial)), image, tile, overlap)
    assert numbered[0, 0, 0, 0] == 0
    assert numbered[0, 0, -1, -1] == count - 1
    assert numbered.shape == image.shape


def test_without_a_tile_the_image_is_taken_whole():
    image = np.random.rand(1, 3, 20, 10).astype(np.float32)
    assert np.array_equal(restore_tiled(lambda part: part + 1, image, None), image + 1)


def test_tiles_of_a_model_are_close_to_the_whole_image():
    model = build_vheat_ir(width=12, depths=(2, 2), freq_size=16)
    model.eval()
    image = np.random.rand(1, 1, 40, 40).astype(np.float32)

    def run(part):
        with paddle.no_grad():
            return model(paddle.to_tensor(part)).numpy()

    whole = run(image)
    assert np.array_equal(restore_tiled(run, image, (40, 40), 8), whole)
    tiled = restore_tiled(run, image, (24, 24), 8)
    # At the start k is near 0, so that only pixels within the convolutions' reach of a seam differ.
    assert 0 < np.abs(tiled - whole).mean() < 0.2 * np.abs(whole - image).mean()
