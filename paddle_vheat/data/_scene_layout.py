"""Lays out one street of the procedural street scenes and paints it, far to near."""

from __future__ import annotations

import math
from functools import partial
from typing import Callable

import numpy as np

from paddle_vheat.data import _scene_people as people
from paddle_vheat.data import _scene_vehicles as vehicles
from paddle_vheat.data._scene_canvas import Camera, Canvas, Colour, dim, mix
from paddle_vheat.data._scene_cities import MOODS, STREETS, City, choose, make_light, paint_sky
from paddle_vheat.data._scene_sides import Sides
from paddle_vheat.data._scene_vehicles import Pose, pick

ROAD, SIDEWALK, TERRAIN = 0, 1, 9

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

LENGTHS = {"car": 4.6, "truck": 9.0, "bus": 11.5, "train": 19.0, "motorcycle": 2.2, "bicycle": 1.9}


class Scene:
    """One street: `paint` puts it on a canvas."""

    def __init__(self, rng: np.random.Generator, city: City, shape: tuple[int, int]) -> None:
        """``shape``: height and width in pixels of the surface to paint on."""
        self.rng = rng
        self.city = city
        height, width = shape
        mood = MOODS[choose(rng, city.moods)]
        self.street = STREETS[choose(rng, city.streets)]
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
        self.walks = [rng.uniform(*self.street.walk) for _ in range(2)]
        self.verges = [rng.uniform(1.0, 3.5) if rng.random() < self.street.verge else 0.0 for _ in range(2)]
        self.verge_inside = rng.random() < 0.4

    def bend(self, z: float) -> float:
        """How far to the right (metres) the road has turned at ``z``."""
        return self.curve * z * z

    def in_view(self, x: float) -> float:
        """The nearest distance at which something ``x`` metres aside is inside the picture."""
        camera = self.canvas.camera
        room = (camera.width - camera.centre if x > 0 else camera.centre) / camera.focal
        return abs(x) / room + 2.0

    def near(self, x: float, least: float, most: float) -> float:
        """A random distance at which ``x`` is in view, near ones preferred."""
        low = min(max(least, self.in_view(x)), most)
        return low + (most - low) * float(self.rng.random()) ** 1.6

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

    def paint(self) -> Canvas:
        """Paint everything; returns the canvas, its labels complete but for borders and bonnet."""
        self._ground()
        sides = Sides(self)
        sides.backdrop()
        for side in (0, 1):
            sides.line(side)
        self._wished()
        self._traffic()
        self._people()
        self._furniture()
        for _, draw in sorted(self.items, key=lambda item: -item[0]):
            draw()
        return self.canvas

    # --- the ground ---

    def strip(self, x0: float, x1: float, colour: Colour, label: int, z0: float = 1.2, z1: float = 0.0) -> None:
        """A band along the road from ``x0`` to ``x1``, hazed piece by piece."""
        far = z1 or self.end
        count = max(1, round(12 * math.log(far / z0) / math.log(100)))
        edges = np.geomspace(z0, far, count + 1).tolist()
        for a, b in zip(edges, edges[1:]):
            p, q = self.bend(a), self.bend(b)
            self.canvas.flat(np.array([(x0 + p, 0, a), (x1 + p, 0, a), (x1 + q, 0, b), (x0 + q, 0, b)]), colour, label)

    def _ground(self) -> None:
        rng, city, canvas = self.rng, self.city, self.canvas
        grass: Colour = mix(pick(rng, city.leaves), (150, 140, 90), rng.uniform(0.1, 0.5))
        asphalt = dim(city.asphalt, rng.uniform(0.85, 1.15))
        paving = dim(mix(city.paving, pick(rng, ((150, 120, 100), (140, 140, 140))), 0.3), rng.uniform(0.9, 1.1))
        white: Colour = (212, 212, 206)
        for a, b in ((1.2, 6), (6, 20), (20, 60), (60, 400)):
            canvas.flat(np.array([(-400, 0, a), (400, 0, a), (400, 0, b), (-400, 0, b)]), grass, TERRAIN)
        for side, sign, edge in ((0, -1, self.left), (1, 1, self.right)):
            walk, verge = self.walks[side], self.verges[side]
            inner = verge if self.verge_inside else 0.0
            self.strip(edge, edge + sign * (walk + inner + 0.2), paving, SIDEWALK)
            if self.verge_inside and verge:
                self.strip(edge + sign * 0.3, edge + sign * verge, grass, TERRAIN)
            self.strip(edge, edge + sign * 0.16, dim(paving, 1.18), SIDEWALK)
            if not verge:
                self.strip(edge + sign * walk, edge + sign * (walk + 1.0), dim(paving, 0.95), SIDEWALK)
        self.strip(self.left, self.right, asphalt, ROAD)
        if self.end < 60:
            self._across(self.end - 7, self.end, asphalt, paving)
        if self.crossing:
            self._across(self.crossing, self.crossing + 8, asphalt, paving)
        for edge in (self.left, self.right):
            inwards = 0.35 if edge < 0 else -0.35
            self.strip(edge, edge + inwards, dim(asphalt, 0.86), ROAD, 1.2, self.end - 8)
        self._patches(asphalt)
        self._house_shadows()
        if rng.random() < 0.85:
            self._markings(white)
        if self.tram_lane is not None:
            for rail in (-0.72, 0.72):
                x = self.tram_lane + rail
                self.strip(x - 0.16, x + 0.16, dim(asphalt, 1.2), ROAD)
                self.strip(x - 0.05, x + 0.05, (60, 62, 66), ROAD)

    def _across(self, z0: float, z1: float, asphalt: Colour, paving: Colour) -> None:
        """A street that crosses between ``z0`` and ``z1``, with its pavements."""
        for a, b, colour, label in ((z0 - 2.5, z1 + 2.5, paving, SIDEWALK), (z0, z1, asphalt, ROAD)):
            self.canvas.flat(np.array([(-90, 0, a), (90, 0, a), (90, 0, b), (-90, 0, b)]), colour, label)
        self.strip(self.left, self.right, asphalt, ROAD, max(z0 - 3, 1.2), z0 + 0.5)

    def _patches(self, asphalt: Colour) -> None:
        rng = self.rng
        for _ in range(int(rng.integers(0, 5))):
            x, z = rng.uniform(self.left + 1, self.right - 1), rng.uniform(6, 25)
            wide, long = rng.uniform(0.4, 1.6), rng.uniform(1, 7)
            self.strip(x - wide / 2, x + wide / 2, dim(asphalt, rng.uniform(0.8, 1.12)), ROAD, z, z + long)

    def _house_shadows(self) -> None:
        """Shade the side of the street that the sun stands on."""
        rng, light = self.rng, self.canvas.light
        if light.strength < 0.4 or rng.random() < 0.3:
            return
        # Signed: where the sun is at the right, shadows come from the right and reach to the left.
        edge = self.left - self.walks[0] if light.sun[0] < 0 else self.right + self.walks[1]
        z = 1.2
        while z < self.end:
            long = rng.uniform(6, 16)
            reach = rng.uniform(0.5, 1.0) * sum(self.street.heights) / 2 * light.sun[0] / max(light.sun[1], 0.3)
            a, b = edge + self.bend(z), edge + self.bend(z + long)
            slant = -long * light.sun[2] * 0.2
            quad = np.array([(a, 0, z), (b, 0, z + long), (b - reach, 0, z + long + slant), (a - reach, 0, z + slant)])
            quad[:, 2] = np.maximum(quad[:, 2], 1.0)
            if rng.random() < 0.8:
                self.canvas.blend(self.canvas.camera.project(quad), (14, 16, 26), 0.4 * light.strength)
            z += long

    def _markings(self, white: Colour) -> None:
        rng = self.rng
        stop = self.crossing or self.end
        paint = dim(white, rng.uniform(0.75, 1.0))
        borders = sorted(x for x, _ in self.lanes)
        dash, gap = rng.uniform(2, 4), rng.uniform(3, 6)
        for a, b in zip(borders, borders[1:]):
            middle = (a + b) / 2
            if rng.random() < 0.25:
                self.strip(middle - 0.07, middle + 0.07, paint, ROAD, 1.2, stop - 3)
                continue
            z = rng.uniform(1.5, 4)
            while z < min(stop - 4, 60):
                self.strip(middle - 0.07, middle + 0.07, paint, ROAD, z, z + dash)
                z += dash + gap
        for parked, edge, sign in ((self.parking[0], self.left, 1), (self.parking[1], self.right, -1)):
            if rng.random() < 0.5:
                x = edge + sign * (2.2 if parked else 0.35)
                self.strip(x - 0.06, x + 0.06, paint, ROAD, 1.2, stop - 3)
        if self.crossing or rng.random() < 0.2:
            z = (self.crossing - 4.2) if self.crossing else rng.uniform(9, 24)
            x = self.left + 0.6
            while x < self.right - 0.6:
                self.strip(x, x + 0.5, paint, ROAD, z, z + 3)
                x += 1.0

    # --- what moves ---

    def vehicle(self, kind: str, x: float, z: float, heading: float) -> bool:
        """Put a vehicle at ``x`` (road coordinates) and ``z`` if there is room; says whether it did."""
        rng, canvas = self.rng, self.canvas
        long, wide = LENGTHS[kind], 0.8 if kind in ("motorcycle", "bicycle") else 2.2
        across = abs(math.sin(heading)) > 0.5
        middle = z + 5 if kind == "train" and not across else z
        if not self.reserve(x, middle, long if across else wide, (wide if across else long) + 1.2):
            return False
        pose = Pose(x + self.bend(z), z, heading + 2 * self.curve * z)
        # What is beside a long vehicle is hidden by its near end, so that end decides its turn.
        turn = z if across else z - 0.35 * LENGTHS[kind] * (0.5 if kind == "train" else 1.0)
        shape = choose(rng, {"hatch": 3, "sedan": 3.5, "suv": 2.5, "van": 1.2})
        draw: dict[str, Callable[[], object]] = {
            "car": partial(vehicles.draw_car, canvas, rng, pose, shape),
            "truck": partial(vehicles.draw_truck, canvas, rng, pose),
            "bus": partial(vehicles.draw_bus, canvas, rng, pose),
            "train": partial(vehicles.draw_train, canvas, rng, pose),
            "motorcycle": partial(people.draw_motorcycle, canvas, rng, pose, True),
            "bicycle": partial(people.draw_bicycle, canvas, rng, pose, True),
        }
        self.add(turn, draw[kind])
        return True

    def _drive(self, kind: str, least: float, most: float) -> bool:
        """Try to put a vehicle into a lane, or across the road where one crosses."""
        rng = self.rng
        small = kind in ("motorcycle", "bicycle")
        for _ in range(8):
            if kind == "train" and self.tram_lane is not None and rng.random() < 0.8:
                x, heading = self.tram_lane, float(rng.choice([0.0, math.pi]))
            else:
                x, heading = self.lanes[int(rng.integers(len(self.lanes)))]
                x += rng.uniform(-0.25, 0.25)
                if kind == "bicycle":
                    x += rng.uniform(0.3, 1.0) * (1 if heading == 0 else -1)
            middle = self.crossing + 4 if self.crossing else self.end - 3.5
            across = rng.random() < (0.45 if small else 0.3)
            if across and (small or middle < 40):
                x, heading = rng.uniform(-5, 5), math.pi / 2 * float(rng.choice([-1, 1]))
                z = middle + rng.uniform(-2, 2)
                if small:
                    z = self.near(x, 6, min(24.0, middle))
            else:
                z = self.near(x, least, min(most, self.end - 4))
            heading += rng.normal(0, 0.2 if small else 0.05)
            if self.vehicle(kind, x, z, heading):
                return True
        return False

    def _wished(self) -> None:
        rng = self.rng
        for kind in ("train", "bus", "truck", "motorcycle"):
            if kind in self.wishes:
                small = kind == "motorcycle"
                if small and rng.random() < 0.35:
                    self._park_two_wheelers(people.draw_motorcycle)
                else:
                    self._drive(kind, 6.0 if small else 14.0, 17.0 if small else 38.0)
        if "cyclist" in self.wishes:
            for _ in range(int(rng.integers(1, 3))):
                self._drive("bicycle", 5.5, 18.0)
        if "bicycles" in self.wishes:
            self._park_two_wheelers(people.draw_bicycle)

    def _park_two_wheelers(self, draw: Callable[..., object]) -> None:
        rng, canvas = self.rng, self.canvas
        side = int(rng.integers(2))
        sign, edge = ((-1, self.left), (1, self.right))[side]
        x = edge + sign * rng.uniform(0.5, max(0.6, self.walks[side] - 0.6))
        z = self.near(x, 6, 22)
        heading = rng.choice([math.pi / 2, -math.pi / 2]) + rng.normal(0, 0.4)
        for _ in range(int(rng.integers(1, 4))):
            if self.reserve(x, z, 1.6, 0.7):
                pose = Pose(x + self.bend(z), z, heading + rng.normal(0, 0.1))
                self.add(z, partial(draw, canvas, rng, pose, False))
            z += rng.uniform(0.8, 1.4)

    def _traffic(self) -> None:
        rng = self.rng
        for _ in range(int(rng.integers(1, 6))):
            self._drive("car", 7.0, 60.0)
        for parked, x in ((self.parking[0], self.left + 1.15), (self.parking[1], self.right - 1.15)):
            z = self.in_view(x) - rng.uniform(0, 4)
            density = rng.uniform(0.35, 0.95)
            while parked and z < min(self.end - 8, 75):
                at_crossing = self.crossing and self.crossing - 7 < z < self.crossing + 12
                if rng.random() < density and not at_crossing:
                    self.vehicle("car", x, z, float(rng.choice([0.0, math.pi], p=[0.7, 0.3])))
                z += rng.uniform(5.6, 7.5)

    def _people(self) -> None:
        rng, canvas = self.rng, self.canvas
        for _ in range(int(rng.poisson(self.street.crowd))):
            side = int(rng.integers(2))
            sign, edge = ((-1, self.left), (1, self.right))[side]
            x, crossing = edge + sign * rng.uniform(0.5, self.walks[side]), rng.random() < 0.18
            if crossing:
                x = rng.uniform(self.left, self.right)
            z = self.near(x, 6.5, 32)
            heading = rng.choice([-1, 1]) * math.pi / 2 if crossing else rng.choice([0.0, math.pi])
            for _ in range(int(rng.choice([1, 2, 3], p=[0.55, 0.33, 0.12]))):
                px, pz = x + rng.normal(0, 0.5), z + rng.normal(0, 0.7)
                if pz < 5 or not self.reserve(px, pz, 0.45, 0.3):
                    continue
                tall = rng.uniform(1.05, 1.4) if rng.random() < 0.12 else rng.normal(1.72, 0.08)
                pose = Pose(px + self.bend(pz), pz, heading + rng.normal(0, 0.5))
                self.add(pz, partial(people.draw_person, canvas, rng, pose, tall))

    def _furniture(self) -> None:
        rng, canvas = self.rng, self.canvas
        leaf = pick(rng, self.city.leaves)

        for side, sign, edge in ((0, -1, self.left), (1, 1, self.right)):
            kerb = edge + sign * rng.uniform(0.35, 0.6)
            z = self.in_view(kerb) + rng.uniform(0, 14)
            while z < 70:
                x = kerb + self.bend(z)
                reach = -sign * rng.uniform(1.0, 2.2)
                self.add(z, partial(people.draw_street_lamp, canvas, x, z, 6.8, reach))
                z += rng.uniform(16, 30)
            for _ in range(int(rng.poisson(1.1))):
                z = self.near(kerb, 8.5, 32)
                x = kerb + self.bend(z) + sign * rng.uniform(0, 0.4)
                self.add(z, partial(people.draw_sign, canvas, rng, x, z))
            if rng.random() < (0.75 if self.crossing else 0.16):
                z = max(self.crossing - 3.2 if self.crossing else self.near(kerb, 10, 28), self.in_view(kerb), 9.0)
                reach = -sign * rng.uniform(2.5, 4.5) if rng.random() < 0.35 else 0.0
                x = kerb + self.bend(z)
                self.add(z, partial(people.draw_traffic_light, canvas, rng, x, z, reach))
            if rng.random() < 0.2:
                z = self.in_view(kerb)
                for _ in range(int(rng.integers(3, 8))):
                    x = kerb + self.bend(z)
                    self.add(z, partial(people.draw_pole, canvas, x, z, 0.95, 0.07, (70, 72, 74)))
                    z += 2.0
            if rng.random() < 0.3:
                x = edge + sign * max(0.7, self.walks[side] - 0.6)
                z = self.near(x, 8, 25)
                if self.reserve(x, z, 0.8, 0.8):
                    self.add(z, partial(people.draw_bin, canvas, rng, x + self.bend(z), z))
            self._street_trees(side, sign, edge, leaf)

    def _street_trees(self, side: int, sign: int, edge: float, leaf: Colour) -> None:
        rng, canvas = self.rng, self.canvas
        if rng.random() > self.street.trees:
            return
        x = edge + sign * (0.9 if self.verge_inside or not self.verges[side] else self.walks[side] + 0.6)
        z = self.in_view(x) + rng.uniform(0, 10)
        step, height = rng.uniform(8, 16), rng.uniform(5, 9.5)
        while z < 80:
            gone = self.crossing and self.crossing - 3 < z < self.crossing + 11
            if not gone and rng.random() < 0.85:
                at, tall = x + self.bend(z), height * rng.uniform(0.85, 1.15)
                self.add(z, partial(people.draw_tree, canvas, rng, at, z, tall, leaf))
            z += step * rng.uniform(0.8, 1.3)
