"""tools/visualize_heat.py and the pictures of every kind of network."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from paddle_vheat._paddle import paddle
from paddle_vheat.config import load_config
from paddle_vheat.models import UPerNet, VHeat, build_vheat_ir
from paddle_vheat.tasks.classification.task import ClassificationTask
from paddle_vheat.weights.loading import save_weights
from tests.engine.tiny import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tools"))

import visualize_heat
from heat_pictures import CONCEPTS, Subject, spread

DIGITS, SMALL = "configs/demo_digits.yml", ["Arch.embed_dim=8", "Arch.depths=[1,1,2,1]"]
PNGS = {
    "k": {"k.png", "k_by_frequency.png", "k_histogram.png"},
    "reach": {"reach.png"},
    "response": {"response.png", "response_by_frequency.png"},
    "patch": {"patch.png", "patch_places.png"},
    "image": {"image.png", "gate.png"},
    "stages": {"stages.png"},
    "erf": {"erf.png"},
    "cam": {"cam.png"},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("heat") / "model.pdparams"
    paddle.seed(1)
    save_weights(ClassificationTask(load_config(DIGITS, SMALL), DIGITS).build_model(), path)
    return path


def run(checkpoint, folder, *more):
    given = ["--config", DIGITS, "--model_path", str(checkpoint), "--opts", *SMALL, "--save_dir", str(folder)]
    return visualize_heat.main([*given, *more])


def test_every_concept_becomes_a_picture_and_its_numbers_are_kept(checkpoint, tmp_path):
    photographs = tmp_path / "images"
    photographs.mkdir()
    for i in range(3):
        values = np.random.default_rng(i).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(values).save(photographs / f"{i}.png")
    folder = tmp_path / "out"
    assert run(checkpoint, folder, "--image", str(photographs), "--size", "64", "--before", "--class", "3") == 0
    assert {path.name for path in folder.glob("*.png")} == set().union(*PNGS.values())
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 250
            assert np.asarray(picture.convert("L")).std() > 5  # not blank
    numbers = json.loads((folder / "heat.json").read_text())
    assert (numbers["size"], set(PNGS) <= set(numbers)) == ([64, 64], True)
    for concept in ("k", "reach", "response", "patch"):
        assert [len(numbers[concept][key]) for key in ("before", "trained")] == [5, 5]
    assert 0.4 < numbers["k"]["trained"][0]["share_of_zeros"] < 0.6
    assert numbers["response"]["trained"][0]["mean_over_channels"][0][0] == 1
    assert all(0.9 < one["energy_kept"] <= 1 for one in numbers["response"]["trained"])
    for place in numbers["patch"]["trained"][0].values():
        if isinstance(place, dict):
            assert [row["sum"] for row in place["times"]] == pytest.approx([1] * 5, abs=1e-5)
    assert numbers["erf"]["trained"]["images"] == 3
    assert numbers["erf"]["trained"]["raw_share_by_half_side"][-1] <= 1
    assert numbers["cam"]["trained"]["class"] == 3
    assert np.shape(numbers["stages"]["trained"][0]["norm"]) == (16, 16)


def test_without_an_image_there_are_the_weights_pictures(checkpoint, tmp_path, monkeypatch):
    for name in set(CONCEPTS) - {"reach"}:
        monkeypatch.setitem(CONCEPTS, name, lambda subject: {})
    assert run(checkpoint, tmp_path) == 0
    assert {"k", "reach", "response", "patch"} == set(PNGS) & set(json.loads((tmp_path / "heat.json").read_text()))
    assert [path.name for path in tmp_path.glob("*.png")] == ["reach.png"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--what", "erf", "k"], "--what erf needs --image"),
        (["--image", "no/such.png"], "no/such.png"),
        (["--image", "configs"], "configs: no images in it"),
        (["--what", "patch", "--patch", "8", "0"], "--patch 8 0 is outside the first stage's map of 8 x 8 patches"),
        (["--size", "16"], "at least 32 pixels a side, got 16 x 16"),
        (["--size", "64", "64", "64"], "--size takes N, or H W; got [64, 64, 64]"),
        (["--model_path", "nowhere.pdparams"], "nowhere.pdparams"),
    ],
)
def test_mistakes_are_one_line(checkpoint, tmp_path, capsys, more, message):
    assert run(checkpoint, tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("model", "channels", "concepts"),
    [
        (lambda: UPerNet(3, VHeat(embed_dim=8, depths=(1, 1, 1, 1), img_size=64), 8, 0), 3, {"image", "cam"}),
        (lambda: build_vheat_ir(width=8, depths=[1] * 6, in_channels=1, freq_size=16), 1, {"k", "stages"}),
    ],
    ids=["segmentation", "restoration"],
)
def test_other_networks_have_pictures_too(tmp_path, model, channels, concepts):
    image = np.random.default_rng(0).random((channels, 64, 64), np.float32)
    picture = np.repeat(image.transpose(1, 2, 0), 3 // channels, axis=2)
    subject = Subject("network", model(), image, tmp_path, picture=picture, images=[image])
    for concept in concepts:
        assert CONCEPTS[concept](subject)
    assert {path.name for path in tmp_path.iterdir()} == set().union(*(PNGS[concept] for concept in concepts))
    if "cam" not in concepts:
        with pytest.raises(ValueError, match="class scores"):
            CONCEPTS["cam"](subject)


def test_of_many_the_first_and_the_last_are_shown():
    assert [spread(list(range(18)), 3), spread([1, 2], 3), spread([1, 2, 3], 1)] == [[0, 8, 17], [1, 2], [3]]
