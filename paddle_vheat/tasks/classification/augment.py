"""RandAugment as the published ImageNet recipes use it: 'rand-m9-mstd0.5-inc1'.

The scheme is that of Cubuk et al., https://arxiv.org/abs/1909.13719, with the choices that timm made popular:
fifteen transforms, every one of which does more as the magnitude grows ("increasing"), a magnitude that varies
a little from image to image, and each chosen transform applied or left out by the toss of a coin.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image, ImageEnhance, ImageOps

from paddle_vheat.config import did_you_mean

Colour = tuple[int, int, int]

FULL_MAGNITUDE = 10.0
"""The magnitude at which a transform has its whole range; magnitudes are clipped to it unless mmax says otherwise."""

ROTATE_DEGREES = 30.0
SHEAR = 0.3
TRANSLATE = 0.45
ENHANCE = 0.9
ENHANCE_LEAST = 0.1
POSTERIZE_BITS = 4
SOLARIZE_LEVELS = 256
SOLARIZE_ADD = 110
SOLARIZE_ADD_BELOW = 128

INTERPOLATIONS: dict[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
    "hamming": Image.Resampling.HAMMING,
}
RANDOM_INTERPOLATIONS = ("bilinear", "bicubic")
AFFINE_INTERPOLATIONS = ("nearest", "bilinear", "bicubic")  # the ones that Pillow has for rotating and shearing


def draw_interpolation(name: str) -> Image.Resampling:
    """Pillow's filter of that name; "random" draws bilinear or bicubic."""
    return INTERPOLATIONS[random.choice(RANDOM_INTERPOLATIONS) if name == "random" else name]


class Canvas(NamedTuple):
    """What a geometric transform needs besides its size: how to sample, and the colour of what comes into view."""

    interpolation: str
    fill: Colour

    def warp(self, image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
        """Sample the image at (a x + b y + c, d x + e y + f) for ``matrix`` (a, b, c, d, e, f)."""
        resample = draw_interpolation(self.interpolation)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=self.fill)


def _either_sign(value: float) -> float:
    return -value if random.random() < 0.5 else value


def _auto_contrast(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    return ImageOps.equalize(image)


def _invert(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    return ImageOps.invert(image)


def _rotate(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    angle = _either_sign(level * ROTATE_DEGREES)
    return image.rotate(angle, resample=draw_interpolation(canvas.interpolation), fillcolor=canvas.fill)


def _posterize(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    # At the full magnitude no bit is left and the image is black; the published recipe has it so.
    return ImageOps.posterize(image, max(0, POSTERIZE_BITS - int(level * POSTERIZE_BITS)))


def _solarize(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    return ImageOps.solarize(image, SOLARIZE_LEVELS - int(level * SOLARIZE_LEVELS))


def _solarize_add(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    added = int(level * SOLARIZE_ADD)
    table = [min(255, value + added) if value < SOLARIZE_ADD_BELOW else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Transform:
    def apply(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
        return kind(image).enhance(max(ENHANCE_LEAST, 1.0 + _either_sign(level * ENHANCE)))

    return apply


def _shear_x(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    return canvas.warp(image, (1.0, _either_sign(level * SHEAR), 0.0, 0.0, 1.0, 0.0))


def _shear_y(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    return canvas.warp(image, (1.0, 0.0, 0.0, _either_sign(level * SHEAR), 1.0, 0.0))


def _translate_x(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    return canvas.warp(image, (1.0, 0.0, _either_sign(level * TRANSLATE) * image.width, 0.0, 1.0, 0.0))


def _translate_y(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    return canvas.warp(image, (1.0, 0.0, 0.0, 0.0, 1.0, _either_sign(level * TRANSLATE) * image.height))


Transform = Callable[[Image.Image, float, Canvas], Image.Image]

TRANSFORMS: dict[str, Transform] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Rotate": _rotate,
    "PosterizeIncreasing": _posterize,
    "SolarizeIncreasing": _solarize,
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": _enhance(ImageEnhance.Color),
    "ContrastIncreasing": _enhance(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhance(ImageEnhance.Brightness),
    "SharpnessIncreasing": _enhance(ImageEnhance.Sharpness),
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateXRel": _translate_x,
    "TranslateYRel": _translate_y,
}
"""The increasing transforms: (RGB image, magnitude / 10, canvas) -> RGB image of the same size."""


class RandAugmentConfig(NamedTuple):
    """What a string such as 'rand-m9-mstd0.5-inc1' says."""

    magnitude: float = FULL_MAGNITUDE
    layers: int = 2
    std: float = 0.0
    maximum: float = FULL_MAGNITUDE
    prob: float = 0.5


_SECTIONS = {
    "m": "magnitude",
    "mstd": "standard deviation of the magnitude",
    "mmax": "largest magnitude",
    "n": "transforms for each image",
    "p": "probability of each transform",
    "inc": "1: increasing transforms",
}
_KNOWN = ", ".join(f"{key} ({meaning})" for key, meaning in _SECTIONS.items())


def parse_config(text: str) -> RandAugmentConfig:
    """Read a configuration string: 'rand', then sections of a key and a number, joined by dashes.

    Raises:
        ValueError: for another scheme, an unknown section or one out of its range, or without ``inc1``: only the
            increasing transforms are provided.
    """
    scheme, *sections = str(text).split("-")
    if scheme != "rand":
        raise ValueError(f"{text!r}: only RandAugment is supported, as in 'rand-m9-mstd0.5-inc1', not {scheme!r}")
    values: dict[str, float] = {}
    for section in sections:
        match = re.fullmatch(r"([a-z]+)([0-9]+(?:\.[0-9]+)?)", section)
        key = match[1] if match else re.sub(r"[^a-z]", "", section)
        if key not in _SECTIONS:
            near = did_you_mean(key, _SECTIONS)
            raise ValueError(f"{text!r}: section {section!r} is not supported{near}; known are {_KNOWN}")
        if match is None:
            raise ValueError(f"{text!r}: section {section!r}: expected {key} and a number, such as {key}1")
        if key in values:
            raise ValueError(f"{text!r}: {key} is given twice")
        values[key] = float(match[2])
    if values.pop("inc", 0) != 1:
        raise ValueError(f"{text!r}: only the increasing transforms are supported; add -inc1")
    layers = values.get("n", 2.0)
    if not layers.is_integer():
        raise ValueError(f"{text!r}: n must be a whole number")
    defaults = RandAugmentConfig()
    config = RandAugmentConfig(
        magnitude=values.get("m", defaults.magnitude),
        layers=int(layers),
        std=values.get("mstd", defaults.std),
        maximum=values.get("mmax", defaults.maximum),
        prob=values.get("p", defaults.prob),
    )
    for key, value, low, high in (
        ("n", config.layers, 1, 100),
        ("mmax", config.maximum, 0, 100),
        ("m", config.magnitude, 0, config.maximum),
        ("mstd", config.std, 0, 100),
        ("p", config.prob, 0, 1),
    ):
        if not low <= value <= high:
            raise ValueError(f"{text!r}: {key} must be from {low:g} to {high:g}, got {value:g}")
    return config


class RandAugment:
    """Some transforms for each image, drawn uniformly and with replacement.

    Args:
        config: what to draw.
        canvas: interpolation and fill colour of the geometric transforms.
    """

    def __init__(self, config: RandAugmentConfig, canvas: Canvas) -> None:
        self.config = config
        self.canvas = canvas
        self._names: Sequence[str] = tuple(TRANSFORMS)

    def draw(self) -> list[tuple[str, float]]:
        """The transforms that the next image gets, by name, and the magnitude of each."""
        drawn = []
        for name in random.choices(self._names, k=self.config.layers):
            if random.random() < self.config.prob:
                magnitude = random.gauss(self.config.magnitude, self.config.std)
                drawn.append((name, min(max(magnitude, 0.0), self.config.maximum)))
        return drawn

    def __call__(self, image: Image.Image) -> Image.Image:
        """RGB image -> RGB image of the same size."""
        for name, magnitude in self.draw():
            image = TRANSFORMS[name](image, magnitude / FULL_MAGNITUDE, self.canvas)
        return image
