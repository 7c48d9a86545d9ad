"""What a detector must beat: for every validation image, the objects of the training image that looks most like it.

    python tools/detection_baseline.py --config configs/demo_detection.yml

Needs no training. Images are compared at 16 x 8 pixels.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np

from paddle_vheat.config import load_config
from paddle_vheat.cpu import configure_cpu
from paddle_vheat.deploy.images import resize
from paddle_vheat.errors import UserError

THUMBNAIL = (8, 16)  # height, width


def thumbnails(dataset: Any) -> np.ndarray:
    """(images, values) float32."""
    small = [resize(dataset.pixels(i), *THUMBNAIL, "AREA") for i in range(len(dataset))]
    return np.stack(small).reshape(len(dataset), -1).astype(np.float32)


def copied_objects(train: Any, val: Any) -> list[dict[str, Any]]:
    """Entries of COCO's result JSON: the objects of each image's nearest training image, stretched to its size."""
    from paddle_vheat.tasks.detection.coco import mask_library

    known, results = thumbnails(train), []
    for i, thumbnail in enumerate(thumbnails(val)):
        image = val.images[i]
        size = image["height"], image["width"]
        boxes, labels, masks = train.objects(int(((known - thumbnail) ** 2).sum(axis=1).argmin()))
        for box, label, mask in zip(boxes, labels, masks):
            scale = np.asarray([size[1] / mask.shape[1], size[0] / mask.shape[0]] * 2)
            x1, y1, x2, y2 = (box * scale).tolist()
            rle = mask_library().encode(np.asfortranarray(resize(mask, *size, "NEAREST")))
            one = {"image_id": image["id"], "category_id": val.categories[label][0], "score": 1.0}
            segmentation = {"size": list(size), "counts": rle["counts"].decode("ascii")}
            results.append({**one, "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": segmentation})
    return results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="COCO's figures of copying the objects of the nearest training image.")
    parser.add_argument("--config", required=True)
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY=VALUE", help="replace values of the configuration"
    )
    args = parser.parse_args(argv)
    if "paddle" not in sys.modules:
        configure_cpu()
    from paddle_vheat.tasks.detection.task import DetectionTask

    try:
        task = DetectionTask(load_config(args.config, args.opts), args.config)
        val, evaluator = task.dataset("val"), task.evaluator()
        evaluator.results = copied_objects(task.dataset("train"), val)
        evaluator.images = [image["id"] for image in val.images]
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(evaluator.summarize().table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
