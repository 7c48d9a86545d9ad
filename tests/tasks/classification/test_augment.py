"""RandAugment: what is drawn, and what each transform does to an image."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from paddle_vheat.tasks.classification.augment import (
    TRANSFORMS,
    Canvas,
    RandAugmentConfig,
    TimmAutoAugment,
    draw_interpolation,
    parse_config,
)
from tests.tasks.classification.bounds import within

FILL = (124, 116, 104)
NEAREST = Canvas("nearest", FILL)
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
ENHANCERS = {
    "ColorIncreasing": ImageEnhance.Color,
    "ContrastIncreasing": ImageEnhance.Contrast,
    "BrightnessIncreasing": ImageEnhance.Brightness,
    "SharpnessIncreasing": ImageEnhance.Sharpness,
}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Blurred noise with all values from 0 to 255, 200 wide and 120 high."""
    noise = np.random.default_rng(1).integers(0, 256, (120, 200, 3), np.uint8)
    return ImageOps.autocontrast(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2)))


def signs(name: str, picture: Image.Image, level: float, canvas: Canvas, trials: int) -> Counter[bytes]:
    """How often each different result comes out."""
    random.seed(0)
    return Counter(TRANSFORMS[name](picture, level, canvas).tobytes() for _ in range(trials))


def test_there_are_the_fifteen_increasing_transforms():
    assert list(TRANSFORMS) == [
        "AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd",
        "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "ShearX", "ShearY",
        "TranslateXRel", "TranslateYRel",
    ]  # fmt: skip


def test_what_is_drawn_has_the_promised_frequencies():
    augment = TimmAutoAugment(config_str="rand-m9-mstd0.5-inc1")
    random.seed(0)
    trials = 8000
    drawn = [augment.draw() for _ in range(trials)]
    for number, prob in ((0, 0.25), (1, 0.5), (2, 0.25)):
        assert within(sum(len(ops) == number for ops in drawn), trials, prob)
    names = Counter(name for ops in drawn for name, _ in ops)
    assert set(names) == set(TRANSFORMS)
    for name in TRANSFORMS:
        assert within(names[name], 2 * trials, 0.5 / 15), name
    pairs = [ops for ops in drawn if len(ops) == 2]
    assert within(sum(ops[0][0] == ops[1][0] for ops in pairs), len(pairs), 1 / 15)  # with replacement

    magnitudes = np.array([magnitude for ops in drawn for _, magnitude in ops])
    assert magnitudes.min() >= 0
    assert magnitudes.max() == 10
    # N(9, 0.5) cut at two standard deviations: P = 0.02275 there, and the mean falls by 0.5 * 0.00849.
    assert within(int((magnitudes == 10).sum()), len(magnitudes), 0.02275)
    assert abs(magnitudes.mean() - (9 - 0.5 * 0.00849)) < 5 * 0.5 / math.sqrt(len(magnitudes))
    below = magnitudes[magnitudes < 9]
    assert within(len(below), len(magnitudes), 0.5)
    assert within(int((magnitudes < 8.5).sum()), len(magnitudes), 0.15866)


@pytest.mark.parametrize("level", [0.9, 1.0, 0.5])
def test_geometry_is_the_promised_one(picture: Image.Image, level: float):
    """Against nearest-neighbour sampling written out in NumPy, for both signs."""
    source = np.asarray(picture)
    height, width = source.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5

    def sample(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        u, v = np.floor(u).astype(int), np.floor(v).astype(int)
        inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
        return np.where(inside[..., None], source[v.clip(0, height - 1), u.clip(0, width - 1)], np.uint8(FILL))

    def expected(name: str, sign: int) -> np.ndarray:
        shear, angle = sign * level * 0.3, sign * level * math.radians(30)
        if name == "ShearX":
            return sample(x + shear * y, y)
        if name == "ShearY":
            return sample(x, y + shear * x)
        if name == "TranslateXRel":
            return sample(x + sign * level * 0.45 * width, y)
        if name == "TranslateYRel":
            return sample(x, y + sign * level * 0.45 * height)
        dx, dy = x - width / 2, y - height / 2
        return sample(dx * math.cos(angle) - dy * math.sin(angle) + width / 2,
                      dx * math.sin(angle) + dy * math.cos(angle) + height / 2)  # fmt: skip

    for name in GEOMETRIC:
        results = signs(name, picture, level, NEAREST, 200)
        assert len(results) == 2, name
        assert all(within(count, 200, 0.5) for count in results.values()), name
        for sign in (-1, 1):
            wanted = expected(name, sign)
            # Pixels whose sampling point lies within rounding of a pixel's edge may differ: 1% is far more.
            errors = [
                float((np.frombuffer(data, np.uint8).reshape(source.shape) != wanted).any(-1).mean())
                for data in results
            ]
            assert min(errors) < 0.01 < max(errors), (name, sign, errors)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_what_comes_into_view_has_the_fill_colour(picture: Image.Image, interpolation: str):
    canvas = Canvas(interpolation, FILL)
    for name in GEOMETRIC:
        corners = set()
        for _ in range(2):
            result = np.asarray(TRANSFORMS[name](picture, 0.9, canvas))
            corners |= {tuple(result[i, j]) for i in (0, -1) for j in (0, -1)}
        assert tuple(FILL) in corners, name


def test_pixel_values_at_magnitude_nine_are_the_promised_ones(picture: Image.Image):
    values = np.asarray(picture).astype(int)
    wanted = {
        "Invert": 255 - values,
        "PosterizeIncreasing": values & 0b10000000,  # 4 - int(3.6) = 1 bit
        "SolarizeIncreasing": np.where(values < 26, values, 255 - values),  # 256 - int(230.4)
        "SolarizeAdd": np.where(values < 128, np.minimum(values + 99, 255), values),
    }
    for name, expected in wanted.items():
        np.testing.assert_array_equal(np.asarray(TRANSFORMS[name](picture, 0.9, NEAREST)), expected, name)
    assert TRANSFORMS["PosterizeIncreasing"](picture, 1.0, NEAREST).getextrema() == ((0, 0),) * 3
    bits = [len(np.unique(np.asarray(TRANSFORMS["PosterizeIncreasing"](picture, m / 10, NEAREST)))) for m in range(10)]
    assert bits == [16, 16, 16, 8, 8, 4, 4, 4, 2, 2]  # 4 bits at the weakest, and never more again

    grey = picture.convert("L").resize((50, 50)).point(lambda value: 60 + value // 4)
    dull = Image.merge("RGB", (grey, grey, grey))
    low, high = dull.getextrema()[0]
    stretched = (np.asarray(dull).astype(float) - low) * 255 / (high - low)
    result = np.asarray(TRANSFORMS["AutoContrast"](dull, 0.9, NEAREST))
    assert np.abs(result - stretched).max() <= 1  # rounding either way
    # Equalised: the share of pixels up to a value is that value, to within the largest bin of the input.
    result = np.asarray(TRANSFORMS["Equalize"](dull, 0.9, NEAREST))[..., 0]
    shares = np.bincount(result.ravel(), minlength=256) / result.size
    largest = np.bincount(np.asarray(grey).ravel()).max() / result.size
    occurring = shares > 0
    # PIL maps a bin to the pixels below it, over pixels / 255, so one bin and the top bin's share may be off.
    assert np.abs(np.cumsum(shares)[occurring] - np.arange(256)[occurring] / 255).max() < 2 * largest + 1 / 255


@pytest.mark.parametrize("name", ENHANCERS)
def test_enhancers_blend_by_the_promised_factors(picture: Image.Image, name: str):
    for magnitude, factors in ((9, (0.19, 1.81)), (10, (0.1, 1.9)), (5, (0.55, 1.45))):
        results = signs(name, picture, magnitude / 10, NEAREST, 100)
        wanted = [ENHANCERS[name](picture).enhance(factor) for factor in factors]
        assert len(results) == 2
        assert all(within(count, 100, 0.5) for count in results.values())
        for image in wanted:
            # Factors may differ in the last bit of a float32 and then values by one.
            nearest = min(
                int(np.abs(np.frombuffer(data, np.uint8).astype(int) - np.asarray(image).ravel()).max())
                for data in results
            )
            assert nearest <= 1
    values = np.asarray(picture).astype(float)
    if name == "BrightnessIncreasing":
        for data in signs(name, picture, 0.9, NEAREST, 20):
            result = np.frombuffer(data, np.uint8).reshape(values.shape)
            assert min(np.abs(result - (values * factor).clip(0, 255)).max() for factor in (0.19, 1.81)) <= 1


def test_magnitude_zero_changes_nothing_but_posterize(picture: Image.Image):
    fixed = ("AutoContrast", "Equalize", "Invert", "PosterizeIncreasing")  # these have no weakest form
    for name in TRANSFORMS:
        if name not in fixed:
            result = TRANSFORMS[name](picture, 0.0, Canvas("bicubic", FILL))
            assert result.tobytes() == picture.tobytes(), name


def test_every_transform_keeps_size_mode_and_input(picture: Image.Image):
    before = picture.tobytes()
    for name, transform in TRANSFORMS.items():
        result = transform(picture, 0.9, Canvas("random", FILL))
        assert (result.size, result.mode) == (picture.size, "RGB"), name
    assert picture.tobytes() == before


def test_random_interpolation_is_bilinear_or_bicubic():
    random.seed(0)
    drawn = Counter(draw_interpolation("random") for _ in range(1000))
    assert set(drawn) == {Image.Resampling.BILINEAR, Image.Resampling.BICUBIC}
    assert within(drawn[Image.Resampling.BICUBIC], 1000, 0.5)


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("rand-m9-mstd0.5-inc1", RandAugmentConfig(m=9, n=2, mstd=0.5, mmax=10, p=0.5, inc=1)),
        ("rand-inc1", RandAugmentConfig(m=10, n=2, mstd=0, mmax=10, p=0.5, inc=1)),
        ("rand-n3-inc1-m7.5-p0.25", RandAugmentConfig(m=7.5, n=3, mstd=0, mmax=10, p=0.25, inc=1)),
        ("rand-m12-mmax15-mstd1-inc1", RandAugmentConfig(m=12, n=2, mstd=1, mmax=15, p=0.5, inc=1)),
    ],
)
def test_configuration_strings(text: str, config: RandAugmentConfig):
    assert parse_config(text) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("augmix-m5", "only RandAugment is supported"),
        ("original-mstd0.5", "only RandAugment is supported"),
        ("rand-m9-mstd0.5", "only the increasing transforms are supported; add -inc1"),
        ("rand-m9-inc0", "only the increasing"),
        ("rand-m9-w0-inc1", "unknown key 'w'"),
        ("rand-m9-mst0.5-inc1", "unknown key 'mst'; did you mean 'mstd'"),
        ("rand-m-inc1", "section 'm': expected a key and a number"),
        ("rand--inc1", "section '': expected a key and a number"),
        ("rand-m9-m8-inc1", "section 'm8': expected a key and a number, such as m9, each key once"),
        ("rand-m12-inc1", "'m' must be at most 'mmax', 10, got 12"),
        ("rand-m9-p2-inc1", "'p' must be a number of at least 0 and at most 1, got 2"),
        ("rand-m9-n0-inc1", "'n' must be an integer of at least 1 and at most 100, got 0"),
        ("rand-n1.5-inc1", "'n' must be an integer"),
    ],
)
def test_unusable_configuration_strings(text: str, message: str):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        parse_config(text)


def test_beyond_the_usual_maximum_values_stay_valid(picture: Image.Image):
    for name, transform in TRANSFORMS.items():
        assert transform(picture, 1.5, NEAREST).size == picture.size, name
    darkest = signs("BrightnessIncreasing", picture, 1.5, NEAREST, 20)
    values = np.asarray(picture).astype(float)
    # 1 - 1.35 would be negative: the factor stays at 0.1.
    assert min(np.abs(np.frombuffer(d, np.uint8).reshape(values.shape) - 0.1 * values).max() for d in darkest) <= 1


def test_the_operation_uses_mean_fill_and_prob(picture: Image.Image):
    op = TimmAutoAugment(config_str="rand-m9-mstd0.5-inc1", interpolation="bicubic", img_size=224)
    assert op.canvas == Canvas("bicubic", FILL)
    assert TimmAutoAugment(mean=[0.5, 0, 1], interpolation=None).canvas == Canvas("random", (128, 0, 255))
    never = TimmAutoAugment(prob=0)
    assert never(picture) is picture
    unchanged = TimmAutoAugment(config_str="rand-p0-inc1")
    assert unchanged(picture).tobytes() == picture.tobytes()
    always = TimmAutoAugment(config_str="rand-m9-n1-p1-inc1", prob=0.5)
    random.seed(0)
    # Half are left out, and of the rest AutoContrast (1 in 15) does nothing here: it is stretched already.
    same = sum(always(picture).tobytes() == picture.tobytes() for _ in range(400))
    assert within(same, 400, 0.5 + 0.5 / 15)


def test_the_same_seed_gives_the_same_image(picture: Image.Image):
    op = TimmAutoAugment(interpolation="random")

    def run(seed: int) -> list[bytes]:
        random.seed(seed)
        return [op(picture).tobytes() for _ in range(20)]

    assert run(5) == run(5)
    assert run(5) != run(6)
