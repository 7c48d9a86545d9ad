"""The transforms of deployment against PaddleSeg's own, bit for bit, and against a user's mistakes."""

from __future__ import annotations

import numpy as np
import pytest
from paddleseg import transforms as theirs
from PIL import Image

from paddle_vheat.config import ConfigError
from paddle_vheat.tasks.classification.deploy import Processor as Classification
from paddle_vheat.tasks.classification.transforms import build_ops, pipeline
from paddle_vheat.tasks.segmentation.deploy import Processor as Segmentation
from paddle_vheat.tasks.segmentation.transforms import build_transforms
from tests.export import networks
from tests.export.networks import NORMALIZE

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
OPTIONS = {"num_classes": 2, "output_op": "none"}
CLASS_OPTIONS = {"num_classes": 7, "output_op": "softmax"}
SIZES = [(47, 71), (71, 47), (64, 64)]


def picture(size: tuple[int, int], channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, channels), np.uint8)


def paddlesegs(config: list[dict], image: np.ndarray) -> tuple[np.ndarray, list]:
    ops = [getattr(theirs, entry["type"])(**{k: v for k, v in entry.items() if k != "type"}) for entry in config]
    data = theirs.Compose(ops)({"img": image.astype(np.float32), "gt_fields": []})
    return data["img"], data["trans_info"]


def prepare_by(*config: dict, channels: int = 3):
    """What an export with these transforms does to an image."""
    described = networks.description("segmentation", (None, channels, None, None), OPTIONS, config)
    return Segmentation(described).prepare


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_they_are_paddlesegs(case, size):
    ours, undo = build_transforms([case])(picture(size))
    expected, info = paddlesegs([case], picture(size))
    assert ours.dtype == np.float32
    assert ours.flags.c_contiguous
    np.testing.assert_array_equal(ours, expected)
    assert undo == [(kind, tuple(sizes)) for kind, sizes in info]


def test_a_chain_of_them():
    chain = [{"type": "ResizeByShort", "short_size": 40}, {"type": "Padding", "target_size": [90, 80]}, NORMALIZE]
    ours, undo = prepare_by(*chain)(picture((47, 71)))
    expected, info = paddlesegs(chain, picture((47, 71)))
    np.testing.assert_array_equal(ours, expected)
    assert undo == [(kind, tuple(sizes)) for kind, sizes in info] == [("resize", (47, 71)), ("padding", (40, 60))]


def test_nothing_is_kept_from_one_image_to_the_next():
    """As PaddleSeg's ResizeByShort did before it was patched (tests/integrations/test_paddleseg_patches.py)."""
    prepare = prepare_by({"type": "ResizeByShort", "short_size": 40, "max_size": 60})
    assert [prepare(picture(s))[0].shape for s in ((40, 40), (30, 90), (40, 40))] == [
        (3, 40, 40), (3, 20, 60), (3, 40, 40),
    ]  # fmt: skip


def test_what_an_image_may_be(tmp_path):
    prepare = prepare_by(NORMALIZE)
    image = picture((33, 47))
    Image.fromarray(image[..., ::-1]).save(tmp_path / "x.png")
    from_file, _ = prepare(tmp_path / "x.png")
    for same in (image, image.astype(np.float32), image.astype(np.float64), np.asfortranarray(image), image.copy()):
        before = same.copy()
        np.testing.assert_array_equal(prepare(same)[0], from_file)
        np.testing.assert_array_equal(same, before)  # the caller's array is the caller's
    np.testing.assert_array_equal(prepare(str(tmp_path / "x.png"))[0], from_file)
    four = prepare_by({"type": "Normalize", "mean": [0.5] * 4, "std": [0.5] * 4}, channels=4)
    assert four(picture((33, 47), 4))[0].shape == (4, 33, 47)
    with pytest.raises(ValueError, match=r"expected an image \(H, W, 4\), got an array of shape \[33, 47, 3\]"):
        four(picture((33, 47)))


def test_bgr():
    """The channels are in the file's order again, and only they change."""
    ours, undo = build_transforms([{"type": "ToBGR"}, NORMALIZE])(picture((33, 47)))
    theirs, _ = networks.paddlesegs(picture((33, 47))[..., ::-1], NORMALIZE)
    np.testing.assert_array_equal(ours, theirs[0])
    assert undo == []


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5), np.uint8), r"expected an image \(H, W, 3\), got an array of shape \[4, 5\]"),
        (np.zeros((3, 4, 5), np.uint8), r"got an array of shape \[3, 4, 5\]"),
        (np.zeros((0, 5, 3), np.uint8), r"got an array of shape \[0, 5, 3\]"),
        (np.zeros((4, 5, 3), np.int64), "uint8 or floating-point values from 0 to 255, got int64"),
        (np.full((4, 5, 3), np.nan), "expected floating-point values from 0 to 255, got nan to nan"),
        (np.full((4, 5, 3), np.inf, np.float32), "from 0 to 255, got inf to inf"),
        (np.full((4, 5, 3), 1e9), r"from 0 to 255, got 1e\+09"),
        (np.full((4, 5, 3), -0.5), "from 0 to 255, got -0.5 to -0.5"),
        (np.where(np.arange(60).reshape(4, 5, 3) == 31, np.nan, 3.0), "got nan to nan"),
        (Image.new("RGB", (5, 4)), "a file or a NumPy array as an image, got Image"),
        ("absent.png", r"cannot read the image absent\.png: there is no such file"),
        ("/", r"cannot read the image /: it is a folder, not a file"),
        ("/dev/null", r"cannot read the image /dev/null: "),
    ],
)
def test_what_an_image_may_not_be(image, message):
    with pytest.raises(ValueError, match=message):
        prepare_by(NORMALIZE)(image)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "Normalise"}, r"'x\.0': nothing is called 'Normalise'; did you mean 'Normalize'\? \(known: Norm"),
        ({"type": "RandomDistort"}, "nothing is called 'RandomDistort'.*known: Normalize, ToBGR, Resize,"),
        ({}, r"'x\.0' must be a block with a 'type', got \{\}"),
        ({"type": ["Resize"]}, r"nothing is called \['Resize'\]"),
        ({"type": "Resize", "target": [3, 4]}, "unknown key 'x.0.target'; did you mean 'target_size'"),
        ({"type": "Padding"}, "'x.0.target_size' is missing; expected a list of 2 integers"),
        ({"type": "Resize", "target_size": 5}, "'x.0.target_size' must be a list of 2 integers of at least 1.*got 5"),
        ({"type": "Resize", "target_size": [5, 0]}, "'x.0.target_size' must be"),
        ({"type": "Resize", "target_size": [1 << 20, 1 << 20]}, "'x.0.target_size' must be at most 134217728 pixels"),
        ({"type": "Resize", "interp": "RANDOM"}, "'x.0.interp' must be one of NEAREST, .*got 'RANDOM'"),
        ({"type": "ResizeByShort", "short_size": [1, 2]}, r"'x.0.short_size' must be an integer .*got \[1, 2\]"),
        ({"type": "ResizeByShort", "short_size": 5, "max_size": 0}, "max_size' must be a number of above 0, got 0"),
        ({"type": "Normalize", "std": [0.0]}, "'x.0.std' must be a list of numbers of at least 1e-06"),
        (
            {"type": "Normalize", "mean": "x"},
            "'x.0.mean' must be a list of numbers of at least -1000000 .*, got 'x'",
        ),
        ({"type": "Normalize", "mean": [0.5, 0.5]}, "'x.0.mean' must be a list of 3 numbers, got 2"),
        ({"type": "LimitLong", "max_long": 5, "min_long": 6}, "'x.0.min_long' must be at most max_long, 5, got 6"),
        ({"type": "Resize", "keep_ratio": 1}, "'x.0.keep_ratio' must be True or False"),
        ("Resize", "must be a block with a 'type'"),
    ],
)
def test_transforms_that_cannot_be(entry, message):
    with pytest.raises(ConfigError, match=message):
        build_transforms([entry], "x")


def test_all_mistakes_at_once():
    wrong = [{"type": "Resiz"}, NORMALIZE, {"type": "Padding", "target_size": 3}]
    with pytest.raises(ConfigError, match=r"(?s)'x\.0': nothing is called 'Resiz'.*'x\.2\.target_size' must be"):
        build_transforms(wrong, "x")
    with pytest.raises(ConfigError, match="'x' must be a list, got 3"):
        build_transforms(3, "x")


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "ResizeByLong", "long_size": 10**8},
        {"type": "ResizeByShort", "short_size": 10**8},
        {"type": "Resize", "target_size": [20, 10**6], "keep_ratio": True, "size_divisor": 10**7},
        {"type": "LimitLong", "min_long": 10**8},
        {"type": "ResizeByLong", "long_size": 1},
    ],
)
def test_sizes_that_no_memory_holds(entry):
    """Told before memory is taken, and for one that leaves no pixel."""
    image = picture((47, 71)) if entry.get("long_size") != 1 else picture((1, 90))
    prepare = build_transforms([entry])
    with pytest.raises(ValueError, match=r"would become \d+ x \d+ pixels .width x height.; expected at least 1 x 1"):
        prepare(image if entry.get("long_size") != 1 else image.repeat(2, axis=1))


def test_an_image_larger_than_the_padding():
    prepare = prepare_by({"type": "Padding", "target_size": [40, 90]})
    with pytest.raises(ValueError, match=r"71 x 47 .width x height., larger than the 40 x 90"):
        prepare(picture((47, 71)))


EVALUATION = [
    {"DecodeImage": {"to_rgb": True, "channel_first": False}},
    {"ResizeImage": {"resize_short": 40, "interpolation": "bicubic", "backend": "pil"}},
    {"CropImage": {"size": 32}},
    {"NormalizeImage": {"scale": "1.0/255.0", "order": ""}},
    {"ToCHWImage": None},
]


def classify_by(ops: list, channels: int = 3):
    described = networks.description("classification", (None, channels, None, None), CLASS_OPTIONS, ops)
    return Classification(described).prepare


@pytest.mark.parametrize("ops", [EVALUATION, EVALUATION[1:], [{"DecodeImage": {"to_rgb": False}}, *EVALUATION[1:]]])
def test_classification(tmp_path, ops):
    image = picture((47, 71))
    Image.fromarray(image[..., ::-1]).save(tmp_path / "x.png")
    complete = ops if "DecodeImage" in ops[0] else [EVALUATION[0], *ops]
    expected = pipeline(build_ops(complete))((tmp_path / "x.png").read_bytes())
    prepare = classify_by(ops)
    for same in (image, tmp_path / "x.png"):
        np.testing.assert_array_equal(prepare(same)[0], expected)


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ([{"RandFlipImage": {}}], "nothing is called 'RandFlipImage'; .*known: DecodeImage, ResizeImage"),
        (["ToCHWImage", 3], r"'Deploy\.transforms\.1' must be one 'name: arguments', got 3"),
        ([{"CropImage": {"syze": 3}}], "no .*argument.*; did you mean 'size'"),
        ([{"ToCHWImage": None}, EVALUATION[0]], "Deploy.transforms.*ToCHWImage works on .*put DecodeImage first"),
        (
            [{"ResizeImage": {"size": [10**6, 10**6]}}],
            "'size' must be a list of 2 integers of .* at most 8192",
        ),
        (
            [{"ResizeImage": {"resize_short": 10**6}}],
            "'resize_short' must be .* at most 8192",
        ),
    ],
)
def test_operations_that_cannot_be(ops, message):
    with pytest.raises(ConfigError, match=message):
        classify_by(ops)


def test_classification_of_what_is_no_image(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no image")
    prepare = classify_by(EVALUATION)
    with pytest.raises(ValueError, match=r"cannot read the image .*x\.png: .*the file is no image"):
        prepare(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"cannot read the image .*absent: there is no such file"):
        prepare(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"cannot read the image .*: it is a folder, not a file"):
        prepare(tmp_path)
    with pytest.raises(ValueError, match="expected an image of uint8"):
        prepare(np.zeros((50, 50, 3), np.float32))
    with pytest.raises(ConfigError, match=r"'Deploy\.input_shape' must have 3 channels, got 4"):
        classify_by(EVALUATION, channels=4)
