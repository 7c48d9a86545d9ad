"""The handwritten digits: the split never changes, and a sample is what scikit-learn holds."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sklearn")
from sklearn.datasets import load_digits

from paddle_vheat.config import ConfigError
from paddle_vheat.tasks.classification import digits
from paddle_vheat.tasks.classification.digits import Digits, split_indices

OPS = [{"NormalizeImage": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "order": ""}}]


def test_the_split_is_stratified_complete_and_fixed():
    train, val = split_indices("train"), split_indices("val")
    assert (len(train), len(val)) == (1437, 360)
    assert sorted([*train, *val]) == list(range(1797))
    labels = load_digits().target
    assert np.bincount(labels[val]).tolist() == [36] * 10
    # Results are comparable only while these stay the same.
    assert val[:8].tolist() == [1, 8, 18, 20, 22, 23, 30, 47]
    assert int(val.sum()) == 347224


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("mode", ["train", "val"])
def test_samples_are_the_enlarged_digits(mode: str, size: int):
    dataset = Digits(mode, size)
    bunch = load_digits()
    assert dataset.class_names == list("0123456789")
    for index in (0, 17, len(dataset) - 1):
        number = split_indices(mode)[index]
        item = dataset[index]
        assert (item["img"].dtype, item["img"].shape) == (np.float32, (3, size, size))
        assert (item["label"].dtype, item["label"].shape) == (np.int64, ())
        assert int(item["label"]) == bunch.target[number]
        assert item["meta"] == {"index": index}
        levels = np.round(bunch.images[number] * 255 / 16).astype(np.uint8)
        wanted = np.asarray(Image.fromarray(levels).resize((size, size), Image.BICUBIC))
        np.testing.assert_array_equal(item["img"], np.broadcast_to(wanted, (3, size, size)))
        picture = dataset.image(index)
        assert (picture.mode, picture.size) == ("RGB", (size, size))


def test_all_samples_load_and_use_the_whole_range():
    dataset = Digits("val", 32, OPS)
    images = np.stack([dataset[i]["img"] for i in range(len(dataset))])
    assert images.min() == -1
    assert images.max() == 1
    assert len({image.tobytes() for image in images}) == len(dataset)


def test_the_same_operations_work_as_on_files():
    plain, decoded = Digits("train", 32, OPS), Digits("train", 32, [{"DecodeImage": {"to_rgb": True}}, *OPS])
    np.testing.assert_array_equal(plain[5]["img"], decoded[5]["img"])
    cropped = Digits("train", 64, [{"RandCropImage": {"size": 48, "scale": [0.7, 1]}}, *OPS])
    assert cropped[0]["img"].shape == (3, 48, 48)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "test"}, "mode: expected 'train' or 'val', got 'test'"),
        ({"size": 4}, "size: expected an integer of pixels, 8 or more, got 4"),
        ({"size": 32.0}, "size: expected an integer"),
        ({"size": True}, "size: expected an integer"),
        ({"num_classes": 9}, "the digits have 10 classes, and the model 9"),
        ({"transform_ops": [{"Normalize": None}], "source": "x"}, "'x.0': .* did you mean 'NormalizeImage'"),
    ],
)
def test_unusable_arguments_are_named(arguments: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        Digits(**arguments)


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch):
    digits._load.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install scikit-learn"):
        Digits("train")
