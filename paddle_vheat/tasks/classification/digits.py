"""Handwritten digits that come with scikit-learn: 1,797 real images to train on without a download.

They are the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998, UCI Machine
Learning Repository), 8 x 8 pixels with 17 levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from paddle_vheat._paddle import paddle
from paddle_vheat.data.image_ops import build_ops, pipeline

CLASS_NAMES = tuple("0123456789")
SPLIT_SEED = 20240521
"""Decides which digits are for validation; never to be changed, or results could not be compared."""

VAL_PER_CLASS = 36
LEVELS = 16


@lru_cache(maxsize=1)
def _load() -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 (1797, 8, 8) and classes int64 (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install scikit-learn") from error
    bunch = load_digits()
    pictures = np.round(bunch.images * (255 / LEVELS)).astype(np.uint8)
    return pictures, bunch.target.astype(np.int64)


def split_indices(mode: str) -> np.ndarray:
    """Which of scikit-learn's digits belong to "train" (1,437) or "val" (360, 36 of each class), sorted.

    Raises:
        ValueError: for another mode.
    """
    if mode not in ("train", "val"):
        raise ValueError(f"mode: expected 'train' or 'val', got {mode!r}")
    _, classes = _load()
    rng = np.random.default_rng(SPLIT_SEED)
    chosen = [rng.permutation(np.flatnonzero(classes == label))[:VAL_PER_CLASS] for label in range(len(CLASS_NAMES))]
    val = np.sort(np.concatenate(chosen))
    return val if mode == "val" else np.setdiff1d(np.arange(len(classes)), val)


class Digits(paddle.io.Dataset):
    """The digits, enlarged bicubically to RGB pictures of ``size`` x ``size``, and transformed.

    Args:
        mode: "train" or "val", a fixed split.
        size: in pixels, such as 32 or 64.
        transform_ops: a list as for :func:`paddle_vheat.data.image_ops.build_ops`; a DecodeImage in it does
            nothing. None gives values from 0 to 255.
        source: what to call ``transform_ops`` in an error.

    Attributes:
        file_list: ("digits/<number in scikit-learn's order>", class) of every sample.
        class_names, num_classes: "0" to "9", 10.

    Raises:
        ImportError: if scikit-learn is not installed.
        ValueError: for another mode or size.
        ConfigError: for unusable ``transform_ops``.
    """

    def __init__(
        self,
        mode: str = "train",
        size: int = 32,
        transform_ops: Sequence[dict] | None = None,
        source: str = "transform_ops",
    ) -> None:
        super().__init__()
        if isinstance(size, bool) or not isinstance(size, int) or size < 8:
            raise ValueError(f"size: expected a whole number of pixels, 8 or more, got {size!r}")
        self.size = size
        self.transform = pipeline(build_ops(transform_ops or [], source), takes="image", source=source)
        self.indices = split_indices(mode)
        self._pictures, self._classes = _load()
        self.class_names = list(CLASS_NAMES)
        self.num_classes = len(CLASS_NAMES)
        self.file_list = [(f"digits/{i:04d}", int(self._classes[i])) for i in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> Image.Image:
        """The enlarged picture of one sample, RGB, before the transforms."""
        picture = Image.fromarray(self._pictures[self.indices[index]])
        return picture.resize((self.size, self.size), Image.Resampling.BICUBIC).convert("RGB")

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample: "img" float32 (3, H, W), "label" int64 (), "index" int64 ()."""
        return {
            "img": self.transform(self.image(index)),
            "label": np.asarray(self.file_list[index][1], np.int64),
            "index": np.asarray(index, np.int64),
        }
