"""What processors do to images: reading, checking, resizing, each within bounds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat.data.image_file import MAX_PIXELS, read_bgr
from paddle_vheat.errors import DataError, UserError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


def read_image(image: Any, channels: int = 3) -> np.ndarray:
    """An image, BGR if ``channels`` is 3, (H, W, channels), from a file's name or from such an array.

    Raises:
        ValueError: for a file that cannot be decoded, and an array that is no image: uint8, or floating-point values
            from 0 to 255.
    """
    array = read_bgr(image) if isinstance(image, (str, os.PathLike)) else image
    if not isinstance(array, np.ndarray):
        raise UserError(f"expected a file or a NumPy array as an image, got {type(image).__name__}")
    if array.ndim != 3 or array.shape[2] != channels or 0 in array.shape:
        raise UserError(f"expected an image (H, W, {channels}), got an array of shape {list(array.shape)}")
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"expected an image of uint8 or floating-point values from 0 to 255, got {array.dtype}")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):  # true for NaN
        raise UserError(f"expected floating-point values from 0 to 255, got {low:g} to {high:g}")
    return array


def check_size(height: int, width: int) -> None:
    """Raise a ValueError for a size that an image cannot be brought to, before memory is taken for it."""
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise UserError(
            f"the image would become {width} x {height} pixels (width x height); expected at least 1 x 1 and at most "
            f"{MAX_PIXELS} in all"
        )


def resize(image: np.ndarray, height: int, width: int, interpolation: str = "LINEAR") -> np.ndarray:
    """(H, W) or (H, W, C) to (height, width[, C]); pixel centres at half, edges repeated, as OpenCV does it."""
    import cv2

    check_size(height, width)
    resized = cv2.resize(image, (width, height), interpolation=getattr(cv2, f"INTER_{interpolation}"))
    return resized[..., None] if resized.ndim < image.ndim else resized


def resize_planes(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(C, h, w) to (C, *size), bilinearly."""
    return np.stack([resize(plane, *size) for plane in array])


def is_video(path: str | Path) -> bool:
    """Whether a file's name is a video's."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def read_frames(path: str | Path) -> tuple[Iterator[tuple[int, np.ndarray]], int | None]:
    """(number from 0, BGR uint8 (H, W, 3)) of the frames of a video, and how many it claims to have.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if it is no video that OpenCV can decode.
    """
    import cv2

    if not Path(path).is_file():
        raise FileNotFoundError(f"no such video: {path}")
    video = cv2.VideoCapture(str(path))
    good, frame = video.read()
    if not good:
        raise DataError(f"{path}: OpenCV cannot decode a frame of it")
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))

    def frames() -> Iterator[np.ndarray]:
        good, current = True, frame
        while good:
            yield current
            good, current = video.read()

    return enumerate(frames()), count if count > 0 else None
