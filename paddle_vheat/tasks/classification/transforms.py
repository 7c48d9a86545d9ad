"""The transforms of the published ImageNet recipe, under PaddleClas' names and arguments.

Names, arguments and their defaults are those of PaddleClas' ``transform_ops``, so that one YAML file serves both.
How a value is drawn or rounded follows the published recipe (timm and torchvision) where PaddleClas differs: the
aspect ratio of a random crop is drawn on a logarithmic scale, and the evaluation's resized and cropped sizes are
rounded as torchvision rounds them. Everything random is drawn from Python's ``random``, so that seeding it decides
the result.

Between the operations an image is an RGB :class:`PIL.Image.Image`; from NormalizeImage on, it is float32
(H, W, 3). :func:`pipeline` puts operations together and gives float32 (3, H, W).
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from paddle_vheat.config import ConfigError, did_you_mean
from paddle_vheat.data._array_ops import IMAGENET_MEAN, NormalizeImage, RandomErasing, ToCHWImage
from paddle_vheat.data._op_arguments import (
    flag,
    interpolation_name,
    numbers,
    only_pil,
    probability,
    size_pair,
    value_range,
)
from paddle_vheat.data._rand_augment import (
    AFFINE_INTERPOLATIONS,
    Canvas,
    Colour,
    RandAugment,
    draw_interpolation,
    parse_config,
)
from paddle_vheat.data.image_file import open_image

CROP_ATTEMPTS = 10
DRAFT_GAP = 2
"""A JPEG is decoded at 1/2, 1/4 or 1/8 only if the crop then is this many times as large as what it is resized to."""


def _as_image(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    return Image.fromarray(value)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey at 255, which leaves white.
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


class DecodeImage:
    """A file's bytes -> RGB image; an image, or uint8 (H, W, 3), passes.

    Colours only: the alpha channel is dropped, and an orientation in the EXIF data is not followed, as in the
    published recipe. ``channel_first`` must be False: the other operations take (H, W, 3).

    Raises:
        ValueError: when called with bytes that are no image, or a damaged one.
    """

    takes, gives = ("file", "image"), "image"

    def __init__(
        self, to_rgb: bool = True, to_np: bool = False, channel_first: bool = False, backend: str = "pil"
    ) -> None:
        only_pil(backend)
        flag(to_np, "to_np")  # it changes what is passed on between PaddleClas' operations, not the result
        if flag(channel_first, "channel_first"):
            raise ValueError("channel_first: must be False; ToCHWImage moves the channels to the front at the end")
        self.to_rgb = flag(to_rgb, "to_rgb")

    def finish(self, image: Image.Image) -> Image.Image:
        """Decode an opened image."""
        try:
            image = _to_rgb(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"the image is damaged: {error}") from error
        return image if self.to_rgb else Image.merge("RGB", image.split()[::-1])

    def __call__(self, data: Any) -> Image.Image:
        return self.finish(open_image(data)) if isinstance(data, bytes) else _as_image(data)


class RandCropImage:
    """A random part of the image, of random area and shape, resized.

    Area and aspect ratio (width / height, on a logarithmic scale) are drawn until the part fits into the image,
    at most ten times; after that it is the largest part in the middle whose ratio is allowed.

    Args:
        size: of the result; a number or (width, height).
        scale: range of the part's area, as a share of the image's; (0.08, 1) by default.
        ratio: range of the aspect ratio; (3/4, 4/3) by default.
        interpolation: nearest, bilinear, bicubic (default), box, lanczos, hamming, or random.
        backend: "pil".
    """

    takes, gives = ("image",), "image"

    def __init__(
        self, size: Any, scale: Any = None, ratio: Any = None, interpolation: str | None = None, backend: str = "pil"
    ) -> None:
        only_pil(backend)
        self.size = size_pair(size, "size")
        self.scale = value_range((0.08, 1.0) if scale is None else scale, "scale", 1.0)
        self.ratio = value_range((3 / 4, 4 / 3) if ratio is None else ratio, "ratio")
        self.interpolation = interpolation_name(interpolation)

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

    def __call__(self, image: Any) -> Image.Image:
        image = _as_image(image)
        part = image.crop(self.draw(*image.size))
        return part.resize(self.size, draw_interpolation(self.interpolation))

    def from_file(self, data: bytes, decode: DecodeImage) -> Image.Image:
        """Decode and crop in one: large parts of large JPEGs are decoded at a fraction of their size."""
        image = open_image(data)
        width, height = image.size
        left, top, right, bottom = self.draw(width, height)
        share = min((right - left) // self.size[0], (bottom - top) // self.size[1]) // DRAFT_GAP
        if share >= 2 and image.format in ("JPEG", "MPO"):
            share = 8 if share >= 8 else 4 if share >= 4 else 2
            image.draft(image.mode, (width // share, height // share))
        image = decode.finish(image)
        if image.size == (width, height):
            part = image.crop((left, top, right, bottom))
            return part.resize(self.size, draw_interpolation(self.interpolation))
        x, y = image.width / width, image.height / height
        box = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
        return image.resize(self.size, draw_interpolation(self.interpolation), box=box)


class RandFlipImage:
    """Flip with probability ``prob``: left to right (``flip_code`` 1), top to bottom (0), or both (-1).

    PaddleClas flips with 0.5 and has no ``prob``: leave it out of a file that must run there.
    """

    takes, gives = ("image",), "image"

    def __init__(self, flip_code: int = 1, prob: float = 0.5) -> None:
        methods = {
            1: Image.Transpose.FLIP_LEFT_RIGHT,
            0: Image.Transpose.FLIP_TOP_BOTTOM,
            -1: Image.Transpose.ROTATE_180,
        }
        if isinstance(flip_code, bool) or flip_code not in methods:
            raise ValueError(f"flip_code: expected 1 (left-right), 0 (top-bottom) or -1 (both), got {flip_code!r}")
        self.method = methods[flip_code]
        self.prob = probability(prob, "prob")

    def __call__(self, image: Any) -> Image.Image:
        image = _as_image(image)
        return image.transpose(self.method) if random.random() < self.prob else image


class TimmAutoAugment:
    """RandAugment.

    Args:
        prob: probability that an image is augmented at all.
        config_str: such as 'rand-m9-mstd0.5-inc1': magnitude ``m`` with standard deviation ``mstd``, at most
            ``mmax`` (10); ``n`` transforms for each image (2), each with probability ``p`` (0.5); ``inc1`` is
            required.
        interpolation: of the geometric transforms: nearest, bilinear, bicubic, or random.
        img_size: taken for PaddleClas' sake; translations here are relative to the image.
        mean: colour, 0 to 1, of what a geometric transform brings into view.
    """

    takes, gives = ("image",), "image"

    def __init__(
        self,
        prob: float = 1.0,
        config_str: str = "rand-m9-mstd0.5-inc1",
        interpolation: str | None = "bicubic",
        img_size: Any = 224,
        mean: Any = IMAGENET_MEAN,
    ) -> None:
        self.prob = probability(prob, "prob")
        size_pair(img_size, "img_size")
        red, green, blue = (min(255, max(0, round(255 * value))) for value in numbers(mean, "mean", 3))
        fill: Colour = (red, green, blue)
        name = interpolation_name("random" if interpolation is None else interpolation, AFFINE_INTERPOLATIONS)
        try:
            config = parse_config(config_str)
        except ValueError as error:
            raise ValueError(f"config_str: {error}") from error
        self.augment = RandAugment(config, Canvas(name, fill))

    def __call__(self, image: Any) -> Image.Image:
        image = _as_image(image)
        return self.augment(image) if self.prob == 1 or random.random() < self.prob else image


class ResizeImage:
    """Resize so that the shorter side is ``resize_short``, or to ``size``, a number or (width, height).

    The longer side is rounded down, as in the published evaluation.
    """

    takes, gives = ("image",), "image"

    def __init__(
        self, size: Any = None, resize_short: int | None = None, interpolation: str | None = None, backend: str = "pil"
    ) -> None:
        only_pil(backend)
        if (size is None) == (resize_short is None):
            raise ValueError("expected either size or resize_short")
        self.size = None if size is None else size_pair(size, "size")
        self.resize_short = None if resize_short is None else size_pair(resize_short, "resize_short")[0]
        self.interpolation = interpolation_name(interpolation)

    def __call__(self, image: Any) -> Image.Image:
        image = _as_image(image)
        size = self.size
        if size is None:
            assert self.resize_short is not None
            shorter = min(image.size)
            size = (self.resize_short * image.width // shorter, self.resize_short * image.height // shorter)
        return image if size == image.size else image.resize(size, draw_interpolation(self.interpolation))


class CropImage:
    """The middle of the image, of ``size``: a number or (width, height).

    Raises:
        ValueError: when called with a smaller image.
    """

    takes, gives = ("image",), "image"

    def __init__(self, size: Any) -> None:
        self.size = size_pair(size, "size")

    def __call__(self, image: Any) -> Image.Image:
        image = _as_image(image)
        width, height = self.size
        if image.width < width or image.height < height:
            raise ValueError(
                f"CropImage: the image is {image.width} x {image.height} (width x height), smaller than the "
                f"{width} x {height} to cut out; put a ResizeImage before it"
            )
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))


OPS: dict[str, Callable[..., Any]] = {
    op.__name__: op
    for op in (
        DecodeImage, RandCropImage, RandFlipImage, TimmAutoAugment, ResizeImage, CropImage, NormalizeImage,
        RandomErasing, ToCHWImage,
    )
}  # fmt: skip


def build_ops(config: Any, source: str = "transform_ops") -> list[Any]:
    """Operations from a list of {name: arguments}, as in PaddleClas' ``transform_ops``.

    Args:
        config: the list; arguments may be None.
        source: what to call it in an error: the file and the key.

    Raises:
        ConfigError: for unknown names and arguments, with the nearest and the known ones, and for values that an
            operation does not take; all of them at once.
    """
    if not isinstance(config, (list, tuple)):
        raise ConfigError(f"{source}: expected a list of operations, got {config!r}")
    ops, problems = [], []
    for i, entry in enumerate(config):
        if not isinstance(entry, dict) or len(entry) != 1:
            problems.append(f"{i}: expected one 'name: arguments', got {entry!r}")
            continue
        ((name, arguments),) = entry.items()
        if name not in OPS:
            problems.append(f"{i}: no operation {name!r}{did_you_mean(name, OPS)}; known are {', '.join(OPS)}")
            continue
        arguments = {} if arguments is None else arguments
        if not isinstance(arguments, dict):
            problems.append(f"{i}.{name}: expected arguments by name, got {arguments!r}")
            continue
        known = inspect.signature(OPS[name]).parameters
        unknown = [
            f"{i}.{name}: no argument {key!r}{did_you_mean(key, known)}; known are {', '.join(known) or 'none'}"
            for key in arguments
            if key not in known
        ]
        missing = [
            f"{i}.{name}: the argument {key!r} is missing"
            for key, parameter in known.items()
            if parameter.default is parameter.empty and key not in arguments
        ]
        if unknown or missing:
            problems += unknown + missing
            continue
        try:
            ops.append(OPS[name](**arguments))
        except ValueError as error:
            problems.append(f"{i}.{name}: {error}")
    if problems:
        raise ConfigError(f"{source}:\n  " + "\n  ".join(problems))
    return ops


class Pipeline:
    """Operations one after the other; made by :func:`pipeline`."""

    def __init__(self, ops: Sequence[Any], gives: str) -> None:
        self.ops = tuple(ops)
        self._gives = gives
        decode, crop = (*ops, None, None)[:2]
        self._fused = isinstance(decode, DecodeImage) and isinstance(crop, RandCropImage)

    def __call__(self, data: Any) -> np.ndarray:
        """A file's bytes or an image -> float32 (3, H, W), contiguous.

        Raises:
            ValueError: if the bytes are no image, a damaged one, or one too small for the operations.
        """
        ops = self.ops
        if self._fused and isinstance(data, bytes):
            data, ops = ops[1].from_file(data, ops[0]), ops[2:]
        for op in ops:
            data = op(data)
        array = np.asarray(data)
        return np.ascontiguousarray(array if self._gives == "chw" else np.moveaxis(array, -1, 0), np.float32)


_STAGES = {
    "file": "the bytes of a file (put DecodeImage first)",
    "image": "an image",
    "hwc": "a normalised image (H, W, 3)",
    "chw": "channels first (3, H, W)",
}


def pipeline(ops: Sequence[Any], takes: str = "file", source: str = "transform_ops") -> Pipeline:
    """One callable from operations as :func:`build_ops` gives them.

    Args:
        ops: in the order of application.
        takes: "file" if it is called with the bytes of a file, "image" if with an RGB image.
        source: what to call the operations in an error.

    Raises:
        ConfigError: if an operation cannot work on what the one before it gives.
    """
    stage = takes
    for i, op in enumerate(ops):
        if stage not in op.takes:
            wanted = " or ".join(_STAGES[name] for name in op.takes)
            hint = "; set its order to ''" if isinstance(op, NormalizeImage) and stage == "image" else ""
            raise ConfigError(
                f"{source}: {i}.{type(op).__name__} works on {wanted}, but here it gets {_STAGES[stage]}{hint}"
            )
        stage = op.gives
    if stage == "file":
        raise ConfigError(f"{source}: the list is empty; it needs DecodeImage at least")
    return Pipeline(ops, stage)
