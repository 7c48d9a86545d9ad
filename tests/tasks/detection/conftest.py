"""A small data set that the tests only read, written once; and the reference detector's picture and weights."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest

from paddle_vheat.weights.loading import save_weights
from tests.conftest import golden
from tests.models.mask_rcnn.micro import reference_detector
from tests.tasks.detection import small


@pytest.fixture(scope="session")
def coco(tmp_path_factory) -> Path:
    return small.write_coco(tmp_path_factory.mktemp("data") / "coco")


@pytest.fixture(scope="session")
def reference(tmp_path_factory, golden_checkpoint) -> SimpleNamespace:
    """A folder with the reference's picture, annotated, its weights as ours, and the configuration that fits."""
    root, data = tmp_path_factory.mktemp("reference"), golden("maskrcnn_micro")
    image = data["a/image0_bgr"]
    (root / "val").mkdir()
    cv2.imwrite(str(root / "val" / "a.png"), image)
    height, width = image.shape[:2]
    annotations = []
    masks = small.np.unpackbits(data["a/gt0_masks_packed"], axis=-1, count=width)
    for i, (box, label) in enumerate(zip(data["a/gt0_boxes"].tolist(), data["a/gt0_labels"].tolist())):
        x1, y1, x2, y2 = box
        bbox, mask = [x1, y1, x2 - x1, y2 - y1], masks[i]
        one = {"id": i, "image_id": 1, "category_id": 2 * label, "bbox": bbox, "area": int(mask.sum()), "iscrowd": 0}
        annotations.append({**one, "segmentation": small.encoded(mask, 1, [])})
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": 2 * label, "name": f"kind {label}"} for label in range(5)],
    }
    for split in ("train", "val"):
        (root / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    config = small.config(root, model__num_classes=5, model__embed_dim=16, model__channels=32, model__fc_channels=48)
    config["data"]["train"]["image_dir"] = config["data"]["val"]["image_dir"]
    numbers = {"train_per_level": 200, "test_per_level": 200, "proposals": 60, "rpn_samples": 64, "roi_samples": 32}
    config["model"]["selection"] = numbers
    config["transforms"]["scale"] = [160, 128]
    save_weights(reference_detector(golden_checkpoint("maskrcnn_micro")), root / "model.pdparams")
    path = root / "model.pdparams"
    return SimpleNamespace(root=root, config=config, weights=path, data=data, image=image)
