"""What a detector must beat: for every validation image, the objects of the training image that looks most like it.

    python tools/detection_baseline.py --config configs/demo_detection.yml

Needs no training. Images are compared at 16 x 8 pixels.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np

from paddle_vheat.cli_tools import run_tool
from paddle_vheat.config import load_config
from paddle_vheat.deploy.images import resize
from paddle_vheat.tasks.detection.evaluator import to_result

THUMBNAIL = (8, 16)  # height, width


def thumbnails(dataset: Any) -> np.ndarray:
    """(images, values) float32."""
    small = [resize(dataset.pixels(i), *THUMBNAIL, "AREA") for i in range(len(dataset))]
    return np.stack(small).reshape(len(dataset), -1).astype(np.float32)


def copied_objects(train: Any, val: Any) -> list[dict[str, Any]]:
    """Entries of COCO's result JSON: the objects of each image's nearest training image, stretched to its size."""
    known, results = thumbnails(train), []
    for i, thumbnail in enumerate(thumbnails(val)):
        image = val.images[i]
        size = image["height"], image["width"]
        boxes, labels, masks = train.objects(int(((known - thumbnail) ** 2).sum(axis=1).argmin()))
        for box, label, mask in zip(boxes, labels, masks):
            scale = np.asarray([size[1] / mask.shape[1], size[0] / mask.shape[0]] * 2)
            stretched = resize(mask, *size, "NEAREST")
            results.append(to_result(image["id"], val.categories[label][0], 1.0, box * scale, stretched))
    return results


def report(args: argparse.Namespace) -> None:
    from paddle_vheat.tasks.detection.task import DetectionTask

    task = DetectionTask(load_config(args.config, args.opts), args.config)
    val, evaluator = task.dataset("val"), task.evaluator()
    evaluator.results = copied_objects(task.dataset("train"), val)
    evaluator.images = [image["id"] for image in val.images]
    print(evaluator.summarize().table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="COCO's figures of copying the objects of the nearest training image.")
    parser.add_argument("--config", required=True)
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY=VALUE", help="replace values of the configuration"
    )
    return run_tool(report, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
