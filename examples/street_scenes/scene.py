"""One street scene: laid out, painted far to near, and finished as a photograph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from examples.street_scenes import traffic
from examples.street_scenes.canvas import Array
from examples.street_scenes.cities import TRAIN_CITIES, City
from examples.street_scenes.finish import finish
from examples.street_scenes.ground import paint_ground
from examples.street_scenes.sides import Sides
from examples.street_scenes.street import Street

MIN_SIZE = (64, 128)


def check_size(size: Sequence[int]) -> tuple[int, int]:
    """Height and width as integers; ValueError if a scene of them would show nothing."""
    height, width = (int(length) for length in size)
    if height < MIN_SIZE[0] or width < MIN_SIZE[1]:
        raise ValueError(
            f"size {height} x {width} (height x width) is too small: at least {MIN_SIZE[0]} x {MIN_SIZE[1]}"
        )
    return height, width


def render_scene(
    seed: int | Sequence[int], size: tuple[int, int] = (128, 256), *, city: City | None = None
) -> tuple[Array, Array, Array]:
    """Draw one street scene.

    Args:
        seed: a non-negative integer, or a sequence of them; equal seeds give equal scenes.
        size: height and width in pixels, at least 64 x 128. Twice as wide as high looks right.
        city: the city it lies in; by default the seed chooses one of the training cities.

    Returns:
        The image, uint8 (height, width, 3), RGB; its train ids, uint8 (height, width), each 0-18 or 255 for what is
        not scored; and its objects, int32 (height, width), numbered from 1 in the order of drawing, 0 elsewhere. The
        pixels of an object are all of one class, those that nothing hides.

    Raises:
        ValueError: if the size is too small or a seed is negative.
    """
    height, width = check_size(size)
    rng = np.random.default_rng(seed)
    if city is None:
        city = TRAIN_CITIES[int(rng.integers(len(TRAIN_CITIES)))]
    # Painted at twice the size: the halved picture has soft edges, the halved labels hard ones.
    street = Street(rng, city, (2 * height, 2 * width))
    _paint(street)
    return finish(rng, street.canvas)


def _paint(street: Street) -> None:
    paint_ground(street)
    sides = Sides(street)
    sides.backdrop()
    for side in (0, 1):
        sides.line(side)
    traffic.add_wishes(street)
    traffic.add_traffic(street)
    traffic.add_people(street)
    traffic.add_furniture(street)
    for _, draw in sorted(street.items, key=lambda item: -item[0]):
        street.canvas.begin()
        draw()
