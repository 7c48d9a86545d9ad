"""Images with COCO annotations: boxes, and masks as polygons or run lengths."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat.config import MissingFileError, did_you_mean
from paddle_vheat.config.options import short
from paddle_vheat.data.image_file import read_bgr
from paddle_vheat.errors import DataError, UserError

MIN_IMAGE = 32  # pixels a side; smaller images, and those without objects, are left out of training
MIN_OBJECT = 1.0  # pixels a side of a box; smaller objects are left out of training
OUTSIDE = 2.0  # pixels that a box may reach out of its image, by rounding


def mask_library() -> Any:
    """``pycocotools.mask``, which has COCO's own rules of which pixels a polygon covers."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError("detection needs pycocotools: pip install paddle-vheat[det]") from error
    return mask


def read_annotations(path: str | Path) -> dict[str, Any]:
    """The contents of an annotation file, its lists checked for the keys that are always needed.

    Raises:
        MissingFileError, DataError: naming the file and what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.json")])
        raise MissingFileError(f"no such annotation file: {path}{near}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    needed = {
        "images": ("id", "file_name", "height", "width"),
        "annotations": ("id", "image_id", "category_id", "bbox"),
        "categories": ("id", "name"),
    }
    for part, keys in needed.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"{path}: expected a list {part!r}, as in COCO's instances_*.json")
        for i, entry in enumerate(entries):
            absent = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if absent:
                raise DataError(f"{path}: {part}[{i}] has no {absent[0]!r}")
            whole = [key for key in keys if key == "id" or key.endswith("_id") or key in ("height", "width")]
            wrong = [key for key in whole if type(entry[key]) is not int]
            if wrong:
                raise DataError(f"{path}: {part}[{i}].{wrong[0]} must be an integer, got {short(entry[wrong[0]])}")
    return content


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A mask (height, width), uint8 of zeros and ones, from polygons or run lengths, compressed or not.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if isinstance(segmentation, list):
        rle = _of_polygons(segmentation, height, width)
    elif isinstance(segmentation, Mapping) and list(segmentation.get("size", [])) == [height, width]:
        rle = _of_runs(segmentation, height, width)
    elif isinstance(segmentation, Mapping):
        raise ValueError(f"its mask is of size {short(segmentation.get('size'))}, the image of {[height, width]}")
    else:
        raise ValueError("it has no 'segmentation', which must be polygons or run lengths")
    return mask_library().decode(rle)


def _of_polygons(polygons: list[Any], height: int, width: int) -> Any:
    for polygon in polygons:
        numbers = isinstance(polygon, list) and all(isinstance(n, (int, float)) for n in polygon)
        if not numbers or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon must be at least three points x, y, got {short(polygon, 60)}")
        far = max(height, width)  # an edge takes memory by its length
        if not all(-far <= n <= 2 * far for n in polygon):  # also NaN
            raise ValueError("a polygon has a coordinate that is not finite, or far outside the image")
    if not polygons:
        raise ValueError("its mask is empty: no polygon")
    library = mask_library()
    return library.merge(library.frPyObjects(polygons, height, width))


def _of_runs(segmentation: Mapping[str, Any], height: int, width: int) -> Any:
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts.encode("utf-8")}
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        raise ValueError("the run lengths of its mask must be integers of at least 0")
    if sum(counts) != height * width:
        raise ValueError(f"the run lengths of its mask add up to {sum(counts)}, and the image has {height * width}")
    return mask_library().frPyObjects({"size": [height, width], "counts": counts}, height, width)


class CocoDataset:
    """Images and their objects.

    Args:
        image_dir: folder that the file names are relative to.
        annotations: COCO's JSON.
        transform: image, uint8 BGR (H, W, 3), boxes (n, 4), masks (n, H, W) and meta data to a sample's arrays.
        with_objects: give objects, and leave out images without any, if ``skip_empty``, and crowds.
        num_classes: of the model, to be compared with the categories.

    Attributes:
        categories: (id, name) in the order of the labels, which is that of the ids.
        groups: 0 or 1 by image, for batches of one orientation.
        rules: what the result of a check depends on beside the images.

    Raises:
        MissingFileError, DataError: for a folder or file that does not exist or is not as described.
    """

    def __init__(
        self,
        image_dir: str | Path,
        annotations: str | Path,
        transform: Callable[..., dict[str, Any]],
        num_classes: int | None = None,
        with_objects: bool = False,
        skip_empty: bool = True,
    ) -> None:
        mask_library()
        self.path, self.image_dir, self.transform = Path(annotations), Path(image_dir), transform
        self.with_objects, self.content = with_objects, read_annotations(annotations)
        if not self.image_dir.is_dir():
            raise MissingFileError(f"no such folder of images: {self.image_dir}")
        self.categories = sorted((c["id"], str(c["name"])) for c in self.content["categories"])
        if repeated := _repeated(self.content["categories"]):
            raise DataError(f"{self.path}: category id {min(repeated)} is there more than once")
        if num_classes is not None and len(self.categories) != num_classes:
            raise DataError(
                f"{self.path}: has {len(self.categories)} categories, and 'model.num_classes' is {num_classes}"
            )
        self.labels = {number: label for label, (number, _) in enumerate(self.categories)}
        self._objects: dict[int, list[dict[str, Any]]] = {}
        for annotation in self.content["annotations"]:
            self._objects.setdefault(annotation["image_id"], []).append(annotation)
        skip = with_objects and skip_empty
        self.images = [image for image in self.content["images"] if not skip or self._is_worth(image)]
        if with_objects and not self.images:
            raise DataError(f"{self.path}: no image has an object to train on")
        self.groups = np.asarray([image["width"] < image["height"] for image in self.images], np.int64)
        self._repeated = {part: _repeated(self.content[part]) for part in ("images", "annotations")}
        status = self.path.stat()
        self.rules = f"COCO {os.path.abspath(self.path)} {status.st_size} {status.st_mtime_ns} {with_objects}"

    def _is_worth(self, image: Mapping[str, Any]) -> bool:
        large = min(image["width"], image["height"]) >= MIN_IMAGE
        objects = self._objects.get(image["id"], [])
        return large and any(not one.get("iscrowd") and _has_area(one["bbox"]) for one in objects)

    def __len__(self) -> int:
        return len(self.images)

    def files(self, index: int) -> list[str]:
        """The image's file."""
        return [os.path.join(self.image_dir, str(self.images[index]["file_name"]))]

    # --- checking ---------------------------------------------------------------------------------------

    def check(self, index: int) -> None:
        """Raise a DataError that names everything that is wrong with an image and its annotations."""
        problems = []
        try:
            self.pixels(index)
        except DataError as error:
            problems.append(str(error))
        image = self.images[index]
        if image["id"] in self._repeated["images"]:
            problems.append(f"{self.path}: image id {image['id']} ({image['file_name']}) is there more than once")
        for one in self._objects.get(image["id"], []):
            try:
                self._check_annotation(one, image)
                mask = decode_mask(one.get("segmentation"), image["height"], image["width"])
                if _has_area(one["bbox"]) and not mask.any():
                    raise ValueError("its mask is empty")
            except ValueError as error:
                problems.append(self._where(one, image, error))
        if problems:
            raise DataError("\n  ".join(problems))

    def check_all(self, values: list[Any]) -> list[str]:
        """Problems that only the whole file shows."""
        known = {image["id"] for image in self.content["images"]}
        return [
            f"{self.path}: annotation {one['id']}: there is no image with the id {one['image_id']}"
            for one in self.content["annotations"]
            if one["image_id"] not in known
        ]

    def _where(self, one: Mapping[str, Any], image: Mapping[str, Any], wrong: ValueError) -> str:
        return f"{self.path}: annotation {one['id']} (image {image['file_name']}): {wrong}"

    def _check_annotation(self, one: Mapping[str, Any], image: Mapping[str, Any]) -> None:
        """Raise a ValueError that says what is wrong with an annotation, its mask apart."""
        if one["id"] in self._repeated["annotations"]:
            raise ValueError("the id is there more than once")
        if one["category_id"] not in self.labels:
            raise ValueError(f"category_id {one['category_id']} is not among the categories")
        box, size = one["bbox"], f"{image['width']} x {image['height']}"
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(n, (int, float)) for n in box):
            raise ValueError(f"bbox must be [x, y, width, height], got {short(box, 60)}")
        if not all(math.isfinite(n) for n in box):
            raise ValueError(f"bbox has a number that is not finite: {box}")
        x, y, width, height = box
        limits = image["width"] + OUTSIDE, image["height"] + OUTSIDE
        if min(width, height) < 0 or min(x, y) < -OUTSIDE or x + width > limits[0] or y + height > limits[1]:
            raise ValueError(f"bbox {box} (x, y, width, height) reaches outside the image of {size}")

    # --- reading ----------------------------------------------------------------------------------------

    def pixels(self, index: int) -> np.ndarray:
        """uint8 BGR (H, W, 3), of the size that the annotations say."""
        pixels, image = read_bgr(self.files(index)[0]), self.images[index]
        if pixels.shape[:2] != (image["height"], image["width"]):
            raise DataError(
                f"{self.files(index)[0]}: is {pixels.shape[1]} x {pixels.shape[0]}, and {self.path} says "
                f"{image['width']} x {image['height']} (width x height)"
            )
        return pixels

    def objects(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (n, 4) float32 x1 y1 x2 y2, labels (n,) int64, masks (n, H, W) uint8 of the objects to train on.

        Crowds, and objects without area or pixels, are none.
        """
        image = self.images[index]
        height, width = image["height"], image["width"]
        boxes, labels, masks = [], [], []
        for one in self._objects.get(image["id"], []):
            try:
                self._check_annotation(one, image)
                if one.get("iscrowd") or not _has_area(one["bbox"]):
                    continue
                mask = decode_mask(one.get("segmentation"), height, width)
            except ValueError as error:
                raise DataError(self._where(one, image, error)) from error
            if mask.any():
                x, y, w, h = one["bbox"]
                boxes.append([x, y, x + w, y + h])
                labels.append(self.labels[one["category_id"]])
                masks.append(mask)
        limits = np.asarray([width, height] * 2, np.float32)
        stacked = np.stack(masks) if masks else np.zeros((0, height, width), np.uint8)
        clipped = np.clip(np.asarray(boxes, np.float32).reshape(-1, 4), 0, limits)
        return clipped, np.asarray(labels, np.int64), stacked

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample; see ``transforms.py`` for its arrays. "meta" has "image_id" and the original (H, W), "size"."""
        pixels = self.pixels(index)
        meta = {"image_id": self.images[index]["id"], "size": pixels.shape[:2], "index": index}
        if not self.with_objects:
            return self.transform(pixels, meta)
        return self.transform(pixels, meta, *self.objects(index))


def _has_area(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(side, (int, float)) and side >= MIN_OBJECT for side in box[2:])
    )


def _repeated(entries: list[dict[str, Any]]) -> set[int]:
    """The ids that several entries have."""
    return {number for number, count in Counter(entry["id"] for entry in entries).items() if count > 1}
