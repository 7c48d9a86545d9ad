"""Lays out one street: lanes, pavements, camera and light, and what ground is taken."""

from __future__ import annotations

import math
from typing import Callable

import numpy as np

from examples.street_scenes.canvas import Camera, Canvas
from examples.street_scenes.cities import MOODS, STREETS, City, choose, make_light, paint_sky

# How often each of the rarer things is wished for. In Cityscapes some of them are far rarer, but a few
# hundred scenes have to be enough to learn from. Crowded streets do not grant every wish.
WISHES = {
    "truck": 0.32,
    "bus": 0.32,
    "train": 0.3,
    "motorcycle": 0.48,
    "cyclist": 0.42,
    "bicycles": 0.4,
    "wall": 0.34,
    "fence": 0.36,
}


class Street:
    """One street and the canvas that it is painted on."""

    def __init__(self, rng: np.random.Generator, city: City, shape: tuple[int, int]) -> None:
        """``shape``: height and width in pixels of the surface to paint on."""
        self.rng = rng
        self.city = city
        height, width = shape
        mood = MOODS[choose(rng, city.moods)]
        self.kind = STREETS[choose(rng, city.streets)]
        camera = Camera(
            focal=height * rng.uniform(1.65, 2.2),
            eye=rng.uniform(1.25, 1.75),
            horizon=height * rng.uniform(0.38, 0.48),
            centre=width * rng.uniform(0.38, 0.62),
            width=width,
            height=height,
            roll=rng.normal(0, 0.008),
        )
        light = make_light(rng, mood)
        self.canvas = Canvas(camera, light, paint_sky(rng, mood, light, camera))
        self.wishes = {name for name, share in WISHES.items() if rng.random() < share}
        self._lay_out()
        self.items: list[tuple[float, Callable[[], object]]] = []
        self.taken: list[tuple[float, float, float, float]] = []

    def _lay_out(self) -> None:
        rng = self.rng
        self.lane = rng.uniform(3.0, 3.6)
        offset = rng.uniform(-0.4, 0.4)
        tram = "train" in self.wishes
        right_lanes, left_lanes = int(rng.random() < 0.2), 1 + int(rng.random() < (0.6 if tram else 0.15))
        if tram and rng.random() < 0.3:
            right_lanes = 1
        # Whether there is a parking strip, at the left and at the right.
        self.parking = [rng.random() < 0.4, rng.random() < 0.4]
        self.lanes = [(offset + i * self.lane, 0.0) for i in range(right_lanes + 1)]
        self.lanes += [(offset - (i + 1) * self.lane, math.pi) for i in range(left_lanes)]
        margins = [2.3 if parking else rng.uniform(0.2, 0.9) for parking in self.parking]
        self.left = offset - (left_lanes + 0.5) * self.lane - margins[0]
        self.right = offset + (right_lanes + 0.5) * self.lane + margins[1]
        self.tram_lane = self.lanes[right_lanes + 1][0] if tram else None
        self.curve = rng.normal(0, 0.0007)
        self.end = rng.uniform(30, 55) if rng.random() < 0.25 else rng.uniform(70, 150)
        self.crossing = rng.uniform(16, 34) if rng.random() < 0.4 and self.end > 45 else None
        self.walks = [rng.uniform(*self.kind.walk) for _ in range(2)]
        self.verges = [rng.uniform(1.0, 3.5) if rng.random() < self.kind.verge else 0.0 for _ in range(2)]
        self.verge_inside = rng.random() < 0.4

    def bend(self, z: float) -> float:
        """How far to the right (metres) the road has turned at ``z``."""
        return self.curve * z * z

    def in_view(self, x: float) -> float:
        """The nearest distance at which something ``x`` metres aside is inside the picture."""
        camera = self.canvas.camera
        room = (camera.width - camera.centre if x > 0 else camera.centre) / camera.focal
        return abs(x) / room + 2.0

    def near(self, x: float, low: float, high: float) -> float:
        """A random distance at which ``x`` is in view, near ones preferred."""
        low = min(max(low, self.in_view(x)), high)
        return low + (high - low) * float(self.rng.random()) ** 1.6

    def reserve(self, x: float, z: float, wide: float, long: float) -> bool:
        """Take a rectangle of the ground (road coordinates, metres) unless something stands there."""
        box = (x - wide / 2, x + wide / 2, z - long / 2, z + long / 2)
        for other in self.taken:
            if box[0] < other[1] and other[0] < box[1] and box[2] < other[3] and other[2] < box[3]:
                return False
        self.taken.append(box)
        return True

    def add(self, z: float, draw: Callable[[], object]) -> None:
        """Have ``draw`` called at its turn among everything that stands on the ground."""
        self.items.append((z, draw))
