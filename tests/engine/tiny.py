"""Tiny data sets in the layouts that the engine reads, and tiny models to go with them."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from examples.street_scenes import write_dataset
from paddle_vheat.engine.evaluate import evaluate
from paddle_vheat.tasks.segmentation.task import SegmentationTask

REPOSITORY = Path(__file__).resolve().parents[2]
SCENE_SIZE = (64, 128)  # height, width of the street scenes
TRAIN_SCENES, VAL_SCENES = 6, 3
NORMALIZE = {"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
AUGMENTATION = [
    {"type": "ResizeStepScaling", "min_scale_factor": 0.75, "max_scale_factor": 1.5, "scale_step_size": 0},
    {"type": "RandomPaddingCrop", "crop_size": [64, 32]},
    {"type": "RandomHorizontalFlip"},
    {"type": "RandomDistort", "brightness_range": 0.4, "contrast_range": 0.4, "saturation_range": 0.4},
    NORMALIZE,
]


# --- data -------------------------------------------------------------------------------------------


def write_cityscapes(root: Path, train: int = TRAIN_SCENES, val: int = VAL_SCENES) -> Path:
    """Street scenes of 64 x 128 in Cityscapes' layout."""
    write_dataset(root, train, val, SCENE_SIZE, seed=3, progress=False)
    return root


def write_ade20k(root: Path, train: int = 3, val: int = 2, sizes: Any = ((48, 64), (70, 51), (64, 64))) -> Path:
    """Blocks of colour in ADE20K's layout: labels 0 to 150 where 0 is unlabelled; sizes (height, width) take turns."""
    rng = np.random.default_rng(5)
    for split, count in (("training", train), ("validation", val)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            height, width = sizes[i % len(sizes)]
            blocks = rng.integers(0, 151, (-(-height // 16), -(-width // 16)))
            blocks.flat[:2] = 0, 150
            label = np.kron(blocks, np.ones((16, 16), int))[:height, :width].astype(np.uint8)
            image = np.stack([label, 255 - label, label // 2], axis=-1)
            Image.fromarray(image).save(root / "images" / split / f"ADE_{split}_{i:08d}.jpg")
            Image.fromarray(label).save(root / "annotations" / split / f"ADE_{split}_{i:08d}.png")
    return root


def write_lists(
    root: Path, train: int = 4, val: int = 3, num_classes: int = 3, sizes: Any = ((40, 56), (33, 64), (48, 48))
) -> Path:
    """Images of grey levels that tell the class, with ``train.txt`` and ``val.txt`` ("image label" lines)."""
    rng = np.random.default_rng(7)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("val", val)):
        lines = []
        for i in range(count):
            height, width = sizes[i % len(sizes)]
            blocks = rng.integers(0, num_classes, (-(-height // 8), -(-width // 8)))
            label = np.kron(blocks, np.ones((8, 8), int))[:height, :width].astype(np.uint8)
            noise = rng.integers(0, 20, (height, width, 3))
            image = (label[..., None] * (200 // num_classes) + noise).astype(np.uint8)
            label[:2, :5] = 255
            Image.fromarray(image).save(root / "images" / f"{split}{i}.png")
            Image.fromarray(label).save(root / "labels" / f"{split}{i}.png")
            lines.append(f"images/{split}{i}.png labels/{split}{i}.png\n")
        (root / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    return root


def spoil_label(path: Path, value: int) -> None:
    """Put a value that is no class into a large part of a label file."""
    label = np.array(Image.open(path))
    label[2:, 2:] = value
    Image.fromarray(label).save(path)


# --- configurations ---------------------------------------------------------------------------------


def base_config(num_classes: int, crop: tuple[int, int] = (32, 64)) -> dict[str, Any]:
    """A small model and its schedule; ``crop`` is (height, width)."""
    return {
        "batch_size": 2,
        "iters": 6,
        "model": {
            "type": "UPerNetMMSeg",
            "num_classes": num_classes,
            "channels": 16,
            "aux_channels": 8,
            "backbone": {"type": "vHeat", "embed_dim": 8, "depths": [1, 1, 1, 1], "img_size": list(crop)},
        },
        "optimizer": {
            "type": "AdamW",
            "weight_decay": 0.01,
            "grad_clip_cfg": {"name": "ClipGradByGlobalNorm", "clip_norm": 5.0},
            "custom_cfg": [{"name": "norm", "weight_decay_mult": 0.0}],
        },
        "lr_scheduler": {
            "type": "PolynomialDecay",
            "learning_rate": 1e-3,
            "end_lr": 0.0,
            "power": 1.0,
            "warmup_iters": 2,
            "warmup_start_lr": 1e-5,
        },
        "loss": {"types": [{"type": "CrossEntropyLoss"}], "coef": [1.0, 0.4]},
    }


def cityscapes_config(root: Path, augment: bool = True) -> dict[str, Any]:
    """Tiny model on :func:`write_cityscapes`."""
    transforms = AUGMENTATION if augment else [NORMALIZE]
    train = {"type": "Cityscapes", "dataset_root": str(root), "transforms": transforms, "mode": "train"}
    val = {"type": "Cityscapes", "dataset_root": str(root), "transforms": [NORMALIZE], "mode": "val"}
    crop = (32, 64) if augment else SCENE_SIZE
    return copy.deepcopy({**base_config(19, crop), "train_dataset": train, "val_dataset": val})


def contrast_config(root: Path, coef: float = 0.1, **loss: Any) -> dict[str, Any]:
    """:func:`cityscapes_config` with a projection head and the pixel contrast loss, whose arguments are ``loss``."""
    config = cityscapes_config(root)
    config["model"].update(type="UPerNetContrast", proj_dim=8)
    contrast = {"type": "PixelContrastLoss", "max_views": 2, "max_samples": 100, **loss}
    config["loss"] = {
        "types": [{"type": "CrossEntropyLoss"}, contrast, {"type": "CrossEntropyLoss"}],
        "coef": [1.0, coef, 0.4],
    }
    return config


def ade20k_config(root: Path) -> dict[str, Any]:
    """Tiny model on :func:`write_ade20k`."""
    train = {"type": "ADE20K", "dataset_root": str(root), "transforms": AUGMENTATION, "mode": "train"}
    val = {"type": "ADE20K", "dataset_root": str(root), "transforms": [NORMALIZE], "mode": "val"}
    return copy.deepcopy({**base_config(150), "train_dataset": train, "val_dataset": val})


def lists_config(root: Path, num_classes: int = 3) -> dict[str, Any]:
    """Tiny model on :func:`write_lists`."""
    common = {"type": "Dataset", "dataset_root": str(root), "num_classes": num_classes}
    crop = [{"type": "RandomPaddingCrop", "crop_size": [64, 32]}, {"type": "RandomHorizontalFlip"}, NORMALIZE]
    train = {**common, "train_path": str(root / "train.txt"), "transforms": crop, "mode": "train"}
    val = {**common, "val_path": str(root / "val.txt"), "transforms": [NORMALIZE], "mode": "val"}
    return copy.deepcopy({**base_config(num_classes), "train_dataset": train, "val_dataset": val})


class TinyTask(SegmentationTask):
    """Holds on to its model, so that a test can look at what a run has trained."""

    @cached_property
    def model(self) -> Any:
        return super().build_model()

    def build_model(self, pretrained: bool = True) -> Any:
        return self.model

    @property
    def val_dataset(self) -> Any:
        """PaddleSeg's own data set."""
        return self.dataset("val").dataset

    def evaluate(self, model: Any, num_workers: int = 0, autocast: Any = nullcontext, **options: Any) -> dict[str, Any]:
        """The scores and the confusion matrix; ``options`` take the place of the configuration's ``test_config``."""
        configured, evaluators = self.test_options, []
        self.test_options = replace(configured, **options)
        make = super().evaluator
        self.evaluator = lambda: evaluators.append(make()) or evaluators[0]  # type: ignore[method-assign]
        try:
            scores = evaluate(self, model, num_workers=num_workers, autocast=autocast, progress=False)
        finally:
            self.test_options = configured
            del self.evaluator
        assert scores is not None
        found = {"score": scores.values["mIoU"], "report": scores.report, "table": scores.table}
        return {**found, "images": scores.samples, "confusion": evaluators[0].matrix}


def make_task(config: dict[str, Any]) -> TinyTask:
    return TinyTask(copy.deepcopy(config), "tiny.yml")


def lively(model: Any) -> Any:
    """Give a model weights with which its predictions are varied (fresh ones predict one class nearly everywhere)."""
    rng = np.random.default_rng(1)
    for name, value in model.state_dict().items():
        if name.endswith("classifier.weight"):
            value.set_value(rng.standard_normal(value.shape).astype(np.float32))
        elif name.endswith("_mean"):
            value.set_value(0.1 * rng.standard_normal(value.shape).astype(np.float32))
    return model


def write_config(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


# --- processes --------------------------------------------------------------------------------------


def environment(**changes: str | None) -> dict[str, str]:
    """The environment of a fresh command: without what the tests' own Paddle has put into it."""
    ours = ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", "FLAGS_use_stride_kernel", "PADDLE_VHEAT_CPU")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    kept = {name: value for name, value in kept.items() if not re.match("PADDLE_TRAINER|FLAGS_selected", name)}
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    for name, value in changes.items():
        if value is None:
            kept.pop(name, None)
        else:
            kept[name] = value
    return kept


def run(
    command: list[Any], cwd: Path | None = None, timeout: float = 240, **changes: str | None
) -> subprocess.CompletedProcess[str]:
    """Run ``python <command>`` to its end; the time limit only keeps a hang from hanging the tests."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd or REPOSITORY,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def copy_tree(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
