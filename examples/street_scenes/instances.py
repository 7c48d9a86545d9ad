"""COCO instance annotations of the scenes."""

from __future__ import annotations

from typing import Any

import numpy as np

from examples.street_scenes.canvas import Array
from examples.street_scenes.labels import THINGS
from paddle_vheat.tasks.segmentation.cityscapes import CITYSCAPES_NAMES

MIN_AREA = 20
"""Objects of which fewer pixels are visible are left out."""
CATEGORIES: list[dict[str, Any]] = [{"id": i, "name": CITYSCAPES_NAMES[label]} for i, label in enumerate(THINGS, 1)]


def run_lengths(mask: Array) -> list[int]:
    """COCO's uncompressed run-length encoding of (H, W): runs down the columns, the first of zeros."""
    flat = mask.ravel(order="F").astype(bool)
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return [int(run) for run in np.diff([0, *edges, flat.size])]


def annotate(label: Array, objects: Array) -> list[dict[str, Any]]:
    """Annotations of a scene's objects without their ids; ``label`` and ``objects`` as from ``render_scene``."""
    found = []
    for number in np.unique(objects[objects > 0]):
        mask = objects == number
        area = int(mask.sum())
        if area < MIN_AREA:
            continue
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        x, y = int(columns[0]), int(rows[0])
        found.append(
            {
                "category_id": int(label[mask][0]) - THINGS.start + 1,
                "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
                "area": area,
                "bbox": [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1],
                "iscrowd": 0,
            }
        )
    return found
