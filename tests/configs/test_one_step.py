"""Every segmentation configuration of the project is built at full size and trains for one step."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_vheat.config import load_config
from paddle_vheat.engine.optim import build_optimizer, build_scheduler
from paddle_vheat.integrations import paddleseg as seg
from paddle_vheat.losses import PixelContrastLoss
from paddle_vheat.models import VHeat
from paddle_vheat.tasks import find_task
from tests.conftest import paddle

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ALL = sorted(CONFIGS.glob("*.yml"))
FILES = [path for path in ALL if find_task(load_config(path), path.name)[0] == "segmentation"]
EXPECTED = {f"vheat_{size}_{data}.yml" for size in "tsb" for data in ("cityscapes", "ade20k")}
CONTRAST = {  # and the coefficient of the loss
    "HRNet_W48_cityscapes_1024x512_60k.yml": 0.1,
    "hrnet_w48_cityscapes_contrast_mem.yml": 1.0,
    "demo_contrast.yml": 0.1,
    "vheat_t_cityscapes_contrast.yml": 0.1,
    "vheat_b_cityscapes_contrast.yml": 0.1,
}
# Each has the quick ones' model, recipe or data in another size; all of their keys are compared in test_published.py.
SLOW = {"vheat_s_ade20k.yml", "vheat_b_ade20k.yml", "vheat_s_cityscapes.yml", "vheat_b_cityscapes.yml",
        "vheat_t_cityscapes_contrast.yml"}  # fmt: skip
STEPPED = [pytest.param(path, marks=pytest.mark.slow if path.name in SLOW else ()) for path in FILES]


def make_task(config: dict[str, Any], source: str) -> Any:
    problems: list[str] = []
    task = find_task(config, source)[1].make_task(config, source, None, problems)
    assert problems == []
    return task


def test_all_of_them_are_there():
    assert {path.name for path in FILES} >= EXPECTED | set(CONTRAST) | SLOW | {"vheat_t_camvid.yml", "demo.yml"}


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


def crop_of(config: dict[str, Any]) -> list[int]:
    (crop,) = (t["crop_size"] for t in config["train_dataset"]["transforms"] if "crop_size" in t)
    return crop


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_transforms_give_what_the_network_takes(path):
    config = load_config(path)
    width, height = crop_of(config)
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (600, 900, 3)).astype(np.float32), rng.integers(0, 11, (600, 900), np.uint8)
    train, val = (
        seg.Compose(seg.assemble(config[f"{split}_dataset"]["transforms"], seg.registry(), split))
        for split in ("train", "val")
    )
    data = train({"img": image.copy(), "label": label, "gt_fields": ["label"], "trans_info": []})
    assert (data["img"].shape, data["label"].shape) == ((3, height, width), (height, width))
    # A shift of brightness or a missing division by 255 would leave these bounds.
    assert -3 < data["img"].min() < 0 < data["img"].max() < 3
    scored = val({"img": image.copy(), "gt_fields": [], "trans_info": []})
    assert scored["img"].shape == ((3, 512, 768) if "ade20k" in path.name else (3, 600, 900))


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
    types, coefficients = task.criteria
    auxiliary = getattr(model, "auxiliary_head", None) is not None
    assert len(types) == len(coefficients) == 1 + bool(contrast) + auxiliary
    assert all(loss.ignore_index == 255 for loss in types)
    assert [isinstance(loss, PixelContrastLoss) for loss in types] == [False, True, False][: len(types)] or not contrast
    if contrast:
        assert coefficients[:2] == [1.0, contrast]
        bank = types[1].bank
        width = model.proj_head.proj[1].weight.shape[0]
        assert bank is None or (bank.num_classes, bank.channels) == (model.num_classes, width)


def check_schedule(config: dict[str, Any], found: list[float]) -> None:
    """The first two learning rates of the whole run: the schedule is of the file's number of iterations."""
    schedule = config["lr_scheduler"]
    first = schedule.get("warmup_start_lr", schedule["learning_rate"])
    if "warmup_iters" in schedule:
        second = first + (schedule["learning_rate"] - first) / schedule["warmup_iters"]
    else:
        second = first * (1 - 1 / config["iters"]) ** schedule["power"]
    assert found == pytest.approx([first, second], rel=1e-9)


@pytest.mark.parametrize("path", STEPPED, ids=lambda path: path.stem)
def test_one_step(path):
    """Model, optimizer, schedule and losses as published; the image and the windows are small."""
    config = load_config(path)
    if "test_config" in config:
        config["test_config"].update(crop_size=[64, 64], stride=[42, 42])
    task = make_task(config, path.name)
    model = task.build_model()
    classes = {"Cityscapes": 19, "ADE20K": 150, "Dataset": 11}[config["train_dataset"]["type"]]
    assert model.num_classes == task.num_classes == len(task.class_names) == classes
    if config["model"]["type"].startswith("UPerNet"):
        check_upernet(model, config["model"], crop_of(config))
    else:
        assert crop_of(config) == [1024, 512]
        assert model.backbone.feat_channels == [720]
    check_losses(task, model, CONTRAST.get(path.name, 0))

    scheduler = build_scheduler(task.recipe, "learning rate")
    optimizer = build_optimizer(task.recipe, model, scheduler, task.parameter_factors(model), "optimizer")
    trained = {name: parameter for name, parameter in model.named_parameters() if not parameter.stop_gradient}
    before = {name: parameter.numpy().copy() for name, parameter in trained.items()}
    rng, first = np.random.default_rng(0), scheduler()
    image = paddle.to_tensor(rng.standard_normal((1, 3, 64, 80)).astype(np.float32))
    batch = {"img": image, "label": paddle.to_tensor(rng.integers(0, classes, (1, 64, 80)))}
    model.train()
    sum(task.losses(model, batch).values()).backward()
    optimizer.step()
    scheduler.step()
    check_schedule(config, [first, scheduler()])
    after = {name: parameter.numpy() for name, parameter in trained.items()}
    assert all(np.isfinite(value).all() for value in after.values())
    # With a first lr of 6e-11 few float32 weights change at all; biases that start at 0 do.
    assert sum(not np.array_equal(after[name], before[name]) for name in after) > 5

    # And it predicts, with the windows of the file.
    model.eval()
    with paddle.no_grad():
        assert task.infer(model, {"img": image, "meta": [{"undo": []}]}).shape == (64, 80)
