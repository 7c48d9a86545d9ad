"""PSNR, SSIM and, for JPEG, PSNR-B of every image and their means, beside those of the degraded input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat._files import finite
from paddle_vheat.deploy.writing import write_picture
from paddle_vheat.engine.task import Scores
from paddle_vheat.tasks.restoration.metrics import psnr, psnr_b, ssim
from paddle_vheat.tasks.restoration.visualize import as_rgb

INPUT, RESTORED, NO_CONDUCTION = "input", "restored", "k=0"
SMALLEST = {"noise": 11, "jpeg": 16}  # pixels a side: SSIM's window, PSNR-B's grid


class RestorationEvaluator:
    """Scores images of uint8, one by one.

    Args:
        jpeg: whether PSNR-B is scored too.
        save_images: folder for the restored images; None for none.
    """

    def __init__(self, jpeg: bool, save_images: str | None = None) -> None:
        self.metrics = {"PSNR": psnr, "SSIM": ssim, **({"PSNR-B": psnr_b} if jpeg else {})}
        self.save_images = save_images
        self.rows: list[dict[str, Any]] = []

    def update(self, outputs: Mapping[str, np.ndarray], batch: dict[str, Any]) -> None:
        """Take in images of one kind each ("input", "restored", perhaps "k=0") of one sample."""
        (meta,) = batch["meta"]
        row: dict[str, Any] = {"index": meta["index"], "image": meta["name"]}
        for kind, image in outputs.items():
            row[kind] = {name: metric(image, meta["target"]) for name, metric in self.metrics.items()}
        self.rows.append(row)
        if self.save_images is not None:
            image = outputs[RESTORED]
            path = (Path(self.save_images) / meta["name"]).with_suffix(".png")
            write_picture(path, image if image.ndim == 2 else as_rgb(image))

    def state(self) -> list[dict[str, Any]]:
        return self.rows

    def merge(self, states: Sequence[list[dict[str, Any]]]) -> None:
        self.rows = [row for rows in states for row in rows]

    def summarize(self) -> Scores:
        rows = sorted(self.rows, key=lambda row: row["index"])
        kinds = [kind for kind in (INPUT, RESTORED, NO_CONDUCTION) if kind in rows[0]]
        means = {k: {m: float(np.mean([row[k][m] for row in rows])) for m in self.metrics} for k in kinds}
        report = {
            **means[RESTORED],
            "means": means,
            "images": [{key: value for key, value in row.items() if key != "index"} for row in rows],
        }
        return Scores(means[RESTORED], self._table(rows, means), finite(report), len(rows))

    def _table(self, rows: list[dict[str, Any]], means: Mapping[str, Mapping[str, float]]) -> str:
        width = max(len(row["image"]) for row in rows)
        columns = [(kind, name) for kind in means for name in self.metrics]
        heads = [f"{kind} {name}" for kind, name in columns]
        lines = [f"{'image':<{width}}  " + "  ".join(heads)]
        for row in [*rows, {"image": "mean", **means}]:
            cells = [f"{row[k][m]:>{len(head)}.{4 if m == 'SSIM' else 2}f}" for head, (k, m) in zip(heads, columns)]
            lines.append(f"{row['image']:<{width}}  " + "  ".join(cells))
        return "\n".join(lines)
