"""Scores of the shifted sets, each by its own protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from paddle_vheat.engine.task import Scores
from paddle_vheat.tasks.classification.shifts import (
    ARCHIVES,
    PUBLISHED,
    SEVERITIES,
    ShiftedData,
    objectnet_classes,
    subsets,
    validation_number,
)
from paddle_vheat.tasks.classification.visualize import best

# Mean top-1 error of AlexNet over the severities, from public evaluations after hendrycks/robustness (Apache-2.0).
ALEXNET_ERROR = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.92264, "defocus_blur": 0.81988,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.79836, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056, "pixelate": 0.71784,
    "jpeg_compression": 0.6065, "speckle_noise": 0.845388, "gaussian_blur": 0.787108, "spatter": 0.717512,
    "saturate": 0.658248,
}  # fmt: skip
PROTOCOLS = {
    "imagenet-a": "argmax among the set's 200 classes",
    "imagenet-r": "argmax among the set's 200 classes",
    "imagenet-sketch": "argmax of 1000",
    "imagenetv2": "argmax of 1000",
    "imagenet-c": "argmax of 1000; centre crop, no resize",
    "validation": "argmax of 1000",
    "imagenet-a clean": "argmax among the same 200 classes, on their validation images",
    "imagenet-r clean": "argmax among the same 200 classes, on their validation images",
    "imagenet-real": "argmax of 1000 is in the image's list; empty lists are not counted",
    "objectnet template": "border of 2 px cut; argmax of 1000, mapped to the 113 classes; an unmapped one is wrong",
    "objectnet maximum": "border of 2 px cut; maximum over a class's indices, argmax of 113",
}


class ShiftEvaluator:
    """Counts top-1, top-5 and images of every row of the table: the sets, their clean companions, ReaL."""

    def __init__(self, data: ShiftedData) -> None:
        self.data = data
        self.counts: dict[str, np.ndarray] = {}
        overlap = [one for one in objectnet_classes() if one.indices]
        self._groups = [list(one.indices) for one in overlap]
        self._place_of = np.full(1000, -1)
        for place, indices in enumerate(self._groups):
            self._place_of[indices] = place

    def update(self, outputs: Any, batch: dict[str, Any]) -> None:
        """Take in logits (N, 1000)."""
        logits = outputs.astype("float32").numpy()
        for row, label, meta in zip(logits, batch["label"].numpy(), batch["meta"]):
            for key, right in self._answers(row, int(label), meta["index"]):
                place = right.argmax() if right.any() else 5
                self.counts.setdefault(key, np.zeros(3, np.int64))
                self.counts[key] += [place == 0, place < 5, 1]

    def _answers(self, logits: np.ndarray, label: int, index: int) -> Iterator[tuple[str, np.ndarray]]:
        """For each row of the table that an image counts in: which of its five likeliest answers are right."""
        source = self.data.source(index)
        if source.kind in subsets():
            columns = np.asarray(subsets()[source.kind])
            right = columns[best(logits[columns])] == label
            yield source.name, right
            if source.kind == "imagenet-r" and "_" in (name := self.data.file(index).rpartition("/")[2]):
                yield f"imagenet-r/{name.partition('_')[0]}", right
        elif source.kind == "objectnet":
            yield "objectnet template", self._place_of[best(logits)] == label
            yield "objectnet maximum", best(np.asarray([logits[group].max() for group in self._groups])) == label
        else:
            yield source.name, best(logits) == label
        if source.kind == "validation":
            for name in subsets():
                columns = np.asarray(subsets()[name])
                if label in columns and any(one.kind == name for one in self.data.sources):
                    yield f"{name} clean", columns[best(logits[columns])] == label
            if self.data.real is not None and (labels := self.data.real[validation_number(self.data.file(index)) - 1]):
                yield "imagenet-real", np.isin(best(logits), labels)

    def state(self) -> dict[str, np.ndarray]:
        return self.counts

    def merge(self, states: Sequence[dict[str, np.ndarray]]) -> None:
        keys = dict.fromkeys(key for state in states for key in state)
        self.counts = {key: sum(state[key] for state in states if key in state) for key in keys}  # type: ignore[misc]

    def summarize(self) -> Scores:
        """One row for each protocol; of ImageNet-C one for each corruption, and the mCE."""
        kinds = {source.name: source for source in self.data.sources}
        rows: dict[str, dict[str, Any]] = {}
        for key, (first, fifth, images) in self.counts.items():
            source = kinds.get(key) or kinds.get(key.split(" ")[0])
            published = source.published if source else None
            rows[key] = {
                "top1": float(first / images), "top5": float(fifth / images), "images": int(images),
                "published_images": published if key in kinds else PUBLISHED.get(key, published),
                "classes": 113 if key.startswith("objectnet") else source.folders if source is not None else None,
                "protocol": PROTOCOLS.get(kinds[key].kind if key in kinds else key),
            }  # fmt: skip
        corruption = corruption_errors({key: 1 - row["top1"] for key, row in rows.items()})
        shown = {key: row for key, row in rows.items() if not key.startswith(("imagenet-c/", "imagenet-r/"))}
        lines = [f"{'set':<46} {'images':>7} {'published':>9} {'top-1':>6} {'top-5':>6}  protocol"]
        for key, row in shown.items():
            whole = row["published_images"] or "-"
            lines.append(
                f"{key:<46} {row['images']:>7} {whole:>9} {100 * row['top1']:>6.2f} {100 * row['top5']:>6.2f}  "
                f"{row['protocol']}"
            )
        lines += _corruption_lines(corruption)
        lines += [f"note: {note}" for note in self.data.notes]
        report = {"sets": rows, "imagenet-c": corruption, "notes": self.data.notes}
        first_row = next(iter(rows.values()))
        values = {"top1": first_row["top1"]}
        return Scores(values, "\n".join(lines), {**values, **report}, len(self.data))


def corruption_errors(errors: dict[str, float]) -> dict[str, Any]:
    """Mean error and corruption error (CE) of every corruption, and the mCE of the 15 that it is made of.

    CE is the sum over the severities of the error over that of AlexNet; the mCE is the mean of 15 of them, without the
    four of the archive "extra".

    Args:
        errors: top-1 error of each "imagenet-c/<corruption>/<severity>"; others are ignored.

    Returns:
        "corruptions" by name with "error" (mean of the severities), "ce" (None unless all five are there), and "mce"
        (None unless all 15 have one); {} without any.
    """
    found: dict[str, Any] = {}
    for archive, names in ARCHIVES.items():
        for name in names:
            values = [errors[key] for s in SEVERITIES if (key := f"imagenet-c/{name}/{s}") in errors]
            if values:
                ce = float(np.mean(values) / ALEXNET_ERROR[name]) if len(values) == len(SEVERITIES) else None
                found[name] = {"archive": archive, "error": float(np.mean(values)), "ce": ce}
    counted = [one["ce"] for one in found.values() if one["archive"] != "extra" and one["ce"] is not None]
    return {"corruptions": found, "mce": float(np.mean(counted)) if len(counted) == 15 else None} if found else {}


def _corruption_lines(corruption: dict[str, Any]) -> list[str]:
    if not corruption:
        return []
    text: Callable[[float | None], str] = lambda value: "-" if value is None else f"{100 * value:.2f}"  # noqa: E731
    lines = [f"{'ImageNet-C (' + PROTOCOLS['imagenet-c'] + ')':<54} {'error':>9} {'CE':>6}"]
    for name, one in corruption["corruptions"].items():
        extra = " (extra: not in the mCE)" if one["archive"] == "extra" else ""
        lines.append(f"{name + extra:<54} {text(one['error']):>9} {text(one['ce']):>6}")
    return [*lines, f"{'mCE, of the 15 corruptions':<54} {'':>9} {text(corruption['mce']):>6}"]
