"""What only training does to an image: random crops and flips, RandAugment, random erasing. Needs no Paddle.

RandAugment's scheme is that of Cubuk et al., https://arxiv.org/abs/1909.13719, with the choices that timm made
popular: fifteen transforms, every one of which does more as the magnitude grows ("increasing"), a magnitude that
varies a little from image to image, and each chosen transform applied or left out by the toss of a coin.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from paddle_vheat.config import option, read_options
from paddle_vheat.data.image_file import open_image
from paddle_vheat.tasks.classification.operation import IMAGENET_MEAN, MAX_SIDE, Operation, check_order

if TYPE_CHECKING:
    from paddle_vheat.tasks.classification.transforms import DecodeImage

CROP_ATTEMPTS = 10
DRAFT_GAP = 2
"""A JPEG is decoded at 1/2, 1/4 or 1/8 only if the crop then is this many times as large as what it is resized to."""

INTERPOLATIONS = {name.lower(): filter_ for name, filter_ in Image.Resampling.__members__.items()}


def draw_interpolation(name: str) -> Image.Resampling:
    """Pillow's filter of that name; "random" draws bilinear or bicubic."""
    return INTERPOLATIONS[random.choice(("bilinear", "bicubic")) if name == "random" else name]


@dataclass(eq=False)
class RandCropImage(Operation):
    """A random part of the image, of random area and shape, resized.

    Area and aspect ratio (width / height, on a logarithmic scale) are drawn until the part fits into the image,
    at most ten times; after that it is the largest part in the middle whose ratio is allowed.

    Args:
        size: of the result; a number or (width, height).
        scale: range of the part's area, as a share of the image's.
        ratio: range of the aspect ratio.
    """

    size: tuple[int, int] = option(list, items=int, length=2, min=1, max=MAX_SIDE)
    scale: tuple[float, float] = option(list, (0.08, 1.0), items=float, length=2, above=0, max=1)
    ratio: tuple[float, float] = option(list, (3 / 4, 4 / 3), items=float, length=2, min=1e-3, max=1000)
    interpolation: str = option(str, "bicubic", choices=(*INTERPOLATIONS, "random"))
    backend: str = option(str, "pil", choices=("pil",))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order("'scale'", *self.scale)
        check_order("'ratio'", *self.ratio)

    def draw(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The part to take from an image of that size, as (left, top, right, bottom)."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(CROP_ATTEMPTS):
            area = random.uniform(*self.scale) * width * height
            aspect = math.exp(random.uniform(low, high))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, top = random.randint(0, width - w), random.randint(0, height - h)
                return left, top, left + w, top + h
        aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def __call__(self, image: Image.Image, box: tuple[int, int, int, int] | None = None) -> Image.Image:
        part = image.crop(box or self.draw(*image.size))
        return part.resize(self.size, draw_interpolation(self.interpolation))

    def from_file(self, data: bytes, decode: DecodeImage) -> Image.Image:
        """Decode and crop in one: large parts of large JPEGs are decoded at a fraction of their size."""
        image = open_image(data)
        width, height = image.size
        left, top, right, bottom = box = self.draw(width, height)
        share = min((right - left) // self.size[0], (bottom - top) // self.size[1]) // DRAFT_GAP
        if share >= 2 and image.format in ("JPEG", "MPO"):
            share = min(1 << (share.bit_length() - 1), 8)  # the power of two that is not above it
            image.draft(image.mode, (width // share, height // share))
        image = decode.finish(image)
        if image.size == (width, height):
            return self(image, box)
        x, y = image.width / width, image.height / height
        small = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
        return image.resize(self.size, draw_interpolation(self.interpolation), box=small)


_FLIPS = {
    1: Image.Transpose.FLIP_LEFT_RIGHT,
    0: Image.Transpose.FLIP_TOP_BOTTOM,
    -1: Image.Transpose.ROTATE_180,
}


@dataclass(eq=False)
class RandFlipImage(Operation):
    """Flip with probability ``prob``: left to right (``flip_code`` 1), top to bottom (0), or both (-1).

    PaddleClas flips with 0.5 and has no ``prob``: leave it out of a file that must run there.
    """

    flip_code: int = option(int, 1, choices=tuple(_FLIPS))
    prob: float = option(float, 0.5, min=0, max=1)

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.transpose(_FLIPS[self.flip_code]) if random.random() < self.prob else image


# --- RandAugment --------------------------------------------------------------------------------------

FULL_MAGNITUDE = 10.0
"""The magnitude at which a transform has its whole range; magnitudes are clipped to it unless mmax says otherwise."""


class Canvas(NamedTuple):
    """What a geometric transform needs besides its size: how to sample, and the colour of what comes into view."""

    interpolation: str
    fill: tuple[int, ...]

    def rotate(self, image: Image.Image, degrees: float) -> Image.Image:
        return image.rotate(degrees, resample=draw_interpolation(self.interpolation), fillcolor=self.fill)

    def warp(self, image: Image.Image, b: float = 0, c: float = 0, d: float = 0, f: float = 0) -> Image.Image:
        """Sample the image at (x + b y + c, d x + y + f)."""
        resample = draw_interpolation(self.interpolation)
        matrix = (1, b, c, d, 1, f)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=self.fill)


Transform = Callable[[Image.Image, float, Canvas], Image.Image]


def _signed(value: float) -> float:
    return -value if random.random() < 0.5 else value


def _solarize_add(image: Image.Image, level: float, canvas: Canvas) -> Image.Image:
    added = int(level * 110)
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _enhance(kind: Callable[[Image.Image], Any]) -> Transform:
    return lambda image, level, canvas: kind(image).enhance(max(0.1, 1.0 + _signed(level * 0.9)))


TRANSFORMS: dict[str, Transform] = {
    "AutoContrast": lambda image, level, canvas: ImageOps.autocontrast(image),
    "Equalize": lambda image, level, canvas: ImageOps.equalize(image),
    "Invert": lambda image, level, canvas: ImageOps.invert(image),
    "Rotate": lambda image, level, canvas: canvas.rotate(image, _signed(level * 30)),
    # At the full magnitude no bit is left and the image is black; the published recipe has it so.
    "PosterizeIncreasing": lambda image, level, canvas: ImageOps.posterize(image, max(0, 4 - int(level * 4))),
    "SolarizeIncreasing": lambda image, level, canvas: ImageOps.solarize(image, 256 - int(level * 256)),
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": _enhance(ImageEnhance.Color),
    "ContrastIncreasing": _enhance(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhance(ImageEnhance.Brightness),
    "SharpnessIncreasing": _enhance(ImageEnhance.Sharpness),
    "ShearX": lambda image, level, canvas: canvas.warp(image, b=_signed(level * 0.3)),
    "ShearY": lambda image, level, canvas: canvas.warp(image, d=_signed(level * 0.3)),
    "TranslateXRel": lambda image, level, canvas: canvas.warp(image, c=_signed(level * 0.45) * image.width),
    "TranslateYRel": lambda image, level, canvas: canvas.warp(image, f=_signed(level * 0.45) * image.height),
}
"""The increasing transforms: (RGB image, magnitude / 10, canvas) -> RGB image of the same size."""


@dataclass(frozen=True)
class RandAugmentConfig:
    """What a string such as 'rand-m9-mstd0.5-inc1' says, by its keys.

    Attributes:
        m, mstd, mmax: magnitude, its standard deviation, and the largest that may be drawn.
        n: transforms for each image.
        p: probability of each transform.
        inc: 1 for the increasing transforms, the only ones here.
    """

    m: float = option(float, FULL_MAGNITUDE, min=0, max=100)
    n: int = option(int, 2, min=1, max=100)
    mstd: float = option(float, 0.0, min=0, max=100)
    mmax: float = option(float, FULL_MAGNITUDE, min=0, max=100)
    p: float = option(float, 0.5, min=0, max=1)
    inc: int = option(int, 0)


def parse_config(text: str) -> RandAugmentConfig:
    """Read a configuration string: 'rand', then sections of a key and a number, joined by dashes.

    Raises:
        ValueError: for another scheme, an unknown section or one out of its range, or without ``inc1``.
    """
    scheme, *sections = text.split("-")
    if scheme != "rand":
        raise ValueError(f"{text!r}: only RandAugment is supported, as in 'rand-m9-mstd0.5-inc1', not {scheme!r}")
    block: dict[str, float] = {}
    for section in sections:
        match = re.fullmatch(r"([a-z]+)([0-9]+(?:\.[0-9]+)?)", section)
        if match is None or match[1] in block:
            raise ValueError(f"{text!r}: section {section!r}: expected a key and a number, such as m9, each key once")
        block[match[1]] = float(match[2]) if "." in match[2] else int(match[2])
    problems: list[str] = []
    config = read_options(RandAugmentConfig, block, "", problems)
    if config is None:
        raise ValueError(f"{text!r}: {'; '.join(problems)}")
    if config.inc != 1:
        raise ValueError(f"{text!r}: only the increasing transforms are supported; add -inc1")
    if config.m > config.mmax:
        raise ValueError(f"{text!r}: 'm' must be at most 'mmax', {config.mmax:g}, got {config.m:g}")
    return config


@dataclass(eq=False)
class TimmAutoAugment(Operation):
    """RandAugment: some transforms for each image, drawn uniformly and with replacement.

    Args:
        prob: probability that an image is augmented at all.
        config_str: such as 'rand-m9-mstd0.5-inc1': magnitude ``m`` with standard deviation ``mstd``, at most
            ``mmax`` (10); ``n`` transforms for each image (2), each with probability ``p`` (0.5); ``inc1`` is
            required.
        interpolation: of the geometric transforms; None is random.
        img_size: taken for PaddleClas' sake; translations here are relative to the image.
        mean: colour, 0 to 1, of what a geometric transform brings into view.
    """

    prob: float = option(float, 1.0, min=0, max=1)
    config_str: str = option(str, "rand-m9-mstd0.5-inc1")
    interpolation: str | None = option(str, "bicubic", choices=("nearest", "bilinear", "bicubic", "random"))
    img_size: tuple[int, int] = option(list, (224, 224), items=int, length=2, min=1)
    mean: tuple[float, float, float] = option(list, IMAGENET_MEAN, items=float, length=3)

    def __post_init__(self) -> None:
        self.interpolation = "random" if self.interpolation is None else self.interpolation
        super().__post_init__()
        self.config = parse_config(self.config_str)
        self.canvas = Canvas(self.interpolation, tuple(min(255, max(0, round(255 * value))) for value in self.mean))

    def draw(self) -> list[tuple[str, float]]:
        """The transforms that the next image gets, by name, and the magnitude of each."""
        drawn = []
        for name in random.choices(tuple(TRANSFORMS), k=self.config.n):
            if random.random() < self.config.p:
                magnitude = random.gauss(self.config.m, self.config.mstd)
                drawn.append((name, min(max(magnitude, 0.0), self.config.mmax)))
        return drawn

    def __call__(self, image: Image.Image) -> Image.Image:
        if self.prob == 1 or random.random() < self.prob:
            for name, magnitude in self.draw():
                image = TRANSFORMS[name](image, magnitude / FULL_MAGNITUDE, self.canvas)
        return image


@dataclass(eq=False)
class RandomErasing(Operation):
    """Overwrite a random rectangle of a normalised image (Zhong et al., https://arxiv.org/abs/1708.04896).

    Args:
        EPSILON: probability.
        sl, sh: range of the rectangle's area, as a share of the image's.
        r1: the aspect ratio, height / width, is drawn from r1 to 1 / r1.
        mean: colour for mode "const".
        attempt: how often to draw until the rectangle is smaller than the image on both sides.
        use_log_aspect: draw the aspect ratio on a logarithmic scale, as the published recipe does.
        mode: "const"; "rand" (one normally distributed colour) or "pixel" (one for each pixel).
    """

    EPSILON: float = option(float, 0.5, min=0, max=1)
    sl: float = option(float, 0.02, above=0, max=1)
    sh: float = option(float, 0.4, above=0, max=1)
    r1: float = option(float, 0.3, min=1e-3, max=1)
    mean: tuple[float, float, float] = option(list, (0.0, 0.0, 0.0), items=float, length=3, min=-(10**6), max=10**6)
    attempt: int = option(int, 100, min=1, max=10**4)
    use_log_aspect: bool = option(bool, False)
    mode: str = option(str, "const", choices=("const", "rand", "pixel"))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order("'sl', 'sh'", self.sl, self.sh)

    def stages(self) -> tuple[tuple[str, ...], str]:
        return ("hwc",), "hwc"

    def draw(self, height: int, width: int) -> tuple[int, int, int, int] | None:
        """The rectangle to erase, (top, left, height, width), or None if no attempt fits."""
        for _ in range(self.attempt):
            area = random.uniform(self.sl, self.sh) * height * width
            if self.use_log_aspect:
                aspect = math.exp(random.uniform(math.log(self.r1), -math.log(self.r1)))
            else:
                aspect = random.uniform(self.r1, 1 / self.r1)
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                return random.randint(0, height - h), random.randint(0, width - w), h, w
        return None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Float32 (H, W, 3) -> the same, or a copy with a rectangle erased."""
        box = self.draw(*image.shape[:2]) if random.random() < self.EPSILON else None
        if box is None:
            return image
        top, left, h, w = box
        filling: Any = self.mean
        if self.mode != "const":
            noise = np.random.Generator(np.random.SFC64(random.getrandbits(64)))
            filling = noise.standard_normal((h, w, 3) if self.mode == "pixel" else (1, 1, 3), np.float32)
        image = image.copy(order="K")
        image[top : top + h, left : left + w] = filling
        return image
