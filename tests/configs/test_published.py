"""Every key of a configuration that reproduces somebody's run has the value of its source.

The tables are in ``published.py``. A configuration begins with its source or with "Ours".
"""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np
import pytest

from paddle_vheat.config import load_config
from paddle_vheat.engine.optim import build_optimizer
from paddle_vheat.integrations import paddleseg as seg
from paddle_vheat.models import VARIANTS
from paddle_vheat.weights.key_map import our_name
from paddle_vheat.weights.torch_file import read_torch_file
from tests.configs import published, published_detection, published_restoration
from tests.configs.published import Deviates
from tests.configs.test_one_step import CONFIGS, make_task
from tests.conftest import paddle

RUNS = {
    "HRNet_W48_cityscapes_1024x512_60k": published.PADDLESEG_CONTRAST,
    "hrnet_w48_cityscapes_contrast_mem": published.PAPER_MEMORY,
    "vheat_imagenet": published.imagenet("tiny"),
    **{f"vheat_{name[0]}_imagenet": published.imagenet(name) for name in ("tiny", "small", "base")},
    **{
        f"vheat_{name[0]}_ade20k": published.ade20k(name, rate)
        for name, rate in (("tiny", 0.3), ("small", 0.4), ("base", 0.5))
    },
    **published_restoration.RUNS,
    **{
        f"mask_rcnn_vheat_{variant}_{schedule}_coco": published_detection.detection(schedule, variant)
        for schedule, variant in published_detection.ROWS
    },
}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of a configuration by its path, such as "loss.types.0.type"; a list of plain values is a leaf."""
    if isinstance(value, Deviates):
        return flat(value.ours, path)
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {path: value}
    return {
        leaf: v for key, item in value.items() for leaf, v in flat(item, f"{path}.{key}" if path else f"{key}").items()
    }


def equal(ours: Any, theirs: Any) -> bool:
    """Our YAML writes out the quotients and products that the tables compute."""
    numbers = isinstance(theirs, float) or (isinstance(theirs, list) and any(isinstance(n, float) for n in theirs))
    return ours == (pytest.approx(theirs, rel=1e-12) if numbers else theirs)


@pytest.mark.parametrize("name", RUNS)
def test_every_key(name):
    ours, theirs = flat(load_config(CONFIGS / f"{name}.yml")), flat(RUNS[name])
    pairs = {path: (ours.get(path, "absent"), theirs.get(path, "absent")) for path in {**ours, **theirs}}
    assert {path: pair for path, pair in pairs.items() if not equal(*pair)} == {}


def test_the_runs_with_a_source_are_these():
    told = {path.stem for path in CONFIGS.glob("*.yml") if path.read_text(encoding="utf-8").startswith("# Source: ")}
    assert told == set(RUNS)


# The demonstrations' data and recipe are made up as a whole, which their first lines say in their own words.
@pytest.mark.parametrize(
    "path",
    [path for path in sorted(CONFIGS.rglob("*.yml")) if not path.name.startswith("demo")],
    ids=lambda path: path.stem,
)
def test_the_first_line_names_the_source(path):
    assert path.read_text(encoding="utf-8").startswith(("# Source: ", "# Ours: "))


@pytest.mark.parametrize(
    ("name", "channels", "mean", "std"),
    [
        ("HRNet_W48_cityscapes_1024x512_60k", [2, 1, 0], [0.5] * 3, [0.5] * 3),
        ("hrnet_w48_cityscapes_contrast_mem", [0, 1, 2], published.IMAGENET_MEAN, published.IMAGENET_STD),
        ("vheat_t_cityscapes", [2, 1, 0], published.IMAGENET_MEAN, published.IMAGENET_STD),
    ],
)
def test_what_the_model_is_given(name, channels, mean, std, tmp_path):
    """From a file's pixels to the network's input in evaluation; ``channels`` of what OpenCV reads (BGR)."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), pixels)
    block = load_config(CONFIGS / f"{name}.yml")["val_dataset"]
    transforms = seg.reading_transforms(seg.assemble(block["transforms"], seg.registry(), name), 3)
    given = transforms({"img": str(tmp_path / "image.png"), "gt_fields": [], "trans_info": []})["img"]
    expected = (pixels[..., channels].astype(np.float64) / 255 - mean) / std
    # Two float32 roundings of numbers up to 2.7.
    np.testing.assert_allclose(given, expected.transpose(2, 0, 1), rtol=0, atol=1e-6)


def test_normalize_without_arguments_is_one_half():
    """PaddleSeg's YAML says ``type: Normalize`` alone; ours writes its numbers out."""
    from paddleseg.transforms import Normalize

    assert (list(Normalize().mean), list(Normalize().std)) == ([0.5], [0.5])


@pytest.mark.parametrize(("variant", "rate"), [("tiny", 0.1), ("small", 0.3), ("base", 0.5)])
def test_the_drop_path_follows_the_architecture(variant, rate, monkeypatch):
    """vheat_imagenet.yml with the variant by --opts, as inside PaddleClas, equals the variant's own file."""
    small = dataclasses.replace(VARIANTS[f"vheat_{variant}"], embed_dim=8, depths=(1, 1, 1, 1))
    monkeypatch.setitem(VARIANTS, f"vheat_{variant}", small)
    by_option = load_config(CONFIGS / "vheat_imagenet.yml", [f"Arch.name=vHeat_{variant}"])
    assert by_option == load_config(CONFIGS / f"vheat_{variant[0]}_imagenet.yml")
    by_option["Arch"].update(class_num=2, img_size=32)
    blocks = make_task(by_option, variant).build_model().backbone.stages[-1].blocks
    assert blocks[-1].drop_path.rate == pytest.approx(rate)


def test_weight_decay(golden_checkpoint):
    """By published names: mmengine's custom key "norm" exempts the names that hold it, and nothing else."""
    config = load_config(CONFIGS / "vheat_s_ade20k.yml", ["model.channels=8", "model.aux_channels=8"])
    config["model"]["backbone"] = {
        "type": "vHeat",
        "embed_dim": 8,
        "img_size": 64,
        "post_norm": True,
        "layer_scale": 1e-5,
    }
    config["model"]["backbone"]["depths"] = [1, 1, 2, 1]
    config["optimizer"]["weight_decay"] = 0.5
    task = make_task(config, "decay")
    model = task.build_model()
    trained = {name: p for name, p in model.named_parameters() if not p.stop_gradient}
    before = {name: p.numpy().copy() for name, p in trained.items()}
    (sum(p.sum() for p in model.parameters()) * 0.0).backward()
    build_optimizer(task.recipe, model, 1e-2, task.parameter_factors(model), "optimizer").step()
    after = {name: p.numpy() for name, p in trained.items()}

    state = read_torch_file(golden_checkpoint("upernet_micro"))["state_dict"]
    theirs = {our_name(name): name for name in state}
    assert set(after) <= set(theirs)
    for name, value in after.items():
        factor = 1 if "norm" in theirs[name] else 1 - 1e-2 * 0.5
        # one float32 product
        np.testing.assert_allclose(value, before[name] * factor, rtol=1e-6, atol=1e-12, err_msg=name)
    kinds = ("frequency_embedding", "gamma1", "downsample.norm.weight", "bn.weight")
    assert all(any(name.endswith(kind) and before[name].any() for name in after) for kind in kinds)


def test_inference_block_is_read():
    """PaddleClas' infer.py needs it; our own reader accepts it, misspelt or not."""
    config = load_config(CONFIGS / "vheat_imagenet.yml")
    assert set(config["Infer"]) == {"infer_imgs", "batch_size", "transforms", "PostProcess"}
    make_task(config, "vheat_imagenet.yml")
    assert config["Infer"]["transforms"][:-1] == config["DataLoader"]["Eval"]["dataset"]["transform_ops"]


def test_cross_entropy_weights_are_a_weighted_mean():
    """The paper's run takes PyTorch's weighted mean, sum(w l) / sum(w) over labelled pixels; PaddleSeg's is equal."""
    task = make_task(load_config(CONFIGS / "hrnet_w48_cityscapes_contrast_mem.yml"), "memory")
    rng = np.random.default_rng(1)
    logits, label = rng.standard_normal((2, 19, 5, 7)), rng.integers(0, 19, (2, 5, 7))
    label[0, :2] = 255
    weight = np.array(published.PAPER_MEMORY["loss"]["types"][0]["weight"])
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    valid = label != 255
    picked = -np.take_along_axis(logs, np.where(valid, label, 0)[:, None], axis=1)[:, 0]
    weights = np.where(valid, weight[np.where(valid, label, 0)], 0.0)
    value = task.criteria[0][0](paddle.to_tensor(logits.astype("float32")), paddle.to_tensor(label))
    assert float(value) == pytest.approx((weights * picked).sum() / weights.sum(), rel=1e-5)  # float32 log-sum-exp
