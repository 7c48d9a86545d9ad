"""Detection with an exported model; needs no Paddle.

A Paddle export is one program, "model". ONNX has no operators that give the same boxes as Paddle's, so there are three,
"features", "boxes" and "masks", with the selection of boxes in NumPy between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddle_vheat.config.options import option
from paddle_vheat.data.image_file import MAX_PIXELS
from paddle_vheat.deploy import detection_ops as ops
from paddle_vheat.deploy.description import Description, Shape, Signature, Tensors
from paddle_vheat.deploy.images import read_image, resize_planes
from paddle_vheat.deploy.processor import Outputs, Run
from paddle_vheat.errors import UserError
from paddle_vheat.tasks.detection.transforms import EvalTransform, pad, padded_size
from paddle_vheat.tasks.detection.visualize import DetectionPrediction, Masks, to_original

MAPS, LEVELS, MASK = 4, 5, 28  # feature maps that boxes are cut from, levels of proposals, side of a mask


@dataclass(frozen=True)
class Options:
    """What ``deploy.yaml`` holds for detection."""

    num_classes: int = option(int, min=1, max=10**5)
    channels: int = option(int, min=1, max=10**4)
    scale: Sequence[int] = option(list, items=int, length=2, min=1, max=MAX_PIXELS)
    mean: Sequence[float] = option(list, items=float, length=3)
    std: Sequence[float] = option(list, items=float, length=3, above=0)
    per_level: int = option(int, min=1, max=10**5)
    proposals: int = option(int, min=1, max=10**5)
    score_threshold: float = option(float, min=0, below=1)
    detections: int = option(int, min=1, max=10**4)
    threshold: float = option(float, 0.3, min=0, max=1)
    class_names: Sequence[str] | None = option(list, None, items=str)


def signatures(options: Options, input_shape: Shape) -> dict[str, Signature]:
    """What each program takes and gives; an image at a time, whatever the batch."""
    _, _, height, width = input_shape
    size: tuple[Any, Any] = (None, None) if height is None else padded_size([height], [width])
    image = Tensors("image", (1, 3, *size), ("one", "rgb", "height", "width"))
    classes, channels = options.num_classes, options.channels

    def table(name: str, *lengths: Any, rows: str = "proposals", dtype: str = "float32") -> Tensors:
        return Tensors(name, (None, *lengths), (rows, *(f"{name}_{i}" for i in range(len(lengths)))), dtype)

    def level(name: str, i: int, depth: int) -> Tensors:
        sides = (None, None) if height is None else tuple(-(-side // ops.STRIDES[i]) for side in size)
        return Tensors(f"{name}{i}", (1, depth, *sides), ("one", f"{name}_depth", f"height{i}", f"width{i}"))

    maps = tuple(level("map", i, channels) for i in range(MAPS))
    scores = tuple(level("score", i, len(ops.RATIOS)) for i in range(LEVELS))
    deltas = tuple(level("delta", i, 4 * len(ops.RATIOS)) for i in range(LEVELS))
    found = {"rows": "detections"}
    whole = (
        table("proposals", 4),
        table("logits", classes + 1),
        table("boxes", 4, **found),
        table("scores", **found),
        table("labels", dtype="int64", **found),
        table("masks", MASK, MASK, **found),
    )
    labels = table("labels", dtype="int64")
    return {
        "model": Signature((image, Tensors("size", (1, 2), ("one", "sides"))), whole),
        "features": Signature((image,), (*maps, *scores, *deltas)),
        "boxes": Signature((*maps, table("boxes", 4)), (table("logits", classes + 1), table("deltas", 4 * classes))),
        "masks": Signature((*maps, table("boxes", 4), labels), (table("masks", MASK, MASK),)),
    }


@dataclass(frozen=True)
class Context:
    """Of an image: its size (H, W), and (h, w) that it has for the network, without padding."""

    size: tuple[int, int]
    shape: tuple[int, int]


class Processor:
    """See :class:`paddle_vheat.deploy.processor.Processor`.

    Of each image, :meth:`run` gives "proposals" (k, 4 + classes + 1), boxes and logits, and "detections" (n, 6 + 784),
    boxes, score, label and mask logits, best first; boxes in pixels of the network's input.
    """

    def __init__(self, description: Description) -> None:
        self.options = options = description.read(Options)
        problems = []
        if options.class_names is not None and len(options.class_names) != options.num_classes:
            problems.append(f"'{description.options_at}.class_names' must be {options.num_classes} names")
        if description.input_shape[1] != 3:
            problems.append(f"'Deploy.input_shape' must have 3 channels, got {description.input_shape[1]}")
        if options.scale[0] < options.scale[1]:
            problems.append(f"'{description.options_at}.scale' must be [longest, shortest], got {options.scale}")
        if problems:
            raise description.error(*problems)
        self.transform = EvalTransform(options)
        self.programs = signatures(options, description.input_shape)

    def prepare(self, image: Any) -> tuple[np.ndarray, Context]:
        array = read_image(image)
        if array.dtype != np.uint8:
            raise UserError(f"expected an image of uint8, got {array.dtype}")
        sample = self.transform(array, {})
        return sample["img"], Context((array.shape[0], array.shape[1]), sample["meta"]["shape"])

    def fit(self, array: np.ndarray, size: tuple[int, int], context: Context) -> tuple[np.ndarray, Context]:
        """Padded below and at the right; what is larger than the export is first made smaller."""
        height, width = context.shape
        if height > size[0] or width > size[1]:
            scale = min(size[0] / height, size[1] / width)
            height, width = max(int(height * scale), 1), max(int(width * scale), 1)
            array = resize_planes(array, (height, width))
        return pad(array, *size), Context(context.size, (height, width))

    def run(self, programs: Mapping[str, Run], batch: np.ndarray) -> Outputs:
        found = [self._one(programs, image) for image in batch]
        return {"proposals": [one[0] for one in found], "detections": [one[1] for one in found]}

    def _one(self, programs: Mapping[str, Run], image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        options, size = self.options, (image.shape[1], image.shape[2])
        if "model" in programs:
            return rows_of(programs["model"], image, options.score_threshold)
        out = programs["features"](padded(image))
        maps, scores, deltas = (
            [out[f"{name}{i}"] for i in range(count)]
            for name, count in (("map", MAPS), ("score", LEVELS), ("delta", LEVELS))
        )
        said = [level[0] for level in scores], [level[0] for level in deltas]
        proposals, _ = ops.select_proposals(*said, size, options.per_level, options.proposals)
        if not len(proposals):
            proposals = np.zeros((1, 4), np.float32)
        second = programs["boxes"](*maps, proposals)
        limits = options.score_threshold, options.detections
        boxes, probabilities, labels = ops.select_detections(
            proposals, second["logits"], second["deltas"], size, *limits
        )
        masks = np.zeros((0, MASK, MASK), np.float32)
        if len(boxes):
            masks = programs["masks"](*maps, boxes, labels)["masks"]
        return proposal_rows(proposals, second["logits"]), detection_rows(boxes, probabilities, labels, masks)

    def finish(self, outputs: Outputs, context: Context) -> DetectionPrediction:
        found = detections_of(outputs["detections"])
        return make_prediction(found, context, self.options.class_names, self.options.threshold)


def padded(image: np.ndarray) -> np.ndarray:
    """(3, h, w) as a batch of one whose sides are multiples of 32."""
    return pad(image, *padded_size([image.shape[1]], [image.shape[2]]))[None]


def rows_of(run: Run, image: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Proposals and detections of an image (3, h, w), as :class:`Processor` has them, by the program "model"."""
    out = run(padded(image), np.asarray([image.shape[1:]], np.float32))
    real = out["scores"] > threshold  # the last row may stand for none
    parts = [out[name][real] for name in ("boxes", "scores", "labels", "masks")]
    return proposal_rows(out["proposals"], out["logits"]), detection_rows(*parts)


def proposal_rows(boxes: np.ndarray, logits: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes, logits], axis=1)


def detection_rows(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, masks: np.ndarray) -> np.ndarray:
    flat = masks.reshape(len(masks), MASK * MASK)
    return np.concatenate([boxes, scores[:, None], labels[:, None].astype(np.float32), flat], axis=1)


def detections_of(rows: np.ndarray) -> dict[str, np.ndarray]:
    """The inverse of :func:`detection_rows`, as ``MaskRCNN.predict`` names what it gives."""
    logits = rows[:, 6:].reshape(-1, MASK, MASK)
    return {"boxes": rows[:, :4], "scores": rows[:, 4], "labels": rows[:, 5].astype(np.int64), "mask_logits": logits}


def make_prediction(
    found: Mapping[str, np.ndarray], context: Context, names: Sequence[str] | None, threshold: float
) -> DetectionPrediction:
    """The prediction of an image from its detections, boxes in pixels of the network's input."""
    boxes = to_original(found["boxes"], context.shape, context.size)
    real = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # in an export of fixed size, the padding may hold boxes
    masks = Masks(found["mask_logits"][real], boxes[real], context.size)
    return DetectionPrediction(boxes[real], found["scores"][real], found["labels"][real], masks, names, threshold)
