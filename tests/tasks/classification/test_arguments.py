"""Operations from a configuration: the names, and what is refused, and how."""

from __future__ import annotations

import re

import pytest

from paddle_vheat.config import ConfigError
from paddle_vheat.tasks.classification.operation import fraction
from paddle_vheat.tasks.classification.transforms import OPS, build_ops, pipeline

WHERE = "x.yml: Train.transform_ops"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.0/255.0", 1 / 255), ("1/255", 1 / 255), (" 1.0 / 3.0 ", 1 / 3), ("2e-2", 0.02), (2, 2), ("-.5", -0.5)],
)
def test_numbers_and_fractions_are_read(text: object, value: float):
    assert fraction(text) == value


@pytest.mark.parametrize("text", ["__import__('os').getcwd()", "1/0", "1/2/3", "1+1", "", "1.0/", "nan", None, True])
def test_nothing_is_evaluated(text: object):
    assert fraction(text) is text


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"RandCropImagE": {"size": 8}}, f"'{WHERE}.1': nothing is called 'RandCropImagE'; did you mean 'RandCropIm"),
        ({"ColorJitter": None}, "nothing is called 'ColorJitter' (known: DecodeImage, RandCropImage, "),
        ({"RandCropImage": {"sise": 8, "size": 8}}, f"'{WHERE}.1.sise': RandCropImage has no such argument; did you m"),
        ({"RandomErasing": {"use_log_aspect_ratio": True}}, "did you mean 'use_log_aspect'"),
        ({"CropImage": None}, f"'{WHERE}.1.size': CropImage needs this argument"),
        ({"CropImage": 224}, "CropImage' must be arguments by name, got 224"),
        (
            {"CropImage": {"size": "224"}},
            f"{WHERE}.1: 'size' must be a list of 2 integers of at least 1 and at most 8192, got '224'",
        ),
        ({"CropImage": {"size": 0}}, "'size' must be a list of 2 integers of at least 1 and at most 8192, got [0, 0]"),
        ({"CropImage": {"size": True}}, "'size' must be"),
        ("ToCHWImage", f"'{WHERE}.1' must be one 'name: arguments', got 'ToCHWImage'"),
        ({"DecodeImage": None, "CropImage": None}, "must be one 'name: arguments'"),
        ({"DecodeImage": {"channel_first": True}}, "'channel_first' must be one of False, got True"),
        ({"DecodeImage": {"to_rgb": "yes"}}, "'to_rgb' must be True or False, got 'yes'"),
        ({"RandCropImage": {"size": 8, "backend": "cv2"}}, "'backend' must be one of pil, got 'cv2'"),
        ({"RandCropImage": {"size": 8, "interpolation": "area"}}, "'interpolation' must be one of nearest, "),
        ({"RandCropImage": {"size": 8, "scale": [0, 1]}}, "'scale' must be a list of 2 numbers of above 0 and at mo"),
        ({"RandCropImage": {"size": 8, "ratio": [2, 1]}}, "'ratio' must be a range [low, high], got [2, 1]"),
        ({"RandFlipImage": {"flip_code": 2}}, "'flip_code' must be one of 1, 0, -1, got 2"),
        ({"RandFlipImage": {"prob": 1.5}}, "'prob' must be a number of at least 0 and at most 1, got 1.5"),
        ({"TimmAutoAugment": {"config_str": "rand-m9-w0-inc1"}}, "'rand-m9-w0-inc1': unknown key 'w'"),
        (
            {"TimmAutoAugment": {"interpolation": "lanczos"}},
            "'interpolation' must be one of nearest, bilinear, bicubic",
        ),
        ({"TimmAutoAugment": {"mean": 0.5}}, "'mean' must be a list of 3 numbers, got 0.5"),
        ({"ResizeImage": None}, "expected either 'size' or 'resize_short'"),
        ({"ResizeImage": {"size": 8, "resize_short": 8}}, "expected either"),
        (
            {"NormalizeImage": {"scale": "1.0/x"}},
            "'scale' must be a number of at least -1000000 and at most 1000000, got '1.0/x'",
        ),
        (
            {"NormalizeImage": {"std": [0, 1, 1]}},
            "'std' must be a list of 3 numbers of at least 1e-06 and at most 1000000, got",
        ),
        ({"NormalizeImage": {"order": "nhwc"}}, "'order' must be one of , hwc, chw, got 'nhwc'; did you mean"),
        ({"RandomErasing": {"EPSILON": -0.1}}, "'EPSILON' must be a number of at least 0 and at most 1, got -0.1"),
        ({"RandomErasing": {"sl": 0.5}}, "'sl', 'sh' must be a range [low, high], got [0.5, 0.4]"),
        ({"RandomErasing": {"r1": 2}}, "'r1' must be a number of at least 0.001 and at most 1, got 2"),
        ({"RandomErasing": {"mode": "noise"}}, "'mode' must be one of const, rand, pixel, got 'noise'"),
    ],
)
def test_unusable_configurations_name_the_fault(entry: object, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_ops([{"DecodeImage": None}, entry], WHERE)


def test_all_faults_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        build_ops([{"Decode": None}, {"CropImage": {"size": -1}}, {"RandFlipImage": {"flop": 1, "code": 2}}])
    assert [re.findall(r"transform_ops\.([\w.]+)", text)[-1] for text in caught.value.problems] == [
        "0", "1", "2.flop", "2.code",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"'transform_ops' must be a list, got \{'a': 1\}"):
        build_ops({"a": 1})


def test_null_is_the_default_and_case_does_not_matter():
    (crop,) = build_ops([{"RandCropImage": {"size": 8, "scale": None, "interpolation": "BILINEAR", "backend": None}}])
    assert (crop.size, crop.scale, crop.interpolation, crop.backend) == ((8, 8), (0.08, 1.0), "bilinear", "pil")


@pytest.mark.parametrize(
    ("names", "takes", "message"),
    [
        (
            ["CropImage"],
            "file",
            "'x.yml.0': CropImage works on an image, but here it gets the bytes of a file (put Dec",
        ),
        (
            ["DecodeImage", "NormalizeImage"],
            "file",
            "'x.yml.1': NormalizeImage works on channels first (3, H, W), but here it gets an image; set its order to",
        ),
        (["RandomErasing"], "image", "'x.yml.0': RandomErasing works on a normalised image"),
        (["ToCHWImage", "CropImage"], "image", "'x.yml.1': CropImage works on an image, but here it gets channels fir"),
        ([], "file", "'x.yml': the list is empty"),
    ],
)
def test_operations_in_an_order_that_cannot_work(names: list[str], takes: str, message: str):
    arguments = {"CropImage": {"size": 8}}
    ops = build_ops([{name: arguments.get(name)} for name in names])
    with pytest.raises(ConfigError, match=re.escape(message)):
        pipeline(ops, takes=takes, source="x.yml")


def test_the_names_are_paddleclas():
    assert list(OPS) == [
        "DecodeImage", "RandCropImage", "RandFlipImage", "TimmAutoAugment", "ResizeImage", "CropImage",
        "NormalizeImage", "RandomErasing", "ToCHWImage",
    ]  # fmt: skip
