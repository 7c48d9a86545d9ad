"""What lines the streets of the scenes: houses, walls, fences, hedges and parks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from examples.street_scenes.canvas import Array, Canvas, Colour, dim, mix
from examples.street_scenes.cities import choose
from examples.street_scenes.furniture import draw_bush, draw_tree
from examples.street_scenes.labels import BUILDING, FENCE, WALL
from examples.street_scenes.shapes import VIVID, pick
from examples.street_scenes.street import Street


@dataclass(frozen=True)
class House:
    """How one building looks; lengths in metres."""

    height: float
    floor: float
    bay: float
    """Width of one column of windows."""
    paint: Colour
    roof: Colour
    pitched: bool
    pane: tuple[float, float]
    """Width and height of a window as a share of its bay and floor."""
    glass: Colour
    shop: Colour | None
    """Colour of the shop front at street level, if there is one."""
    lit: float
    """Share of lit windows."""


def make_house(rng: np.random.Generator, street: Street) -> House:
    """Draw a building that suits the city and the kind of street."""
    kind = street.kind
    height = rng.uniform(*kind.heights)
    modern = rng.random() < 0.25
    return House(
        height=height,
        floor=rng.uniform(2.8, 3.6),
        bay=rng.uniform(2.0, 3.4),
        paint=dim(pick(rng, street.city.facades), rng.uniform(0.82, 1.1)),
        roof=pick(rng, ((120, 62, 46), (84, 72, 68), (70, 74, 82), (140, 84, 60))),
        pitched=rng.random() < kind.pitched,
        pane=(0.86, rng.uniform(0.5, 0.75)) if modern else (rng.uniform(0.36, 0.6), rng.uniform(0.45, 0.65)),
        glass=pick(rng, ((58, 68, 80), (84, 98, 112), (44, 48, 54), (110, 126, 138))),
        shop=pick(rng, VIVID) if height > 8 and rng.random() < 0.45 else None,
        lit=rng.uniform(0.2, 0.6) if street.canvas.light.lamps else 0.0,
    )


def draw_facade(
    canvas: Canvas, rng: np.random.Generator, house: House, quad: Array, length: float, plain: bool = False
) -> None:
    """Paint one wall of a building; ``quad`` is (4, 3), ``length`` its width in metres."""
    bright = canvas.facing(quad)
    if bright is None:
        return
    canvas.flat(quad, house.paint, BUILDING, bright)
    floors = max(1, int(house.height / house.floor))
    columns = max(1, round(length / house.bay))
    storey = house.floor / house.height
    nearest = float(quad[:, 2].min())
    # Windows of less than about two pixels only make noise.
    tiny = house.bay * house.pane[0] * canvas.camera.focal / max(nearest, 3.0) < 1.5
    ground = 1 if house.shop else 0
    if not plain and not tiny:
        wide, high = house.pane
        spans, colours, glow = [], [], []
        frame = mix(house.paint, (240, 240, 236), 0.6)
        tints = rng.uniform(0.75, 1.25, (floors, columns)).tolist()
        lit = (rng.random((floors, columns)) < house.lit).tolist()
        frames = []
        for row in range(ground, floors):
            for column in range(columns):
                middle = (column + 0.5) / columns
                left, right = middle - wide / 2 / columns, middle + wide / 2 / columns
                bottom = (row + 0.5 - high / 2) * storey
                top = min((row + 0.5 + high / 2) * storey, 0.97)
                frames.append((left - 0.06 / columns, right + 0.06 / columns, bottom - 0.05 * storey, top))
                spans.append((left, right, bottom, top))
                colours.append((250, 206, 120) if lit[row][column] else dim(house.glass, tints[row][column]))
                glow.append(lit[row][column])
        if nearest < 45:
            canvas.panels(quad, frames, [frame] * len(frames), None, bright)
        canvas.panels(quad, spans, colours, None, bright, glow)
    elif tiny:
        bands = [(0.0, 1.0, (row + 0.3) * storey, (row + 0.75) * storey) for row in range(floors)]
        canvas.panels(quad, bands, [mix(house.paint, house.glass, 0.35)] * floors, None, bright)
    trim = [(0.0, 1.0, 0.965, 1.0), (0.0, 1.0, 0.0, 0.6 / house.height)]
    canvas.panels(quad, trim, [dim(house.paint, 1.12), dim(house.paint, 0.72)], None, bright)
    if plain:
        return
    if house.shop:
        shines = house.lit > 0
        panes = [((i + 0.08) / columns, (i + 0.92) / columns, 0.1 * storey, 0.66 * storey) for i in range(columns)]
        glass: Colour = (255, 232, 180) if shines else (70, 80, 88)
        canvas.panels(quad, panes, [glass] * columns, None, bright, [shines] * columns)
        canvas.panels(quad, [(0.02, 0.98, 0.74 * storey, 0.96 * storey)], [house.shop], None, bright)
    else:
        door = (int(rng.integers(columns)) + 0.5) / columns
        half = 0.55 / length
        spans = [(door - half, door + half, 0.0, 2.2 / house.height)]
        canvas.panels(quad, spans, [dim(pick(rng, VIVID), 0.6)], None, bright)


class Sides:
    """Fills both sides and the end of a street."""

    def __init__(self, street: Street) -> None:
        self.street = street
        self.leaf = pick(street.rng, street.city.leaves)

    def building_line(self, side: int) -> float:
        """Distance of the facades from the camera's axis, signed, in metres."""
        street = self.street
        edge = (street.left, street.right)[side]
        return edge + (-1, 1)[side] * (street.walks[side] + street.verges[side])

    def backdrop(self) -> None:
        """Close the view: houses or trees across the street's end."""
        street = self.street
        rng, canvas = street.rng, street.canvas
        z = street.end
        drift = street.bend(z)
        green = rng.random() < (0.35 if z < 60 else 0.6)
        reach = z * 0.75 + 20
        # Farther hills or houses keep the horizon from showing as a bare line.
        far = mix(self.leaf, (120, 130, 130), 0.4)
        x = -reach * 1.4
        while x < reach * 1.4:
            draw_bush(canvas, rng, np.array([x, 2.0, z + 25]), rng.uniform(4, 8), far)
            x += rng.uniform(4, 8)
        x = drift - reach
        while x < drift + reach:
            wide = rng.uniform(9, 20)
            if green:
                draw_bush(canvas, rng, np.array([x, 3.0, z + 3]), rng.uniform(3.5, 6.5), self.leaf)
                x += rng.uniform(2.5, 5)
                continue
            house = make_house(rng, street)
            quad = np.array(
                [(x, 0, z), (x + wide, 0, z), (x + wide, house.height, z), (x, house.height, z)], np.float64
            )
            draw_facade(canvas, rng, house, quad, wide)
            if house.pitched:
                roof = np.array([quad[3], quad[2], quad[2] + (-1.5, 3.0, 4.0), quad[3] + (1.5, 3.0, 4.0)])
                canvas.flat(roof, house.roof, BUILDING)
            x += wide + (rng.uniform(2, 6) if rng.random() < 0.2 else 0)
        if z < 60:
            kind = str(rng.choice(["wall", "fence", "none"], p=[0.3, 0.3, 0.4]))
            quad = np.array([(-60, 0, z - 1), (60, 0, z - 1), (60, 1.9, z - 1), (-60, 1.9, z - 1)], np.float64)
            if kind == "wall":
                self._wall(quad + np.array([drift, 0, 0]), 120, pick(rng, street.city.facades))
            elif kind == "fence":
                self._fence(quad + np.array([drift, 0, 0]), 120, pick(rng, ((60, 64, 60), (120, 92, 60))))

    def line(self, side: int) -> None:
        """Put up what stands along one side (0 left, 1 right), from the picture's edge to the end."""
        street = self.street
        rng = street.rng
        base = self.building_line(side)
        start = max(4.0, street.in_view(base) * 0.5)
        z, visible = start, street.in_view(base)
        wanted = [kind for kind in ("wall", "fence") if kind in street.wishes and rng.random() < 0.75]
        forced = {kind: visible * rng.uniform(0.9, 1.5) for kind in wanted}
        while z < street.end - 3:
            kind = choose(rng, street.kind.sides)
            due = [name for name, at in forced.items() if z >= at * 0.8]
            if due:
                kind = due[0]
                del forced[kind]
            long = rng.uniform(9, 22)
            if kind in ("wall", "fence"):
                long = rng.uniform(12, 26)
            if street.crossing and z < street.crossing + 11 and z + long > street.crossing - 3:
                if z >= street.crossing - 5:
                    z = street.crossing + 11
                    continue
                long = street.crossing - 3 - z
            long = min(long, street.end - 2 - z)
            if z + long > visible * 0.7:
                getattr(self, f"_put_{kind}")(side, base, z, z + long)
            z += long + (rng.uniform(1.5, 4) if rng.random() < 0.15 else 0.0)

    def _quad(self, x: float, z0: float, z1: float, height: float, side: int) -> Array:
        """A wall along the road that faces it, (4, 3)."""
        bend = self.street.bend
        near, far = (x + bend(z0), z0), (x + bend(z1), z1)
        first, last = (near, far) if side == 0 else (far, near)
        return np.array(
            [
                (first[0], 0, first[1]),
                (last[0], 0, last[1]),
                (last[0], height, last[1]),
                (first[0], height, first[1]),
            ],
            np.float64,
        )

    def _end(self, x: float, z: float, depth: float, height: float, side: int) -> Array:
        """The end of a building or wall that faces the camera, (4, 3)."""
        x += self.street.bend(z)
        first, last = (x - depth, x) if side == 0 else (x, x + depth)
        return np.array([(first, 0, z), (last, 0, z), (last, height, z), (first, height, z)], np.float64)

    def _put_building(self, side: int, base: float, z0: float, z1: float, back: float = 0.0) -> None:
        street = self.street
        rng, canvas = street.rng, street.canvas
        sign = -1 if side == 0 else 1
        set_back = rng.uniform(1.5, 5) if street.kind.heights[1] < 10 else rng.uniform(0, 0.8)
        x = base + sign * (back + set_back)
        house = make_house(rng, street)
        pieces = max(1, round((z1 - z0) / 7))
        edges = np.linspace(z0, z1, pieces + 1).tolist()

        def piece(a: float, b: float, first: bool) -> None:
            draw_facade(canvas, rng, house, self._quad(x, a, b, house.height, side), b - a)
            if house.pitched:
                slope = self._quad(x, a, b, house.height, side)
                roof = np.array([slope[3], slope[2], slope[2], slope[3]])
                roof[:2] -= (sign * 0.4, 0.1, 0.0)
                roof[2:] += (sign * 5.0, 3.4, 0.0)
                lit = canvas.facing(roof)
                if lit is not None:
                    canvas.flat(roof, house.roof, BUILDING, lit)
            if first:
                end = self._end(x, a, 10.0, house.height, side)
                draw_facade(canvas, rng, house, end, 10.0, plain=rng.random() < 0.4)
                if house.pitched:
                    middle = (end[2] + end[3]) / 2 + (0.0, 3.4, 0.0)
                    canvas.flat(np.array([end[3], end[2], middle]), house.paint, BUILDING, canvas.facing(end) or 1.0)

        for i, (a, b) in enumerate(zip(edges, edges[1:])):
            street.add(b + 0.3 + back, partial(piece, a, b, i == 0))

    def _put_park(self, side: int, base: float, z0: float, z1: float, back: float = 0.0) -> None:
        street = self.street
        rng, canvas = street.rng, street.canvas
        sign = -1 if side == 0 else 1
        tall = rng.uniform(5, 11)
        z = z0
        while z < z1:
            for row in range(2):
                x = base + sign * (back + 1.5 + row * rng.uniform(4, 6)) + street.bend(z)
                height = tall * rng.uniform(0.8, 1.2)
                street.add(
                    z + row * 4 + back,
                    partial(draw_tree, canvas, rng, x, z + row * 2, height, self.leaf),
                )
            z += rng.uniform(3.5, 6)

    def _put_hedge(self, side: int, base: float, z0: float, z1: float) -> None:
        street = self.street
        rng, canvas = street.rng, street.canvas
        sign = -1 if side == 0 else 1
        height = rng.uniform(0.6, 1.1)
        z = z0
        while z < z1:
            at = np.array([base + sign * 0.8 + street.bend(z), height * 0.8, z])
            street.add(
                z + 0.3,
                partial(draw_bush, canvas, rng, at, height * rng.uniform(0.9, 1.15), self.leaf),
            )
            z += height * 0.8
        self._behind(side, base, z0, z1)

    def _put_wall(self, side: int, base: float, z0: float, z1: float) -> None:
        street = self.street
        rng = street.rng
        height = rng.uniform(1.6, 3.4)
        paint = pick(rng, (*street.city.facades, (140, 138, 132), (120, 116, 108)))
        edges = np.linspace(z0, z1, max(2, round((z1 - z0) / 7)) + 1).tolist()

        def piece(a: float, b: float, first: bool) -> None:
            self._wall(self._quad(base, a, b, height, side), b - a, paint)
            if first:
                self._wall(self._end(base, a, 0.35, height, side), 0.35, paint)

        for i, (a, b) in enumerate(zip(edges, edges[1:])):
            street.add(b + 0.3, partial(piece, a, b, i == 0))
        self._behind(side, base, z0, z1)

    def _wall(self, quad: Array, length: float, paint: Colour) -> None:
        """Paint a free-standing wall: courses of stone, coping, at times graffiti."""
        rng, canvas = self.street.rng, self.street.canvas
        bright = canvas.facing(quad)
        if bright is None:
            return
        paint = mix(paint, (128, 124, 118), 0.55)
        canvas.flat(quad, paint, WALL, bright)
        courses = [(0.0, 1.0, i / 6 - 0.012, i / 6 + 0.012) for i in range(1, 6)]
        joints = []
        for _ in range(max(2, min(40, round(length / 0.9)))):
            row = int(rng.integers(6))
            at = float(rng.random())
            joints.append((at, at + 0.05 / length, row / 6, (row + 1) / 6))
        canvas.panels(quad, courses + joints, [dim(paint, 0.78)] * (5 + len(joints)), None, bright)
        canvas.panels(quad, [(0, 1, 0.93, 1), (0, 1, 0, 0.07)], [dim(paint, 1.15), dim(paint, 0.7)], None, bright)
        if rng.random() < 0.25 and length > 3:
            for _ in range(4):
                s, t = rng.uniform(0.05, 0.8), rng.uniform(0.15, 0.5)
                span = (s, s + rng.uniform(0.5, 1.4) / length, t, t + rng.uniform(0.15, 0.35))
                canvas.panels(quad, [span], [pick(rng, VIVID)], None, bright)

    def _put_fence(self, side: int, base: float, z0: float, z1: float) -> None:
        street = self.street
        rng = street.rng
        height = rng.uniform(1.2, 2.2)
        paint = pick(rng, ((44, 52, 46), (130, 98, 64), (196, 196, 190), (70, 72, 76), (104, 80, 56)))
        edges = np.linspace(z0, z1, max(2, round((z1 - z0) / 6)) + 1).tolist()
        for a, b in zip(edges, edges[1:]):
            street.add(b + 0.3, partial(self._fence, self._quad(base, a, b, height, side), b - a, paint))
        self._behind(side, base, z0, z1)

    def _fence(self, quad: Array, length: float, paint: Colour) -> None:
        """Paint a fence of bars; like the data set it copies, what shows between them counts as fence."""
        canvas = self.street.canvas
        bright = canvas.facing(quad) or 0.8
        xy = canvas.camera.project(quad)
        depth = float(quad[:, 2].mean())
        canvas.blend(xy, canvas.shade(dim(paint, 0.9), depth, bright), 0.45, FENCE)
        count = max(2, round(length / 0.35))
        bars = [((i + 0.3) / count, (i + 0.7) / count, 0.0, 0.97) for i in range(count)]
        posts = [(i / 3 - 0.008, i / 3 + 0.008, 0.0, 1.0) for i in range(4)]
        rails = [(0.0, 1.0, 0.12, 0.2), (0.0, 1.0, 0.8, 0.9)]
        if 0.14 * canvas.camera.focal / max(depth, 1.0) < 1.2:
            bars = []
        spans = bars + rails + [(max(0.0, s0), min(1.0, s1), t0, t1) for s0, s1, t0, t1 in posts]
        canvas.panels(quad, spans, [paint] * len(spans), None, bright)

    def _behind(self, side: int, base: float, z0: float, z1: float) -> None:
        """What rises behind a hedge, a wall or a fence."""
        rng = self.street.rng
        if rng.random() < 0.55:
            self._put_building(side, base, z0, z1, back=rng.uniform(3, 8))
        elif rng.random() < 0.8:
            self._put_park(side, base, z0, z1, back=2.0)
