"""What the objects of the street scenes are put together from: poses, boxes, rods and colours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from examples.street_scenes.canvas import Array, Canvas, Colour

PAINTS: tuple[Colour, ...] = (
    (198, 200, 202), (235, 236, 235), (38, 40, 44), (92, 96, 102), (150, 24, 26), (28, 52, 112),
    (60, 92, 140), (24, 70, 50), (178, 150, 96), (120, 60, 36), (200, 170, 40), (70, 74, 66),
)  # fmt: skip
VIVID: tuple[Colour, ...] = (
    (196, 40, 34), (228, 190, 40), (36, 96, 168), (44, 130, 84), (230, 120, 30), (226, 228, 224),
    (120, 36, 96), (40, 150, 170),
)  # fmt: skip
GLASS: Colour = (44, 56, 68)
RUBBER: Colour = (24, 24, 26)


@dataclass(frozen=True)
class Pose:
    """Where an object stands (``x``, ``z``, metres) and where it faces.

    ``heading`` is in radians: 0 faces away from the camera, pi towards it, pi / 2 to the right.
    """

    x: float
    z: float
    heading: float

    def place(self, points: Array) -> Array:
        """Local points (..., 3), forward, right and up, to world points (..., 3)."""
        sine, cosine = math.sin(self.heading), math.cos(self.heading)
        forward, right = points[..., 0], points[..., 1]
        x = self.x + forward * sine + right * cosine
        z = self.z + forward * cosine - right * sine
        return np.stack([x, points[..., 2], z], axis=-1)


Span = tuple[float, float]
_QUADS = {
    # Indices into the corners below, bottom left first, anticlockwise as seen from outside.
    "back": (0, 1, 5, 4),
    "front": (3, 2, 6, 7),
    "left": (2, 0, 4, 6),
    "right": (1, 3, 7, 5),
    "top": (4, 5, 7, 6),
}


def box(pose: Pose, forward: Span, right: Span, up: Span, taper: tuple[float, float, float]) -> dict[str, Array]:
    """The five visible sides of a box, each (4, 3) in world metres.

    ``taper``: how far the top is drawn in at the back, at the front and at both sides, in metres.
    """
    (a0, a1), (b0, b1), (u0, u1) = forward, right, up
    back, front, side = taper
    local = [(a, b, u0) for a in (a0, a1) for b in (b0, b1)]
    local += [(a, b, u1) for a in (a0 + back, a1 - front) for b in (b0 + side, b1 - side)]
    corners = pose.place(np.array(local))
    return {name: corners[list(indices)] for name, indices in _QUADS.items()}


def paint_box(canvas: Canvas, sides: dict[str, Array], colour: Colour, label: int) -> dict[str, float]:
    """Paint the sides turned to the camera; returns their brightness by name."""
    seen = {}
    for name, quad in sides.items():
        bright = canvas.facing(quad)
        if bright is not None:
            seen[name] = bright
            canvas.flat(quad, colour, label, bright * (1.12 if name == "top" else 1.0))
    return seen


def among(seen: dict[str, float], *names: str) -> list[str]:
    """Those of the names that were seen, in the order given: that of a set changes from run to run."""
    return [name for name in names if name in seen]


def footprint(pose: Pose, length: float, width: float) -> Array:
    """The (4, 2) ground rectangle, X and Z, under an object."""
    a, b = length / 2, width / 2
    corners = np.array([(-a, -b, 0.0), (a, -b, 0.0), (a, b, 0.0), (-a, b, 0.0)])
    return pose.place(corners)[:, [0, 2]]


Limb = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float], Colour]


def draw_limbs(canvas: Canvas, pose: Pose, scale: float, limbs: list[Limb], label: int) -> None:
    """Rods given by local ends (forward, right, up) and radii in metres, the farthest painted first."""
    ends = pose.place(np.array([limb[:2] for limb in limbs]) * scale)
    side = canvas.light.sun[0] * canvas.light.strength
    for i in np.argsort(-ends[..., 2].mean(axis=1), kind="stable").tolist():
        _, _, radii, colour = limbs[i]
        bright = 1.0 + 0.15 * side * math.copysign(1.0, float(ends[i, 0, 0]) - pose.x)
        canvas.limb(ends[i, 0], ends[i, 1], (radii[0] * scale, radii[1] * scale), colour, label, bright)


def pick(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    """One of ``colours``, slightly varied."""
    r, g, b = colours[int(rng.integers(len(colours)))]
    shift = rng.uniform(-14, 14, 3).tolist()
    return (max(4.0, r + shift[0]), max(4.0, g + shift[1]), max(4.0, b + shift[2]))
