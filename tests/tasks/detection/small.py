"""A small data set with COCO annotations, and a micro detector to go with it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from paddle_vheat.config import load_config
from paddle_vheat.tasks.detection.task import DetectionTask
from tests.engine import tiny

CATEGORIES = [{"id": 20, "name": "disc"}, {"id": 3, "name": "box"}, {"id": 7, "name": "bar"}]  # gaps, not in order
COLOURS = {3: (220, 40, 30), 7: (30, 60, 220), 20: (40, 200, 60)}
SIZES = [(64, 96), (96, 64), (64, 96), (70, 90), (100, 65)]  # height, width
EMPTY, CROWD = 2, 0  # indices of the image without objects, and of the one with a crowd beside them


def shape_mask(category: int, size: tuple[int, int], top: int, left: int, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]]
    inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
    if category != 20:
        return inside
    return inside & (((y - top - height / 2 + 0.5) / height) ** 2 + ((x - left - width / 2 + 0.5) / width) ** 2 < 0.25)


def encoded(mask: np.ndarray, kind: int, box: list[int]) -> Any:
    """A mask as polygons (of a rectangle), run lengths, or compressed run lengths."""
    if kind == 0:
        x, y, w, h = box
        return [[x, y, x + w, y, x + w, y + h, x, y + h]]
    rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    if kind == 1:
        return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def write_split(root: Path, split: str, count: int, seed: int) -> None:
    rng, images, annotations = np.random.default_rng(seed), [], []
    (root / split).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        size = SIZES[i % len(SIZES)]
        pixels = rng.integers(90, 140, (*size, 3)).astype(np.uint8)
        for j in range(0 if i == EMPTY else 3):
            category = (3, 7, 20)[j]
            height, width = (int(rng.integers(16, 40)), int(rng.integers(16, 40)))
            top, left = int(rng.integers(0, size[0] - height)), int(rng.integers(0, size[1] - width))
            mask = shape_mask(category, size, top, left, height, width)
            pixels[mask] = COLOURS[category]
            box = [left, top, width, height]
            annotation = {"category_id": category, "bbox": box, "area": int(mask.sum()), "iscrowd": 0}
            annotation["segmentation"] = encoded(mask, 2 if category == 20 else j, box)
            annotations.append({"id": 100 + len(annotations), "image_id": 10 * i + 5, **annotation})
        if i == CROWD:
            mask = shape_mask(3, size, 0, 0, 20, 20)
            crowd = {"category_id": 3, "bbox": [0, 0, 20, 20], "area": 400, "iscrowd": 1}
            segmentation = encoded(mask, 2, [])
            annotations.append(
                {"id": 100 + len(annotations), "image_id": 10 * i + 5, **crowd, "segmentation": segmentation}
            )
        Image.fromarray(pixels).save(root / split / f"{i}.png")
        images.append({"id": 10 * i + 5, "file_name": f"{i}.png", "height": size[0], "width": size[1]})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (root / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def write_coco(root: Path, train: int = 5, val: int = 3) -> Path:
    write_split(root, "train", train, 1)
    write_split(root, "val", val, 2)
    return root


def config(root: Path, **changes: Any) -> dict[str, Any]:
    """The demonstration's configuration for this data and a smaller model; ``changes`` by path, with __ for dots."""
    found = copy.deepcopy(load_config(tiny.REPOSITORY / "configs" / "demo_detection.yml"))
    for split in ("train", "val"):
        found["data"][split] = {"image_dir": str(root / split), "annotations": str(root / f"{split}.json")}
    found["model"].update(embed_dim=8, depths=[1, 1, 1, 1], img_size=64, num_classes=3, channels=16, fc_channels=32)
    numbers = {"train_per_level": 100, "test_per_level": 60, "proposals": 40, "rpn_samples": 32, "roi_samples": 16}
    found["model"]["selection"] = numbers
    found["transforms"].update(scale=[96, 64])
    found["schedule"] = {"iters": 4}
    found["batch_size"] = 2
    for path, value in changes.items():
        *parents, last = path.split("__")
        block = found
        for name in parents:
            block = block.setdefault(name, {})
        block[last] = value
    return found


def make_task(root: Path, flags: Any = None, **changes: Any) -> DetectionTask:
    return DetectionTask(config(root, **changes), "small.yml", flags)


def edit(root: Path, split: str, change: Any) -> None:
    """Apply ``change`` to the contents of a split's annotation file."""
    path = root / f"{split}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
