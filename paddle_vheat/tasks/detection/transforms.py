"""Images and their objects on the way to the network: resize, flip, crop, normalise. Needs no Paddle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddle_vheat.deploy.images import resize

PAD_MULTIPLE = 32  # pixels a side of what the network is given


def fitted_size(height: int, width: int, longest: int, shortest: int) -> tuple[int, int]:
    """(height, width) of an image resized to fit: its longer side at most ``longest``, its shorter ``shortest``."""
    scale = min(longest / max(height, width), shortest / min(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def normalise(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """uint8 BGR (h, w, 3) to float32 RGB (3, h, w), (value - mean) / std."""
    array = image[..., ::-1].astype(np.float32)
    array -= np.asarray(mean, np.float32)
    array *= 1 / np.asarray(std, np.float32)
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def pad(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Zeros at the right and below, up to (3, height, width)."""
    return np.pad(image, [(0, 0), (0, height - image.shape[1]), (0, width - image.shape[2])])


def padded_size(heights: Sequence[int], widths: Sequence[int]) -> tuple[int, int]:
    """(height, width) that holds images of these sizes, multiples of 32."""
    return -(-max(heights) // PAD_MULTIPLE) * PAD_MULTIPLE, -(-max(widths) // PAD_MULTIPLE) * PAD_MULTIPLE


@dataclass
class Objects:
    """An image, uint8 (H, W, 3), and its objects: boxes (n, 4) float32, labels (n,), masks (n, H, W) uint8."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray

    def resized(self, longest: int, shortest: int) -> Objects:
        height, width = self.image.shape[:2]
        new_height, new_width = fitted_size(height, width, longest, shortest)
        limits = np.asarray([new_width, new_height] * 2, np.float32)
        scale = limits / np.asarray([width, height] * 2, np.float32)
        masks = [resize(mask, new_height, new_width, "NEAREST") for mask in self.masks]
        stacked = np.stack(masks) if masks else np.zeros((0, new_height, new_width), np.uint8)
        boxes = np.clip(self.boxes * scale, 0, limits)
        return Objects(resize(self.image, new_height, new_width), boxes, self.labels, stacked)

    def flipped(self) -> Objects:
        """Left and right exchanged."""
        width = self.image.shape[1]
        boxes = self.boxes[:, [2, 1, 0, 3]]
        boxes[:, [0, 2]] = width - boxes[:, [0, 2]]
        return Objects(self.image[:, ::-1], boxes, self.labels, self.masks[:, :, ::-1])

    def cropped(self, top: int, left: int, height: int, width: int) -> Objects:
        """The part of (height, width) pixels from (top, left) on; objects whose box is outside are dropped."""
        limits = np.asarray([width, height] * 2, np.float32)
        boxes: np.ndarray = np.clip(self.boxes - np.asarray([left, top] * 2, np.float32), 0, limits)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        part = slice(top, top + height), slice(left, left + width)
        return Objects(self.image[part], boxes[kept], self.labels[kept], self.masks[kept][(slice(None), *part)])


@dataclass(frozen=True)
class TrainTransform:
    """Flip by chance; then fit into ``scale``, or into one with a shorter side drawn from ``short_sides``, half of the
    time after a crop of a smaller picture, if ``crop`` is given. Random numbers are NumPy's global ones.

    Gives "img" (3, h, w) float32, "boxes" (n, 4) float32, "labels" (n,) int64, "masks" (n, h, w) uint8. n may be 0.
    """

    options: Any  # config.TransformOptions

    def __call__(
        self, image: np.ndarray, meta: dict[str, Any], boxes: np.ndarray, labels: np.ndarray, masks: np.ndarray
    ) -> dict[str, Any]:
        options, found = self.options, Objects(image, boxes, labels, masks)
        if np.random.random() < options.flip:
            found = found.flipped()
        longest, shortest = options.scale
        if options.short_sides is not None:
            if options.crop is not None and np.random.random() < 0.5:
                found = self._crop(found, longest)
            shortest = int(np.random.choice(options.short_sides))
        found = found.resized(longest, shortest)
        return {
            "img": normalise(found.image, options.mean, options.std),
            "boxes": np.ascontiguousarray(found.boxes, np.float32),
            "labels": found.labels,
            "masks": np.ascontiguousarray(found.masks),
            "meta": meta,
        }

    def _crop(self, found: Objects, longest: int) -> Objects:
        crop = self.options.crop
        found = found.resized(longest, int(np.random.choice(crop.short_sides)))
        sides = found.image.shape[:2]
        height, width = (np.random.randint(min(side, crop.min), min(side, crop.max) + 1) for side in sides)
        top, left = (np.random.randint(0, side - part + 1) for side, part in zip(sides, (height, width)))
        return found.cropped(top, left, height, width)


@dataclass(frozen=True)
class EvalTransform:
    """Fit into ``scale`` and normalise. "meta" gets "shape", the (h, w) of the result."""

    options: Any  # config.TransformOptions, or deploy.Options

    def __call__(self, image: np.ndarray, meta: dict[str, Any]) -> dict[str, Any]:
        size = fitted_size(image.shape[0], image.shape[1], *self.options.scale)
        array = normalise(resize(image, *size), self.options.mean, self.options.std)
        return {"img": array, "meta": {**meta, "shape": size}}
