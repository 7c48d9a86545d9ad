"""What stands along the streets: poles, lamps, lights, signs, trees, bushes and bins."""

from __future__ import annotations

import math

import numpy as np

from examples.street_scenes.canvas import Array, Canvas, Colour, dim, mix
from examples.street_scenes.labels import IGNORE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION
from examples.street_scenes.shapes import PAINTS, VIVID, Pose, among, box, footprint, paint_box, pick


def draw_pole(canvas: Canvas, x: float, z: float, height: float, radius: float, colour: Colour) -> Array:
    """A pole with its contact shadow; returns its top (3,)."""
    foot, top = np.array([x, 0.0, z]), np.array([x, height, z])
    canvas.shadow(footprint(Pose(x, z, 0.0), 2.5 * radius, 2.5 * radius), height)
    canvas.limb(foot, top, (radius, radius * 0.8), colour, POLE, round_ends=False)
    return top


def draw_street_lamp(canvas: Canvas, x: float, z: float, height: float, towards: float) -> None:
    """A lamp post whose arm reaches ``towards`` metres to the right (left if negative)."""
    grey: Colour = (92, 94, 96)
    top = draw_pole(canvas, x, z, height, 0.085, grey)
    end = top + np.array([towards, 0.25, 0.0])
    canvas.limb(top, end, (0.05, 0.045), grey, POLE)
    canvas.limb(end, end + np.array([math.copysign(0.5, towards), -0.03, 0.0]), (0.09, 0.07), (120, 122, 120), POLE)
    if canvas.light.lamps:
        canvas.ball(end + np.array([math.copysign(0.3, towards), -0.06, 0.0]), 0.16, (255, 226, 150), glow=True)


def draw_traffic_light(canvas: Canvas, rng: np.random.Generator, x: float, z: float, reach: float) -> None:
    """A traffic light on its pole; with ``reach`` (metres, signed) another one hangs above the lanes."""
    dark: Colour = (34, 38, 36)
    spots = [np.array([x, rng.uniform(2.6, 3.1), z - 0.12])]
    top = draw_pole(canvas, x, z, 5.8 if reach else 3.7, 0.075, (84, 88, 88))
    if reach:
        end = top + np.array([reach, 0.1, 0.0])
        canvas.limb(top, end, (0.06, 0.05), (84, 88, 88), POLE)
        spots.append(end + np.array([0.0, -0.4, -0.1]))
    state, size = int(rng.integers(3)), rng.uniform(1.0, 1.35)
    rim = rng.random() < 0.4
    for spot in spots:
        w, h = 0.2 * size, 0.52 * size
        quad = spot + np.array([(-w, -h, 0.0), (w, -h, 0.0), (w, h, 0.0), (-w, h, 0.0)])
        if rim:
            plate = spot + (quad - spot) * 1.25
            canvas.flat(plate, (206, 206, 200), TRAFFIC_LIGHT)
        canvas.flat(quad, dark, TRAFFIC_LIGHT)
        for i, colour in enumerate([(255, 48, 34), (255, 190, 40), (60, 240, 130)]):
            lamp = spot + np.array([0.0, 0.34 * size * (1 - i), -0.05])
            on = i == state
            canvas.ball(lamp, 0.13 * size, colour if on else dim(colour, 0.22), TRAFFIC_LIGHT, glow=on)


def draw_sign(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A traffic sign on its pole: round, triangular, eight-sided, a lozenge, a square or a board."""
    kind = str(rng.choice(["ban", "order", "danger", "yield", "stop", "priority", "square", "board"]))
    size, level = rng.uniform(0.33, 0.44), rng.uniform(2.1, 2.8)
    if kind == "board":
        level = 2.9
    draw_pole(canvas, x, z, level + size * 0.9, 0.05, (128, 130, 132))
    red, white, blue, black = (
        (196.0, 28.0, 32.0),
        (236.0, 236.0, 232.0),
        (26.0, 74.0, 160.0),
        (26.0, 26.0, 28.0),
    )

    def plate(corners: int, turn: float, scale: float, colour: Colour, wide: float = 1.0) -> None:
        angles = np.linspace(0, 2 * math.pi, corners, endpoint=False) + turn
        stretch = 1.4142 if corners == 4 and turn else 1.0
        outline = np.stack(
            [
                x + wide * stretch * scale * size * np.cos(angles),
                level + stretch * scale * size * np.sin(angles) * (0.8 if wide > 1 else 1.0),
                np.full(corners, z - 0.06),
            ],
            axis=-1,
        )
        canvas.flat(outline, colour, TRAFFIC_SIGN)

    up, quarter = math.pi / 2, math.pi / 4
    if kind == "ban":
        plate(20, 0.0, 1.0, red)
        plate(20, 0.0, 0.74, white)
        canvas.panels(
            np.array([(x - size, level - size, z - 0.07), (x + size, level - size, z - 0.07),
                      (x + size, level + size, z - 0.07), (x - size, level + size, z - 0.07)]),
            [(0.32, 0.45, 0.32, 0.68), (0.55, 0.68, 0.32, 0.68)], [black, black], TRAFFIC_SIGN,
        )  # fmt: skip
    elif kind == "order":
        plate(20, 0.0, 1.0, blue)
        plate(3, up, 0.55, white)
    elif kind in ("danger", "yield"):
        turn = up if kind == "danger" else -up
        plate(3, turn, 1.15, red)
        plate(3, turn, 0.7, white)
    elif kind == "stop":
        plate(8, math.pi / 8, 1.05, white)
        plate(8, math.pi / 8, 0.95, red)
        plate(4, quarter, 0.2, white, 3.0)
    elif kind == "priority":
        plate(4, up, 1.1, white)
        plate(4, 0.0, 0.8, (238, 190, 30))
    elif kind == "square":
        plate(4, quarter, 0.85, blue)
        plate(4, quarter, 0.5, white)
    else:
        ground = pick(rng, ((30, 84, 160), (230, 200, 40), (40, 110, 70)))
        plate(4, quarter, 0.75, white, 2.2)
        plate(4, quarter, 0.66, ground, 2.25)
        plate(4, quarter, 0.12, white, 8.0)


def draw_tree(canvas: Canvas, rng: np.random.Generator, x: float, z: float, height: float, leaf: Colour) -> None:
    """A tree of ``height`` metres: trunk, lumps of crown and dapples of light."""
    radius = height * rng.uniform(0.24, 0.34)
    trunk: Colour = (74, 58, 44)
    canvas.shadow(footprint(Pose(x, z, 0.0), 0.5, 0.5), height * 0.7)
    light = canvas.light
    if light.strength > 0.3:
        # The crown's own shadow; further than this it would lie on what stands behind.
        away = min((height - radius) / max(light.sun[1], 0.3), 1.2 * height)
        turn = np.linspace(0, 2 * math.pi, 16, endpoint=False)
        spot = np.stack([x - light.sun[0] * away + radius * np.cos(turn), 0 * turn, radius * np.sin(turn)], axis=-1)
        spot[:, 2] += z - light.sun[2] * away
        if spot[:, 2].min() > 1.0:
            canvas.blend(canvas.camera.project(spot), (10, 14, 16), 0.35 * light.strength)
    foot, fork = np.array([x, 0.0, z]), np.array([x + rng.uniform(-0.3, 0.3), height * 0.55, z])
    canvas.limb(foot, fork, (0.025 * height, 0.014 * height), trunk, VEGETATION)
    middle = height - radius
    count = 7
    angles = rng.uniform(0, 2 * math.pi, count)
    reach = radius * rng.uniform(0.25, 0.65, count)
    for i in range(count):
        offset = np.array([math.cos(angles[i]) * reach[i], math.sin(angles[i]) * reach[i] * 0.8, 0.0])
        draw_bush(canvas, rng, np.array([x, middle, z]) + offset, radius * rng.uniform(0.5, 0.72), leaf)
    draw_dapples(canvas, rng, np.array([x, middle, z]), radius * 0.85, leaf, 34)


def draw_bush(canvas: Canvas, rng: np.random.Generator, centre: Array, radius: float, leaf: Colour) -> None:
    """One ragged lump of leaves, lighter on top, about a world point (3,)."""
    angles = np.linspace(0, 2 * math.pi, 30, endpoint=False)
    phases = rng.uniform(0, 2 * math.pi, 2)
    lobes = 1 + 0.1 * np.sin(3 * angles + phases[0]) + 0.06 * np.sin(7 * angles + phases[1])
    size = radius * lobes * rng.uniform(0.93, 1.07, 30)
    tint = rng.uniform(0.78, 1.05)
    points = centre + np.stack([size * np.cos(angles), size * np.sin(angles), 0 * angles], axis=-1)
    points[:, 1] = np.maximum(points[:, 1], 0.02)
    canvas.flat(points, dim(leaf, tint * 0.82), VEGETATION)
    upper = centre + np.array([0.12 * radius * canvas.light.sun[0], 0.2 * radius, 0.0]) + (points - centre) * 0.68
    canvas.flat(upper, dim(leaf, tint * (1.0 + 0.25 * canvas.light.strength)), VEGETATION)


def draw_dapples(
    canvas: Canvas, rng: np.random.Generator, centre: Array, radius: float, leaf: Colour, count: int
) -> None:
    """Light and dark spots over a crown; they keep to its inside and leave labels alone."""
    angles, reach = rng.uniform(0, 2 * math.pi, count), radius * np.sqrt(rng.uniform(0, 0.8, count))
    spots = canvas.camera.project(
        centre + np.stack([reach * np.cos(angles), reach * np.sin(angles), np.zeros(count)], axis=-1)
    )
    scale = canvas.camera.focal / max(float(centre[2]), 1.0)
    tints, sizes = rng.uniform(0.55, 1.4, count), rng.uniform(0.05, 0.13, count) * radius * scale
    for (x, y), tint, size in zip(spots.tolist(), tints.tolist(), sizes.tolist()):
        canvas.oval((x, y), (size * 1.2, size), canvas.shade(dim(leaf, tint), float(centre[2])))


def draw_bin(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A bin, crate or cabinet: one of the things that Cityscapes leaves out of training (255)."""
    pose = Pose(x, z, rng.uniform(-0.5, 0.5))
    w, h = rng.uniform(0.25, 0.5), rng.uniform(0.7, 1.3)
    colour = mix(pick(rng, VIVID), pick(rng, PAINTS), 0.6)
    canvas.shadow(footprint(pose, 2 * w, 2 * w), h)
    sides = box(pose, (-w, w), (-w, w), (0, h), (0.04, 0.04, 0.04))
    seen = paint_box(canvas, sides, colour, IGNORE)
    for name in among(seen, "front", "back"):
        canvas.panels(sides[name], [(0.1, 0.9, 0.75, 0.85)], [dim(colour, 0.5)], IGNORE, seen[name])
