"""Every segmentation configuration of the project is built at full size and trains for one step."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paddle_vheat.integrations.seg_transforms  # noqa: F401  registers the transforms that are named
from paddle_vheat.config import load_config
from paddle_vheat.engine.tasks import make_task
from paddle_vheat.engine.trainer import Trainer, TrainOptions
from paddle_vheat.losses import PixelContrastLoss
from paddle_vheat.models import VHeat
from tests.conftest import paddle
from tests.engine import tiny

ALL = sorted(path for path in (tiny.REPOSITORY / "configs").glob("*.yml"))
FILES = [path for path in ALL if "model" in load_config(path)]
EXPECTED = {f"vheat_{size}_{data}.yml" for size in "tsb" for data in ("cityscapes", "ade20k")}
CONTRAST = {  # and the coefficient of the loss
    "HRNet_W48_cityscapes_1024x512_60k.yml": 0.1,
    "hrnet_w48_cityscapes_contrast_mem.yml": 1.0,
    "demo_contrast.yml": 0.1,
    "vheat_t_cityscapes_contrast.yml": 0.1,
    "vheat_b_cityscapes_contrast.yml": 0.1,
}


def test_all_of_them_are_there():
    assert {path.name for path in FILES} >= EXPECTED | set(CONTRAST) | {"vheat_t_camvid.yml", "demo.yml"}


@pytest.fixture(autouse=True)
def _free_memory():
    """Models of gigabytes are in cycles of references, and what is freed stays with the process unless it is asked."""
    yield
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def values(config: Any, key: str) -> list[Any]:
    """All values under a key, wherever it is nested."""
    if isinstance(config, list):
        return [found for item in config for found in values(item, key)]
    if not isinstance(config, dict):
        return []
    own = [config[key]] if key in config else []
    return own + [found for item in config.values() for found in values(item, key)]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_weights_are_passed_by_the_user(path):
    for key in ("pretrained", "pretrained_model", "checkpoints"):
        assert set(values(load_config(path), key)) <= {None}


def small_data(config: dict[str, Any], root: Path) -> tuple[int, int]:
    """Point a configuration at tiny data of its layout, with a crop of 64; gives the size of the images."""
    kind = config["train_dataset"]["type"]
    write = {"Cityscapes": tiny.write_cityscapes, "ADE20K": tiny.write_ade20k, "Dataset": tiny.write_lists}[kind]
    write(root, 2, 1)
    for key, name in (("train_dataset", "train_path"), ("val_dataset", "val_path")):
        config[key]["dataset_root"] = str(root)
        if kind == "Dataset":
            config[key][name] = str(root / f"{name[: -len('_path')]}.txt")
        for transform in config[key]["transforms"]:
            if "crop_size" in transform:
                transform["crop_size"] = [64, 64]
            for box in {"fit", "target_size"} & set(transform):
                transform[box] = [256, 64]
    if config.get("test_config"):
        config["test_config"].update(crop_size=[64, 64], stride=[42, 42])
    return 64, 64


def check_upernet(model: Any, published: dict[str, Any], crop: list[int]) -> None:
    backbone = published["backbone"]
    width = {"vHeat_tiny": 96, "vHeat_small": 96, "vHeat_base": 128}.get(backbone["type"], backbone.get("embed_dim"))
    assert isinstance(model.backbone, VHeat)
    assert model.backbone.feat_channels == [width, 2 * width, 4 * width, 8 * width]
    assert model.decode_head.classifier.weight.shape[1] == published["channels"]
    wanted = backbone["img_size"]
    assert model.backbone.img_size == ((wanted, wanted) if isinstance(wanted, int) else tuple(wanted))
    # The frequency embeddings are made for the crop that the file trains with.
    assert model.backbone.img_size == (crop[1], crop[0])


def check_losses(task: Any, model: Any, contrast: float) -> None:
    types, coefficients = task.losses["types"], task.losses["coef"]
    auxiliary = getattr(model, "auxiliary_head", None) is not None
    assert len(types) == len(coefficients) == 1 + bool(contrast) + auxiliary
    assert all(loss.ignore_index == 255 for loss in types)
    assert [isinstance(loss, PixelContrastLoss) for loss in types] == [False, True, False][: len(types)] or not contrast
    if contrast:
        assert coefficients[:2] == [1.0, contrast]
        bank = types[1].bank
        width = model.proj_head.proj[1].weight.shape[0]
        assert bank is None or (bank.num_classes, bank.channels) == (model.num_classes, width)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_one_step(path, tmp_path):
    """Model, optimizer, schedule and losses as published; the images, the crop and the batch are small."""
    config = load_config(path)
    iters, published = config["iters"], load_config(path)
    size = small_data(config, tmp_path / "data")
    config["batch_size"] = 1
    task = make_task(config, str(path))
    trainer = Trainer(task, TrainOptions(iters=1, batch_size=1, save_dir=str(tmp_path / "out"), log_iters=1))
    trainer._save = lambda: None  # gigabytes of optimizer state, and other tests are of checkpoints

    model = task.model
    classes = {"Cityscapes": 19, "ADE20K": 150, "Dataset": 11}[config["train_dataset"]["type"]]
    assert model.num_classes == task.num_classes == len(task.class_names) == classes
    (crop,) = (t["crop_size"] for t in published["train_dataset"]["transforms"] if "crop_size" in t)
    if published["model"]["type"].startswith("UPerNet"):
        check_upernet(model, published["model"], crop)
    else:
        assert crop == [1024, 512]
        assert model.backbone.feat_channels == [720]
    check_losses(task, model, CONTRAST.get(path.name, 0))

    # The first rates of the whole run: the schedule was built for the file's number of iterations.
    schedule = published["lr_scheduler"]
    first = schedule.get("warmup_start_lr", schedule["learning_rate"])
    assert task.lr_scheduler() == pytest.approx(first, rel=1e-9)
    if "warmup_iters" in schedule:
        second = first + (schedule["learning_rate"] - first) / schedule["warmup_iters"]
        assert task.lr_scheduler.learning_rate.decay_steps == iters - schedule["warmup_iters"]
    else:
        second = first * (1 - 1 / iters) ** schedule["power"]
        assert task.lr_scheduler.decay_steps == iters

    before = {name: parameter.numpy().copy() for name, parameter in model.named_parameters()}
    images = []
    forward = task.forward_loss
    task.forward_loss = lambda network, batch: (images.append(tuple(batch["img"].shape)), forward(network, batch))[1]
    result = trainer.run()
    assert result["iteration"] == 1
    assert images == [(1, 3, *size)]
    assert task.lr_scheduler() == pytest.approx(second, rel=1e-9)
    moved = 0
    for name, parameter in model.named_parameters():
        value = parameter.numpy()
        assert np.isfinite(value).all(), name
        moved += not np.array_equal(value, before[name])
    # With a first rate of 6e-11 few float32 weights change at all; biases that start at 0 do.
    assert moved > 5

    # And it is scored: at the size of the labels, with the windows of the file.
    model.eval()
    with paddle.no_grad():
        assert task.evaluate(model, progress=False)["images"] == 1
