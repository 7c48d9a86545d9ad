"""Files of PaddleSeg's datasets are read safely, whichever PaddleSeg it is, patched or not.

``NewerCompose`` stands for the class of newer PaddleSegs (2.9.1 and the development branch): it names an image that is
no image, reads labels as they are stored, and takes a label file apart that holds several maps below each other.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle

import cv2
import numpy as np
import pytest
from PIL import Image

from paddle_vheat.errors import DataError
from paddle_vheat.integrations import _paddleseg_patches as patches
from paddle_vheat.integrations import paddleseg as seg

HEIGHT, WIDTH = 12, 16


class NewerCompose:
    def __init__(self, transforms, to_rgb=True, img_channels=3):
        self.transforms, self.to_rgb, self.img_channels = transforms, to_rgb, img_channels
        self.read_flag = cv2.IMREAD_GRAYSCALE if img_channels == 1 else cv2.IMREAD_COLOR

    def __call__(self, data):
        if isinstance(data["img"], str):
            pixels = cv2.imread(data["img"], self.read_flag)
            if pixels is None:
                raise ValueError(f"no image: {data['img']}")
            data["img"] = pixels.astype("float32")
        height, width = data["img"].shape[:2]
        if isinstance(data.get("label"), str):
            data["label"] = np.asarray(Image.open(data["label"]))
            if data["label"].shape[0] != height:
                data["label"] = data["label"].reshape(-1, height, width)
        if self.to_rgb and self.img_channels == 3:
            data["img"] = data["img"][..., ::-1]
        for transform in self.transforms:
            data = transform(data)
        data["img"] = np.moveaxis(np.atleast_3d(data["img"]), 2, 0)
        return data


COMPOSE = next(patch for patch in patches.PATCHES if patch.name == "Compose")


@pytest.fixture
def bare(monkeypatch):
    """PaddleSeg's ``Compose`` as it is installed."""
    monkeypatch.setattr(*COMPOSE.find(), COMPOSE.original or seg.Compose.__call__)
    return seg.Compose


@pytest.fixture(params=["wrapped 2.8.0", "wrapped newer", "patched 2.8.0", "patched newer"])
def make(request, monkeypatch):
    """Makes what a user gets, by the arguments of ``Compose``."""
    how, which = request.param.split()
    compose = NewerCompose if which == "newer" else request.getfixturevalue("bare")
    if how == "wrapped":
        return lambda *args, **options: seg.ReadingTransforms(compose(*args, **options))
    owner, _ = COMPOSE.find()
    monkeypatch.setattr(owner, "__call__", owner.__call__)  # to be restored
    monkeypatch.setattr(NewerCompose, "__call__", NewerCompose.__call__)
    monkeypatch.setattr("paddleseg.transforms.transforms.Compose", compose)
    assert dataclasses.replace(COMPOSE, original=None, replacement=None).apply()
    return compose


@pytest.fixture
def files(tmp_path):
    """An image, and the label's place: written by each test."""
    image = str(tmp_path / "image.jpg")
    small = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    Image.fromarray(small).resize((WIDTH, HEIGHT)).save(image)
    return image, str(tmp_path / "label.png")


def save_label(path, dtype, shape=(HEIGHT, WIDTH)):
    label = (np.arange(np.prod(shape)) % 19).reshape(shape)
    Image.fromarray(label.astype(dtype)).save(path)
    return label


def cut(path):
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(content[:-40])


def test_the_stand_in_has_the_faults(files):
    image, path = files
    save_label(path, np.uint16)
    assert NewerCompose([])({"img": image, "label": path})["label"].dtype == np.uint16
    cut(image)
    assert NewerCompose([])({"img": image})["img"].shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_of_8_and_16_bits(make, files, dtype):
    image, path = files
    label = save_label(path, dtype)
    data = make([])({"img": image, "label": path})
    assert data["label"].dtype == np.uint8
    np.testing.assert_array_equal(data["label"], label)
    assert data["img"].dtype == np.float32
    np.testing.assert_array_equal(data["img"], cv2.imread(image)[..., ::-1].transpose(2, 0, 1))


def test_grey_images_and_arrays(make, files):
    image, path = files
    assert make([], img_channels=1)({"img": image})["img"].shape == (1, HEIGHT, WIDTH)
    label = save_label(path, np.uint8)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    np.testing.assert_array_equal(make([])({"img": pixels, "label": path})["label"], label)
    assert "label" not in make([])({"img": pixels})


def test_damaged_files_are_named(make, files):
    image, path = files
    save_label(path, np.uint8)
    cut(path)
    with pytest.raises(DataError, match=r"cannot read the label .*label\.png: .* truncated"):
        make([])({"img": image, "label": path})
    cut(image)
    with pytest.raises(DataError, match=r"cannot read the image .*image\.jpg: .* truncated"):
        make([])({"img": image, "label": path})
    with pytest.raises(DataError, match=r"gone\.png: there is no such file"):
        make([])({"img": image.replace("image.jpg", "gone.png")})


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (HEIGHT, HEIGHT)])
def test_images_are_not_turned(make, files, size):
    image, path = files
    label = save_label(path, np.uint8, size)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.uint8(label * 10)).save(image, exif=exif, quality=100)
    data = make([])({"img": image, "label": path})
    # Stored as grey at the best quality: off by a level or two.
    assert np.abs(data["img"][0] - label * 10).max() < 4


def test_a_label_of_another_size_is_an_error(make, files):
    image, path = files
    save_label(path, np.uint8, (HEIGHT + 1, WIDTH))
    with pytest.raises(DataError, match=r"label\.png: the label is \(13, 16\), its image \(12, 16\) \(H, W\)"):
        make([])({"img": image, "label": path})


def test_several_maps_in_a_label_file_are_left_to_newer_paddlesegs(files):
    image, path = files
    label = save_label(path, np.uint8, (3 * HEIGHT, WIDTH))
    data = seg.ReadingTransforms(NewerCompose([]))({"img": image, "label": path})
    np.testing.assert_array_equal(data["label"], label.reshape(3, HEIGHT, WIDTH))


# --- A whole data set -------------------------------------------------------------------------------


@pytest.fixture
def dataset(bare, files, tmp_path):
    save_label(files[1], np.uint16)
    (tmp_path / "list.txt").write_text("image.jpg label.png\n")
    return seg.registry()["Dataset"]("train", str(tmp_path), [], 19, train_path=str(tmp_path / "list.txt"))


def test_wrapping_a_dataset(dataset):
    original = dataset.transforms
    assert seg.wrap_dataset(dataset) is dataset
    assert seg.wrap_dataset(dataset).transforms.compose is original  # once only
    item = dataset[0]
    assert item["label"].dtype == np.uint8
    assert item["img"].shape == (3, HEIGHT, WIDTH)
    assert (dataset.transforms.img_channels, dataset.transforms.transforms) == (3, [])
    with pytest.raises(AttributeError, match="no_such"):
        _ = dataset.transforms.no_such


def test_copies_of_a_wrapped_dataset(dataset):
    seg.wrap_dataset(dataset)
    for other in (copy.copy(dataset), copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
        assert isinstance(other.transforms, seg.ReadingTransforms)
        np.testing.assert_array_equal(other[0]["label"], dataset[0]["label"])
