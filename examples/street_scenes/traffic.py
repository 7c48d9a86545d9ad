"""Puts vehicles, people and furniture on a street, each at a place that is free."""

from __future__ import annotations

import math
from functools import partial
from typing import Callable

from examples.street_scenes import furniture, people, vehicles
from examples.street_scenes.canvas import Colour
from examples.street_scenes.cities import choose
from examples.street_scenes.shapes import Pose, pick
from examples.street_scenes.street import Street

LENGTHS = {"car": 4.6, "truck": 9.0, "bus": 11.5, "train": 19.0, "motorcycle": 2.2, "bicycle": 1.9}


def _vehicle(street: Street, kind: str, x: float, z: float, heading: float) -> bool:
    """Put a vehicle at ``x`` (road coordinates) and ``z`` if there is room; says whether it did."""
    rng, canvas = street.rng, street.canvas
    long, wide = LENGTHS[kind], 0.8 if kind in ("motorcycle", "bicycle") else 2.2
    across = abs(math.sin(heading)) > 0.5
    middle = z + 5 if kind == "train" and not across else z
    if not street.reserve(x, middle, long if across else wide, (wide if across else long) + 1.2):
        return False
    pose = Pose(x + street.bend(z), z, heading + 2 * street.curve * z)
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
    street.add(turn, draw[kind])
    return True


def _drive(street: Street, kind: str, low: float, high: float) -> bool:
    """Try to put a vehicle into a lane, or across the road where one crosses."""
    rng = street.rng
    small = kind in ("motorcycle", "bicycle")
    for _ in range(8):
        if kind == "train" and street.tram_lane is not None and rng.random() < 0.8:
            x, heading = street.tram_lane, float(rng.choice([0.0, math.pi]))
        else:
            x, heading = street.lanes[int(rng.integers(len(street.lanes)))]
            x += rng.uniform(-0.25, 0.25)
            if kind == "bicycle":
                x += rng.uniform(0.3, 1.0) * (1 if heading == 0 else -1)
        middle = street.crossing + 4 if street.crossing else street.end - 3.5
        across = rng.random() < (0.45 if small else 0.3)
        if across and (small or middle < 40):
            x, heading = rng.uniform(-5, 5), math.pi / 2 * float(rng.choice([-1, 1]))
            z = middle + rng.uniform(-2, 2)
            if small:
                z = street.near(x, 6, min(24.0, middle))
        else:
            z = street.near(x, low, min(high, street.end - 4))
        heading += rng.normal(0, 0.2 if small else 0.05)
        if _vehicle(street, kind, x, z, heading):
            return True
    return False


def add_wishes(street: Street) -> None:
    """The rarer vehicles that this street was chosen to have."""
    rng = street.rng
    for kind in ("train", "bus", "truck", "motorcycle"):
        if kind in street.wishes:
            small = kind == "motorcycle"
            if small and rng.random() < 0.35:
                _park_two_wheelers(street, people.draw_motorcycle)
            else:
                _drive(street, kind, 6.0 if small else 14.0, 17.0 if small else 38.0)
    if "cyclist" in street.wishes:
        for _ in range(int(rng.integers(1, 3))):
            _drive(street, "bicycle", 5.5, 18.0)
    if "bicycles" in street.wishes:
        _park_two_wheelers(street, people.draw_bicycle)


def _park_two_wheelers(street: Street, draw: Callable[..., object]) -> None:
    rng, canvas = street.rng, street.canvas
    side = int(rng.integers(2))
    sign, edge = ((-1, street.left), (1, street.right))[side]
    x = edge + sign * rng.uniform(0.5, max(0.6, street.walks[side] - 0.6))
    z = street.near(x, 6, 22)
    heading = rng.choice([math.pi / 2, -math.pi / 2]) + rng.normal(0, 0.4)
    for _ in range(int(rng.integers(1, 4))):
        if street.reserve(x, z, 1.6, 0.7):
            pose = Pose(x + street.bend(z), z, heading + rng.normal(0, 0.1))
            street.add(z, partial(draw, canvas, rng, pose, False))
        z += rng.uniform(0.8, 1.4)


def add_traffic(street: Street) -> None:
    """Cars, driving and parked."""
    rng = street.rng
    for _ in range(int(rng.integers(1, 6))):
        _drive(street, "car", 7.0, 60.0)
    for parked, x in ((street.parking[0], street.left + 1.15), (street.parking[1], street.right - 1.15)):
        z = street.in_view(x) - rng.uniform(0, 4)
        density = rng.uniform(0.35, 0.95)
        while parked and z < min(street.end - 8, 75):
            at_crossing = street.crossing and street.crossing - 7 < z < street.crossing + 12
            if rng.random() < density and not at_crossing:
                _vehicle(street, "car", x, z, float(rng.choice([0.0, math.pi], p=[0.7, 0.3])))
            z += rng.uniform(5.6, 7.5)


def add_people(street: Street) -> None:
    """People in groups of up to three."""
    rng, canvas = street.rng, street.canvas
    for _ in range(int(rng.poisson(street.kind.crowd))):
        side = int(rng.integers(2))
        sign, edge = ((-1, street.left), (1, street.right))[side]
        x, crossing = edge + sign * rng.uniform(0.5, street.walks[side]), rng.random() < 0.18
        if crossing:
            x = rng.uniform(street.left, street.right)
        z = street.near(x, 6.5, 32)
        heading = rng.choice([-1, 1]) * math.pi / 2 if crossing else rng.choice([0.0, math.pi])
        for _ in range(int(rng.choice([1, 2, 3], p=[0.55, 0.33, 0.12]))):
            px, pz = x + rng.normal(0, 0.5), z + rng.normal(0, 0.7)
            if pz < 5 or not street.reserve(px, pz, 0.45, 0.3):
                continue
            tall = rng.uniform(1.05, 1.4) if rng.random() < 0.12 else rng.normal(1.72, 0.08)
            pose = Pose(px + street.bend(pz), pz, heading + rng.normal(0, 0.5))
            street.add(pz, partial(people.draw_person, canvas, rng, pose, tall))


def add_furniture(street: Street) -> None:
    """Lamps, signs, traffic lights, bollards, bins and trees."""
    rng, canvas = street.rng, street.canvas
    leaf = pick(rng, street.city.leaves)
    for side, sign, edge in ((0, -1, street.left), (1, 1, street.right)):
        kerb = edge + sign * rng.uniform(0.35, 0.6)
        z = street.in_view(kerb) + rng.uniform(0, 14)
        while z < 70:
            x = kerb + street.bend(z)
            reach = -sign * rng.uniform(1.0, 2.2)
            street.add(z, partial(furniture.draw_street_lamp, canvas, x, z, 6.8, reach))
            z += rng.uniform(16, 30)
        for _ in range(int(rng.poisson(1.1))):
            z = street.near(kerb, 8.5, 32)
            x = kerb + street.bend(z) + sign * rng.uniform(0, 0.4)
            street.add(z, partial(furniture.draw_sign, canvas, rng, x, z))
        if rng.random() < (0.75 if street.crossing else 0.16):
            z = max(street.crossing - 3.2 if street.crossing else street.near(kerb, 10, 28), street.in_view(kerb), 9.0)
            reach = -sign * rng.uniform(2.5, 4.5) if rng.random() < 0.35 else 0.0
            x = kerb + street.bend(z)
            street.add(z, partial(furniture.draw_traffic_light, canvas, rng, x, z, reach))
        if rng.random() < 0.2:
            z = street.in_view(kerb)
            for _ in range(int(rng.integers(3, 8))):
                x = kerb + street.bend(z)
                street.add(z, partial(furniture.draw_pole, canvas, x, z, 0.95, 0.07, (70, 72, 74)))
                z += 2.0
        if rng.random() < 0.3:
            x = edge + sign * max(0.7, street.walks[side] - 0.6)
            z = street.near(x, 8, 25)
            if street.reserve(x, z, 0.8, 0.8):
                street.add(z, partial(furniture.draw_bin, canvas, rng, x + street.bend(z), z))
        _street_trees(street, side, sign, edge, leaf)


def _street_trees(street: Street, side: int, sign: int, edge: float, leaf: Colour) -> None:
    rng, canvas = street.rng, street.canvas
    if rng.random() > street.kind.trees:
        return
    x = edge + sign * (0.9 if street.verge_inside or not street.verges[side] else street.walks[side] + 0.6)
    z = street.in_view(x) + rng.uniform(0, 10)
    step, height = rng.uniform(8, 16), rng.uniform(5, 9.5)
    while z < 80:
        gone = street.crossing and street.crossing - 3 < z < street.crossing + 11
        if not gone and rng.random() < 0.85:
            at, tall = x + street.bend(z), height * rng.uniform(0.85, 1.15)
            street.add(z, partial(furniture.draw_tree, canvas, rng, at, z, tall, leaf))
        z += step * rng.uniform(0.8, 1.3)
