"""Pictures of conduction for ``visualize_heat.py``: one PNG for each concept, and the numbers of all of them.

The definitions are in ``paddle_vheat/analysis``. Where there are many stages or blocks, the first, middle and last are
shown; the numbers are of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from figures import Curves, Panel, Scale, draw_bars, draw_curves, draw_maps

from paddle_vheat._paddle import F, in_evaluation, paddle
from paddle_vheat.analysis.attribution import (
    contribution_areas,
    contribution_shares,
    grad_cam,
    last_stage,
    receptive_field,
    score_of,
)
from paddle_vheat.analysis.conduction import FREQUENCY_BINS, by_frequency, conduction, mean_over_channels, reach
from paddle_vheat.analysis.observe import (
    Observation,
    backbone_of,
    observe,
    outputs_of,
    stage_layers,
    stage_maps,
)
from paddle_vheat.models.vheat import VHeat

TIMES = (0.0, 0.25, 1.0, 4.0, 16.0)
QUANTILES = (0.1, 0.5, 0.9)
_MIDDLES = (FREQUENCY_BINS[1:] + FREQUENCY_BINS[:-1]) / 2
_MODES = ("m (mode along the width)", "n (mode along the height)")
Numbers = dict[str, Any]


@dataclass
class Subject:
    """What pictures are made of.

    Args:
        name: of the model, for titles.
        model: the trained one.
        image: float32 (C, H, W), normalised as the model expects it; zeros without one (only "k", "reach", "response"
            and "patch" make sense then).
        before: the model with the random weights of a seed, or None.
        picture: the image for people, float (H, W, 3) of 0 to 1.
        images: for the receptive field.
        patch: (row, column) on the first stage's map; None for the centre.
        label: class for Grad-CAM; None for the likeliest.
    """

    name: str
    model: Any
    image: np.ndarray
    folder: Path
    before: Any = None
    picture: np.ndarray | None = None
    images: Sequence[np.ndarray] = field(default_factory=list)
    patch: tuple[int, int] | None = None
    label: int | None = None

    @property
    def models(self) -> dict[str, Any]:
        return {**({} if self.before is None else {"before": self.before}), "trained": self.model}

    @cached_property
    def seen(self) -> dict[str, list[Observation]]:
        """The operators of each model."""
        return {key: observe(model, paddle.to_tensor(self.image[None])) for key, model in self.models.items()}

    def title(self, text: str) -> str:
        return f"{self.name}, {self.image.shape[1]} x {self.image.shape[2]} pixels: {text}"

    def rows(self, columns: int = 3) -> list[list[tuple[str, Observation]]]:
        """Up to four stages, and of each up to ``columns`` blocks; with a model before training, the last of each."""
        trained = self.seen["trained"]
        rows = []
        for stage in spread(sorted({one.stage for one in trained}), 4):
            blocks = [one for one in trained if one.stage == stage]
            if self.before is None:
                rows.append([("trained", one) for one in spread(blocks, columns)])
            else:
                last = [(key, [o for o in seen if o.stage == stage][-1]) for key, seen in self.seen.items()]
                rows.append(last)
        return rows

    def caption(self, key: str, one: Observation) -> str:
        return _place(one) if self.before is None else f"{_place(one)}, {key}"

    def number(self, measure: Callable[[Observation], Numbers]) -> Numbers:
        """A measure of every operator of each model."""
        return {
            key: [{"layer": o.name, "stage": o.stage + 1, "block": o.block + 1, **measure(o)} for o in seen]
            for key, seen in self.seen.items()
        }


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most so many of the items, the first and the last among them (of one, the last)."""
    if len(items) <= count:
        return list(items)
    return [items[-1]] if count == 1 else [items[round(i)] for i in np.linspace(0, len(items) - 1, count)]


def _place(one: Observation) -> str:
    return f"stage {one.stage + 1}, block {one.block + 1}"


def _quantiles(values: np.ndarray) -> Any:
    return np.quantile(values, QUANTILES)


def draw_k(subject: Subject) -> Numbers:
    """Mean of k over channels on the plane of modes, its quantiles by |w|, and its histogram."""

    def measure(one: Observation) -> Numbers:
        known = one.k[~np.isnan(one.k)]
        return {
            "mean": float(known.mean()),
            "share_of_zeros": float((known == 0).mean()),
            "quantiles": dict(zip(map(str, QUANTILES), _quantiles(known))),
            "quantiles_by_frequency": by_frequency(one.k, _quantiles),
            "mean_over_channels": mean_over_channels(one.k),
        }

    rows = [
        [
            Panel(f"{subject.caption(key, one)}\nmean {np.nanmean(one.k):.3g}", mean_over_channels(one.k))
            for key, one in row
        ]
        for row in subject.rows()
    ]
    title = "thermal diffusivity k, mean over channels\nmode (0, 0) at top left"
    scale = Scale("k (patches²)", low=0.0, axes=_MODES)
    draw_maps(subject.folder / "k.png", subject.title(title), rows, scale)
    panels, histograms = [], []
    for row in subject.rows(1):
        lines, band = [], None
        histogram = []
        for key, one in row:
            low, middle, high = by_frequency(one.k, _quantiles).T
            shown = ~np.isnan(middle)
            lines.append((f"{key}: mean", _MIDDLES[shown], by_frequency(one.k)[shown]))
            lines.append((f"{key}: median", _MIDDLES[shown], middle[shown]))
            if key == "trained":
                band = _MIDDLES[shown], low[shown], high[shown]
            known = one.k[~np.isnan(one.k)]
            edges = np.logspace(-4, np.log10(2 * max(float(np.nanmax(one.k)), 1e-2)), 41)
            counts = np.histogram(known, edges)[0] / known.size
            text = f"{key}: {100 * (known == 0).mean():.0f} % are 0"
            histogram.append((text, np.sqrt(edges[1:] * edges[:-1]), 100 * counts))
        panels.append(Curves(_place(row[-1][1]), lines, band))
        histograms.append(Curves(_place(row[-1][1]), histogram))
    title = "k by frequency, all modes and channels\nband: 10 % to 90 % (trained)"
    draw_curves(
        subject.folder / "k_by_frequency.png", subject.title(title), panels, "|w| (radians per patch)", "k (patches²)"
    )
    title = "histogram of k, all modes and channels"
    path = subject.folder / "k_histogram.png"
    draw_curves(path, subject.title(title), histograms, "k (patches²), logarithmic", "% of entries", log_x=True)
    return subject.number(measure)


def draw_reach(subject: Subject) -> Numbers:
    """Standard deviation of every block's mean kernel."""
    numbers = subject.number(
        lambda one: {"sigma_patches": reach(one.decay), "sigma_pixels": reach(one.decay) * one.stride}
    )
    names = [f"{one.stage + 1}.{one.block + 1}" for one in subject.seen["trained"]]
    shown = [names.index(name) for name in spread(names, 24)]
    panels = [
        (f"sigma ({unit})", {key: [rows[i][f"sigma_{unit}"] for i in shown] for key, rows in numbers.items()})
        for unit in ("patches", "pixels")
    ]
    title = "reach of conduction by stage.block\nstandard deviation of the kernel at the centre, mean over channels"
    draw_bars(subject.folder / "reach.png", subject.title(title), [names[i] for i in shown], panels)
    return numbers


def draw_response(subject: Subject) -> Numbers:
    """E, mean over channels, on the plane of modes and by |w|."""

    def measure(one: Observation) -> Numbers:
        numbers: Numbers = {"mean_over_channels": one.decay.mean(-1), "by_frequency": by_frequency(one.decay)}
        return {**numbers, "energy_kept": one.energy_kept} if subject.picture is not None else numbers

    def caption(key: str, one: Observation) -> str:
        text = subject.caption(key, one)
        return f"{text}\n{100 * one.energy_kept:.0f} % of the energy kept" if subject.picture is not None else text

    rows = [[Panel(caption(key, one), one.decay.mean(-1)) for key, one in row] for row in subject.rows()]
    title = "response E = exp(-k |w|²), mean over channels\nmode (0, 0) at top left, where it is 1"
    scale = Scale("E (share of a mode that stays)", 0.0, 1.0, axes=_MODES)
    draw_maps(subject.folder / "response.png", subject.title(title), rows, scale)
    panels = []
    for row in subject.rows(1):
        lines = []
        for key, one in row:
            means = by_frequency(one.decay)
            shown = ~np.isnan(means)
            lines.append((key, _MIDDLES[shown], means[shown]))
        panels.append(Curves(_place(row[-1][1]), lines))
    path = subject.folder / "response_by_frequency.png"
    title = "response by frequency, mean over modes and channels"
    draw_curves(path, subject.title(title), panels, "|w| (radians per patch)", "E")
    return subject.number(measure)


def draw_patch(subject: Subject) -> Numbers:
    """Heat that spreads from one patch by the last block of every stage, and from three places in the first stage."""
    lasts = [[(key, one) for key, one in row if key == "trained"][-1][1] for row in subject.rows(1)]
    first = lasts[0].size
    y, x = subject.patch or (first[0] // 2, first[1] // 2)
    if not (0 <= y < first[0] and 0 <= x < first[1]):
        raise ValueError(f"--patch {y} {x} is outside the first stage's map of {first[0]} x {first[1]} patches")

    def places(one: Observation) -> dict[str, tuple[int, int]]:
        height, width = one.size
        chosen = (y * height // first[0], x * width // first[1])
        return {"chosen": chosen, "centre": (height // 2, width // 2), "edge": (0, width // 2), "corner": (0, 0)}

    def measure(one: Observation) -> Numbers:
        found: Numbers = {}
        for name, place in places(one).items():
            heat = conduction(one.decay, place, TIMES)
            rows = [{"t": t, "sum": u.sum(), "minimum": u.min(), "maximum": u.max()} for t, u in zip(TIMES, heat)]
            found[name] = {"patch": list(place), "times": rows}
        return found

    def panel(caption: str, one: Observation, place: tuple[int, int], time: float) -> Panel:
        heat = conduction(one.decay, place, (time,))[0]
        peak = float(np.abs(heat).max())
        text = f"{caption}, t = {time:g}\npeak {peak:.3g}, minimum {heat.min():.1g}"
        return Panel(text, np.sign(heat) * np.sqrt(np.abs(heat) / peak))

    scale = Scale("sign(u) sqrt(|u| / peak of the panel), u: heat", -1.0, 1.0, "RdBu_r")
    note = "mean over channels, insulated edges; t = 1 is what the model does"
    rows = [[panel(f"stage {o.stage + 1}", o, places(o)["chosen"], t) for t in (1.0, 4.0, 16.0)] for o in lasts]
    draw_maps(subject.folder / "patch.png", subject.title(f"heat that spreads from one patch\n{note}"), rows, scale)
    names = ("centre", "edge", "corner")
    rows = [[panel(n, lasts[0], places(lasts[0])[n], t) for t in (0.25, 1.0, 4.0, 16.0)] for n in names]
    title = f"heat that spreads from three places of stage {lasts[0].stage + 1}\n{note}"
    draw_maps(subject.folder / "patch_places.png", subject.title(title), rows, scale)
    return subject.number(measure)


def draw_image(subject: Subject) -> Numbers:
    """Temperature of the image before and after conduction, and the gate, in the last block of every stage."""
    rows, gates = [], []
    for row in subject.rows(1):
        key, one = row[-1]
        peak = max(float(one.heat_before.max()), float(one.heat_after.max()), 1e-12)
        caption = subject.caption(key, one)
        rows.append(
            [
                Panel(f"{caption}\nbefore, peak {one.heat_before.max():.3g}", one.heat_before / peak),
                Panel(f"{caption}\nafter, peak {one.heat_after.max():.3g}", one.heat_after / peak),
            ]
        )
        if one.gate is not None:
            gates.append(Panel(caption, one.gate))
    title = "temperature before and after conduction\nroot mean square over channels"
    scale = Scale("temperature (share of the stage's peak)", 0.0, 1.0)
    draw_maps(subject.folder / "image.png", subject.title(title), rows, scale)
    if gates:
        limit = max(float(np.abs(gate.values).max()) for gate in gates)
        scale = Scale("SiLU(z)", -limit, limit, "RdBu_r")
        draw_maps(subject.folder / "gate.png", subject.title("gate, mean over channels"), [gates], scale)
    return subject.number(
        lambda one: {
            "temperature_before": one.heat_before,
            "temperature_after": one.heat_after,
            "gate": one.gate,
            "energy_kept": one.energy_kept,
        }
    )


def draw_stages(subject: Subject) -> Numbers:
    """Norm of every stage's output, scaled to [0, 1], on the image."""
    x = paddle.to_tensor(subject.image[None])
    numbers, rows = {}, []
    for key, model in subject.models.items():
        maps = stage_maps(model, x)
        shown = spread(list(range(len(maps))), 4)
        prefix = f"{key}, " if subject.before is not None else ""
        panels = [Panel(f"{prefix}stage {i + 1}", _enlarged(_unit(maps[i]), x), over=subject.picture) for i in shown]
        rows.append([_image(subject), *panels])
        numbers[key] = [{"stage": i + 1, "norm": m} for i, m in enumerate(maps)]
    title = (
        "response of the stages: L2 norm over channels, scaled to [0, 1] in each map\nbilinear, on the image at 50 %"
    )
    scale = Scale("norm (0: minimum, 1: maximum)", 0.0, 1.0)
    draw_maps(subject.folder / "stages.png", subject.title(title), rows, scale)
    return numbers


def _image(subject: Subject) -> Panel:
    assert subject.picture is not None  # NEED_AN_IMAGE
    return Panel("image", subject.picture)


def _unit(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _enlarged(values: np.ndarray, image: Any) -> np.ndarray:
    wide = paddle.to_tensor(values.astype(np.float32)[None, None])
    return F.interpolate(wide, size=image.shape[2:], mode="bilinear", align_corners=False)[0, 0].numpy()


def draw_erf(subject: Subject) -> Numbers:
    """The effective receptive field of the last stage's central position, in the two usual scales."""
    numbers, rows, count = {}, [], 0
    for key, model in subject.models.items():
        found = receptive_field(last_stage(model), subject.images)
        peak = max(float(found.field.max()), 1e-300)
        logarithmic = np.log10(1 + found.field)
        logarithmic /= max(float(logarithmic.max()), 1e-300)
        areas = {"of_log_scaled": contribution_areas(logarithmic), "of_raw": contribution_areas(found.field)}
        count = found.images
        numbers[key] = {
            "images": count,
            "skipped_as_not_finite": found.skipped,
            "areas": {
                name: {str(t): None if a is None else {"side": a[0], "share": a[1]} for t, a in values.items()}
                for name, values in areas.items()
            },
            "raw_share_by_half_side": contribution_shares(found.field),
        }
        rows.append(
            [
                Panel(f"{key}: log10(1 + G) / max\narea of it {_area(areas['of_log_scaled'])}", logarithmic),
                Panel(f"{key}: (G / max)^0.2\narea of G {_area(areas['of_raw'])}", (found.field / peak) ** 0.2),
            ]
        )
    title = (
        f"effective receptive field\nof the last stage's central position, mean of {count} image{'s' * (count > 1)}"
        "\narea: of the smallest centred square with 50 % / 99 % of the sum, in % of the image"
    )
    scale = Scale("contribution (1: maximum)", 0.0, 1.0)
    draw_maps(subject.folder / "erf.png", subject.title(title), rows, scale)
    return numbers


def _area(areas: dict[float, tuple[int, float] | None]) -> str:
    return " / ".join("-" if area is None else f"{100 * area[1]:.1f}" for area in (areas[0.5], areas[0.99]))


def draw_cam(subject: Subject) -> Numbers:
    """Grad-CAM of the last stage for a class."""
    x = paddle.to_tensor(subject.image[None])
    if not isinstance(backbone_of(subject.model), VHeat):
        raise ValueError("Grad-CAM needs the class scores of a classifier or a segmentor")
    numbers, rows = {}, []
    for key, model in subject.models.items():
        with in_evaluation(model), outputs_of(stage_layers(backbone_of(model))[-1]) as kept:
            score, label = score_of(model(x), subject.label)
            found = grad_cam(kept[-1], score)
        shown = _enlarged(_unit(found), x)
        rows.append([_image(subject), Panel(f"{key}: class {label}", shown, over=subject.picture)])
        numbers[key] = {"class": label, "score": float(score), "map": found}
    title = "Grad-CAM of the last stage, before the final norm\nscaled to [0, 1], bilinear, on the image at 50 %"
    scale = Scale("weight (0: minimum, 1: maximum)", 0.0, 1.0)
    draw_maps(subject.folder / "cam.png", subject.title(title), rows, scale)
    return numbers


CONCEPTS: dict[str, Callable[[Subject], Numbers]] = {
    "k": draw_k,
    "reach": draw_reach,
    "response": draw_response,
    "patch": draw_patch,
    "image": draw_image,
    "stages": draw_stages,
    "erf": draw_erf,
    "cam": draw_cam,
}
NEED_AN_IMAGE = ("image", "stages", "erf", "cam")
