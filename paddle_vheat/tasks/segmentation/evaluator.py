"""Segmentation scores from one confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddle_vheat.engine.task import Scores


def confusion_matrix(label: np.ndarray, prediction: np.ndarray, num_classes: int, ignore: int) -> np.ndarray:
    """Pixel counts, int64 (num_classes, num_classes), row = label, column = prediction.

    Raises:
        ValueError: if a label is neither a class nor ``ignore``, a prediction is no class, or the shapes differ.
    """
    if label.shape != prediction.shape:
        raise ValueError(f"label {label.shape} and prediction {prediction.shape} differ in shape")
    kept = label != ignore
    label, prediction = label[kept].astype(np.int64), prediction[kept].astype(np.int64)
    wrong = (label < 0) | (label >= num_classes)
    if wrong.any():
        raise ValueError(
            f"label value {int(label[wrong][0])} is outside 0 to {num_classes - 1} and is not {ignore} (ignored)"
        )
    if prediction.size and (prediction.min() < 0 or prediction.max() >= num_classes):
        worst = prediction.min() if prediction.min() < 0 else prediction.max()
        raise ValueError(f"prediction {int(worst)} is outside 0 to {num_classes - 1}")
    counts = np.bincount(label * num_classes + prediction, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


@dataclass(frozen=True)
class SegmentationScores:
    """Scores of a confusion matrix; those of a class are NaN where they are not defined."""

    miou: float
    accuracy: float
    kappa: float
    mdice: float
    class_iou: np.ndarray
    class_precision: np.ndarray
    class_recall: np.ndarray
    class_share: np.ndarray

    @classmethod
    def of(cls, matrix: np.ndarray) -> SegmentationScores:
        """Scores of ``matrix`` (row = label, column = prediction).

        The means are over the classes that occur in the labels or the predictions. (PaddleSeg 2.8.0 counts a
        class that occurs in neither as 0; with every class present, as in Cityscapes and ADE20K, the two agree.)
        """
        matrix = matrix.astype(np.float64)
        hit, labelled, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
        total = matrix.sum()
        iou = _ratio(hit, labelled + predicted - hit)
        dice = _ratio(2 * hit, labelled + predicted)
        accuracy = hit.sum() / total if total else float("nan")
        chance = (labelled * predicted).sum() / total**2 if total else float("nan")
        kappa = (accuracy - chance) / (1 - chance) if chance < 1 else float("nan")
        some = bool(np.isfinite(iou).any())
        return cls(
            miou=float(np.nanmean(iou)) if some else float("nan"),
            accuracy=float(accuracy),
            kappa=float(kappa),
            mdice=float(np.nanmean(dice)) if some else float("nan"),
            class_iou=iou,
            class_precision=_ratio(hit, predicted),
            class_recall=_ratio(hit, labelled),
            class_share=labelled / total if total else labelled,
        )

    def as_dict(self, class_names: list[str]) -> dict[str, Any]:
        """For JSON; what is not defined is None."""

        def number(value: float) -> float | None:
            return round(float(value), 6) if np.isfinite(value) else None

        figures = ("iou", "precision", "recall", "share")
        columns = self.class_iou, self.class_precision, self.class_recall, self.class_share
        classes = [
            {"name": name, **dict(zip(figures, map(number, values)))} for name, *values in zip(class_names, *columns)
        ]
        means = {"mIoU": self.miou, "Acc": self.accuracy, "Kappa": self.kappa, "mDice": self.mdice}
        return {**{name: number(value) for name, value in means.items()}, "classes": classes}

    def table(self, class_names: list[str]) -> str:
        """A table of the classes, and the means below."""
        width = max(5, *(len(name) for name in class_names))

        def cell(value: float) -> str:
            return f"{100 * value:9.2f}" if np.isfinite(value) else f"{'-':>9}"

        lines = [f"{'class':<{width}} {'IoU':>9} {'precision':>9} {'recall':>9} {'% pixels':>9}"]
        columns = self.class_iou, self.class_precision, self.class_recall, self.class_share
        for name, *values in zip(class_names, *columns):
            lines.append(f"{name:<{width}} {' '.join(cell(value) for value in values)}")
        lines.append(
            f"mIoU {100 * self.miou:.2f}  accuracy {100 * self.accuracy:.2f}  kappa {self.kappa:.4f}  "
            f"mean Dice {100 * self.mdice:.2f}"
        )
        absent = int(np.isnan(self.class_iou).sum())
        if absent:
            lines.append(f"({absent} of {len(class_names)} classes occur in no label and no prediction: not counted)")
        return "\n".join(lines)


class SegmentationEvaluator:
    """Confusion matrix of a validation set, one image at a time.

    Args:
        class_names: of every class.
        ignore_index: the label value that is not counted.
    """

    def __init__(self, class_names: list[str], ignore_index: int) -> None:
        self.class_names, self.ignore_index = class_names, ignore_index
        self.matrix = np.zeros((len(class_names), len(class_names)), np.int64)
        self.samples = 0

    def update(self, outputs: np.ndarray, batch: dict[str, Any]) -> None:
        """Take in the classes (H, W) of an image, whose label is (1, 1, H, W)."""
        truth = batch["label"].numpy()[0, 0]
        self.matrix += confusion_matrix(truth, outputs, len(self.class_names), self.ignore_index)
        self.samples += 1

    def state(self) -> tuple[np.ndarray, int]:
        return self.matrix, self.samples

    def merge(self, states: Sequence[tuple[np.ndarray, int]]) -> None:
        self.matrix = sum(matrix for matrix, _ in states)  # type: ignore[assignment]
        self.samples = sum(samples for _, samples in states)

    def summarize(self) -> Scores:
        scores = SegmentationScores.of(self.matrix)
        report = {"images": self.samples, **scores.as_dict(self.class_names)}
        values = {"mIoU": scores.miou, "Acc": scores.accuracy, "Kappa": scores.kappa, "mDice": scores.mdice}
        return Scores(values, scores.table(self.class_names), report, self.samples)
