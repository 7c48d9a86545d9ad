"""A model and what the page asks of it. Needs no Paddle with an exported model that ONNX Runtime runs."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paddle_vheat._files import finite
from paddle_vheat.app.pictures import data_url
from paddle_vheat.data.image_file import MAX_PIXELS as DECODED
from paddle_vheat.data.image_file import open_image
from paddle_vheat.deploy.processor import Prediction
from paddle_vheat.errors import DataError, UserError
from paddle_vheat.tasks.classification.visualize import ClassificationPrediction
from paddle_vheat.tasks.segmentation.visualize import SegmentationPrediction

if TYPE_CHECKING:
    from paddle_vheat.app.heat import HeatView

MAX_BYTES = 32 << 20
"""Largest file of a picture; the server refuses a larger one while it is sent."""

MAX_PIXELS = 1 << 22
"""Largest width x height by default. More can be decoded (``image_file.MAX_PIXELS``) than a network has memory for: its
feature maps take far more than the picture."""

CAPTIONS = {
    "added_prediction": "classes over the picture",
    "pseudo_color_prediction": "classes",
    "detections": "objects",
    "restored": "restored",
    "compared": "before | after | difference, four times as strong",
}


@dataclass
class Session:
    """What a page is made for.

    Args:
        title: of the model.
        facts: lines about it, such as what runs it.
        predict_file: a file's name -> its prediction.
        heat: None if there is nothing to see of it; ``why_no_heat`` then says why.
        max_pixels: largest width x height of a picture.
        folder: for the file of a picture while it is worked on; None for the system's temporary one.
    """

    title: str
    facts: Sequence[str]
    predict_file: Callable[[str], Prediction]
    heat: HeatView | None = None
    why_no_heat: str = ""
    max_pixels: int = MAX_PIXELS
    folder: str | None = None
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= DECODED:
            raise UserError(
                f"--max_pixels {self.max_pixels}: expected 1 to {DECODED}, which is the most that is decoded"
            )

    def describe(self) -> dict[str, Any]:
        """What the page shows before anything is asked: plain values for JSON."""
        return {
            "title": self.title,
            "facts": list(self.facts),
            "max_bytes": MAX_BYTES,
            "heat": None if self.heat is None else self.heat.describe(),
            "why_no_heat": self.why_no_heat,
        }

    def predict(self, data: bytes) -> dict[str, Any]:
        """The prediction for the bytes of an image file, one at a time: plain values for JSON, see :func:`show`.

        The file that the model reads is gone when this returns or raises.

        Raises:
            UserError: for what is no picture or is too large, and whatever the model says of it.
        """
        check_upload(data, self.max_pixels)
        with self._lock, tempfile.TemporaryDirectory(dir=self.folder) as folder:
            path = os.path.join(folder, "picture")
            Path(path).write_bytes(data)
            try:
                return show(self.predict_file(path), path)
            except (ValueError, OSError) as error:
                raise UserError(str(error).replace(path, "the picture")) from error


def check_upload(data: bytes, max_pixels: int) -> None:
    """Raise a UserError for what is no picture, or too large; decodes no pixels."""
    try:
        with open_image(data) as image:
            width, height = image.size
    except DataError as error:
        raise UserError(f"the picture cannot be read: {error}") from error
    if width * height > max_pixels:
        raise UserError(
            f"the picture is too large: it has {width} x {height} = {width * height} pixels, and at most "
            f"{max_pixels} are taken (--max_pixels)"
        )


def show(prediction: Prediction, path: str) -> dict[str, Any]:
    """A prediction as plain values for JSON.

    Returns:
        ``text``; ``classes``, the likeliest with their scores; ``legend``, a segmentation's classes with their RGB and
        share of the pixels, the largest first; ``pictures`` with their captions. What a task has not is empty.
    """
    drawn = prediction.draw(path)
    names = [*(name for name in CAPTIONS if name in drawn), *(name for name in drawn if name not in CAPTIONS)]
    pictures = [{"caption": CAPTIONS.get(name, name), "picture": data_url(drawn[name])} for name in names]
    ranked = isinstance(prediction, ClassificationPrediction)
    legend = _legend(prediction) if isinstance(prediction, SegmentationPrediction) else []
    return finite(
        {
            "text": "" if ranked else prediction.line(),
            "classes": prediction.value if ranked else [],
            "legend": legend,
            "pictures": pictures,
        }
    )


def _legend(prediction: SegmentationPrediction) -> list[dict[str, Any]]:
    names = prediction.class_names
    classes, counts = np.unique(prediction.value, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [
        {
            "name": str(classes[i]) if names is None else names[classes[i]],
            "colour": prediction.palette[classes[i]].tolist(),
            "share": float(counts[i] / prediction.value.size),
        }
        for i in order
    ]
