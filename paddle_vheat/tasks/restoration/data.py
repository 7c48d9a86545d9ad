"""Folders of images, degraded on the fly. No Paddle here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from paddle_vheat.config import MissingFileError
from paddle_vheat.data.image_file import read_bgr
from paddle_vheat.deploy.writing import IMAGE_SUFFIXES
from paddle_vheat.errors import DataError, UserError
from paddle_vheat.tasks.restoration import degrade
from paddle_vheat.tasks.restoration.metrics import luma


def as_channels(image: np.ndarray, channels: int, to_gray: str | None, name: str) -> np.ndarray:
    """An image as a model of 1 or 3 channels takes it: uint8 (H, W), or BGR (H, W, 3).

    An image of three equal channels is gray. "either" leaves a colour image as it is.

    Raises:
        UserError: for a colour image and a gray model, if nothing says how it becomes gray; ``name`` names it.
    """
    if channels == 3:
        return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    if image.ndim == 2 or (image == image[..., :1]).all():
        return image if image.ndim == 2 else np.ascontiguousarray(image[..., 0])
    if to_gray == "luma":
        return luma(image)
    if to_gray == "opencv":
        return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    if to_gray == "either":
        return image
    raise DataError(
        f"{name}: a colour image, and the model is gray ('model.in_channels' is 1); give gray images, or say how they "
        "become gray by 'to_gray' (opencv or luma)"
    )


def to_planes(image: np.ndarray) -> np.ndarray:
    """(H, W), or BGR (H, W, 3) -> (1, H, W), or RGB (3, H, W)."""
    return np.ascontiguousarray(image[None] if image.ndim == 2 else image[..., ::-1].transpose(2, 0, 1))


def to_image(planes: np.ndarray) -> np.ndarray:
    """The inverse of :func:`to_planes`."""
    return planes[0] if len(planes) == 1 else np.ascontiguousarray(planes.transpose(1, 2, 0)[..., ::-1])


def list_folders(folders: Sequence[str], where: str) -> list[tuple[str, str]]:
    """(path, path within its folder) of all images in the folders and those in them, in the order of their names.

    Raises:
        MissingFileError: for a folder that is not there.
        DataError: for one without images. ``where`` names the key.
    """
    found = []
    for i, folder in enumerate(folders):
        if not os.path.isdir(folder):
            raise MissingFileError(
                f"'{where}.{i}' is {folder!r}, and there is no such folder; put the images there, or give "
                f"--opts {where}.{i}=FOLDER"
            )
        paths = [path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
        if not paths:
            raise DataError(f"'{where}.{i}' is {folder!r}, a folder without images ({', '.join(IMAGE_SUFFIXES)})")
        found += [(str(path), str(path.relative_to(folder))) for path in sorted(paths)]
    return found


class RestorationData:
    """Clean images and what is made of them: random crops for training, whole images with fixed noise for scores.

    Args:
        folders: of clean images.
        where: the key that names them, for messages.
        degradation: has ``type`` ("noise" or "jpeg"), ``sigma`` and ``quality``.
        channels: 1 (gray) or 3 (RGB).
        to_gray: see :func:`as_channels`.
        crop: pixels a side of what is trained on; None for scores.
        smallest: side in pixels below which an image cannot be used.
        cache: keep decoded images in memory.

    A sample of training has "input" and "target", float32 (C, crop, crop); one for scores has "input" (C, H, W), and in
    "meta" its "name" and its "target", uint8 (H, W) or BGR (H, W, 3).
    """

    def __init__(
        self,
        folders: Sequence[str],
        where: str,
        degradation: Any,
        channels: int,
        to_gray: str | None = None,
        crop: int | None = None,
        smallest: int = 1,
        cache: bool = False,
    ) -> None:
        self.images = list_folders(folders, where)
        self.degradation, self.channels, self.to_gray = degradation, channels, to_gray
        self.crop, self.smallest, self.cache = crop, smallest, cache
        # What a sound image is, for the memory of earlier checks.
        self.rules = f"restoration {channels} {to_gray} {smallest}"
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.images)

    def files(self, index: int) -> list[str]:
        return [self.images[index][0]]

    def read(self, index: int) -> np.ndarray:
        """The clean image, uint8 (H, W) or BGR (H, W, 3).

        Raises:
            DataError: naming the file, if it cannot be decoded, is of colour for a gray model, or too small.
        """
        if index in self._kept:
            return self._kept[index]
        path = self.images[index][0]
        image = as_channels(read_bgr(path), self.channels, self.to_gray, path)
        if min(image.shape[:2]) < self.smallest:
            height, width = image.shape[:2]
            what = "a score needs" if self.crop is None else f"a crop of {self.crop} ('train.crop') needs"
            raise DataError(f"{path}: the image is {height} x {width} pixels; {what} at least {self.smallest} a side")
        if self.cache:
            self._kept[index] = image
        return image

    def check(self, index: int) -> None:
        self.read(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, how = self.read(index), self.degradation
        if self.crop is None:
            if how.type == "noise":
                worse = degrade.scored_noise(image, how.sigma)
            else:
                worse = degrade.as_float(degrade.compress_jpeg(image, how.quality))
            return {"input": to_planes(worse), "meta": {"index": index, "name": self.images[index][1], "target": image}}
        if how.type == "noise":
            worse, clean = degrade.noise_pair(image, how.sigma, self.crop)
        else:
            worse, clean = degrade.jpeg_pair(image, how.quality, self.crop, gray=self.channels == 1)
        return {"input": to_planes(worse), "target": to_planes(clean), "meta": {"index": index}}


def check_picture(image: Any, name: str) -> np.ndarray:
    """A picture that somebody gives as an array: uint8 (H, W), (H, W, 1) or BGR (H, W, 3) -> (H, W) or (H, W, 3).

    Raises:
        UserError: for anything else.
    """
    shaped = isinstance(image, np.ndarray) and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3)))
    if not shaped or image.dtype != np.uint8 or 0 in image.shape:
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"{name}: expected a picture of uint8, (H, W), (H, W, 1) or BGR (H, W, 3), got {found}")
    return image[..., 0] if image.shape[2:] == (1,) else image
