"""Detections of an image: values, pictures, JSON. Needs no Paddle."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from paddle_vheat.deploy.detection_ops import paste_mask
from paddle_vheat.deploy.images import read_image

GOLDEN_RATIO = 0.618033988749895
MASK_OPACITY = 0.45


def to_original(boxes: np.ndarray, shape: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Boxes (n, 4) of an image of ``shape`` (h, w) in pixels of the one of ``size`` (H, W), float32."""
    scale = np.asarray([shape[1] / size[1], shape[0] / size[0]] * 2, np.float32)
    limits = np.asarray([size[1], size[0]] * 2, np.float32)
    return np.clip(boxes.astype(np.float32) / scale, 0, limits)


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's run lengths of (H, W), not compressed: down the columns, the first of zeros."""
    flat = np.concatenate([[False], mask.ravel(order="F").astype(bool)])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff([0, *edges, mask.size]).astype(int).tolist()


class Masks(Sequence[Any]):
    """Masks (H, W) bool of an image, each pasted when it is asked for: a hundred of a large one take much memory."""

    def __init__(self, logits: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> None:
        self.logits, self.boxes, self.size = logits, boxes, size

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Masks(self.logits[index], self.boxes[index], self.size)
        return paste_mask(self.logits[index], self.boxes[index], self.size)


@dataclass(frozen=True)
class DetectionPrediction:
    """The objects found in an image, best first.

    Args:
        boxes: (n, 4) float32, x1 y1 x2 y2 in pixels of the image.
        scores: (n,) float32. labels: (n,) int64.
        masks: (H, W) bool of each.
        names: of the labels; None for their numbers.
        threshold: smallest score of what is drawn and written.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: Masks
    names: Sequence[str] | None = None
    threshold: float = 0.3

    @property
    def value(self) -> dict[str, Any]:
        """``boxes``, ``scores``, ``labels`` and ``masks`` of all detections, also below the threshold."""
        return {"boxes": self.boxes, "scores": self.scores, "labels": self.labels, "masks": self.masks}

    def _name(self, label: Any) -> str:
        return str(int(label)) if self.names is None else str(self.names[int(label)])

    def _shown(self) -> Iterator[int]:
        return (i for i in range(len(self.scores)) if self.scores[i] >= self.threshold)

    def draw(self, image: Any) -> dict[str, Any]:
        """``detections``: masks, outlines, boxes and names over the image."""
        shown = list(self._shown())
        texts = [f"{self._name(self.labels[i])} {100 * self.scores[i]:.0f}%" for i in shown]
        masks = (self.masks[i] for i in shown)
        picture = draw_objects(read_image(image)[..., ::-1], self.boxes[shown], self.labels[shown], masks, texts)
        return {"detections": picture}

    def to_json(self) -> list[dict[str, Any]]:
        """Objects as COCO writes them: ``bbox`` [x, y, width, height], ``segmentation`` as run lengths."""
        found = []
        for i in self._shown():
            x1, y1, x2, y2 = (round(float(n), 2) for n in self.boxes[i])
            mask = self.masks[i]
            found.append(
                {
                    "label": int(self.labels[i]),
                    "name": self._name(self.labels[i]),
                    "score": round(float(self.scores[i]), 4),
                    "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                    "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
                }
            )
        return found

    def line(self) -> str:
        counts = Counter(self._name(self.labels[i]) for i in self._shown())
        return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"


def class_colour(label: int) -> tuple[int, int, int]:
    """RGB; neighbouring labels are far apart on the colour wheel."""
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN_RATIO % 1, 0.75, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_objects(image: np.ndarray, boxes: np.ndarray, labels: Any, masks: Any, texts: Sequence[str]) -> np.ndarray:
    """The image, RGB (H, W, 3), with objects, best first; the best is on top. ``masks`` are iterated once."""
    canvas = np.ascontiguousarray(image)
    for label, mask in zip(labels, masks):
        colour = np.asarray(class_colour(int(label)), np.float32)
        canvas = canvas.copy() if canvas is image else canvas
        canvas[mask] = (canvas[mask] * (1 - MASK_OPACITY) + MASK_OPACITY * colour + 0.5).astype(np.uint8)
        canvas[_outline(mask)] = colour.astype(np.uint8)
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    line = max(1, round(min(image.shape[:2]) / 300))
    for box, label in reversed(list(zip(boxes, labels))):
        draw.rectangle([float(n) for n in box], outline=class_colour(int(label)), width=line)
    font = _font(max(10, min(image.shape[:2]) // 32))
    for box, label, text in reversed(list(zip(boxes, labels, texts))):
        _write(draw, font, text, box, class_colour(int(label)), (image.shape[1], image.shape[0]))
    return np.asarray(picture)


def _outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask that have a neighbour outside."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def _font(size: int) -> Any:
    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError):  # Pillow before 10.1, or without FreeType
        return ImageFont.load_default()


def _write(draw: Any, font: Any, text: str, box: Any, colour: tuple[int, int, int], canvas: tuple[int, int]) -> None:
    """A text above its box, inside where there is no room, within the canvas always."""

    def size(words: str) -> tuple[int, int]:
        left, _, right, bottom = draw.textbbox((0, 0), words, font=font)
        return int(right - min(left, 0)) + 4, int(bottom) + 2

    while len(text) > 1 and size(text)[0] > canvas[0]:
        text = text[:-2] + "~" if text.endswith("~") else text[:-1] + "~"
    width, height = size(text)
    x, y = float(box[0]), float(box[1])
    left = int(min(max(x, 0), max(canvas[0] - width, 0)))
    top = int(min(max(y - height if y >= height else y, 0), max(canvas[1] - height, 0)))
    draw.rectangle((left, top, left + width, top + height), fill=colour)
    bright = colour[0] * 0.3 + colour[1] * 0.6 + colour[2] * 0.1 > 140
    draw.text((left + 2, top), text, fill="black" if bright else "white", font=font)
