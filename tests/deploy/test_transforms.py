"""The transforms of deployment against PaddleSeg's own, bit for bit, and against a user's mistakes."""

from __future__ import annotations

import numpy as np
import pytest
from paddleseg import transforms as theirs
from PIL import Image

from paddle_vheat.config import ConfigError
from paddle_vheat.data.image_ops import build_ops, pipeline
from paddle_vheat.deploy.transforms import ClassificationInput, SegmentationInput
from tests.engine import tiny

CASES = [
    {"type": "Normalize"},
    {"type": "Normalize", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]},
    {"type": "Resize", "target_size": [50, 40]},
    {"type": "Resize", "target_size": (50, 40), "keep_ratio": True},
    {"type": "Resize", "target_size": [50, 40], "keep_ratio": True, "size_divisor": 16},
    *[{"type": "Resize", "target_size": [90, 61], "interp": i} for i in ("NEAREST", "CUBIC", "AREA", "LANCZOS4")],
    {"type": "ResizeByLong", "long_size": 100},
    {"type": "ResizeByShort", "short_size": 33},
    {"type": "ResizeByShort", "short_size": 80, "max_size": 90},
    {"type": "ResizeByShort", "short_size": 80, "max_size": 2048.0},
    {"type": "LimitLong", "max_long": 50},
    {"type": "LimitLong", "min_long": 120, "max_long": 200},
    {"type": "LimitLong"},
    {"type": "Padding", "target_size": [97, 130]},
    {"type": "Padding", "target_size": [97, 130], "im_padding_value": 3, "label_padding_value": 1},
    {"type": "PaddingByAspectRatio", "aspect_ratio": 2},
    {"type": "PaddingByAspectRatio", "aspect_ratio": 0.5, "im_padding_value": 0.25},
]
SIZES = [(47, 71), (71, 47), (64, 64)]


def picture(size: tuple[int, int], channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, channels), np.uint8)


def paddlesegs(config: list[dict], image: np.ndarray) -> tuple[np.ndarray, list]:
    ops = [getattr(theirs, entry["type"])(**{k: v for k, v in entry.items() if k != "type"}) for entry in config]
    data = theirs.Compose(ops)({"img": image.astype(np.float32), "gt_fields": []})
    return data["img"], data["trans_info"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_they_are_paddlesegs(case, size):
    ours, undo = SegmentationInput([case], 3, "x")(picture(size))
    expected, info = paddlesegs([case], picture(size))
    assert ours.dtype == np.float32
    assert ours.flags.c_contiguous
    np.testing.assert_array_equal(ours, expected)
    assert undo == [(kind, tuple(sizes)) for kind, sizes in info]


def test_a_chain_of_them():
    chain = [{"type": "ResizeByShort", "short_size": 40}, {"type": "Padding", "target_size": [90, 80]}, tiny.NORMALIZE]
    ours, undo = SegmentationInput(chain, 3, "x")(picture((47, 71)))
    expected, info = paddlesegs(chain, picture((47, 71)))
    np.testing.assert_array_equal(ours, expected)
    assert undo == [(kind, tuple(sizes)) for kind, sizes in info] == [("resize", (47, 71)), ("padding", (40, 60))]


def test_nothing_is_kept_from_one_image_to_the_next():
    """As PaddleSeg's ResizeByShort did before it was mended (tests/integrations/test_paddleseg_mends.py)."""
    prepare = SegmentationInput([{"type": "ResizeByShort", "short_size": 40, "max_size": 60}], 3, "x")
    assert [prepare(picture(s))[0].shape for s in ((40, 40), (30, 90), (40, 40))] == [
        (3, 40, 40), (3, 20, 60), (3, 40, 40),
    ]  # fmt: skip


def test_what_an_image_may_be(tmp_path):
    prepare = SegmentationInput([tiny.NORMALIZE], 3, "x")
    image = picture((33, 47))
    Image.fromarray(image[..., ::-1]).save(tmp_path / "x.png")
    from_file, _ = prepare(tmp_path / "x.png")
    for same in (image, image.astype(np.float32), image.astype(np.float64), np.asfortranarray(image), image.copy()):
        before = same.copy()
        np.testing.assert_array_equal(prepare(same)[0], from_file)
        np.testing.assert_array_equal(same, before)  # the caller's array is the caller's
    np.testing.assert_array_equal(prepare(str(tmp_path / "x.png"))[0], from_file)
    four, _ = SegmentationInput([{"type": "Normalize", "mean": [0.5] * 4, "std": [0.5] * 4}], 4, "x")(
        picture((33, 47), 4)
    )
    assert four.shape == (4, 33, 47)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5), np.uint8), r"expected an image \(H, W, 3\), got an array of shape \[4, 5\]"),
        (np.zeros((3, 4, 5), np.uint8), r"got an array of shape \[3, 4, 5\]"),
        (np.zeros((0, 5, 3), np.uint8), r"got an array of shape \[0, 5, 3\]"),
        (np.zeros((4, 5, 3), np.int64), "uint8 or floating-point values from 0 to 255, got int64"),
        (Image.new("RGB", (5, 4)), "a file or a NumPy array as an image, got Image"),
        ("absent.png", r"absent\.png: there is no such file"),
    ],
)
def test_what_an_image_may_not_be(image, message):
    with pytest.raises(ValueError, match=message):
        SegmentationInput([tiny.NORMALIZE], 3, "x")(image)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "Normalise"}, r"x\.0: no transform 'Normalise'; did you mean 'Normalize'\?; known here are Norm"),
        ({"type": "RandomDistort"}, "no transform 'RandomDistort'.*known here are Normalize, Resize,"),
        ({}, "no transform None"),
        ({"type": "Resize", "target": [3, 4]}, "x.0.Resize: no argument 'target'; did you mean 'target_size'"),
        ({"type": "Padding"}, "the argument 'target_size' is missing"),
        ({"type": "Resize", "target_size": 5}, r"target_size: expected \[width, height\], got 5"),
        ({"type": "Resize", "target_size": [5, 0]}, "target_size: expected a positive"),
        ({"type": "Resize", "interp": "RANDOM"}, "interp: expected one of NEAREST, .*got 'RANDOM'"),
        (
            {"type": "ResizeByShort", "short_size": [1, 2]},
            r"short_size: expected a positive whole number, got \[1, 2\]",
        ),
        ({"type": "ResizeByShort", "short_size": 5, "max_size": 0}, "max_size: expected a positive number, got 0"),
        ({"type": "Normalize", "std": [0.0]}, "std: expected positive numbers"),
        ({"type": "Normalize", "mean": "x"}, "mean: expected a list of numbers, got 'x'"),
        ({"type": "LimitLong", "max_long": 5, "min_long": 6}, "min_long: expected at most max_long, 5, got 6"),
        ({"type": "Resize", "keep_ratio": 1}, "keep_ratio: expected True or False"),
    ],
)
def test_transforms_that_cannot_be(entry, message):
    with pytest.raises(ConfigError, match=message):
        SegmentationInput([entry], 3, "x")


def test_an_image_larger_than_the_padding():
    prepare = SegmentationInput([{"type": "Padding", "target_size": [40, 90]}], 3, "x")
    with pytest.raises(ValueError, match=r"71 x 47 .width x height., larger than the 40 x 90"):
        prepare(picture((47, 71)))


EVALUATION = [
    {"DecodeImage": {"to_rgb": True, "channel_first": False}},
    {"ResizeImage": {"resize_short": 40, "interpolation": "bicubic", "backend": "pil"}},
    {"CropImage": {"size": 32}},
    {"NormalizeImage": {"scale": "1.0/255.0", "order": ""}},
    {"ToCHWImage": None},
]


@pytest.mark.parametrize("ops", [EVALUATION, EVALUATION[1:], [{"DecodeImage": {"to_rgb": False}}, *EVALUATION[1:]]])
def test_classification(tmp_path, ops):
    image = picture((47, 71))
    Image.fromarray(image[..., ::-1]).save(tmp_path / "x.png")
    complete = ops if "DecodeImage" in ops[0] else [EVALUATION[0], *ops]
    expected = pipeline(build_ops(complete))((tmp_path / "x.png").read_bytes())
    prepare = ClassificationInput(ops, 3, "x")
    for same in (image, tmp_path / "x.png"):
        np.testing.assert_array_equal(prepare(same)[0], expected)


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ([{"RandFlipImage": {}}], "no operation 'RandFlipImage'; .*known here: DecodeImage, ResizeImage"),
        (["ToCHWImage", 3], "no operation 3"),
        ([{"CropImage": {"syze": 3}}], "no argument 'syze'; did you mean 'size'"),
    ],
)
def test_operations_that_cannot_be(ops, message):
    with pytest.raises(ConfigError, match=message):
        ClassificationInput(ops, 3, "x")


def test_classification_of_what_is_no_image(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no image")
    prepare = ClassificationInput(EVALUATION, 3, "x")
    with pytest.raises(ValueError, match=r"x\.png: the file is no image"):
        prepare(tmp_path / "x.png")
    with pytest.raises(ValueError, match="expected an image of uint8"):
        prepare(np.zeros((50, 50, 3), np.float32))
    with pytest.raises(ConfigError, match="work on 3 channels, the model takes 4"):
        ClassificationInput(EVALUATION, 4, "x")
