"""Arrays as pictures that a page can show. Needs no Paddle."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

WARM, COLD = (224, 49, 10), (16, 96, 200)
"""RGB of heat above and below zero."""

DECADES = 3  # between the largest heat and what is no longer shown

# The colours from low to high, evenly spaced: dark violet, purple, red, orange, pale yellow.
_RAMP = np.array([(13, 8, 35), (87, 21, 126), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float64)


def data_url(picture: Any) -> str:
    """A picture as a PNG in the text of an address.

    Args:
        picture: uint8 (H, W, 3) or (H, W, 4), or a :class:`PIL.Image.Image`.
    """
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(np.ascontiguousarray(picture))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def ramp(values: np.ndarray, high: float) -> np.ndarray:
    """Values (H, W) from 0 to ``high`` as colours, uint8 (H, W, 3); what is NaN is gray."""
    share = np.clip(np.nan_to_num(values) / high, 0, 1) if high > 0 else np.zeros(values.shape)
    stops = np.linspace(0, 1, len(_RAMP))
    colours = np.stack([np.interp(share, stops, channel) for channel in _RAMP.T], axis=-1)
    colours[np.isnan(values)] = 128
    return np.round(colours).astype(np.uint8)


def veil(heat: np.ndarray) -> np.ndarray:
    """Heat (H, W) to be laid over a picture: uint8 RGBA (H, W, 4), cold where u < 0.

    The opacity is logarithmic, since heat falls off exponentially: full at the largest |u|, none at 1/1000 of it.
    """
    size = np.abs(heat)
    share = size / max(float(size.max()), 1e-300)
    opacity = np.clip(1 + np.log10(np.maximum(share, 1e-9)) / DECADES, 0, 1)
    colours = np.where((heat < 0)[..., None], COLD, WARM)
    return np.concatenate([colours, np.round(255 * opacity)[..., None]], axis=-1).astype(np.uint8)
