"""Pictures of segmentation."""

from __future__ import annotations

import numpy as np

from paddle_vheat.tasks.segmentation.visualize import (
    SegmentationPrediction,
    colourise,
    compose_triptych,
    default_palette,
    overlay,
)


def test_colourise():
    palette = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    colours = colourise(np.array([[0, 1, 2, 255, 1000, -1]]), palette)
    assert colours.dtype == np.uint8
    assert colours[0].tolist() == [[1, 2, 3], [4, 5, 6], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_overlay():
    image, colours = np.full((1, 1, 3), 200, np.uint8), np.array([[[0, 100, 255]]], np.uint8)
    assert overlay(image, colours)[0, 0].tolist() == [120, 160, 222]


def test_triptych():
    rng = np.random.default_rng(0)
    image, palette = rng.integers(0, 256, (4, 5, 3), np.uint8), rng.integers(1, 256, (3, 3), np.uint8)
    label, classes = rng.integers(0, 3, (4, 5)), rng.integers(0, 3, (4, 5))
    label[1, 2] = 255
    picture = compose_triptych(image, label, classes, palette)
    assert (picture.dtype, picture.shape) == (np.uint8, (4, 15, 3))
    truth, guess = palette[np.minimum(label, 2)], palette[classes]
    truth[1, 2] = guess[1, 2] = 0
    np.testing.assert_array_equal(picture, np.concatenate([image, truth, guess], axis=1))


def test_many_classes():
    """A picture of 8 bits holds 256 ids; beyond, it has 16 bits."""
    classes = np.array([[0, 255], [256, 299]], np.int32)
    pictures = SegmentationPrediction(classes, default_palette(300)).draw(np.zeros((2, 2, 3), np.uint8))
    assert pictures["pseudo_color_prediction"].mode == "I;16"
    np.testing.assert_array_equal(np.asarray(pictures["pseudo_color_prediction"]), classes)
    np.testing.assert_array_equal(pictures["added_prediction"], (0.4 * default_palette(300)[classes] + 0.5).astype(int))


def test_the_default_palette_is_paddlesegs():
    from paddleseg.utils.visualize import get_color_map_list

    for count in (1, 19, 200):
        expected = np.array(get_color_map_list(count)).reshape(-1, 3)[:count]
        np.testing.assert_array_equal(default_palette(count), expected)
