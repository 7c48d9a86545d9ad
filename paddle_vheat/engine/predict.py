"""Predictions of a segmentation model on image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from paddle_vheat._paddle import paddle
from paddle_vheat.config import building
from paddle_vheat.data.image_file import read_bgr
from paddle_vheat.engine.evaluate import predict_logits
from paddle_vheat.engine.pictures import compose_triptych, write_pictures


def predict_classes(task: Any, model: Any, image: np.ndarray, **options: Any) -> np.ndarray:
    """Class of every pixel, int64 (H, W), of a BGR image (H, W, 3)."""
    transforms = task.val_transforms
    with building(task.source, "val_dataset.transforms"):
        data = transforms({"img": image.astype(np.float32), "gt_fields": []})
    batch = paddle.to_tensor(data["img"][None])
    with paddle.no_grad():
        logits = predict_logits(model, batch, data["trans_info"], **{**task.test_options, **options})
    return paddle.argmax(logits, axis=1).numpy()[0]


def predict_folder(
    task: Any, model: Any, images: Sequence[tuple[Path, Path]], save_dir: str | Path, **options: Any
) -> Path:
    """Write pictures of a model's predictions; see :func:`paddle_vheat.engine.pictures.write_pictures`."""
    model.eval()
    return write_pictures(images, save_dir, task.palette, lambda image: predict_classes(task, model, image, **options))


def triptych(task: Any, model: Any, index: int) -> np.ndarray:
    """Validation image ``index`` | its truth | the prediction, RGB uint8 (H, 3 W, 3)."""
    image_path, label_path = task.val_dataset.file_list[index]
    image = read_bgr(image_path)
    was_training = model.training
    model.eval()
    try:
        classes = predict_classes(task, model, image)
    finally:
        if was_training:
            model.train()
    label = np.asarray(Image.open(label_path)).astype(np.int64)
    if type(task.val_dataset).__name__ == "ADE20K":
        label = (label - 1) % 256  # stored from 1, with 0 for no class
    return compose_triptych(image[..., ::-1], label, classes, task.palette)
