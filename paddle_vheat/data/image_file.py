"""Reading image files that anybody may have written.

What a header claims is checked before a pixel is decoded, so that a file of some bytes cannot claim all memory. Only
formats of pixels are opened: for others, such as EPS, Pillow would start another program. An EXIF orientation is
ignored, by images and labels alike: a label is never turned, so a turned image would no longer lie under its label.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from paddle_vheat._files import not_a_file
from paddle_vheat.errors import DataError

MAX_PIXELS = 1 << 27
"""Largest width x height that is decoded: 1.6 GB as float32 RGB, below the limits of Pillow and OpenCV."""

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF", "JPEG2000")

ORIENTATION = 274
"""The EXIF tag that says how a viewer should turn or mirror the picture: 1 for not at all, else 2 to 8."""

_ANIMATED = ("GIF", "PNG", "WEBP")  # TIFF holds pages, and MPO previews: there the first one is the picture


def open_image(source: str | os.PathLike[str] | bytes) -> Image.Image:
    """An image file, or its bytes, with the size known and the pixels not yet decoded.

    Raises:
        DataError: if it is no file, no image, claims more than ``MAX_PIXELS``, has several frames or floating-point
            pixels. The message says what is wrong, and not which file.
    """
    if not isinstance(source, bytes) and (why := not_a_file(source)):
        raise DataError(why)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise DataError(f"the image is too large: {error}") from error
    except PermissionError as error:
        raise DataError(f"it may not be read ({error.strerror})") from error
    except Exception as error:  # a damaged header can fail in any way: OSError, SyntaxError, struct.error ...
        empty = not source if isinstance(source, bytes) else not os.path.getsize(source)
        what = "is empty" if empty else "is no image that Pillow knows, or the beginning of one"
        raise DataError(f"the file {what}") from error
    try:
        _check_opened(image)
    except DataError:
        image.close()
        raise
    return image


def _check_opened(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"the image is too large: its header says {width} x {height} pixels, and at most {MAX_PIXELS} are decoded"
        )
    try:
        animated = image.format in _ANIMATED and getattr(image, "is_animated", False)
    except Exception as error:  # Pillow looks at a GIF's second frame
        raise DataError(f"it is truncated or damaged ({error})") from error
    if animated:
        raise DataError(f"it is an animation ({image.format}), of which only the first frame would be read")
    if image.mode == "F":
        raise DataError("its pixels are floating-point numbers (mode F); expected integers")
    # Pillow and OpenCV both turn the pixels of a TIFF themselves, and cannot be told not to.
    if image.format == "TIFF" and _orientation(image) != 1:
        raise DataError(f"it is a TIFF with orientation {_orientation(image)}; expected one stored upright (1)")


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the whole picture to look behind it
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF data ask for nothing
        return 1
    return found if found in range(2, 9) else 1


def has_orientation(path: str | os.PathLike[str]) -> bool:
    """Whether an image asks to be turned or mirrored (EXIF orientation 2 to 8), which nothing here does.

    Raises:
        DataError: naming the file, as :func:`check_header`.
    """
    try:
        with open_image(path) as image:
            return _orientation(image) != 1
    except DataError as error:
        raise _unreadable("image", path, error) from error


def check_header(path: str | os.PathLike[str]) -> None:
    """Raise a DataError that names a file which :func:`open_image` refuses."""
    has_orientation(path)


def _unreadable(kind: str, path: str | os.PathLike[str], why: object = "") -> DataError:
    decoded = f"it cannot be decoded: {why}" if str(why) else "it cannot be decoded"
    return DataError(f"cannot read the {kind} {os.fspath(path)}: {not_a_file(path) or decoded}")


def read_bgr(path: str | os.PathLike[str], flag: int | None = None) -> np.ndarray:
    """An image as OpenCV decodes it, uint8: BGR (H, W, 3), or as the ``cv2.IMREAD_`` flag says; never turned.

    Raises:
        DataError: naming the file, if :func:`open_image` refuses it, or if it is truncated or damaged.
    """
    import cv2

    path = os.fspath(path)
    flag = cv2.IMREAD_COLOR if flag is None else flag
    try:
        with open_image(path) as image:
            if image.format in ("JPEG", "MPO"):
                # OpenCV fills what is missing of a JPEG with grey. Decoded at 1/8, this costs a fifth of reading it.
                image.draft("L", (1, 1))
                _load(image)
        pixels = cv2.imread(path, flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except (DataError, cv2.error) as error:
        raise _unreadable("image", path, error) from error
    if pixels is None:
        raise _unreadable("image", path)
    return pixels


def read_label(path: str | os.PathLike[str]) -> np.ndarray:
    """A label map, integers (H, W): uint8 where the values fit, whatever the file's number of bits.

    Raises:
        DataError: naming the file, as for :func:`read_bgr`, and if it has colours.
    """
    path = os.fspath(path)
    try:
        with open_image(path) as image:
            _load(image)
            label, mode = np.asarray(image), image.mode
    except DataError as error:
        raise _unreadable("label", path, error) from error
    if label.ndim != 2 or label.dtype.kind not in "biu":
        raise DataError(
            f"{path}: the label is a picture of mode {mode}; expected one integer per pixel (mode L, P, 1 or I)"
        )
    if label.min() >= 0 and label.max() < 1 << 16:
        return label.astype(np.min_scalar_type(int(label.max())), copy=False)
    return label


def _load(image: Image.Image) -> Any:
    try:
        return image.load()
    except Exception as error:  # as for the header
        raise DataError(f"it is truncated or damaged ({error})") from error


def absent_files(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
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
