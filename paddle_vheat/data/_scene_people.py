"""People, two-wheelers, poles, signs, lights and trees of the procedural street scenes."""

from __future__ import annotations

import math

import numpy as np

from paddle_vheat.data._scene_canvas import Array, Canvas, Colour, dim, mix
from paddle_vheat.data._scene_vehicles import PAINTS, RUBBER, VIVID, Pose, among, box, footprint, paint_box, pick

POLE, TRAFFIC_LIGHT, SIGN, VEGETATION, PERSON, RIDER, MOTORCYCLE, BICYCLE = 5, 6, 7, 8, 11, 12, 17, 18

SKIN: tuple[Colour, ...] = ((226, 184, 156), (198, 150, 118), (140, 96, 70), (92, 62, 46))
HAIR: tuple[Colour, ...] = ((34, 26, 22), (70, 48, 30), (150, 116, 66), (120, 120, 118))
TOPS: tuple[Colour, ...] = (
    (32, 34, 40), (58, 64, 88), (150, 40, 44), (206, 204, 198), (92, 104, 70), (190, 150, 60),
    (60, 110, 150), (120, 80, 120), (214, 110, 60), (100, 100, 104),
)  # fmt: skip
TROUSERS: tuple[Colour, ...] = ((36, 40, 60), (28, 28, 32), (80, 84, 96), (122, 104, 80), (60, 74, 110))

Limb = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float], Colour]


def draw_limbs(canvas: Canvas, pose: Pose, scale: float, limbs: list[Limb], label: int) -> None:
    """Rods given by local ends (forward, right, up) and radii in metres, the farthest painted first."""
    ends = pose.place(np.array([limb[:2] for limb in limbs]) * scale)
    side = canvas.light.sun[0] * canvas.light.strength
    for i in np.argsort(-ends[..., 2].mean(axis=1), kind="stable").tolist():
        _, _, radii, colour = limbs[i]
        bright = 1.0 + 0.15 * side * math.copysign(1.0, float(ends[i, 0, 0]) - pose.x)
        canvas.limb(ends[i, 0], ends[i, 1], (radii[0] * scale, radii[1] * scale), colour, label, bright)


def draw_person(canvas: Canvas, rng: np.random.Generator, pose: Pose, tall: float = 1.75) -> None:
    """Somebody ``tall`` metres high, standing or walking along the heading."""
    scale = tall / 1.75
    skin, hair = pick(rng, SKIN), pick(rng, HAIR)
    top, legs = pick(rng, TOPS), pick(rng, TROUSERS)
    stride = rng.choice([0.03, 0.14, 0.26]) * rng.choice([-1.0, 1.0])
    girth = rng.uniform(0.9, 1.25)
    coat, bag = rng.random() < 0.35, rng.random() < 0.3

    canvas.shadow(footprint(pose, 0.5 * scale, 0.5 * scale), tall)
    limbs: list[Limb] = []
    for side, swing in ((-1.0, stride), (1.0, -stride)):
        hip, knee = (0.0, side * 0.1, 0.88), (swing * 0.7 + 0.03, side * 0.1, 0.48)
        foot = (swing * 1.4 - (0.06 if swing < 0 else 0.0), side * 0.1, 0.06)
        limbs.append((hip, knee, (0.105 * girth, 0.075), legs))
        limbs.append((knee, foot, (0.075, 0.055), legs))
        limbs.append((foot, (foot[0] + 0.13, foot[1], 0.04), (0.055, 0.04), (30, 26, 24)))
        shoulder, elbow = (0.0, side * 0.21, 1.4), (-swing * 0.6 - 0.02, side * 0.26, 1.13)
        hand = (-swing * 1.1 + 0.08, side * 0.25, 0.9)
        limbs.append((shoulder, elbow, (0.07, 0.055), dim(top, 0.9)))
        limbs.append((elbow, hand, (0.055, 0.045), top if coat else skin))
        limbs.append(((0.0, side * 0.1, 1.34), (0.0, side * 0.07, 0.92), (0.14 * girth, 0.12 * girth), top))
    if coat:
        limbs.append(((0.0, 0.0, 1.0), (0.0, 0.0, 0.62), (0.17 * girth, 0.21 * girth), dim(top, 0.95)))
    if bag:
        limbs.append(((-0.17, 0.0, 1.38), (-0.17, 0.0, 1.02), (0.13, 0.14), pick(rng, VIVID)))
    limbs.append(((0.0, 0.0, 1.42), (0.0, 0.0, 1.55), (0.055, 0.055), skin))
    draw_limbs(canvas, pose, scale, limbs, PERSON)
    head = pose.place(np.array([0.02, 0.0, 1.62]) * scale)
    crown = pose.place(np.array([-0.03, 0.0, 1.66]) * scale)
    # Seen from behind there is only hair; from the front it leaves the face free.
    if math.cos(pose.heading) > 0.3:
        canvas.ball(head, 0.11 * scale, skin, PERSON, stretch=1.15)
        canvas.ball(crown, 0.11 * scale, hair, PERSON, stretch=1.05)
    else:
        canvas.ball(crown, 0.115 * scale, hair, PERSON, stretch=1.05)
        canvas.ball(head - np.array([0.0, 0.035, 0.0]), 0.095 * scale, skin, PERSON, stretch=1.1)


def _rider(limbs: list[Limb], rng: np.random.Generator, hip: Array, grip: Array, pedal: float) -> Array:
    """Add somebody sitting at ``hip`` and holding ``grip`` (forward, up); returns the head (3,)."""
    top, legs, skin = pick(rng, TOPS), pick(rng, TROUSERS), pick(rng, SKIN)
    lean = rng.uniform(0.12, 0.32)
    neck = np.array([hip[0] + lean, hip[1] + 0.56])
    for side, turn in ((-1.0, 1.0), (1.0, -1.0)):
        foot = (pedal + 0.12 * turn, side * 0.13, hip[1] - 0.62 + 0.13 * turn)
        knee = (pedal + 0.27, side * 0.13, (hip[1] + foot[2]) / 2 + 0.06)
        limbs.append(((hip[0], side * 0.1, hip[1]), knee, (0.115, 0.08), legs))
        limbs.append((knee, foot, (0.08, 0.055), legs))
        limbs.append((foot, (foot[0] + 0.14, side * 0.13, foot[2] - 0.02), (0.055, 0.04), (30, 28, 28)))
        elbow = ((neck[0] + grip[0]) / 2, side * 0.28, (neck[1] + grip[1]) / 2 - 0.08)
        limbs.append(((neck[0], side * 0.2, neck[1] - 0.03), elbow, (0.07, 0.06), dim(top, 0.9)))
        limbs.append((elbow, (grip[0], side * 0.24, grip[1]), (0.055, 0.045), skin))
        chest = (neck[0], side * 0.1, neck[1] - 0.08)
        limbs.append((chest, (hip[0], side * 0.08, hip[1] + 0.05), (0.14, 0.14), top))
    limbs.append(((neck[0], 0.0, neck[1]), (neck[0] + 0.04, 0.0, neck[1] + 0.12), (0.06, 0.06), skin))
    return np.array([neck[0] + 0.06, 0.0, neck[1] + 0.2])


def _wheel(canvas: Canvas, pose: Pose, forward: float, radius: float, tyre: float, solid: bool, label: int) -> None:
    """A wheel in the plane of the heading; one with spokes lets the background shine through."""
    angles = np.linspace(0, 2 * math.pi, 16, endpoint=False)
    ring = np.stack([forward + radius * np.cos(angles), 0 * angles, radius + radius * np.sin(angles)], axis=-1)
    rim = pose.place(ring)
    if solid:
        canvas.flat(rim, RUBBER, label)
        canvas.flat(pose.place(ring * 0.55 + np.array([forward, 0.0, radius]) * 0.45), (110, 112, 116), label)
    else:
        canvas.blend(canvas.camera.project(rim), (30, 30, 32), 0.4, label)
        for first, second in zip(rim, np.roll(rim, -1, axis=0)):
            canvas.limb(first, second, (tyre, tyre), RUBBER, label, round_ends=False)
    # Seen along its plane a wheel is as wide as its tyre.
    post = pose.place(np.array([(forward, 0.0, 0.02), (forward, 0.0, 2 * radius - 0.02)]))
    canvas.limb(post[0], post[1], (tyre, tyre), RUBBER, label, round_ends=False)


def draw_bicycle(canvas: Canvas, rng: np.random.Generator, pose: Pose, ridden: bool) -> None:
    """A bicycle, 1.7 m long, with or without a rider."""
    paint = pick(rng, (*VIVID, (30, 30, 34)))
    canvas.shadow(footprint(pose, 1.7, 0.3), 1.7 if ridden else 0.8)
    for forward in (0.53, -0.53) if math.cos(pose.heading) > 0 else (-0.53, 0.53):
        _wheel(canvas, pose, forward, 0.35, 0.03, False, BICYCLE)
    bottom, seat, steer = (-0.05, 0.0, 0.32), (-0.2, 0.0, 0.88), (0.36, 0.0, 0.86)
    frame: list[Limb] = [
        (bottom, seat, (0.03, 0.03), paint),
        (bottom, steer, (0.035, 0.035), paint),
        ((-0.17, 0.0, 0.76), steer, (0.03, 0.03), paint),
        (bottom, (-0.53, 0.0, 0.35), (0.025, 0.025), paint),
        ((-0.17, 0.0, 0.76), (-0.53, 0.0, 0.35), (0.022, 0.022), paint),
        (steer, (0.53, 0.0, 0.35), (0.03, 0.03), paint),
        (steer, (0.38, 0.0, 1.0), (0.025, 0.025), (60, 60, 62)),
        ((0.38, -0.27, 1.0), (0.38, 0.27, 1.0), (0.025, 0.025), (40, 40, 42)),
        ((-0.32, 0.0, 0.92), (-0.1, 0.0, 0.92), (0.06, 0.04), (34, 28, 26)),
    ]
    if rng.random() < 0.3:
        frame.append(((0.5, -0.12, 0.85), (0.5, 0.12, 0.85), (0.13, 0.13), (120, 92, 60)))
    draw_limbs(canvas, pose, 1.0, frame, BICYCLE)
    if ridden:
        _mount(canvas, rng, pose, np.array([-0.2, 0.95]), np.array([0.38, 1.02]), -0.02, rng.random() < 0.5)


def draw_motorcycle(canvas: Canvas, rng: np.random.Generator, pose: Pose, ridden: bool) -> None:
    """A motorcycle or scooter, 2 m long, with or without a rider."""
    paint = pick(rng, (*VIVID, (30, 30, 34), (90, 92, 96)))
    scooter = rng.random() < 0.4
    canvas.shadow(footprint(pose, 2.0, 0.6), 1.7 if ridden else 1.0)
    radius, axle = (0.24, 0.62) if scooter else (0.32, 0.7)
    for forward in (axle, -axle) if math.cos(pose.heading) > 0 else (-axle, axle):
        _wheel(canvas, pose, forward, radius, 0.08, True, MOTORCYCLE)
    parts: list[Limb] = [
        ((-0.75, 0.0, 0.78), (0.05, 0.0, 0.74), (0.1, 0.14), (30, 28, 28)),
        ((-0.72, 0.0, 0.62), (-0.2, 0.0, 0.56), (0.1, 0.16), paint),
        ((0.6, 0.0, 0.98), (axle + 0.06, 0.0, radius), (0.06, 0.05), (120, 122, 126)),
        ((0.5, -0.36, 1.04), (0.5, 0.36, 1.04), (0.035, 0.035), (36, 36, 38)),
        ((-0.1, 0.22, 0.3), (-0.85, 0.22, 0.4), (0.06, 0.08), (150, 152, 156)),
        ((axle - 0.15, 0.0, 2 * radius), (axle + 0.2, 0.0, 2 * radius - 0.04), (0.08, 0.06), paint),
    ]
    if scooter:
        parts.append(((-0.3, 0.0, 0.3), (0.35, 0.0, 0.3), (0.13, 0.12), paint))
        parts.append(((0.36, 0.0, 0.32), (0.5, 0.0, 0.95), (0.2, 0.16), paint))
    else:
        parts.append(((-0.15, 0.0, 0.4), (0.25, 0.0, 0.42), (0.22, 0.2), (64, 64, 68)))
        parts.append(((0.05, 0.0, 0.8), (0.45, 0.0, 0.86), (0.16, 0.17), paint))
        parts.append(((0.45, 0.0, 0.86), (0.68, 0.0, 0.92), (0.2, 0.14), paint))
    draw_limbs(canvas, pose, 1.0, parts, MOTORCYCLE)
    lit = canvas.light.lamps
    if math.cos(pose.heading) < 0.2:
        lamp = pose.place(np.array([0.72, 0.0, 0.92]))
        canvas.ball(lamp, 0.09, (255, 250, 226) if lit else (220, 222, 218), MOTORCYCLE, glow=lit)
    else:
        canvas.ball(pose.place(np.array([-0.84, 0.0, 0.74])), 0.06, (220, 30, 24), MOTORCYCLE, glow=lit)
    if ridden:
        _mount(canvas, rng, pose, np.array([-0.2, 0.86]), np.array([0.46, 1.06]), 0.05, True)


def _mount(
    canvas: Canvas, rng: np.random.Generator, pose: Pose, hip: Array, grip: Array, pedal: float, helmet: bool
) -> None:
    """Put a rider (labelled so, whatever the vehicle) on a two-wheeler."""
    limbs: list[Limb] = []
    head = _rider(limbs, rng, hip, grip, pedal)
    draw_limbs(canvas, pose, 1.0, limbs, RIDER)
    canvas.ball(pose.place(head), 0.11, pick(rng, SKIN), RIDER, stretch=1.15)
    cover = pick(rng, (*VIVID, (34, 34, 36))) if helmet else pick(rng, HAIR)
    away = math.cos(pose.heading) > 0.3
    canvas.ball(pose.place(head + np.array([-0.02, 0.0, 0.01 if away else 0.05])), 0.125, cover, RIDER)


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
        canvas.flat(outline, colour, SIGN)

    up, quarter = math.pi / 2, math.pi / 4
    if kind == "ban":
        plate(20, 0.0, 1.0, red)
        plate(20, 0.0, 0.74, white)
        canvas.panels(
            np.array([(x - size, level - size, z - 0.07), (x + size, level - size, z - 0.07),
                      (x + size, level + size, z - 0.07), (x - size, level + size, z - 0.07)]),
            [(0.32, 0.45, 0.32, 0.68), (0.55, 0.68, 0.32, 0.68)], [black, black], SIGN,
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
    canvas_dapples(canvas, rng, np.array([x, middle, z]), radius * 0.85, leaf, 34)


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


def canvas_dapples(
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
    seen = paint_box(canvas, sides, colour, 255)
    for name in among(seen, "front", "back"):
        canvas.panels(sides[name], [(0.1, 0.9, 0.75, 0.85)], [dim(colour, 0.5)], 255, seen[name])
