"""Generated pictures, and a configuration that is small enough to train on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from paddle_vheat.tasks.restoration.task import RestorationTask

SIZES = [(40, 52), (44, 36), (48, 48)]  # of the clean pictures, (height, width)


def picture(height: int, width: int, seed: int, colour: bool = False) -> np.ndarray:
    """uint8 (H, W), or RGB (H, W, 3) of channels that differ."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = []
    for _ in range(3 if colour else 1):
        a, b, c = rng.uniform(3, 9, 3)
        planes.append(120 + 60 * np.sin(x / a + y / b) + 40 * (x + y > c * 8))
    image = np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)
    return image if colour else image[..., 0]


def write_pictures(folder: Path, colour: bool = False, suffix: str = "png") -> Path:
    folder.mkdir(parents=True)
    for i, (height, width) in enumerate(SIZES):
        Image.fromarray(picture(height, width, i, colour)).save(folder / f"{i}.{suffix}")
    return folder


def config(folder: Path, **changes: Any) -> dict[str, Any]:
    """``changes`` by keys such as ``model__width``."""
    found: dict[str, Any] = {
        "task": "restoration",
        "model": {"name": "vheat_ir", "width": 8, "depths": [1, 1], "freq_size": 6, "drop_path_rate": 0.1},
        "pretrained": None,
        "degradation": {"type": "noise", "sigma": 25},
        "train": {"folders": [str(folder)], "crop": 16},
        "val": {"folders": [str(folder)]},
        "lr_scheduler": {"learning_rate": 1e-3, "milestones": [2, 3]},
        "batch_size": 2,
        "iters": 4,
        "ema": 0.9,
    }
    for path, value in changes.items():
        block = found
        *parents, last = path.split("__")
        for name in parents:
            block = block[name]
        block[last] = value
    return found


def make_task(folder: Path, **changes: Any) -> RestorationTask:
    return RestorationTask(config(folder, **changes), "small.yml")


def lively(model: Any) -> Any:
    """Weights with which the model changes an image, k is far from 0 and the decay matters."""
    rng = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        if name == "conv_last.weight" or name.endswith(("mixer.linear.weight", "mixer.out_linear.weight")):
            scale = 0.1 if name == "conv_last.weight" else 0.5
            parameter.set_value((scale * rng.standard_normal(parameter.shape)).astype(np.float32))
        elif name.endswith("to_k.bias"):
            parameter.set_value(rng.uniform(0, 2, parameter.shape).astype(np.float32))
    return model
