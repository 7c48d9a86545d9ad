"""Cars, trucks, buses and trams of the street scenes, as shaded boxes in perspective."""

from __future__ import annotations

import math

import numpy as np

from examples.street_scenes.canvas import Array, Canvas, Colour, dim, mix
from examples.street_scenes.labels import BUS, CAR, TRAIN, TRUCK
from examples.street_scenes.shapes import GLASS, PAINTS, RUBBER, VIVID, Pose, among, box, footprint, paint_box, pick


def wheels(canvas: Canvas, pose: Pose, at: list[float], half: float, radius: float, label: int) -> None:
    """Tyres under the body: drawn before it, they fill what is seen below it from the front or back."""
    for forward in sorted(at, key=lambda a: -pose.place(np.array([a, 0.0, 0.0]))[2]):
        for right in (-half + 0.12, half - 0.12):
            tyre = box(
                pose,
                (forward - radius, forward + radius),
                (right - 0.11, right + 0.11),
                (0, radius),
                (0, 0, 0),
            )
            for name in ("back", "front"):
                if canvas.facing(tyre[name]) is not None:
                    canvas.flat(tyre[name], RUBBER, label)


def hubs(canvas: Canvas, pose: Pose, at: list[float], half: float, radius: float, label: int, seen: set[str]) -> None:
    """The round outsides of the wheels, on the sides in ``seen``."""
    angles = np.linspace(0, 2 * math.pi, 14, endpoint=False)
    for name, right in (("left", -half - 0.01), ("right", half + 0.01)):
        if name not in seen:
            continue
        for forward in at:
            for size, colour in ((1.0, RUBBER), (0.55, (128.0, 130.0, 132.0))):
                circle = np.stack(
                    [
                        forward + size * radius * np.cos(angles),
                        np.full_like(angles, right),
                        radius + size * radius * np.sin(angles),
                    ],
                    axis=-1,
                )
                canvas.flat(pose.place(circle), colour, label)


def tail(canvas: Canvas, sides: dict[str, Array], seen: dict[str, float], label: int, high: float) -> None:
    """Lamps, bumper and number plate on the front and back of a body; ``high``: lamps' level, 0..1."""
    lamps = canvas.light.lamps
    lens: Colour = (255, 40, 30) if lamps else (168, 22, 22)
    head: Colour = (255, 250, 225) if lamps else (226, 228, 222)
    for name, lamp, plate in (("back", lens, (220.0, 214.0, 190.0)), ("front", head, (226.0, 226.0, 220.0))):
        if name not in seen:
            continue
        quad = sides[name]
        spans = [(0.0, 1.0, 0.0, 0.22), (0.36, 0.64, 0.24, 0.42)]
        spans += [(0.03, 0.2, high, high + 0.24), (0.8, 0.97, high, high + 0.24)]
        glow = [False, False, lamps, lamps]
        canvas.panels(quad, spans, [(40, 41, 44), plate, lamp, lamp], label, seen[name], glow)
        if name == "front":
            canvas.panels(quad, [(0.26, 0.74, 0.48, 0.8)], [(30, 31, 34)], label, seen[name])


def draw_car(canvas: Canvas, rng: np.random.Generator, pose: Pose, shape: str) -> None:
    """A ``shape`` of "hatch", "sedan", "suv" or "van"; about 4 to 5 m long."""
    paint = pick(rng, PAINTS)
    glass = mix(GLASS, (150, 170, 190), rng.uniform(0, 0.35))
    length, width, belt, height = {
        "hatch": (3.9, 1.7, 0.9, 1.48),
        "sedan": (4.6, 1.8, 0.88, 1.43),
        "suv": (4.6, 1.9, 1.02, 1.74),
        "van": (5.1, 2.0, 1.15, 2.15),
    }[shape]
    half, a = width / 2, length / 2
    # Back and front ends of the cabin's foot and how far its roof is drawn in there.
    cabin, taper = {
        "hatch": ((-a + 0.02, a - 0.95), (0.4, 0.75, 0.16)),
        "sedan": ((-a + 0.65, a - 1.1), (0.65, 0.8, 0.17)),
        "suv": ((-a + 0.02, a - 1.1), (0.3, 0.6, 0.13)),
        "van": ((-a + 0.02, a - 0.7), (0.06, 0.75, 0.1)),
    }[shape]
    axles = [-length * 0.3, length * 0.31]
    radius = 0.33 if height < 1.7 else 0.37

    canvas.shadow(footprint(pose, length, width), height)
    wheels(canvas, pose, axles, half, radius, CAR)
    body = box(pose, (-a, a), (-half, half), (0.26, belt), (0.05, 0.12, 0.04))
    seen = paint_box(canvas, body, paint, CAR)
    tail(canvas, body, seen, CAR, 0.55)
    for name in among(seen, "left", "right"):
        trim = [(0.0, 1.0, 0.0, 0.1), (0.44, 0.455, 0.1, 1.0), (0.7, 0.715, 0.1, 1.0)]
        canvas.panels(body[name], trim, [(46, 47, 50), dim(paint, 0.6), dim(paint, 0.6)], CAR, seen[name])
    hubs(canvas, pose, axles, half, radius, CAR, set(seen))
    top = box(pose, cabin, (-half + 0.04, half - 0.04), (belt, height), taper)
    seen = paint_box(canvas, top, paint, CAR)
    for name in among(seen, "back", "front", "left", "right"):
        if name in ("left", "right"):
            panes = [(0.06, 0.47, 0.12, 0.84), (0.51, 0.93, 0.12, 0.84)]
            if shape == "van":
                panes = [(0.62, 0.92, 0.15, 0.84)] if name == "right" else [(0.08, 0.38, 0.15, 0.84)]
        else:
            panes = [(0.06, 0.94, 0.1, 0.88)]
        canvas.panels(top[name], panes, [glass] * len(panes), CAR, seen[name])
        # The sky mirrored in the upper part of the glass.
        gloss = [(s0, s1, t1 - 0.25, t1) for s0, s1, _, t1 in panes]
        canvas.panels(top[name], gloss, [mix(glass, (170, 190, 205), 0.4)] * len(gloss), CAR, seen[name])


def draw_truck(canvas: Canvas, rng: np.random.Generator, pose: Pose) -> None:
    """A lorry of 7 to 10 m: a cab in front of a box body, a tilt or an open tipper."""
    length = rng.uniform(6.8, 10.0)
    half, a = 1.22, length / 2
    high = rng.uniform(2.9, 3.7)
    open_bed = rng.random() < 0.25
    if open_bed:
        high = 2.1
    cargo = pick(rng, ((232, 232, 228), (206, 206, 200), *VIVID))
    cab_paint = pick(rng, VIVID)
    axles = [-a + 1.0, -a + 2.3, a - 1.1]

    canvas.shadow(footprint(pose, length, 2 * half), high)
    wheels(canvas, pose, axles, half, 0.5, TRUCK)

    def bed() -> None:
        chassis = box(pose, (-a, a - 0.4), (-half + 0.1, half - 0.1), (0.55, 1.0), (0, 0, 0))
        paint_box(canvas, chassis, (48, 48, 52), TRUCK)
        body = box(pose, (-a, a - 2.2), (-half, half), (0.95, high), (0, 0, 0))
        seen = paint_box(canvas, body, cargo, TRUCK)
        if "back" in seen:
            spans = [(0.49, 0.51, 0.0, 1.0), (0.04, 0.08, 0.05, 0.95), (0.92, 0.96, 0.05, 0.95)]
            canvas.panels(body["back"], spans, [dim(cargo, 0.55)] * 3, TRUCK, seen["back"])
        stripe = pick(rng, VIVID)
        for name in among(seen, "left", "right"):
            if open_bed:
                ribs = [(i / 6 - 0.01, i / 6 + 0.01, 0.0, 1.0) for i in range(1, 6)]
                canvas.panels(body[name], ribs, [dim(cargo, 0.7)] * 5, TRUCK, seen[name])
            else:
                spans = [(0.0, 1.0, 0.0, 0.07), (0.15, 0.75, 0.42, 0.68)]
                canvas.panels(body[name], spans, [dim(cargo, 0.6), stripe], TRUCK, seen[name])
        rear = box(pose, (-a - 0.02, a - 2.2), (-half, half), (0.6, 0.98), (0, 0, 0))
        if "back" in seen:
            paint_box(canvas, {"back": rear["back"]}, (70, 70, 74), TRUCK)
            tail(canvas, rear, {"back": seen["back"]}, TRUCK, 0.5)

    def cab() -> None:
        body = box(pose, (a - 2.0, a), (-half + 0.02, half - 0.02), (0.5, 2.75), (0, 0.25, 0.05))
        seen = paint_box(canvas, body, cab_paint, TRUCK)
        if "front" in seen:
            spans = [(0.06, 0.94, 0.5, 0.86), (0.15, 0.85, 0.2, 0.42), (0.0, 1.0, 0.0, 0.14)]
            canvas.panels(body["front"], spans, [GLASS, (44, 45, 48), (60, 60, 64)], TRUCK, seen["front"])
            low = box(pose, (a - 2.0, a), (-half + 0.02, half - 0.02), (0.5, 1.1), (0, 0.07, 0.01))
            tail(canvas, low, {"front": seen["front"]}, TRUCK, 0.5)
        for name, panes in (("left", (0.08, 0.55, 0.52, 0.84)), ("right", (0.45, 0.92, 0.52, 0.84))):
            if name in seen:
                canvas.panels(body[name], [panes], [GLASS], TRUCK, seen[name])

    ends = pose.place(np.array([(-a, 0.0, 0.0), (a, 0.0, 0.0)]))
    parts = [bed, cab] if ends[0, 2] > ends[1, 2] else [cab, bed]
    for part in parts:
        part()
    sides = box(pose, (-a, a), (-half, half), (0, high), (0, 0, 0))
    seen = {name for name in ("left", "right") if canvas.facing(sides[name]) is not None}
    hubs(canvas, pose, axles, half, 0.5, TRUCK, seen)


def _windows(count: int, bottom: float, top: float, gap: float) -> list[tuple[float, float, float, float]]:
    return [((i + gap) / count, (i + 1 - gap) / count, bottom, top) for i in range(count)]


def draw_bus(canvas: Canvas, rng: np.random.Generator, pose: Pose) -> None:
    """A city bus, 10 to 12 m long, at times with two decks."""
    length, half = rng.uniform(10, 12), 1.27
    a = length / 2
    double = rng.random() < 0.2
    height = 4.2 if double else 3.1
    paint = pick(rng, VIVID)
    band = pick(rng, ((236, 236, 232), *VIVID))
    lit = canvas.light.lamps
    glass: Colour = (236, 214, 150) if lit else mix(GLASS, (140, 160, 175), rng.uniform(0, 0.4))
    axles = [-a + 2.6, a - 2.4]

    canvas.shadow(footprint(pose, length, 2 * half), height)
    wheels(canvas, pose, axles, half, 0.48, BUS)
    body = box(pose, (-a, a), (-half, half), (0.3, height), (0.06, 0.12, 0.03))
    seen = paint_box(canvas, body, paint, BUS)
    rows = [(0.3, 0.5), (0.62, 0.88)] if double else [(0.42, 0.82)]
    for name in among(seen, "left", "right"):
        panes = [pane for low, high in rows for pane in _windows(7, low, high, 0.05)]
        canvas.panels(body[name], [(0, 1, 0.0, 0.1), (0, 1, 0.2, 0.28)], [(50, 50, 54), band], BUS, seen[name])
        canvas.panels(body[name], panes, [glass] * len(panes), BUS, seen[name], [lit] * len(panes))
        doors = [(0.84, 0.93, 0.05, 0.8)] if name == "right" else []
        canvas.panels(body[name], doors, [dim(GLASS, 1.3)] * len(doors), BUS, seen[name])
    for name in among(seen, "front", "back"):
        panes = [(0.06, 0.94, low, high) for low, high in rows]
        if name == "front" and not double:
            panes = [(0.04, 0.96, 0.32, 0.82)]
        canvas.panels(body[name], panes, [glass if name == "back" else GLASS] * len(panes), BUS, seen[name])
        sign = (0.2, 0.8, 0.86, 0.96) if not double else (0.25, 0.75, 0.52, 0.6)
        canvas.panels(body[name], [sign], [(22, 22, 22)], BUS, seen[name])
        line = (sign[0] + 0.08, sign[1] - 0.2, sign[2] + 0.03, sign[3] - 0.03)
        canvas.panels(body[name], [line], [(255, 176, 40)], BUS, 1.0, [True])
        low = box(pose, (-a, a), (-half, half), (0.3, 1.05), (0.015, 0.03, 0.0))
        tail(canvas, low, {name: seen[name]}, BUS, 0.5)
    hubs(canvas, pose, axles, half, 0.48, BUS, set(seen))


def draw_train(canvas: Canvas, rng: np.random.Generator, pose: Pose) -> None:
    """A tram of two or three sections, 9 m each, about a point in the middle of the first one."""
    half, height, each = 1.25, 3.4, 9.0
    paint, band = pick(rng, VIVID), pick(rng, ((236, 236, 230), (60, 62, 66), *VIVID))
    lit = canvas.light.lamps
    glass: Colour = (240, 222, 170) if lit else mix(GLASS, (130, 150, 165), rng.uniform(0, 0.3))
    count = int(rng.integers(2, 4))
    # The sections follow away from the camera, whichever way the tram runs.
    away = 1 if math.cos(pose.heading) >= 0 else -1
    order = sorted(range(count), key=lambda i: -pose.place(np.array([away * i * (each + 0.5), 0.0, 0.0]))[2])
    for i in order:
        middle = away * i * (each + 0.5)
        first, last = middle - each / 2, middle + each / 2
        # Only the outer ends of the first and the last section are slanted.
        slants = [0.4 if i == 0 else 0.1, 0.4 if i == count - 1 else 0.1][::away]
        nose = (slants[0], slants[1], 0.08)
        x, _, z = pose.place(np.array([middle, 0.0, 0.0])).tolist()
        at = Pose(x, z, pose.heading)
        canvas.shadow(footprint(at, each, 2 * half), height)
        link = box(pose, (first - 0.6, last + 0.6), (-half + 0.15, half - 0.15), (0.4, height - 0.25), (0, 0, 0))
        if i:
            paint_box(canvas, link, (44, 44, 48), TRAIN)
        body = box(pose, (first, last), (-half, half), (0.22, height), nose)
        seen = paint_box(canvas, body, paint, TRAIN)
        for name in among(seen, "left", "right"):
            panes = _windows(5, 0.42, 0.8, 0.06)
            spans = [(0.0, 1.0, 0.0, 0.12), (0.0, 1.0, 0.26, 0.36), (0.0, 1.0, 0.88, 1.0)]
            canvas.panels(body[name], spans, [(44, 44, 48), band, dim(band, 0.9)], TRAIN, seen[name])
            canvas.panels(body[name], panes, [glass] * 5, TRAIN, seen[name], [lit] * 5)
            canvas.panels(body[name], [(0.42, 0.58, 0.1, 0.84)], [dim(GLASS, 1.2)], TRAIN, seen[name])
        for name in among(seen, "front", "back"):
            spans = [(0.0, 1.0, 0.2, 0.34), (0.08, 0.92, 0.4, 0.8), (0.3, 0.7, 0.85, 0.94)]
            canvas.panels(body[name], spans, [band, GLASS, (24, 24, 24)], TRAIN, seen[name])
            canvas.panels(body[name], [(0.36, 0.6, 0.87, 0.92)], [(255, 190, 60)], TRAIN, 1.0, [True])
            low = box(pose, (first, last), (-half, half), (0.25, 1.3), (nose[0] * 0.3, nose[1] * 0.3, 0.02))
            tail(canvas, low, {name: seen[name]}, TRAIN, 0.55)
        bow = [(middle, 0.0, height), (middle - 0.6, 0.0, height + 0.5), (middle, 0.0, height + 1)]
        roof = pose.place(np.array(bow))
        canvas.limb(roof[0], roof[1], (0.04, 0.04), (60, 60, 62), TRAIN, round_ends=False)
        canvas.limb(roof[1], roof[2], (0.04, 0.04), (60, 60, 62), TRAIN, round_ends=False)
