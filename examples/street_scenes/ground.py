"""Paints the ground of a street: road, pavements, verges, markings and the shadows of houses."""

from __future__ import annotations

import math

import numpy as np

from examples.street_scenes.canvas import Colour, dim, mix
from examples.street_scenes.labels import ROAD, SIDEWALK, TERRAIN
from examples.street_scenes.shapes import pick
from examples.street_scenes.street import Street


def _strip(street: Street, x0: float, x1: float, colour: Colour, label: int, z0: float = 1.2, z1: float = 0.0) -> None:
    """A band along the road from ``x0`` to ``x1``, hazed piece by piece."""
    far = z1 or street.end
    count = max(1, round(12 * math.log(far / z0) / math.log(100)))
    edges = np.geomspace(z0, far, count + 1).tolist()
    for a, b in zip(edges, edges[1:]):
        p, q = street.bend(a), street.bend(b)
        street.canvas.flat(np.array([(x0 + p, 0, a), (x1 + p, 0, a), (x1 + q, 0, b), (x0 + q, 0, b)]), colour, label)


def paint_ground(street: Street) -> None:
    """Everything flat, labelled; shadows of houses are only seen."""
    rng, city, canvas = street.rng, street.city, street.canvas
    grass: Colour = mix(pick(rng, city.leaves), (150, 140, 90), rng.uniform(0.1, 0.5))
    asphalt = dim(city.asphalt, rng.uniform(0.85, 1.15))
    paving = dim(mix(city.paving, pick(rng, ((150, 120, 100), (140, 140, 140))), 0.3), rng.uniform(0.9, 1.1))
    white: Colour = (212, 212, 206)
    for a, b in ((1.2, 6), (6, 20), (20, 60), (60, 400)):
        canvas.flat(np.array([(-400, 0, a), (400, 0, a), (400, 0, b), (-400, 0, b)]), grass, TERRAIN)
    for side, sign, edge in ((0, -1, street.left), (1, 1, street.right)):
        walk, verge = street.walks[side], street.verges[side]
        inner = verge if street.verge_inside else 0.0
        _strip(street, edge, edge + sign * (walk + inner + 0.2), paving, SIDEWALK)
        if street.verge_inside and verge:
            _strip(street, edge + sign * 0.3, edge + sign * verge, grass, TERRAIN)
        _strip(street, edge, edge + sign * 0.16, dim(paving, 1.18), SIDEWALK)
        if not verge:
            _strip(street, edge + sign * walk, edge + sign * (walk + 1.0), dim(paving, 0.95), SIDEWALK)
    _strip(street, street.left, street.right, asphalt, ROAD)
    if street.end < 60:
        _across(street, street.end - 7, street.end, asphalt, paving)
    if street.crossing:
        _across(street, street.crossing, street.crossing + 8, asphalt, paving)
    for edge in (street.left, street.right):
        inwards = 0.35 if edge < 0 else -0.35
        _strip(street, edge, edge + inwards, dim(asphalt, 0.86), ROAD, 1.2, street.end - 8)
    _patches(street, asphalt)
    _house_shadows(street)
    if rng.random() < 0.85:
        _markings(street, white)
    if street.tram_lane is not None:
        for rail in (-0.72, 0.72):
            x = street.tram_lane + rail
            _strip(street, x - 0.16, x + 0.16, dim(asphalt, 1.2), ROAD)
            _strip(street, x - 0.05, x + 0.05, (60, 62, 66), ROAD)


def _across(street: Street, z0: float, z1: float, asphalt: Colour, paving: Colour) -> None:
    """A street that crosses between ``z0`` and ``z1``, with its pavements."""
    for a, b, colour, label in ((z0 - 2.5, z1 + 2.5, paving, SIDEWALK), (z0, z1, asphalt, ROAD)):
        street.canvas.flat(np.array([(-90, 0, a), (90, 0, a), (90, 0, b), (-90, 0, b)]), colour, label)
    _strip(street, street.left, street.right, asphalt, ROAD, max(z0 - 3, 1.2), z0 + 0.5)


def _patches(street: Street, asphalt: Colour) -> None:
    rng = street.rng
    for _ in range(int(rng.integers(0, 5))):
        x, z = rng.uniform(street.left + 1, street.right - 1), rng.uniform(6, 25)
        wide, long = rng.uniform(0.4, 1.6), rng.uniform(1, 7)
        _strip(street, x - wide / 2, x + wide / 2, dim(asphalt, rng.uniform(0.8, 1.12)), ROAD, z, z + long)


def _house_shadows(street: Street) -> None:
    """Shade the side of the street that the sun stands on."""
    rng, light = street.rng, street.canvas.light
    if light.strength < 0.4 or rng.random() < 0.3:
        return
    # Signed: where the sun is at the right, shadows come from the right and reach to the left.
    edge = street.left - street.walks[0] if light.sun[0] < 0 else street.right + street.walks[1]
    z = 1.2
    while z < street.end:
        long = rng.uniform(6, 16)
        reach = rng.uniform(0.5, 1.0) * sum(street.kind.heights) / 2 * light.sun[0] / max(light.sun[1], 0.3)
        a, b = edge + street.bend(z), edge + street.bend(z + long)
        slant = -long * light.sun[2] * 0.2
        quad = np.array([(a, 0, z), (b, 0, z + long), (b - reach, 0, z + long + slant), (a - reach, 0, z + slant)])
        quad[:, 2] = np.maximum(quad[:, 2], 1.0)
        if rng.random() < 0.8:
            street.canvas.blend(street.canvas.camera.project(quad), (14, 16, 26), 0.4 * light.strength)
        z += long


def _markings(street: Street, white: Colour) -> None:
    rng = street.rng
    stop = street.crossing or street.end
    paint = dim(white, rng.uniform(0.75, 1.0))
    borders = sorted(x for x, _ in street.lanes)
    dash, gap = rng.uniform(2, 4), rng.uniform(3, 6)
    for a, b in zip(borders, borders[1:]):
        middle = (a + b) / 2
        if rng.random() < 0.25:
            _strip(street, middle - 0.07, middle + 0.07, paint, ROAD, 1.2, stop - 3)
            continue
        z = rng.uniform(1.5, 4)
        while z < min(stop - 4, 60):
            _strip(street, middle - 0.07, middle + 0.07, paint, ROAD, z, z + dash)
            z += dash + gap
    for parked, edge, sign in ((street.parking[0], street.left, 1), (street.parking[1], street.right, -1)):
        if rng.random() < 0.5:
            x = edge + sign * (2.2 if parked else 0.35)
            _strip(street, x - 0.06, x + 0.06, paint, ROAD, 1.2, stop - 3)
    if street.crossing or rng.random() < 0.2:
        z = (street.crossing - 4.2) if street.crossing else rng.uniform(9, 24)
        x = street.left + 0.6
        while x < street.right - 0.6:
            _strip(street, x, x + 0.5, paint, ROAD, z, z + 3)
            x += 1.0
