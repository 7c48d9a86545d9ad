"""Top-k accuracy and cross entropy of a validation set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paddle_vheat._paddle import F
from paddle_vheat.engine.task import Scores


class ClassificationEvaluator:
    """Counts right answers among the k likeliest, for each k, and adds up the cross entropy."""

    def __init__(self, topk: Sequence[int], num_classes: int) -> None:
        self.topk, self.num_classes = tuple(topk), num_classes
        self.counts = np.zeros(len(topk) + 2)  # right answers per k, sum of losses, images

    def update(self, outputs: Any, batch: dict[str, Any]) -> None:
        """Take in logits (N, K) and labels (N,)."""
        logits, labels = outputs.astype("float32"), batch["label"]
        # Stable: of equal logits the first class counts, on every machine.
        found = np.argsort(-logits.numpy(), axis=1, kind="stable") == labels.numpy()[:, None]
        right = [found[:, : min(k, self.num_classes)].any(axis=1).sum() for k in self.topk]
        loss = float(F.cross_entropy(logits, labels, reduction="sum"))
        self.counts += [*right, loss, len(found)]

    def state(self) -> np.ndarray:
        return self.counts

    def merge(self, states: Sequence[np.ndarray]) -> None:
        self.counts = np.sum(states, axis=0)

    def summarize(self) -> Scores:
        images = int(self.counts[-1])
        values = {f"top{k}": float(right / images) for k, right in zip(self.topk, self.counts)}
        report = {"images": images, **values, "loss": float(self.counts[-2] / images)}
        table = "  ".join(f"top-{k} {100 * values[f'top{k}']:.2f}" for k in self.topk)
        return Scores(values, f"{table}  cross entropy {report['loss']:.4f}", report, images)
