"""Geometry of images, boxes and masks together."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_vheat.config import load_config
from paddle_vheat.tasks.detection import config as schema
from paddle_vheat.tasks.detection.transforms import EvalTransform, Objects, TrainTransform, fitted_size, normalise
from tests.conftest import golden
from tests.engine.tiny import REPOSITORY
from tests.models.mask_rcnn.micro import batch
from tests.tasks.detection import small


# Sizes of the published pipeline, (width, height) before and after.
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((640, 480), (1067, 800)),
        ((640, 427), (1199, 800)),
        ((500, 375), (1067, 800)),
        ((333, 500), (800, 1201)),
        ((300, 1000), (400, 1333)),
        ((640, 359), (1333, 748)),
    ],
)
def test_sizes(before, after):
    assert fitted_size(before[1], before[0], 1333, 800) == (after[1], after[0])


def test_the_reference_gets_the_same_batch(coco):
    data = golden("maskrcnn_micro")
    task = small.make_task(coco)
    samples = [
        {"img": normalise(data[f"b/image{i}_bgr"], [123.675, 116.28, 103.53], [58.395, 57.12, 57.375])} for i in (0, 1)
    ]
    expected = batch(data, "b")[0].numpy()
    assert np.abs(task.collate(samples)["img"] - expected).max() < 1e-6  # one rounding of values up to 2.7


def scene(height=90, width=120):
    """A dark image with a bright rectangle, and that as an object; a second is in a corner."""
    image = np.zeros((height, width, 3), np.uint8)
    boxes = np.asarray([[30, 20, 80, 60], [100, 70, 118, 88]], np.float32)
    masks = np.zeros((2, height, width), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int)):
        mask[y1:y2, x1:x2] = 1
    image[masks.any(axis=0)] = 200
    return Objects(image, boxes, np.asarray([0, 1]), masks)


def agrees(found, pixels=1.5):
    """Image, box and mask of every object say the same but for the resampling at its edges."""
    bright = found.image[..., 0] > 100
    edges = 2 * (found.boxes[:, 2:] - found.boxes[:, :2]).sum()  # a pixel of each: nearest against bilinear
    assert (bright != found.masks.any(axis=0)).sum() <= edges
    for box, mask in zip(found.boxes, found.masks):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert np.abs(box - [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).max() <= pixels


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.flipped(),
        lambda found: found.resized(200, 64),
        lambda found: found.resized(80, 50).flipped(),
        lambda found: found.cropped(10, 20, 60, 70),
        lambda found: found.flipped().cropped(15, 5, 70, 100).resized(150, 100),
    ],
)
def test_image_box_and_mask_move_together(change):
    found = change(scene())
    assert len(found.boxes) == len(found.labels) == len(found.masks) >= 1
    assert found.masks.shape[1:] == found.image.shape[:2]
    agrees(found)


def test_what_a_crop_cuts_off_is_dropped():
    found = scene().cropped(0, 0, 65, 90)
    assert found.labels.tolist() == [0]
    none = scene().cropped(0, 0, 20, 30)
    assert (none.boxes.shape, none.masks.shape, none.labels.shape) == ((0, 4), (0, 20, 30), (0,))


def test_published_augmentation(monkeypatch):
    """3x: half of the images are cropped first, and every shorter side of the list comes up equally often."""
    options = schema.read(load_config(REPOSITORY / "configs" / "mask_rcnn_vheat_tiny_3x_coco.yml"))[0].transforms
    given = scene(240, 320)
    objects = given.boxes, given.labels, given.masks
    original, sides = Objects.resized, []

    def watched(self, longest, shortest):
        sides[-1].append(shortest)
        return original(self, 200, 64)  # small, for speed

    monkeypatch.setattr(Objects, "resized", watched)
    for seed in range(300):
        np.random.seed(seed)
        sides.append([])
        TrainTransform(options)(given.image, {}, *objects)
    cropped = [two for two in sides if len(two) == 2]
    assert 106 < len(cropped) < 194  # binomial: a half within 5 deviations of 8.7
    assert {first for first, _ in cropped} == {400, 500, 600}
    last, counts = np.unique([one[-1] for one in sides], return_counts=True)
    assert last.tolist() == list(range(480, 801, 32))
    assert counts.min() > 6 and counts.max() < 60  # noqa: PT018  (27 each, deviation 5)


def test_crop_sides_are_of_the_published_range():
    crop = schema.CropOptions([400], 384, 600)
    transform = TrainTransform(schema.TransformOptions(short_sides=[480], crop=crop))
    found = []
    for seed in range(60):
        np.random.seed(seed)
        found.append(transform._crop(scene(500, 900), 1333).image.shape[:2])
    heights, widths = np.asarray(found).T
    assert (heights.min() >= 384, heights.max() <= 400) == (True, True)  # of 400 there are no 600
    assert (widths.min() >= 384, widths.max() <= 600, len(set(widths)) > 20) == (True, True, True)


@pytest.mark.parametrize(("flip", "mirrored"), [(0.0, 0), (1.0, 40), (0.5, 20)])
def test_flips_are_as_often_as_said(flip, mirrored):
    transform = TrainTransform(schema.TransformOptions(scale=[120, 90], flip=flip))
    given = scene()
    count = 0
    for seed in range(40):
        np.random.seed(seed)
        count += transform(given.image, {}, given.boxes, given.labels, given.masks)["boxes"][0, 0] != 30
    assert abs(count - mirrored) <= (14 if flip == 0.5 else 0)  # binomial, deviation 3.2


def test_evaluation_keeps_the_size_for_the_way_back():
    options = schema.TransformOptions(scale=[160, 100], mean=[1, 2, 3], std=[1, 1, 1])
    sample = EvalTransform(options)(scene(90, 120).image, {"image_id": 7})
    assert sample["meta"] == {"image_id": 7, "shape": (100, 133)}
    assert sample["img"].shape == (3, 100, 133)
    assert sample["img"][:, 0, 0].tolist() == [-1, -2, -3]
