"""The transforms of evaluation, without PaddleSeg: from an image to the array that a model takes.

Names, arguments and results are PaddleSeg's (``tests/deploy`` compares them), so that ``deploy.yaml`` holds the
configuration's own list. Classification uses the project's own operations, which need no Paddle.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat.config import ConfigError, did_you_mean
from paddle_vheat.data._op_arguments import flag, fraction, size_pair
from paddle_vheat.data.image_file import read_bgr

Undo = list[tuple[str, tuple[int, int]]]  # ("resize" or "padding", (height, width) before), in order of application
Transform = Callable[[np.ndarray, Undo], np.ndarray]

EVALUATION_OPS = ("DecodeImage", "ResizeImage", "CropImage", "NormalizeImage", "ToCHWImage")
_INTERPOLATIONS = ("NEAREST", "LINEAR", "CUBIC", "AREA", "LANCZOS4")


def _height_width(image: np.ndarray) -> tuple[int, int]:
    return int(image.shape[0]), int(image.shape[1])


def resize(image: np.ndarray, height: int, width: int, interpolation: str = "LINEAR") -> np.ndarray:
    """(H, W) or (H, W, C) to (height, width[, C]); pixel centres at half, edges repeated, as OpenCV does it."""
    import cv2

    resized = cv2.resize(image, (width, height), interpolation=getattr(cv2, f"INTER_{interpolation}"))
    return resized[..., None] if resized.ndim < image.ndim else resized


def _positive(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a positive whole number, got {value!r}")
    return value


def _limit(value: Any, name: str) -> float:
    number = fraction(value, name)
    if number <= 0:
        raise ValueError(f"{name}: expected a positive number, got {value!r}")
    return number


def _width_height(value: Any, name: str) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name}: expected [width, height], got {value!r}")
    return size_pair(value, name)


def _by_channel(value: Any, name: str) -> np.ndarray:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{name}: expected a list of numbers, got {value!r}")
    return np.array([fraction(item, name) for item in value])


class Normalize:
    """(value / 255 - mean) / std by channel."""

    def __init__(self, mean: Any = (0.5,), std: Any = (0.5,)) -> None:
        self.mean, self.std = _by_channel(mean, "mean"), _by_channel(std, "std")
        if (self.std <= 0).any():
            raise ValueError(f"std: expected positive numbers, got {std!r}")

    def __call__(self, image: np.ndarray, undo: Undo) -> np.ndarray:
        image = image.astype(np.float32) / np.float32(255)
        # In place: computed in float64 and rounded once at a time, as the training's.
        np.subtract(image, self.mean, out=image, casting="same_kind")
        np.divide(image, self.std, out=image, casting="same_kind")
        return image


class Resize:
    """To ``target_size`` [width, height], or to fit it with ``keep_ratio``, up to multiples of ``size_divisor``."""

    def __init__(
        self,
        target_size: Any = (512, 512),
        keep_ratio: bool = False,
        size_divisor: int | None = None,
        interp: str = "LINEAR",
    ) -> None:
        self.target = _width_height(target_size, "target_size")
        self.keep_ratio = flag(keep_ratio, "keep_ratio")
        self.divisor = 1 if size_divisor is None else _positive(size_divisor, "size_divisor")
        if interp not in _INTERPOLATIONS:
            raise ValueError(f"interp: expected one of {', '.join(_INTERPOLATIONS)}, got {interp!r}")
        self.interpolation = interp

    def __call__(self, image: np.ndarray, undo: Undo) -> np.ndarray:
        height, width = _height_width(image)
        undo.append(("resize", (height, width)))
        size: Sequence[int] = self.target
        if self.keep_ratio:
            scale = min(max(size) / max(height, width), min(size) / min(height, width))
            size = round(width * scale), round(height * scale)
        new_width, new_height = (math.ceil(side / self.divisor) * self.divisor for side in size)
        return resize(image, new_height, new_width, self.interpolation)


def _scaled(image: np.ndarray, scale: float) -> np.ndarray:
    height, width = _height_width(image)
    return resize(image, round(height * scale), round(width * scale))


class ResizeByLong:
    """So that the longer side is ``long_size``."""

    def __init__(self, long_size: Any) -> None:
        self.long_size = _positive(long_size, "long_size")

    def __call__(self, image: np.ndarray, undo: Undo) -> np.ndarray:
        undo.append(("resize", _height_width(image)))
        return _scaled(image, self.long_size / max(_height_width(image)))


class ResizeByShort:
    """So that the shorter side is ``short_size``, or smaller where the longer one would exceed ``max_size``."""

    def __init__(self, short_size: Any, max_size: Any = 1e10) -> None:
        self.short_size, self.max_size = _positive(short_size, "short_size"), _limit(max_size, "max_size")

    def __call__(self, image: np.ndarray, undo: Undo) -> np.ndarray:
        size = _height_width(image)
        undo.append(("resize", size))
        short = self.short_size
        if short / min(size) * max(size) > self.max_size:
            short = int((self.max_size / max(size)) * min(size))
        return _scaled(image, short / min(size))


class LimitLong:
    """So that the longer side is at most ``max_long`` and at least ``min_long``."""

    def __init__(self, max_long: Any = None, min_long: Any = None) -> None:
        self.most = None if max_long is None else _positive(max_long, "max_long")
        self.least = None if min_long is None else _positive(min_long, "min_long")
        if self.most is not None and self.least is not None and self.least > self.most:
            raise ValueError(f"min_long: expected at most max_long, {max_long}, got {min_long}")

    def __call__(self, image: np.ndarray, undo: Undo) -> np.ndarray:
        longer = max(_height_width(image))
        undo.append(("resize", _height_width(image)))
        if self.most is not None and longer > self.most:
            return _scaled(image, self.most / longer)
        if self.least is not None and longer < self.least:
            return _scaled(image, self.least / longer)
        return image


def _pad(image: np.ndarray, height: int, width: int, value: float, undo: Undo) -> np.ndarray:
    old_height, old_width = _height_width(image)
    if height < old_height or width < old_width:
        raise ValueError(
            f"Padding: the image is {old_width} x {old_height} (width x height), larger than the {width} x {height} "
            "to fill up to"
        )
    undo.append(("padding", (old_height, old_width)))
    margins = ((0, height - old_height), (0, width - old_width), (0, 0))
    return np.pad(image, margins, constant_values=np.asarray(value, image.dtype))


class Padding:
    """At the right and bottom up to ``target_size`` [width, height]."""

    def __init__(self, target_size: Any, im_padding_value: Any = 127.5, label_padding_value: Any = 255) -> None:
        self.width, self.height = _width_height(target_size, "target_size")
        self.value = fraction(im_padding_value, "im_padding_value")

    def __call__(self, image: np.ndarray, undo: Undo) -> np.ndarray:
        return _pad(image, self.height, self.width, self.value, undo)


class PaddingByAspectRatio:
    """At the right or bottom until width / height is ``aspect_ratio``."""

    def __init__(self, aspect_ratio: Any = 1, im_padding_value: Any = 127.5, label_padding_value: Any = 255) -> None:
        self.ratio = _limit(aspect_ratio, "aspect_ratio")
        self.value = fraction(im_padding_value, "im_padding_value")

    def __call__(self, image: np.ndarray, undo: Undo) -> np.ndarray:
        height, width = _height_width(image)
        if width / height == self.ratio:
            return image
        if width / height > self.ratio:
            height = int(width / self.ratio)
        else:
            width = int(height * self.ratio)
        return _pad(image, height, width, self.value, undo)


SEGMENTATION: dict[str, Callable[..., Transform]] = {
    transform.__name__: transform
    for transform in (
        Normalize, Resize, ResizeByLong, ResizeByShort, LimitLong, Padding, PaddingByAspectRatio,
    )
}  # fmt: skip


def build_transforms(config: Sequence[Any], source: str) -> list[Transform]:
    """Transforms of segmentation from PaddleSeg's list of {type: name, argument: value}.

    Raises:
        ConfigError: for a transform or argument that is not known here, naming it and the known ones, and for values
            that a transform does not take.
    """
    transforms = []
    for i, entry in enumerate(config):
        arguments = dict(entry) if isinstance(entry, dict) else {}
        name = arguments.pop("type", None)
        if name not in SEGMENTATION:
            hint = did_you_mean(str(name), SEGMENTATION)
            raise ConfigError(f"{source}.{i}: no transform {name!r}{hint}; known here are {', '.join(SEGMENTATION)}")
        known = inspect.signature(SEGMENTATION[name]).parameters
        for key in arguments:
            if key not in known:
                hint = did_you_mean(str(key), known)
                raise ConfigError(f"{source}.{i}.{name}: no argument {key!r}{hint}; known are {', '.join(known)}")
        absent = [key for key, p in known.items() if p.default is p.empty and key not in arguments]
        if absent:
            raise ConfigError(f"{source}.{i}.{name}: the argument {absent[0]!r} is missing")
        try:
            transforms.append(SEGMENTATION[name](**arguments))
        except ValueError as error:
            raise ConfigError(f"{source}.{i}.{name}: {error}") from error
    return transforms


def check_array(image: Any, channels: int) -> np.ndarray:
    """The image if it is an array (H, W, channels) of pixel values."""
    if not isinstance(image, np.ndarray):
        raise ValueError(f"expected a file or a NumPy array as an image, got {type(image).__name__}")
    if image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
        raise ValueError(f"expected an image (H, W, {channels}), got an array of shape {list(image.shape)}")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"expected an image of uint8 or floating-point values from 0 to 255, got {image.dtype}")
    return image


class SegmentationInput:
    """From an image, BGR (H, W, C) or a file, to float32 (C, h, w) and what undoes the way there."""

    def __init__(self, config: Sequence[Any], channels: int, source: str) -> None:
        self.transforms = build_transforms(config, source)
        self.channels = channels

    def __call__(self, image: Any) -> tuple[np.ndarray, Undo]:
        array = check_array(read_bgr(image) if isinstance(image, (str, Path)) else image, self.channels)
        array = array.astype(np.float32)
        array = array[..., ::-1] if self.channels == 3 else array
        array = np.ascontiguousarray(array)
        undo: Undo = []
        for transform in self.transforms:
            array = transform(array, undo)
        return np.ascontiguousarray(array.transpose(2, 0, 1), np.float32), undo


class ClassificationInput:
    """From an image, BGR uint8 (H, W, 3) or a file, to float32 (3, h, w)."""

    def __init__(self, config: Sequence[Any], channels: int, source: str) -> None:
        from paddle_vheat.data.image_ops import build_ops, pipeline

        if channels != 3:
            raise ConfigError(f"{source}: the operations work on 3 channels, the model takes {channels}")
        for i, entry in enumerate(config):
            name = next(iter(entry), None) if isinstance(entry, dict) else entry
            if name not in EVALUATION_OPS:
                hint = did_you_mean(str(name), EVALUATION_OPS)
                raise ConfigError(f"{source}.{i}: no operation {name!r}{hint}; known here: {', '.join(EVALUATION_OPS)}")
        ops = build_ops(list(config), source)
        if not any(type(op).__name__ == "DecodeImage" for op in ops):
            ops = build_ops([{"DecodeImage": {"to_rgb": True}}]) + ops
        self._decode = ops[0]
        self._from_file = pipeline(ops, source=source)
        self._from_image = pipeline(ops[1:], takes="image", source=source)

    def __call__(self, image: Any) -> tuple[np.ndarray, Undo]:
        if isinstance(image, (str, Path)):
            try:
                return self._from_file(Path(image).read_bytes()), []
            except ValueError as error:
                raise ValueError(f"{image}: {error}") from error
        from PIL import Image

        array = check_array(image, 3)
        if array.dtype != np.uint8:
            raise ValueError(
                f"expected an image of uint8, which classification's transforms work on, got {array.dtype}"
            )
        return self._from_image(self._decode.finish(Image.fromarray(np.ascontiguousarray(array[..., ::-1])))), []
