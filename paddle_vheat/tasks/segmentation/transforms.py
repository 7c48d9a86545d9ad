"""The transforms of evaluation, without PaddleSeg: from an image to the array that a model takes.

Names, arguments and results are PaddleSeg's (``tests/deploy`` compares them bit by bit), so that an export holds the
configuration's own list. ``ToBGR`` is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddle_vheat.config.build import by_type, find_problems
from paddle_vheat.config.options import option, read_options, short
from paddle_vheat.data.image_file import MAX_PIXELS
from paddle_vheat.deploy.images import check_size, resize
from paddle_vheat.errors import ConfigError

Undo = list[tuple[str, tuple[int, int]]]  # ("resize" or "padding", (height, width) before), in order of application

INTERPOLATIONS = ("NEAREST", "LINEAR", "CUBIC", "AREA", "LANCZOS4")


# A transform takes (H, W, C) float32 to the same; another size, perhaps, and then adds to ``undo``.


def _side(*default: Any) -> Any:
    return option(int, *default, min=1, max=MAX_PIXELS)


def _width_height(*default: Any) -> Any:
    return option(list, *default, items=int, length=2, min=1, max=MAX_PIXELS)


def _size(image: np.ndarray) -> tuple[int, int]:
    return int(image.shape[0]), int(image.shape[1])


@dataclass(frozen=True)
class Normalize:
    """(value / 255 - mean) / std by channel."""

    mean: Sequence[float] = option(list, [0.5], items=float, min=-(10**6), max=10**6)
    std: Sequence[float] = option(list, [0.5], items=float, min=1e-6, max=10**6)

    def __call__(self, image: np.ndarray, undo: Undo) -> np.ndarray:
        image = image.astype(np.float32) / np.float32(255)
        # In place: computed in float64 and rounded once at a time, as the training's.
        np.subtract(image, np.array(self.mean), out=image, casting="same_kind")
        np.divide(image, np.array(self.std), out=image, casting="same_kind")
        return image


@dataclass(frozen=True)
class ToBGR:
    """The channels in reverse order, for models that were trained on BGR."""

    def __call__(self, image: np.ndarray, undo: Undo) -> np.ndarray:
        return np.ascontiguousarray(image[..., ::-1])


@dataclass(frozen=True)
class Resize:
    """To ``target_size`` [width, height], or to fit it with ``keep_ratio``, up to multiples of ``size_divisor``."""

    target_size: Sequence[int] = _width_height([512, 512])
    keep_ratio: bool = option(bool, False)
    size_divisor: int | None = _side(None)
    interp: str = option(str, "LINEAR", choices=INTERPOLATIONS)

    def __call__(self, image: np.ndarray, undo: Undo) -> np.ndarray:
        height, width = _size(image)
        undo.append(("resize", (height, width)))
        size: Sequence[int] = self.target_size
        if self.keep_ratio:
            scale = min(max(size) / max(height, width), min(size) / min(height, width))
            size = round(width * scale), round(height * scale)
        divisor = self.size_divisor or 1
        new_width, new_height = (math.ceil(side / divisor) * divisor for side in size)
        return resize(image, new_height, new_width, self.interp)


def _scaled(image: np.ndarray, scale: float, undo: Undo) -> np.ndarray:
    height, width = _size(image)
    undo.append(("resize", (height, width)))
    return resize(image, round(height * scale), round(width * scale))


@dataclass(frozen=True)
class ResizeByLong:
    """So that the longer side is ``long_size``."""

    long_size: int = _side()

    def __call__(self, image: np.ndarray, undo: Undo) -> np.ndarray:
        return _scaled(image, self.long_size / max(_size(image)), undo)


@dataclass(frozen=True)
class ResizeByShort:
    """So that the shorter side is ``short_size``, or smaller where the longer one would exceed ``max_size``."""

    short_size: int = _side()
    max_size: float = option(float, 1e10, above=0)

    def __call__(self, image: np.ndarray, undo: Undo) -> np.ndarray:
        size, short = _size(image), self.short_size
        if short / min(size) * max(size) > self.max_size:
            short = int((self.max_size / max(size)) * min(size))
        return _scaled(image, short / min(size), undo)


@dataclass(frozen=True)
class LimitLong:
    """So that the longer side is at most ``max_long`` and at least ``min_long``."""

    max_long: int | None = _side(None)
    min_long: int | None = _side(None)

    def __call__(self, image: np.ndarray, undo: Undo) -> np.ndarray:
        longer = max(_size(image))
        target = min(max(longer, self.min_long or 0), self.max_long or MAX_PIXELS)
        return _scaled(image, target / longer, undo)


def _pad(image: np.ndarray, height: int, width: int, value: float, undo: Undo) -> np.ndarray:
    old_height, old_width = _size(image)
    if height < old_height or width < old_width:
        raise ValueError(
            f"Padding: the image is {old_width} x {old_height} (width x height), larger than the {width} x {height} "
            "to fill up to"
        )
    check_size(height, width)
    undo.append(("padding", (old_height, old_width)))
    margins = ((0, height - old_height), (0, width - old_width), (0, 0))
    return np.pad(image, margins, constant_values=np.asarray(value, image.dtype))


@dataclass(frozen=True)
class Padding:
    """At the right and bottom up to ``target_size`` [width, height]."""

    target_size: Sequence[int] = _width_height()
    im_padding_value: float = option(float, 127.5, min=-(10**6), max=10**6)
    label_padding_value: float = option(float, 255)

    def __call__(self, image: np.ndarray, undo: Undo) -> np.ndarray:
        return _pad(image, self.target_size[1], self.target_size[0], self.im_padding_value, undo)


@dataclass(frozen=True)
class PaddingByAspectRatio:
    """At the right or bottom until width / height is ``aspect_ratio``."""

    aspect_ratio: float = option(float, 1, min=1e-3, max=1000)
    im_padding_value: float = option(float, 127.5, min=-(10**6), max=10**6)
    label_padding_value: float = option(float, 255)

    def __call__(self, image: np.ndarray, undo: Undo) -> np.ndarray:
        height, width = _size(image)
        if width / height == self.aspect_ratio:
            return image
        if width / height > self.aspect_ratio:
            height = int(width / self.aspect_ratio)
        else:
            width = int(height * self.aspect_ratio)
        return _pad(image, height, width, self.im_padding_value, undo)


TRANSFORMS: dict[str, type] = {
    transform.__name__: transform
    for transform in (
        Normalize, ToBGR, Resize, ResizeByLong, ResizeByShort, LimitLong, Padding, PaddingByAspectRatio,
    )
}  # fmt: skip


def build_transforms(
    config: Any, where: str = "transforms", channels: int = 3
) -> Callable[[np.ndarray], tuple[np.ndarray, Undo]]:
    """One function from PaddleSeg's list of {type: name, argument: value}.

    Returns:
        A function of an image (H, W, C), BGR if C is 3, to float32 (C, h, w), RGB, contiguous; and what
        :func:`restore` needs.

    Raises:
        ConfigError: for a transform or argument that is not known here, and values that a transform does not take;
            names ``where``, the list's path. All mistakes are reported at once.
    """
    if not isinstance(config, Sequence) or isinstance(config, str):
        raise ConfigError(f"'{where}' must be a list, got {short(config)}")
    problems: list[str] = []
    transforms = [build_transform(entry, f"{where}.{i}", channels, problems) for i, entry in enumerate(config)]
    if problems:
        raise ConfigError(problems[0]) if len(problems) == 1 else ConfigError(where, problems)

    def run(image: np.ndarray) -> tuple[np.ndarray, Undo]:
        array = image.astype(np.float32)
        array = np.ascontiguousarray(array[..., ::-1] if channels == 3 else array)
        undo: Undo = []
        for transform in transforms:
            array = transform(array, undo)
        return np.ascontiguousarray(array.transpose(2, 0, 1), np.float32), undo

    return run


def build_transform(entry: Any, where: str, channels: int, problems: list[str]) -> Any:
    """One of them; None, and a text for each mistake in ``problems``, if it cannot be."""
    try:
        name, arguments = by_type(entry)
    except ValueError as error:
        problems.append(f"'{where}' {error}")
        return None
    if not isinstance(name, str) or name not in TRANSFORMS:
        problems += find_problems(name, None, TRANSFORMS, where)
        return None
    found: list[str] = []
    transform = read_options(TRANSFORMS[name], arguments, where, found)
    for key in ("mean", "std"):
        if isinstance(transform, Normalize) and len(getattr(transform, key)) not in (1, channels):
            found.append(f"'{where}.{key}' must be a list of {channels} numbers, got {len(getattr(transform, key))}")
    if isinstance(transform, LimitLong) and (transform.min_long or 1) > (transform.max_long or MAX_PIXELS):
        found.append(f"'{where}.min_long' must be at most max_long, {transform.max_long}, got {transform.min_long}")
    size = transform.target_size if isinstance(transform, (Resize, Padding)) else (1, 1)
    if math.prod(size) > MAX_PIXELS:
        found.append(f"'{where}.target_size' must be at most {MAX_PIXELS} pixels, got {list(size)}")
    problems += found
    return transform


def restore(plane: np.ndarray, undo: Undo, interpolation: str) -> np.ndarray:
    """What the model gives for each position, (h, w), at the size of the image before the transforms."""
    for kind, (height, width) in reversed(undo):
        if kind == "padding":
            plane = plane[:height, :width]
        elif plane.shape != (height, width):
            plane = resize(np.ascontiguousarray(plane), height, width, interpolation)
    return plane
