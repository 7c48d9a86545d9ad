"""The programs of an exported detector, and how they are compared with the trained one."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from paddle_vheat._paddle import nn, paddle
from paddle_vheat.deploy.description import Shape, Tensors
from paddle_vheat.engine.task import Check, ExportSpec, Program
from paddle_vheat.export import inference_copy
from paddle_vheat.models.mask_rcnn.roi_heads import select_detections
from paddle_vheat.tasks.detection.deploy import Options, rows_of, signatures
from paddle_vheat.tasks.detection.transforms import padded_size

# Rounding decides which of two boxes that overlap alike, and score alike, suppresses the other.
TOLERANCE = 0.05
BOX = 0.1  # pixels; what two boxes of the same object may differ by, by rounding of the deltas
LOGIT = 1e-2  # of the largest, as the boxes that they are computed from differ too


class Whole(nn.Layer):
    """Image (1, 3, H, W) and size (1, 2) to proposals, their logits, boxes, scores, labels, mask logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Any, size: Any) -> Any:
        model, options = self.model, self.model.selection
        pyramid = model.forward_features(image)
        proposals = model.proposals(*model.rpn_head(pyramid), size)[0]
        logits, deltas = model.roi_head.classify(pyramid, proposals)
        limits = options.score_threshold, options.detections
        boxes, scores, labels = select_detections(proposals, logits, deltas, size[0], *limits)
        return proposals, logits, boxes, scores, labels, model.roi_head.segment(pyramid, boxes, labels)


class Features(nn.Layer):
    """Image to four feature maps, and for five levels scores and deltas."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone, self.neck, self.rpn_head = model.backbone, model.neck, model.rpn_head

    def forward(self, image: Any) -> Any:
        pyramid = self.neck(self.backbone(image))
        scores, deltas = self.rpn_head(pyramid)
        return (*pyramid[:4], *scores, *deltas)


class Boxes(nn.Layer):
    """Four maps and boxes (n, 4) to logits and deltas."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.head = model.roi_head

    def forward(self, map0: Any, map1: Any, map2: Any, map3: Any, boxes: Any) -> Any:
        return self.head.classify([map0, map1, map2, map3], boxes)


class MaskLogits(nn.Layer):
    """Four maps, boxes (n, 4) and labels (n,) to mask logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.head = model.roi_head

    def forward(self, map0: Any, map1: Any, map2: Any, map3: Any, boxes: Any, labels: Any) -> Any:
        return self.head.segment([map0, map1, map2, map3], boxes, labels)


def unmatched(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], score: int | None) -> float:
    """Share of rows, weighted by column ``score`` if given, that have no counterpart on the other side.

    Rows begin with a box. A counterpart has it within ``BOX`` pixels and all other columns within ``LOGIT`` of their
    largest magnitude. Infinite for another number of images.
    """
    if len(found) != len(expected):
        return float("inf")
    alone = total = 0.0
    for ours, theirs in zip(found, expected):
        for rows, others in ((ours, theirs), (theirs, ours)):
            weights = np.ones(len(rows)) if score is None else rows[:, score].astype(np.float64)
            total += weights.sum()
            alone += (weights * [not _has_counterpart(row, others) for row in rows]).sum() if len(rows) else 0.0
    return float(alone / total) if total else 0.0


def _has_counterpart(row: np.ndarray, others: np.ndarray) -> bool:
    near = others[np.abs(others[:, :4] - row[:4]).max(axis=1) <= BOX] if len(others) else others
    bound = LOGIT * max(1.0, float(np.abs(row[4:]).max()))
    return bool(len(near)) and bool((np.abs(near[:, 4:] - row[4:]).max(axis=1) <= bound).any())


CHECKS = {
    "proposals": Check(
        TOLERANCE, functools.partial(unmatched, score=None), "the share of proposals without a counterpart"
    ),
    "detections": Check(
        TOLERANCE, functools.partial(unmatched, score=4), "the share of the scores of detections without a counterpart"
    ),
}


def reference(model: Any, outputs: Sequence[Tensors], array: np.ndarray) -> Mapping[str, Any]:
    """The trained model's own proposals and detections, as the processor's ``run`` has them.

    Args:
        outputs: of the program "model".
    """

    def run(*inputs: np.ndarray) -> dict[str, np.ndarray]:
        with paddle.no_grad():
            found = Whole(model)(*map(paddle.to_tensor, inputs))
        return {tensors.name: value.numpy() for tensors, value in zip(outputs, found)}

    rows = [rows_of(run, image, model.selection.score_threshold) for image in array]
    return {"proposals": [one[0] for one in rows], "detections": [one[1] for one in rows]}


def detection_spec(model: Any, input_shape: Shape, options: Options, images: Sequence[Any]) -> ExportSpec:
    """How a detector is exported: a program for Paddle Inference, three for ONNX."""
    takes = signatures(options, input_shape)
    size = None if input_shape[2] is None else padded_size([input_shape[2]], [input_shape[3]])
    layers: dict[str, dict[str, Any]] = {
        "paddle": {"model": Whole},
        "onnx": {"features": Features, "boxes": Boxes, "masks": MaskLogits},
    }

    def programs(model_format: str) -> dict[str, Program]:
        copied = inference_copy(model, size)
        return {name: Program(layer(copied), *takes[name]) for name, layer in layers[model_format].items()}

    return ExportSpec(
        model=model,
        programs=programs,
        checks=CHECKS,
        reference=functools.partial(reference, model, takes["model"].outputs),
        images=images,
        options=asdict(options),
    )
