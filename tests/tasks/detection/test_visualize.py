"""Predictions: values, JSON and pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as mask_utils

from paddle_vheat.deploy.detection_ops import paste_mask
from paddle_vheat.tasks.detection import visualize
from paddle_vheat.tasks.detection.visualize import DetectionPrediction, Masks, class_colour, draw_objects, run_lengths
from tests.tasks.detection.small import shape_mask


def prediction(count=3, size=(60, 80), **options):
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 30, (count, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + rng.uniform(10, 28, (count, 2)).astype(np.float32)], axis=1)
    logits = rng.standard_normal((count, 28, 28)).astype(np.float32)
    scores = np.linspace(0.9, 0.1, count).astype(np.float32)
    masks = Masks(logits, boxes, size)
    return DetectionPrediction(boxes, scores, np.arange(count), masks, ["cat", "dog", "bird"], **options)


def test_json_is_cocos(tmp_path):
    found = prediction(threshold=0.4)
    entries = found.to_json()
    assert [one["name"] for one in entries] == ["cat", "dog"]
    assert len(found.value["scores"]) == len(found.value["masks"]) == 3
    assert found.line() == "1 cat, 1 dog"
    for i, one in enumerate(entries):
        rle = mask_utils.frPyObjects(one["segmentation"], 60, 80)
        assert (mask_utils.decode(rle).astype(bool) == found.masks[i]).all()
        assert one["bbox"][:2] == pytest.approx(found.boxes[i, :2], abs=0.01)
        assert (one["bbox"][2] + one["bbox"][0]) == pytest.approx(found.boxes[i, 2], abs=0.02)


@pytest.mark.parametrize("mask", [np.zeros((5, 7)), np.ones((5, 7)), shape_mask(20, (9, 11), 2, 3, 6, 7)])
def test_run_lengths_are_the_librarys(mask):
    rle = mask_utils.frPyObjects({"size": list(mask.shape), "counts": run_lengths(mask)}, *mask.shape)
    assert rle["counts"] == mask_utils.encode(np.asfortranarray(mask, np.uint8))["counts"]


def test_masks_are_pasted_when_asked_for(monkeypatch):
    calls = []
    monkeypatch.setattr(visualize, "paste_mask", lambda *given: calls.append(1) or paste_mask(*given))
    found = prediction()
    assert calls == []
    assert found.value["masks"][1].shape == (60, 80)
    assert len(found.value["masks"][:2]) == 2
    assert len(calls) == 1


def test_drawing_marks_objects_and_nothing_else():
    image = np.full((120, 160, 3), 100, np.uint8)
    mask = shape_mask(3, (120, 160), 40, 50, 30, 60)
    box = np.asarray([[50, 40, 110, 70]], np.float32)
    drawn = draw_objects(image, box, [1], [mask], ["dog 90%"])
    assert (image == 100).all()
    colour = np.asarray(class_colour(1))
    inside = drawn[50:60, 60:100].reshape(-1, 3)
    assert np.abs(inside - (0.55 * 100 + 0.45 * colour)).max() < 2
    assert (drawn[40, 70:100] == colour).all()  # the outline, and the box
    assert (drawn[80:, :] == 100).all()
    assert (drawn[:, 140:] == 100).all()
    label = drawn[24:40, 50:90]
    assert ((label == colour).all(axis=-1).mean() > 0.3, (label != colour).any()) == (True, True)
    assert len({class_colour(i) for i in range(80)}) == 80


@pytest.mark.parametrize("size", [(40, 20), (64, 64), (300, 500)])
@pytest.mark.parametrize("corner", ["top left", "bottom right", "outside"])
def test_text_stays_within_the_picture(size, corner, monkeypatch):
    height, width = size
    box = {
        "top left": [0, 0, 9, 9],
        "bottom right": [width - 5, height - 5, width, height],
        "outside": [width - 1, -4, width + 6, height],
    }[corner]
    written = []
    original = ImageDraw.ImageDraw.text

    def text(self, place, words, **options):
        written.append((words, self.textbbox(place, words, font=options["font"])))
        return original(self, place, words, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    words = "a rather long name of a class 97%"
    mask = np.zeros(size, bool)
    draw_objects(np.zeros((*size, 3), np.uint8), np.asarray([box], np.float32), [0], [mask], [words])
    ((shown, (left, top, right, bottom)),) = written
    assert left >= 0 and top >= 0  # noqa: PT018
    assert right <= width
    assert bottom <= height
    assert shown == words or (shown.endswith("~") and words.startswith(shown[:-1]))


def test_nothing_found():
    none = DetectionPrediction(np.zeros((0, 4)), np.zeros(0), np.zeros(0), Masks(np.zeros((0, 28, 28)), [], (9, 9)))
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    assert (none.line(), none.to_json()) == ("nothing", [])
    assert (np.asarray(Image.fromarray(none.draw(image)["detections"])) == image[..., ::-1]).all()
