"""COCO's figures of boxes and masks, by ``pycocotools``."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from paddle_vheat.deploy.detection_ops import paste_mask
from paddle_vheat.engine.task import Scores
from paddle_vheat.tasks.detection.coco import CocoDataset, decode_mask, mask_library
from paddle_vheat.tasks.detection.visualize import to_original

KINDS = ("bbox", "segm")
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""What COCO's twelve numbers are called here; the sizes s, m, l are below 32 x 32, below 96 x 96 pixels, and above."""

Result = dict[str, Any]  # an entry of COCO's result JSON: image_id, category_id, bbox, score, segmentation


def to_result(image_id: int, category_id: int, score: float, box: np.ndarray, mask: np.ndarray) -> Result:
    """A detection, its box (x1, y1, x2, y2) and its mask (H, W), as an entry of COCO's result JSON."""
    rle = mask_library().encode(np.asfortranarray(mask, np.uint8))
    x1, y1, x2, y2 = (float(n) for n in box)
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "score": float(score),
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")},
    }


class CocoEvaluator:
    """Collects detections; their order within an image is kept.

    Args:
        dataset: the validation set.
        save: takes the text of the result JSON when the scores are known; None for nothing.
    """

    def __init__(self, dataset: CocoDataset, save: Callable[[str], Any] | None = None) -> None:
        self.dataset, self.save = dataset, save
        self.results: list[Result] = []
        self.images: list[int] = []

    def update(self, outputs: Sequence[dict[str, np.ndarray]], batch: dict[str, Any]) -> None:
        """Take in what the task's ``infer`` gave for a batch."""
        for found, meta in zip(outputs, batch["meta"]):
            boxes = to_original(found["boxes"], meta["shape"], meta["size"])
            for box, score, label, logits in zip(boxes, found["scores"], found["labels"], found["mask_logits"]):
                # One mask at a time: a hundred of a large image would take hundreds of megabytes.
                mask, category = paste_mask(logits, box, meta["size"]), self.dataset.categories[int(label)][0]
                self.results.append(to_result(meta["image_id"], category, score, box, mask))
            self.images.append(meta["image_id"])

    def state(self) -> Any:
        return {"results": self.results, "images": self.images}

    def merge(self, states: Sequence[Any]) -> None:
        self.results = [one for state in states for one in state["results"]]
        self.images = [one for state in states for one in state["images"]]

    def summarize(self) -> Scores:
        if self.save is not None:
            self.save(json.dumps(self.results) + "\n")
        values: dict[str, float] = {}
        rows = ["      " + "".join(f"{name:>7}" for name in FIGURES)]
        for kind in KINDS:
            figures = evaluate_results(self.dataset.content, self.results, kind, self.images)
            values.update({f"{kind}_{name}": value for name, value in zip(FIGURES, figures)})
            cells = "".join(f"{'-' if value != value else f'{100 * value:.1f}':>7}" for value in figures)
            rows.append(f"{kind:<6}{cells}")
        report = {name: None if value != value else value for name, value in values.items()}
        report = {"images": len(self.images), "detections": len(self.results), **report}
        return Scores(values, "\n".join(rows), report, len(self.images))


def evaluate_results(
    annotations: dict[str, Any], results: Sequence[Result], kind: str, images: Sequence[int]
) -> list[float]:
    """COCO's twelve figures from 0 to 1, by ``pycocotools``; NaN where there is no object of that size.

    Args:
        annotations: contents of COCO's JSON; left as they are.
        results: entries of COCO's result JSON.
        kind: "bbox" or "segm".
        images: ids of the images that count.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # the library prints
        truth = COCO()
        truth.dataset = _complete(annotations)
        truth.createIndex()
        # With a box beside it, the library would take the box's area for the mask's.
        entries = [{k: v for k, v in one.items() if kind == "bbox" or k != "bbox"} for one in results]
        found = truth.loadRes(entries) if entries else COCO()
        if not entries:
            found.dataset = {**truth.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(truth, found, kind)
        evaluation.params.imgIds = sorted(set(images))
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float("nan") if value < 0 else float(value) for value in evaluation.stats]


def _complete(annotations: dict[str, Any]) -> dict[str, Any]:
    """A copy with the keys that the library needs and files may leave out."""
    content = copy.deepcopy(annotations)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in sizes]
    for one in content["annotations"]:
        one.setdefault("iscrowd", 0)
        if "area" not in one:
            one["area"] = int(decode_mask(one.get("segmentation"), *sizes[one["image_id"]]).sum())
    return content
