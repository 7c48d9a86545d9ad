"""Reading image files that anybody may have written.

What a header claims is checked before a pixel is decoded, so that a file of some bytes cannot claim all memory. Only
formats of pixels are opened: for others, such as EPS, Pillow would start another program.
"""

from __future__ import annotations

import io
import os
import warnings
from typing import Any

import numpy as np
from PIL import Image

MAX_PIXELS = 1 << 27
"""Largest width x height that is decoded: 1.6 GB as float32 RGB, below the limits of Pillow and OpenCV."""

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF", "JPEG2000")


def open_image(source: str | os.PathLike[str] | bytes) -> Image.Image:
    """An image file, or its bytes, with the size known and the pixels not yet decoded.

    Raises:
        ValueError: if it is no image, or claims more than ``MAX_PIXELS``. The message says what is wrong, and not
            which file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(f"the image is too large: {error}") from error
    except Exception as error:  # a damaged header can fail in any way: OSError, SyntaxError, struct.error ...
        if not isinstance(source, bytes) and not os.path.isfile(source):
            raise ValueError("there is no such file") from error
        empty = not source if isinstance(source, bytes) else not os.path.getsize(source)
        what = "is empty" if empty else "is no image that Pillow knows, or the beginning of one"
        raise ValueError(f"the file {what}") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise ValueError(
            f"the image is too large: its header says {width} x {height} pixels, and at most {MAX_PIXELS} are decoded"
        )
    return image


def check_header(path: str | os.PathLike[str]) -> None:
    """Raise a ValueError that names a file which :func:`open_image` refuses."""
    try:
        open_image(path).close()
    except ValueError as error:
        raise _unreadable("image", path, error) from error


def _unreadable(kind: str, path: str | os.PathLike[str], why: object = "") -> ValueError:
    decoded = f"it cannot be decoded: {why}" if str(why) else "it cannot be decoded"
    return ValueError(f"cannot read the {kind} {os.fspath(path)}: {decoded if os.path.isfile(path) else why}")


def read_bgr(path: str | os.PathLike[str], flag: int | None = None) -> np.ndarray:
    """An image as OpenCV decodes it, uint8: BGR (H, W, 3), or as the ``cv2.IMREAD_`` flag says.

    Raises:
        ValueError: naming the file, if it is missing, no image, too large, truncated or damaged.
    """
    import cv2

    path = os.fspath(path)
    try:
        with open_image(path) as image:
            if image.format in ("JPEG", "MPO"):
                # OpenCV fills what is missing of a JPEG with grey. Decoded at 1/8, this costs a fifth of reading it.
                image.draft("L", (1, 1))
                _load(image)
        pixels = cv2.imread(path, cv2.IMREAD_COLOR if flag is None else flag)
    except (ValueError, cv2.error) as error:
        raise _unreadable("image", path, error) from error
    if pixels is None:
        raise _unreadable("image", path)
    return pixels


def read_label(path: str | os.PathLike[str]) -> np.ndarray:
    """A label map, integers (H, W): uint8 where the values fit, whatever the file's number of bits.

    Raises:
        ValueError: naming the file, as for :func:`read_bgr`, and if it has colours or fractions.
    """
    path = os.fspath(path)
    try:
        with open_image(path) as image:
            _load(image)
            label, mode = np.asarray(image), image.mode
    except ValueError as error:
        raise _unreadable("label", path, error) from error
    if label.ndim != 2 or label.dtype.kind not in "biu":
        raise ValueError(
            f"{path}: the label is a picture of mode {mode}; expected one whole number per pixel (mode L, P, 1 or I)"
        )
    for kind in (np.uint8, np.uint16):
        if label.dtype != kind and label.min() >= 0 and label.max() <= np.iinfo(kind).max:
            return label.astype(kind)
        if label.dtype == kind:
            break
    return label


def _load(image: Image.Image) -> Any:
    try:
        return image.load()
    except Exception as error:  # as for the header
        raise ValueError(f"it is truncated or damaged ({error})") from error


def absent_files(paths: Any) -> list[str]:
    """Those of the paths that are not in the listing of their folder: for a million files, the only quick way."""
    listings: dict[str, set[str]] = {}
    absent = []
    for path in paths:
        folder, name = os.path.split(os.fspath(path))
        if folder not in listings:
            listings[folder] = set(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else set()
        if name not in listings[folder]:
            absent.append(os.fspath(path))
    return absent
