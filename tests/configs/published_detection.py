"""What the published detectors were configured with, in our keys; nothing here is read from our configurations.

MzeroMiko/vHeat: detection/configs/vheat/*.py; what they inherit: detection/configs/swin/*.py, and from mmdetection
3.3.0: configs/_base_/models/mask-rcnn_r50_fpn.py, datasets/coco_instance.py, schedules/schedule_1x.py.
"""

from __future__ import annotations

from typing import Any

from tests.configs.published import Deviates

# (schedule, variant): drop path, size of the frequency embeddings. The tiny 3x names no size, and 224 is the default.
ROWS = {
    ("1x", "tiny"): (0.1, 512),
    ("1x", "small"): (0.3, 512),
    ("1x", "base"): (0.5, 512),
    ("3x", "tiny"): (0.2, 224),
    ("3x", "small"): (0.4, 512),
}
OUR_FOLDER = "their folder"


def detection(schedule: str, variant: str) -> dict[str, Any]:
    rate, size = ROWS[schedule, variant]
    rpn_train = {"nms_pre": 2000, "max_per_img": 1000}
    rpn_test = {"nms_pre": 1000, "max_per_img": 1000}
    transforms: dict[str, Any] = {
        "scale": [1333, 800],
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "flip": 0.5,
    }
    if schedule == "3x":
        transforms["short_sides"] = list(range(480, 801, 32))
        transforms["crop"] = {"short_sides": [400, 500, 600], "min": 384, "max": 600}
    assert rpn_train["max_per_img"] == rpn_test["max_per_img"]
    return {
        "task": "detection",
        "batch_size": 16 // 8,
        "num_workers": 2,
        "eval_batch_size": 1,
        "data": {
            "train": {
                "image_dir": Deviates("data/coco/train2017", OUR_FOLDER),
                "annotations": Deviates("data/coco/annotations/instances_train2017.json", OUR_FOLDER),
                "skip_empty": True,
            },
            "val": {
                "image_dir": Deviates("data/coco/val2017", OUR_FOLDER),
                "annotations": Deviates("data/coco/annotations/instances_val2017.json", OUR_FOLDER),
            },
        },
        "transforms": transforms,
        "model": {
            "name": f"mask_rcnn_vheat_{variant}",
            "num_classes": 80,
            "img_size": size,
            "drop_path_rate": rate,
            "pretrained": Deviates(None, "ImageNet weights, which the user passes"),
            "channels": 256,
            "fc_channels": 1024,
            "selection": {
                "train_per_level": rpn_train["nms_pre"],
                "test_per_level": rpn_test["nms_pre"],
                "proposals": rpn_test["max_per_img"],
                "rpn_samples": 256,
                "roi_samples": 512,
                "score_threshold": 0.05,
                "detections": 100,
            },
        },
        "optimizer": {"type": "AdamW", "learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.05},
        "schedule": {
            "epochs": {"1x": 12, "3x": 36}[schedule],
            "milestones": {"1x": [8, 11], "3x": [27, 33]}[schedule],
            "gamma": 0.1,
            "warmup_iters": 1000,
            "warmup_factor": 0.001,
        },
    }
