"""Handwritten digits that come with scikit-learn: 1,797 real images to train on without a download.

They are the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998, UCI Machine
Learning Repository), 8 x 8 pixels with 17 levels.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from paddle_vheat.config import ConfigError
from paddle_vheat.tasks.classification.transforms import build_ops, pipeline

CLASS_NAMES = tuple("0123456789")
SPLIT_SEED = 20240521
"""Decides which digits are for validation; never to be changed, or results could not be compared."""

VAL_PER_CLASS = 36


@lru_cache(maxsize=1)
def _load() -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 (1797, 8, 8) and classes int64 (1797,)."""
    # From its file: importing scikit-learn, and SciPy and pandas with it, takes as long as importing Paddle.
    package = importlib.util.find_spec("sklearn")
    if package is None:
        raise ConfigError("the digits come with scikit-learn: pip install scikit-learn")
    folder = (package.submodule_search_locations or [""])[0]
    rows = np.loadtxt(Path(folder) / "datasets" / "data" / "digits.csv.gz", delimiter=",")  # 64 pixels and the class
    pictures = np.round(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return pictures, rows[:, -1].astype(np.int64)


def split_indices(mode: str) -> np.ndarray:
    """Which of scikit-learn's digits belong to "train" (1,437) or "val" (360, 36 of each class), sorted.

    Raises:
        ConfigError: for another mode.
    """
    if mode not in ("train", "val"):
        raise ConfigError(f"mode: expected 'train' or 'val', got {mode!r}")
    _, classes = _load()
    rng = np.random.default_rng(SPLIT_SEED)
    chosen = [rng.permutation(np.flatnonzero(classes == label))[:VAL_PER_CLASS] for label in range(len(CLASS_NAMES))]
    val = np.sort(np.concatenate(chosen))
    return val if mode == "val" else np.setdiff1d(np.arange(len(classes)), val)


class Digits:
    """The digits, enlarged bicubically to RGB pictures of ``size`` x ``size``, and transformed.

    Args:
        mode: "train" or "val", a fixed split.
        size: in pixels, such as 32 or 64.
        transform_ops: a list as for :func:`paddle_vheat.tasks.classification.transforms.build_ops`; a DecodeImage in
            it does nothing. None gives values from 0 to 255.
        num_classes: of the model; at least 10.
        source: what to call ``transform_ops`` in an error.

    Attributes:
        indices: of every sample, in scikit-learn's order.
        class_names: "0" to "9".

    Raises:
        ConfigError: for another mode or size, fewer classes, unusable ``transform_ops``, or without scikit-learn.
    """

    def __init__(
        self,
        mode: str = "train",
        size: int = 32,
        transform_ops: Sequence[dict] | None = None,
        num_classes: int | None = None,
        source: str = "transform_ops",
    ) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 8:
            raise ConfigError(f"size: expected an integer of pixels, 8 or more, got {size!r}")
        if num_classes is not None and num_classes < len(CLASS_NAMES):
            raise ConfigError(f"the digits have {len(CLASS_NAMES)} classes, and the model {num_classes}")
        self.size = size
        self.transform = pipeline(build_ops(transform_ops or [], source), takes="image", source=source)
        self.indices = split_indices(mode)
        self._pictures, self._classes = _load()
        self.class_names = list(CLASS_NAMES)

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> Image.Image:
        """The enlarged picture of one sample, RGB, before the transforms."""
        picture = Image.fromarray(self._pictures[self.indices[index]])
        return picture.resize((self.size, self.size), Image.Resampling.BICUBIC).convert("RGB")

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample: "img" float32 (3, H, W), "label" int64 (), "meta" {"index": its index}."""
        label = np.asarray(self._classes[self.indices[index]])
        return {"img": self.transform(self.image(index)), "label": label, "meta": {"index": index}}
