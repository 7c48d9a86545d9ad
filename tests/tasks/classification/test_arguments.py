"""Operations from a configuration: the names, and what is refused, and how."""

from __future__ import annotations

import re

import pytest

from paddle_vheat.config import ConfigError
from paddle_vheat.data._op_arguments import fraction
from paddle_vheat.data.image_ops import OPS, build_ops, pipeline


def test_numbers_and_fractions_are_read_and_nothing_is_evaluated():
    for text, value in (("1.0/255.0", 1 / 255), ("1/255", 1 / 255), (" 1.0 / 3.0 ", 1 / 3), ("2e-2", 0.02), (2, 2.0)):
        assert fraction(text, "scale") == value
    for text in ("__import__('os').getcwd()", "1/0", "1/2/3", "1+1", "", "1.0/", "nan", None, True, [1], float("nan")):
        with pytest.raises(ValueError, match=r"^scale: expected a "):
            fraction(text, "scale")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"RandCropImagE": {"size": 8}}, "no operation 'RandCropImagE'; did you mean 'RandCropImage'?; known are Dec"),
        ({"ColorJitter": None}, "no operation 'ColorJitter'.*known are DecodeImage, RandCropImage, .*ToCHWImage"),
        ({"RandCropImage": {"sise": 8, "size": 8}}, "RandCropImage: no argument 'sise'; did you mean 'size'?; known"),
        ({"RandomErasing": {"use_log_aspect_ratio": True}}, "did you mean 'use_log_aspect'"),
        ({"ToCHWImage": {"x": 1}}, "no argument 'x'; known are none"),
        ({"CropImage": None}, "CropImage: the argument 'size' is missing"),
        ({"CropImage": 224}, "CropImage: expected arguments by name, got 224"),
        ({"CropImage": {"size": "224"}}, "CropImage: size: expected a positive whole number or .*'224'"),
        ({"CropImage": {"size": 0}}, "size: expected a positive"),
        ("ToCHWImage", "expected one 'name: arguments', got 'ToCHWImage'"),
        ({"DecodeImage": None, "CropImage": None}, "expected one 'name: arguments'"),
        ({"DecodeImage": {"channel_first": True}}, "channel_first: must be False; ToCHWImage"),
        ({"DecodeImage": {"to_rgb": "yes"}}, "to_rgb: expected True or False, got 'yes'"),
        ({"RandCropImage": {"size": 8, "backend": "cv2"}}, "backend: only 'pil' is supported.*'cv2'"),
        ({"RandCropImage": {"size": 8, "interpolation": "area"}}, "interpolation: expected one of nearest, .*'area'"),
        ({"RandCropImage": {"size": 8, "scale": [0, 1]}}, r"scale: expected \[low, high\] with 0 < low <= high <= 1"),
        ({"RandCropImage": {"size": 8, "ratio": [2, 1]}}, "ratio: expected"),
        ({"RandFlipImage": {"flip_code": 2}}, "flip_code: expected 1 "),
        ({"RandFlipImage": {"prob": 1.5}}, "prob: expected a probability from 0 to 1, got 1.5"),
        ({"TimmAutoAugment": {"config_str": "rand-m9-w0-inc1"}}, "config_str: .*'w0' is not supported"),
        ({"TimmAutoAugment": {"interpolation": "lanczos"}}, "interpolation: expected one of nearest, bilinear, bicu"),
        ({"TimmAutoAugment": {"mean": 0.5}}, "mean: expected a list of 3 numbers, got 0.5"),
        ({"ResizeImage": None}, "expected either size or resize_short"),
        ({"ResizeImage": {"size": 8, "resize_short": 8}}, "expected either"),
        ({"NormalizeImage": {"scale": "1.0/x"}}, "scale: expected a number or a fraction such as '1.0/255.0', got"),
        ({"NormalizeImage": {"std": [0, 1, 1]}}, "std: expected positive numbers"),
        ({"NormalizeImage": {"order": "nhwc"}}, "order: expected '' or 'hwc'"),
        ({"RandomErasing": {"EPSILON": -0.1}}, "EPSILON: expected a probability"),
        ({"RandomErasing": {"sl": 0.5}}, r"\[sl, sh\]: expected"),
        ({"RandomErasing": {"r1": 2}}, "r1: expected a number above 0 and up to 1"),
        ({"RandomErasing": {"mode": "noise"}}, "mode: expected const, rand or pixel"),
    ],
)
def test_unusable_configurations_name_the_fault(entry: object, message: str):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")) as caught:
        build_ops([{"DecodeImage": None}, entry], "x.yml: DataLoader.Train.dataset.transform_ops")
    assert str(caught.value).startswith("x.yml: DataLoader.Train.dataset.transform_ops:\n  1")


def test_all_faults_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        build_ops([{"Decode": None}, {"CropImage": {"size": -1}}, {"RandFlipImage": {"flop": 1, "code": 2}}])
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == [
        "0", "1.CropImage", "2.RandFlipImage", "2.RandFlipImage",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"transform_ops: expected a list of operations, got \{'a': 1\}"):
        build_ops({"a": 1})


@pytest.mark.parametrize(
    ("names", "takes", "message"),
    [
        (["CropImage"], "file", "0.CropImage works on an image, but here it gets the bytes of a file (put DecodeIma"),
        (
            ["DecodeImage", "NormalizeImage"],
            "file",
            "1.NormalizeImage works on channels first (3, H, W), but here it gets an ima",
        ),
        (["RandomErasing"], "image", "0.RandomErasing works on a normalised image"),
        (["ToCHWImage", "CropImage"], "image", "1.CropImage works on an image, but here it gets channels first"),
        ([], "file", "the list is empty"),
    ],
)
def test_operations_in_an_order_that_cannot_work(names: list[str], takes: str, message: str):
    arguments = {"CropImage": {"size": 8}}
    ops = build_ops([{name: arguments.get(name)} for name in names])
    with pytest.raises(ConfigError, match="x.yml: " + re.escape(message)):
        pipeline(ops, takes=takes, source="x.yml")


def test_the_names_are_paddleclas():
    assert list(OPS) == [
        "DecodeImage", "RandCropImage", "RandFlipImage", "TimmAutoAugment", "ResizeImage", "CropImage",
        "NormalizeImage", "RandomErasing", "ToCHWImage",
    ]  # fmt: skip


def test_a_channel_order_that_does_not_fit_is_explained():
    with pytest.raises(ConfigError, match="here it gets an image; set its order to ''"):
        pipeline(build_ops([{"DecodeImage": None}, {"NormalizeImage": None}]))
