"""Reading of COCO annotations, and what is said of wrong ones."""

from __future__ import annotations

import json
import math
import re
import shutil

import numpy as np
import pytest

from paddle_vheat.engine.data_check import scan
from paddle_vheat.errors import DataError
from paddle_vheat.tasks.detection.coco import CocoDataset, decode_mask
from tests.tasks.detection import small


def raw(image, meta, boxes=None, labels=None, masks=None):
    return {"img": image, "boxes": boxes, "labels": labels, "masks": masks, "meta": meta}


def dataset(root, split="train", **options):
    return CocoDataset(root / split, root / f"{split}.json", raw, 3, **{"with_objects": split == "train", **options})


def test_objects_are_those_that_were_drawn(coco):
    """Polygons, both kinds of run lengths and gaps between the ids: every object's pixels have its class' colour."""
    found = dataset(coco)
    assert found.categories == [(3, "box"), (7, "bar"), (20, "disc")]
    seen = 0
    for sample in (found[i] for i in range(len(found))):
        image, order = sample["img"][..., ::-1], sample["labels"]
        for box, label, mask in zip(sample["boxes"], order, sample["masks"]):
            colour = small.COLOURS[found.categories[label][0]]
            if label == order[-1]:  # nothing is drawn over it
                assert (image[mask > 0] == colour).all()
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert np.abs(box - edges).max() <= (1 if found.categories[label][1] == "disc" else 0)
            seen += 1
    assert seen == 3 * 4


def test_crowds_and_images_without_objects(coco):
    training = dataset(coco)
    assert len(training) == 4  # of five, one is empty
    assert len(training[small.CROWD]["boxes"]) == 3  # the fourth is a crowd
    everything = dataset(coco, skip_empty=False)
    empty = everything[small.EMPTY]
    assert (len(everything), empty["boxes"].shape, empty["labels"].shape) == (5, (0, 4), (0,))
    assert empty["masks"].shape == (0, 64, 96)
    assert training.groups.tolist() == [0, 1, 0, 1]


def test_polygons_cover_what_they_enclose():
    points = [5.0, 5.0, 40.0, 10.0, 30.0, 50.0]
    ours = decode_mask([points], 60, 60)
    y, x = np.mgrid[:60, :60] + 0.5
    corners = np.asarray(points).reshape(-1, 2)
    sides = [(b - a, a) for a, b in zip(corners, np.roll(corners, -1, axis=0))]
    theirs = np.all([d[0] * (y - a[1]) - d[1] * (x - a[0]) >= 0 for d, a in sides], axis=0)
    assert (ours != theirs).sum() < 60  # of 770; less than every second pixel of an edge of 123
    holes = decode_mask([points, [1.0, 50.0, 9.0, 50.0, 9.0, 58.0, 1.0, 58.0]], 60, 60)
    assert holes.sum() == ours.sum() + 64


def changed(key, value, index=1):
    return lambda content: content["annotations"][index].update({key: value})


def image_id_twice(content):
    content["images"][1]["id"] = content["images"][0]["id"]


WRONG = {
    "unknown category": (changed("category_id", 4), r"annotation 101 \(image 0.png\): category_id 4 is not among"),
    "outside": (
        changed("bbox", [90, 10, 30, 10]),
        r"annotation 101 .*bbox \[90, 10, 30, 10\].* reaches outside .*96 x 64",
    ),
    "negative": (changed("bbox", [5, 5, -3, 10]), "annotation 101 .* reaches outside"),
    "nan": (changed("bbox", [math.nan, 5, 10, 10]), r"annotation 101 .*not finite: \[nan"),
    "nan in a polygon": (changed("segmentation", [[1, 1, math.nan, 2, 3, 3]]), "annotation 101 .*not finite"),
    "three numbers": (changed("bbox", [1, 2, 3]), r"annotation 101 .*bbox must be \[x, y, width, height\]"),
    "no mask": (changed("segmentation", None), "annotation 101 .*no 'segmentation'"),
    "empty mask": (changed("segmentation", {"size": [64, 96], "counts": [64 * 96]}), "annotation 101 .*mask is empty"),
    "no polygon": (changed("segmentation", []), "annotation 101 .*mask is empty"),
    "two points": (changed("segmentation", [[1, 1, 2, 2]]), "annotation 101 .*at least three points"),
    "runs": (changed("segmentation", {"size": [64, 96], "counts": [5, 5]}), "annotation 101 .*add up to 10, .* 6144"),
    "mask of another size": (changed("segmentation", {"size": [9, 9], "counts": [81]}), r"annotation 101 .*\[9, 9\]"),
    "annotation twice": (changed("id", 100), r"annotation 100 \(image 0.png\): the id is there more than once"),
    "image twice": (image_id_twice, r"image id 5 \(0.png\) is there more than once"),
    "no such image": (changed("image_id", 999), "annotation 101: there is no image with the id 999"),
    "missing file": (lambda c: c["images"][0].update(file_name="gone.png"), r"gone\.png: there is no such file"),
    "another size": (lambda c: c["images"][3].update(height=64), r"3\.png: is 90 x 70, and .* says 90 x 64"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(coco, tmp_path, name):
    root = shutil.copytree(coco, tmp_path / "coco")
    change, message = WRONG[name]
    small.edit(root, "train", change)
    problems = scan(dataset(root, skip_empty=False), name, "all")
    assert any(re.search(message, problem) for problem in problems), problems
    assert all(str(root) in problem for problem in problems)


def test_what_is_right_is_not(coco):
    assert scan(dataset(coco, skip_empty=False), "x", "all") == scan(dataset(coco, "val"), "x", "all") == []


@pytest.mark.parametrize("name", ["nan", "unknown category", "two points"])
def test_unchecked_it_is_found_in_reading(coco, tmp_path, name):
    root = shutil.copytree(coco, tmp_path / "coco")
    change, message = WRONG[name]
    small.edit(root, "train", change)
    with pytest.raises(DataError, match=message):
        dataset(root)[0]


def test_objects_without_area_or_pixels_are_left_out(coco, tmp_path):
    root = shutil.copytree(coco, tmp_path / "coco")
    small.edit(root, "train", changed("bbox", [5, 5, 0.5, 10]))
    small.edit(root, "train", changed("segmentation", {"size": [64, 96], "counts": [64 * 96]}, 2))
    assert dataset(root)[0]["labels"].tolist() == [0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a list 'images'"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', r"images\[0\] has no 'file_name'"),
        (
            '{"images": [{"id": "a", "file_name": "a", "height": 1, "width": 1}], "annotations": [], "categories": []}',
            r"images\[0\].id must be an integer, got 'a'",
        ),
        (json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}), "1 categories, and"),
        (json.dumps({"images": [], "annotations": [], "categories": small.CATEGORIES}), "no image has an object"),
        (
            json.dumps({"images": [], "annotations": [], "categories": [*small.CATEGORIES[:2], small.CATEGORIES[0]]}),
            "category id 20 is there more than once",
        ),
    ],
)
def test_files_that_are_none(tmp_path, text, message):
    (tmp_path / "train.json").write_text(text, encoding="utf-8")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=message):
        dataset(tmp_path)


def test_a_file_that_is_not_there(coco):
    with pytest.raises(FileNotFoundError, match=r"no such annotation file: .*trian\.json; did you mean 'train\.json'"):
        CocoDataset(coco / "train", coco / "trian.json", raw)
