"""Pictures of segmentation: class ids with a palette, colours over the image, image | truth | prediction.

Needs no Paddle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from paddle_vheat.deploy.images import read_image


@dataclass(frozen=True)
class SegmentationPrediction:
    """The class of every pixel: int32 (H, W).

    Args:
        palette: RGB of each class, uint8 (classes, 3).
        class_names: of every class; None where they have none.
    """

    value: np.ndarray
    palette: np.ndarray
    class_names: Sequence[str] | None = None

    def draw(self, image: Any) -> dict[str, Any]:
        """``pseudo_color_prediction``: class ids, with the palette; ``added_prediction``: colours over the image."""
        added = overlay(read_image(image)[..., ::-1], colourise(self.value, self.palette))
        return {"pseudo_color_prediction": class_picture(self.value, self.palette), "added_prediction": added}

    def to_json(self) -> None:
        """None: the pictures have the class ids."""

    def line(self) -> str:
        return ""


def class_picture(classes: np.ndarray, palette: np.ndarray) -> Image.Image:
    """A picture whose pixels are the class ids: 8 bits with the palette, or 16 bits for more than 256 classes."""
    if len(palette) > 256:
        return Image.fromarray(classes.astype(np.uint16))
    picture = Image.fromarray(classes.astype(np.uint8))
    picture.putpalette(palette.reshape(-1).tolist())  # makes it a picture of mode P
    return picture


def colourise(classes: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Palette colours of a class map, RGB uint8 (H, W, 3); what is no class is black."""
    table = np.concatenate([np.asarray(palette, np.uint8), np.zeros((1, 3), np.uint8)])
    known = (classes >= 0) & (classes < len(palette))
    return table[np.where(known, classes, len(palette))]


def overlay(image: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The image shining through the colours, with a weight of 0.6; all uint8 (H, W, 3)."""
    mixed = 0.6 * image.astype(np.float32) + 0.4 * colours
    return np.clip(mixed + 0.5, 0, 255).astype(np.uint8)


def compose_triptych(image: np.ndarray, label: np.ndarray, classes: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Image (RGB) | truth | prediction side by side, uint8 (H, 3 W, 3).

    Where there is no truth, the prediction is neither right nor wrong: both are black there.
    """
    unknown = (label >= len(palette))[..., None]
    panels = [np.where(unknown, 0, colourise(ids, palette)).astype(np.uint8) for ids in (label, classes)]
    return np.concatenate([image, *panels], axis=1)


def default_palette(classes: int) -> np.ndarray:
    """RGB of each class, uint8 (classes, 3), PaddleSeg's: the bits of the class' number, counted from 1, spread over
    the three channels, the highest first."""
    ids, palette = np.arange(1, classes + 1), np.zeros((classes, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            palette[:, channel] |= (((ids >> (3 * level + channel)) & 1) << (7 - level)).astype(np.uint8)
    return palette
