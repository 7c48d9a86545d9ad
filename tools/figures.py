"""Figures of maps, curves and bars as PNG files; matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat._files import write_atomically

_STYLES = {"before": "0.55", "trained": "#7b2382"}


@dataclass(frozen=True)
class Panel:
    """A map (H, W), or an RGB picture (H, W, 3) of 0 to 1, with its title."""

    title: str
    values: np.ndarray
    over: np.ndarray | None = None  # picture under the map, which is then drawn at 50 %


@dataclass(frozen=True)
class Curves:
    """A panel of lines: (label, x, y); grey if the label begins with "before", dotted if it ends with "median"."""

    title: str
    lines: list[tuple[str, np.ndarray, np.ndarray]]
    band: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # x, low, high


@dataclass(frozen=True)
class Scale:
    """A colour scale: limits (None for those of the maps), its map and the label of its bar."""

    label: str
    low: float | None = None
    high: float | None = None
    colours: str = "magma"
    axes: tuple[str, str] = field(default=("", ""))


def draw_maps(path: str | Path, title: str, rows: Sequence[Sequence[Panel]], scale: Scale) -> None:
    """Rows of maps with one colour bar."""
    maps = [panel.values for row in rows for panel in row if panel.values.ndim == 2]
    low = min(float(np.nanmin(m)) for m in maps) if scale.low is None else scale.low
    high = max(float(np.nanmax(m)) for m in maps) if scale.high is None else scale.high
    high = high if high > low else low + 1e-6
    columns = max(map(len, rows))
    figure, axes = _figure(len(rows), columns, 2.6, 2.75, title)
    drawn = None
    for i, row in enumerate(rows):
        for axis in axes[i][len(row) :]:
            axis.set_axis_off()
        for axis, panel in zip(axes[i], row):
            if panel.values.ndim == 3:
                axis.imshow(panel.values)
            else:
                if panel.over is not None:
                    axis.imshow(panel.over)
                alpha = None if panel.over is None else 0.5
                shown = axis.imshow(panel.values, cmap=scale.colours, vmin=low, vmax=high, alpha=alpha)
                drawn = shown if panel.over is None or drawn is None else drawn
            axis.set_title(panel.title, fontsize=8.5)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(scale.axes[0], fontsize=8)
            axis.set_ylabel(scale.axes[1], fontsize=8)
    bar = figure.colorbar(drawn, ax=axes.ravel().tolist(), shrink=0.8 if len(rows) > 1 else 0.9, pad=0.02)
    bar.set_label(scale.label)
    _save(figure, path)


def draw_curves(
    path: str | Path, title: str, panels: Sequence[Curves], x_label: str, y_label: str, log_x: bool = False
) -> None:
    """Panels of lines side by side, with common axes."""
    figure, axes = _figure(1, len(panels), 3.3, 3.1, title, sharey=True)
    for axis, panel in zip(axes[0], panels):
        if panel.band is not None:
            axis.fill_between(*panel.band, color=_STYLES["trained"], alpha=0.15, linewidth=0)
        for label, x, y in panel.lines:
            style = next((colour for key, colour in _STYLES.items() if label.startswith(key)), None)
            dots = ":" if label.endswith("median") else "-"
            axis.plot(x, y, dots, label=label, color=style, linewidth=1.6, marker=".", markersize=3)
        axis.set_title(panel.title, fontsize=9)
        axis.set_xlabel(x_label)
        axis.grid(alpha=0.25)
        if log_x:
            axis.set_xscale("log")
        axis.legend(fontsize=7.5)
    axes[0][0].set_ylabel(y_label)
    _save(figure, path)


def draw_bars(
    path: str | Path, title: str, names: Sequence[str], panels: Sequence[tuple[str, dict[str, list[Any]]]]
) -> None:
    """Panels of bars side by side, one group of bars for each name."""
    figure, axes = _figure(1, len(panels), max(4.2, 0.55 * len(names) + 1.5), 3.6, title)
    place = np.arange(len(names))
    for axis, (label, groups) in zip(axes[0], panels):
        width = 0.8 / len(groups)
        for i, (key, values) in enumerate(groups.items()):
            shift = (i - (len(groups) - 1) / 2) * width
            axis.bar(place + shift, np.nan_to_num(values), width, color=_STYLES.get(key), label=key)
            for x, value in zip(place + shift, values):
                text = "-" if value != value else f"{value:.2g}"
                axis.text(x, np.nan_to_num(value), text, ha="center", va="bottom", fontsize=7)
        axis.set_xticks(place, names, rotation=60, ha="right", fontsize=8)
        axis.set_ylabel(label)
        axis.grid(axis="y", alpha=0.25)
        axis.legend(fontsize=8)
    _save(figure, path)


def _figure(rows: int, columns: int, width: float, height: float, title: str, **options: Any) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (max(width * columns + 0.9, 5.5), height * rows + 0.7)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
    figure.suptitle(title, fontsize=10)
    return figure, axes


def _save(figure: Any, path: str | Path) -> None:
    from matplotlib import pyplot

    try:
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))
    finally:
        pyplot.close(figure)
