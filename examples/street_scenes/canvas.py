"""Camera, light and drawing surface of the procedural street scenes.

World coordinates are metres with the camera above the origin: ``X`` to the right, ``Y`` up from the
ground, ``Z`` forward. Everything is drawn far to near on two surfaces of the same size, one of colours
and one of marks (classes and objects), so that labels and masks are exact to the pixel however objects
hide each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from examples.street_scenes.labels import SKY, THINGS

Colour = tuple[float, float, float]
Array = np.ndarray[Any, Any]

NEAR = 0.6
"""Points nearer than this (metres) are pushed out to it: they lie outside the picture anyway."""

# Pillow moved these names in 9.1 and warned about the old ones until 9.4.
BICUBIC = getattr(Image, "Resampling", Image).BICUBIC


@dataclass(frozen=True)
class Camera:
    """A pinhole camera looking along ``Z``; all but ``eye`` (metres) and ``roll`` are in pixels."""

    focal: float
    eye: float
    horizon: float
    centre: float
    width: int
    height: int
    roll: float

    def project(self, points: Array) -> Array:
        """World points (..., 3) in metres to pixel positions (..., 2), ``x`` then ``y``."""
        scale = self.focal / np.maximum(points[..., 2], NEAR)
        x = self.centre + points[..., 0] * scale
        # A small roll is drawn as a shear: verticals stay vertical, as people keep their cameras.
        y = self.horizon + (self.eye - points[..., 1]) * scale + self.roll * (x - self.width / 2)
        xy = np.empty((*x.shape, 2))
        xy[..., 0], xy[..., 1] = x, y
        return np.minimum(np.maximum(xy, -30000, out=xy), 30000, out=xy)


@dataclass(frozen=True)
class Light:
    """What the daylight (or its absence) does to colours."""

    ambient: Colour
    """Multiplier of every colour that does not shine by itself."""
    sun: Colour
    """Unit vector towards the sun."""
    strength: float
    """0 for no directed light (overcast), 1 for hard sunshine."""
    haze: Colour
    visibility: float
    """Distance in metres at which about two thirds of the contrast is lost."""
    lamps: bool
    """Whether lamps and windows are lit."""


def value_noise(rng: np.random.Generator, shape: tuple[int, int], cells: int, octaves: int = 3) -> Array:
    """Smooth noise of several octaves, float32 (height, width), roughly in -1..1 with mean near 0.

    ``cells`` is the number of lattice cells over the height in the coarsest octave, so the pattern
    scales with the picture instead of with its pixels.
    """
    height, width = shape
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        rows = min(cells << octave, height)
        columns = max(2, min(round(rows * width / height), width))
        lattice = rng.uniform(-1, 1, (rows + 1, columns + 1)).astype(np.float32)
        smooth = Image.fromarray(lattice).resize((width, height), BICUBIC)
        total += np.asarray(smooth) * np.float32(0.5**octave)
    return total


def mix(first: Colour, second: Colour, amount: float) -> Colour:
    """The colour ``amount`` (0..1) of the way from ``first`` to ``second``."""
    rest = 1 - amount
    return (
        first[0] * rest + second[0] * amount,
        first[1] * rest + second[1] * amount,
        first[2] * rest + second[2] * amount,
    )


def dim(colour: Colour, factor: float) -> Colour:
    """``colour`` times ``factor``."""
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Convex hull of 2-d points (Andrew's monotone chain)."""
    ordered = sorted(points)
    outline: list[tuple[float, float]] = []
    for sequence in (ordered, ordered[::-1]):
        start = len(outline)
        for p in sequence:
            while len(outline) - start >= 2:
                a, b = outline[-2], outline[-1]
                if (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]) > 0:
                    break
                outline.pop()
            outline.append(p)
        outline.pop()
    return outline


FIRST_OBJECT = 256
"""Marks below are train ids, those from here on number the objects."""


class Canvas:
    """A colour surface and a surface of marks that are painted together.

    Methods paint the colour, and the mark too when ``label``, a train id, is given; details of an object
    that is already labelled leave it out.
    """

    def __init__(self, camera: Camera, light: Light, sky: Array) -> None:
        """``sky``: uint8 (height, width, 3), the background."""
        self.camera = camera
        self.light = light
        self.rgb = Image.fromarray(sky)
        self.marks = Image.new("I", self.rgb.size, SKY)
        self.classes: list[int] = []
        """Train ids of the objects, by number."""
        self._current: dict[int, int] = {}
        self._paint = ImageDraw.Draw(self.rgb)
        self._mark = ImageDraw.Draw(self.marks)

    def begin(self) -> None:
        """What is drawn from here on is another object: one for each class of things that it has."""
        self._current = {}

    def mark(self, label: int) -> int:
        """What to mark the current object's pixels of this class with."""
        if label not in THINGS:
            return label
        if label not in self._current:
            self._current[label] = FIRST_OBJECT + len(self.classes)
            self.classes.append(label)
        return self._current[label]

    def shade(self, colour: Colour, depth: float, bright: float = 1.0, glow: bool = False) -> tuple[int, ...]:
        """The colour as seen from ``depth`` metres away, 8-bit; ``glow`` for things that shine."""
        light = self.light
        clear = math.exp(-depth / light.visibility)
        ambient = (1.0, 1.0, 1.0) if glow else light.ambient
        return tuple(
            max(0, min(255, int(c * a * bright * clear + h * (1 - clear))))
            for c, a, h in zip(colour, ambient, light.haze)
        )

    def polygon(self, xy: Array, colour: tuple[int, ...], label: int | None = None) -> None:
        """Fill a polygon given in pixels (n, 2) with a finished 8-bit colour."""
        flat = xy.ravel().tolist()
        xs, ys = flat[::2], flat[1::2]
        if max(xs) < 0 or max(ys) < 0 or min(xs) > self.camera.width or min(ys) > self.camera.height:
            return
        self._paint.polygon(flat, fill=colour)
        if label is not None:
            self._mark.polygon(flat, fill=self.mark(label))

    def flat(
        self,
        points: Array,
        colour: Colour,
        label: int | None = None,
        bright: float = 1.0,
    ) -> None:
        """Fill a polygon of world points (n, 3), hazed by its mean distance."""
        depth = float(points[:, 2].mean())
        self.polygon(self.camera.project(points), self.shade(colour, depth, bright), label)

    def facing(self, quad: Array) -> float | None:
        """Brightness of a quad's outside, or None when it is turned away from the camera.

        ``quad``: (4, 3), bottom left, bottom right, top right, top left as seen from outside.
        """
        (x0, y0, z0), (x1, y1, z1), (x2, y2, z2) = quad[0].tolist(), quad[1].tolist(), quad[3].tolist()
        ax, ay, az = x2 - x0, y2 - y0, z2 - z0
        bx, by, bz = x1 - x0, y1 - y0, z1 - z0
        nx, ny, nz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
        if -nx * x0 + ny * (self.camera.eye - y0) - nz * z0 <= 0:
            return None
        sun, strength = self.light.sun, self.light.strength
        cosine = (nx * sun[0] + ny * sun[1] + nz * sun[2]) / (math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-9)
        return 1 - 0.4 * strength + 0.6 * strength * max(0.0, cosine)

    def panels(
        self,
        quad: Array,
        spans: Sequence[tuple[float, float, float, float]],
        colours: Sequence[Colour],
        label: int | None = None,
        bright: float = 1.0,
        glow: Sequence[bool] | None = None,
    ) -> None:
        """Rectangles on a quad: ``spans`` are left, right, bottom, top in 0..1 of the quad."""
        if not spans:
            return
        left, right, bottom, top = np.asarray(spans, np.float64).T
        s = np.stack([left, right, right, left], axis=1)[..., None]
        t = np.stack([bottom, bottom, top, top], axis=1)[..., None]
        low = quad[0] * (1 - s) + quad[1] * s
        high = quad[3] * (1 - s) + quad[2] * s
        points = low * (1 - t) + high * t
        projected = self.camera.project(points)
        depths = points[..., 2].mean(axis=1).tolist()
        for i, colour in enumerate(colours):
            shines = glow is not None and glow[i]
            self.polygon(projected[i], self.shade(colour, depths[i], 1.0 if shines else bright, shines), label)

    def limb(
        self,
        start: Array,
        end: Array,
        radii: tuple[float, float],
        colour: Colour,
        label: int | None = None,
        bright: float = 1.0,
        round_ends: bool = True,
    ) -> None:
        """A tapered rod between two world points (3,), ``radii`` in metres; never thinner than a pixel."""
        camera = self.camera
        ends = np.stack([start, end])
        (x0, y0), (x1, y1) = camera.project(ends).tolist()
        z0, z1 = max(float(start[2]), NEAR), max(float(end[2]), NEAR)
        r0, r1 = max(1.0, radii[0] * camera.focal / z0), max(1.0, radii[1] * camera.focal / z1)
        length = math.hypot(x1 - x0, y1 - y0) + 1e-6
        nx, ny = -(y1 - y0) / length, (x1 - x0) / length
        outline = np.array(
            [
                [x0 + nx * r0, y0 + ny * r0],
                [x1 + nx * r1, y1 + ny * r1],
                [x1 - nx * r1, y1 - ny * r1],
                [x0 - nx * r0, y0 - ny * r0],
            ]
        )
        seen = self.shade(colour, (z0 + z1) / 2, bright)
        self.polygon(outline, seen, label)
        if round_ends and max(r0, r1) > 1.2:
            for x, y, r in ((x0, y0, r0), (x1, y1, r1)):
                self.oval((x, y), (r, r), seen, label)

    def oval(
        self,
        centre: tuple[float, float],
        radii: tuple[float, float],
        colour: tuple[int, ...],
        label: int | None = None,
    ) -> None:
        """An upright ellipse given in pixels, with a finished 8-bit colour."""
        box = [centre[0] - radii[0], centre[1] - radii[1], centre[0] + radii[0], centre[1] + radii[1]]
        self._paint.ellipse(box, fill=colour)
        if label is not None:
            self._mark.ellipse(box, fill=self.mark(label))

    def ball(
        self,
        point: Array,
        radius: float,
        colour: Colour,
        label: int | None = None,
        glow: bool = False,
        stretch: float = 1.0,
    ) -> None:
        """A sphere at a world point (3,), ``radius`` in metres, ``stretch`` times as high as wide."""
        x, y = self.camera.project(point).tolist()
        depth = max(float(point[2]), NEAR)
        r = max(0.7, radius * self.camera.focal / depth)
        self.oval((x, y), (r, r * stretch), self.shade(colour, depth, glow=glow), label)

    def blend(self, xy: Array, colour: tuple[int, ...], opacity: float, label: int | None = None) -> None:
        """Fill a polygon given in pixels (n, 2), letting what is below shine through."""
        x0, y0 = np.floor(xy.min(axis=0)).clip(0, None).astype(int).tolist()
        x1, y1 = np.ceil(xy.max(axis=0)).astype(int).tolist()
        x1, y1 = min(x1 + 1, self.camera.width), min(y1 + 1, self.camera.height)
        if x0 >= x1 or y0 >= y1:
            return
        mask = Image.new("L", (x1 - x0, y1 - y0), 0)
        ImageDraw.Draw(mask).polygon((xy - (x0, y0)).ravel().tolist(), fill=int(255 * opacity))
        self.rgb.paste(colour, (x0, y0, x1, y1), mask)
        if label is not None:
            self._mark.polygon(xy.ravel().tolist(), fill=self.mark(label))

    def shadow(self, footprint: Array, height: float) -> None:
        """The shadow of something ``height`` metres high on the ground; ``footprint``: (n, 2), X and Z."""
        light = self.light
        ground = np.insert(footprint, 1, 0.0, axis=1)
        if light.strength > 0.3:
            reach = min(height * 0.8 / max(light.sun[1], 0.25), 3.0)
            cast = ground - np.array([light.sun[0] * reach, 0.0, light.sun[2] * reach])
            both = [(float(x), float(z)) for x, _, z in np.concatenate([ground, cast]).tolist()]
            outline = np.array([(x, 0.0, z) for x, z in hull(both)])
            if outline[:, 2].min() > NEAR and len(outline) > 2:
                self.blend(self.camera.project(outline), (8, 10, 18), 0.42 * light.strength)
        # Whatever the light, hardly any of it reaches the ground right under a thing.
        self.blend(self.camera.project(ground), (6, 7, 10), 0.5)
