"""Transforms that published runs need and PaddleSeg lacks; importing this module registers them with PaddleSeg.

What is random is drawn from Python's ``random``: seeding it decides the result.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from paddleseg.cvlibs import manager
from paddleseg.transforms import Resize

from paddle_vheat._arguments import check_integer
from paddle_vheat.models.registry import unknown_name

Data = dict[str, Any]


def _pair(value: Any, name: str, kind: type, what: str) -> tuple[Any, Any]:
    """Two numbers above 0; a ValueError that begins with ``name`` for anything else."""
    pair = tuple(value) if isinstance(value, (list, tuple)) else ()
    numbers: list[Any] = [item for item in pair if isinstance(item, (int, kind)) and not isinstance(item, bool)]
    if len(pair) != 2 or len(numbers) != 2 or not all(0 < number < math.inf for number in numbers):
        raise ValueError(f"{name}: expected {what}, got {value!r}")
    return kind(pair[0]), kind(pair[1])


def _range(value: Any, name: str) -> tuple[float, float]:
    low, high = _pair(value, name, float, "[min, max] above 0")
    if low > high:
        raise ValueError(f"{name}: expected [min, max] above 0, got {value!r}")
    return low, high


class ToBGR:
    """From RGB, which PaddleSeg reads, to BGR, for models that were trained on OpenCV's order of channels.

    Put it before ``Normalize``, whose mean and std then are in BGR order too.

    Raises:
        ValueError: when called with an image that is not (H, W, 3).
    """

    def __init__(self) -> None:
        """Takes no argument; without this method PaddleSeg's builder could not tell."""

    def __call__(self, data: Data) -> Data:
        if data["img"].ndim != 3 or data["img"].shape[2] != 3:
            raise ValueError(f"ToBGR: expected an image (H, W, 3), got shape {list(data['img'].shape)}")
        data["img"] = np.ascontiguousarray(data["img"][..., ::-1])
        return data


class RandomRescale:
    """Resize by a random scale and, if asked for, a random aspect, in one interpolation.

    Args:
        scale_range: [min, max] of the scale, drawn uniformly.
        aspect_range: [min, max] of the factor of width / height, drawn uniformly; it leaves the area alone.
        fit: [width, height], in either order: scale 1 is the largest size of the image's shape that fits into this
            box (mmsegmentation's ``RandomResize`` with ``keep_ratio``). None: scale 1 is the image's own size.
        interp: OpenCV's interpolation of the image, as of PaddleSeg's ``Resize``; labels take the nearest value.

    Shapes:
        ``img`` (H, W, C), 0 to 255, and what ``gt_fields`` names, (H, W) -> all of one new (h, w).
    """

    def __init__(
        self,
        scale_range: Sequence[float] = (0.5, 2.0),
        aspect_range: Sequence[float] = (1.0, 1.0),
        fit: Sequence[int] | None = None,
        interp: str = "LINEAR",
    ) -> None:
        self.scale_range = _range(scale_range, "RandomRescale: scale_range")
        self.aspect_range = _range(aspect_range, "RandomRescale: aspect_range")
        self.fit = None if fit is None else _pair(fit, "RandomRescale: fit", int, "[width, height] in pixels")
        if interp not in Resize.interp_dict:
            raise ValueError(f"RandomRescale: {unknown_name('interp', interp, list(Resize.interp_dict))}")
        self.interpolation = Resize.interp_dict[interp]

    def __call__(self, data: Data) -> Data:
        height, width = data["img"].shape[:2]
        scale = random.uniform(*self.scale_range)
        if self.fit is not None:
            scale *= min(max(self.fit) / max(height, width), min(self.fit) / min(height, width))
        stretch = math.sqrt(random.uniform(*self.aspect_range))
        size = max(1, round(width * scale * stretch)), max(1, round(height * scale / stretch))
        # Cubic weights overshoot; the published runs resize 8-bit pictures, which cannot.
        data["img"] = np.clip(cv2.resize(data["img"], size, interpolation=self.interpolation), 0, 255)
        for key in data.get("gt_fields", []):
            data[key] = cv2.resize(data[key], size, interpolation=cv2.INTER_NEAREST)
        return data


class RandomBrightnessShift:
    """Add one random integer to all pixels and channels.

    Args:
        max_shift: the integer is drawn uniformly from -max_shift to max_shift.

    Shapes:
        ``img`` of any shape, 0 to 255 -> float32 of the same shape, kept within 0 to 255.
    """

    def __init__(self, max_shift: int = 10) -> None:
        check_integer("RandomBrightnessShift: max_shift", max_shift, 0, 255)
        self.max_shift = max_shift

    def __call__(self, data: Data) -> Data:
        shift = random.randint(-self.max_shift, self.max_shift)
        data["img"] = np.clip(data["img"].astype(np.float32) + shift, 0, 255)
        return data


def register(registry: Any, component: Any) -> None:
    """Add a component of ours; a name that somebody else has taken is an error."""
    name = component.__name__
    taken = registry.components_dict.get(name)
    if taken is None:
        registry.add_component(component)
    elif getattr(taken, "__module__", None) != component.__module__:
        raise RuntimeError(f"PaddleSeg already has a component {name!r}, from {taken.__module__}")


for _transform in (ToBGR, RandomRescale, RandomBrightnessShift):
    register(manager.TRANSFORMS, _transform)
