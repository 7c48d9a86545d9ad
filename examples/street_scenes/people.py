"""People and two-wheelers of the street scenes."""

from __future__ import annotations

import math

import numpy as np

from examples.street_scenes.canvas import Array, Canvas, Colour, dim
from examples.street_scenes.labels import BICYCLE, MOTORCYCLE, PERSON, RIDER
from examples.street_scenes.shapes import RUBBER, VIVID, Limb, Pose, draw_limbs, footprint, pick

SKIN: tuple[Colour, ...] = ((226, 184, 156), (198, 150, 118), (140, 96, 70), (92, 62, 46))
HAIR: tuple[Colour, ...] = ((34, 26, 22), (70, 48, 30), (150, 116, 66), (120, 120, 118))
TOPS: tuple[Colour, ...] = (
    (32, 34, 40), (58, 64, 88), (150, 40, 44), (206, 204, 198), (92, 104, 70), (190, 150, 60),
    (60, 110, 150), (120, 80, 120), (214, 110, 60), (100, 100, 104),
)  # fmt: skip
TROUSERS: tuple[Colour, ...] = ((36, 40, 60), (28, 28, 32), (80, 84, 96), (122, 104, 80), (60, 74, 110))


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
