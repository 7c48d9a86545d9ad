"""Reading a PaddleSeg dataset's files by this project's readers.

PaddleSeg reads a label with Pillow as it is stored, so that one of 16 bits becomes uint16, which Paddle takes for
bfloat16; a truncated label is not named; OpenCV accepts a truncated JPEG, and turns an image as its EXIF data say, but
not its label. Its transforms take arrays as well as paths, so it is enough to hand them arrays.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from paddle_vheat.data.image_file import read_bgr, read_label
from paddle_vheat.errors import DataError


def read_files(data: dict[str, Any], flag: int | None = None) -> dict[str, Any]:
    """Put arrays in the place of the paths that a PaddleSeg sample holds; changes the sample, and returns it.

    Args:
        data: "img", and "label" if there is one: a path or an array each.
        flag: the ``cv2.IMREAD_`` flag of the image.

    Returns:
        With "img" float32 BGR (H, W, 3) or grey (H, W), and "label" integers (H, W).

    Raises:
        DataError: naming the file that cannot be read, or the label that is not of its image's size.
    """
    image, path = data.get("img"), data.get("label")
    if isinstance(image, (str, os.PathLike)):
        image = data["img"] = read_bgr(image, flag).astype("float32")
    if isinstance(path, (str, os.PathLike)) and isinstance(image, np.ndarray):
        label, size = read_label(path), image.shape[:2]
        if label.shape == size:
            data["label"] = label
        elif not _is_stack(label.shape, size):
            raise DataError(f"{os.fspath(path)}: the label is {label.shape}, its image {size} (H, W)")
    return data


def _is_stack(shape: tuple[int, ...], size: tuple[int, ...]) -> bool:
    """Whether a label file may hold several maps side by side, which newer PaddleSegs take apart themselves."""
    return any(shape[i] % size[i] == 0 and shape[1 - i] == size[1 - i] for i in (0, 1))


class ReadingTransforms:
    """PaddleSeg's ``Compose``, of any version that takes a dict, given arrays in the place of paths.

    Args:
        compose: the original; its attributes are this object's too.
    """

    def __init__(self, compose: Any) -> None:
        self.compose = compose

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        return self.compose(read_files(data, getattr(self.compose, "read_flag", None)))

    def __getattr__(self, name: str) -> Any:
        if name == "compose" or name.startswith("__"):  # asked for by copy and pickle, before there is a compose
            raise AttributeError(name)
        return getattr(self.compose, name)


def wrap_dataset(dataset: Any) -> Any:
    """Have a PaddleSeg dataset read its files by :class:`ReadingTransforms`; returns the dataset."""
    if not isinstance(dataset.transforms, ReadingTransforms):
        dataset.transforms = ReadingTransforms(dataset.transforms)
    return dataset
