"""Generated gray pictures to train a denoiser on: "dead leaves", shapes of all sizes that lie over each other.

Shapes whose radii follow a power law of exponent -3 have the edges, the occlusions and, up to a factor, the spectrum of
photographs (Lee, Mumford and Huang 2001), and denoisers learn from them nearly as well as from photographs (Achddou,
Gousseau and Ladjal 2021).

    python -m examples.dead_leaves --output data/dead_leaves
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import cv2
import numpy as np

from paddle_vheat.deploy.writing import write_picture

SCALE = 2  # pictures are drawn so much larger, for smooth edges
RADII = 4.0, 70.0  # pixels of the picture
COUNTS = {"train": 160, "val": 6}


def _radius(rng: np.random.Generator) -> float:
    """From a density proportional to r^-3 between the two ends."""
    low, high = RADII
    return low / math.sqrt(1 - rng.random() * (1 - (low / high) ** 2))


def _outline(rng: np.random.Generator, radius: float) -> np.ndarray:
    """Corners (N, 2) of a leaf around 0: an ellipse, or a polygon with some corners drawn in."""
    count = 40 if rng.random() < 0.5 else int(rng.integers(3, 9))
    angle = np.sort(rng.random(count)) * 2 * math.pi if count < 40 else np.linspace(0, 2 * math.pi, count)
    reach = np.ones(count) if count == 40 else rng.uniform(0.5, 1, count)
    corners = radius * reach[:, None] * np.stack([np.cos(angle), rng.uniform(0.4, 1) * np.sin(angle)], axis=1)
    turn = rng.random() * math.pi
    return corners @ np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])


def _shade(rng: np.random.Generator, height: int, width: int, radius: float) -> np.ndarray:
    """Gray values (height, width) of a leaf: a level, a slope of it, and for half of the leaves a texture."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    slope = rng.normal(0, 40, 2) / max(radius, 8)
    values = rng.uniform(10, 245) + slope[0] * (y - height / 2) + slope[1] * (x - width / 2)
    kind = rng.random()
    if kind < 0.25:  # stripes
        direction, period = rng.random() * math.pi, rng.uniform(4, 16)
        phase = (math.cos(direction) * x + math.sin(direction) * y) * 2 * math.pi / period
        values = values + rng.uniform(5, 40) * np.sin(phase)
    elif kind < 0.5:  # grain
        grain = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), rng.uniform(1, 4))
        values = values + rng.uniform(5, 25) * grain / max(float(grain.std()), 1e-6)
    return values


def picture(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A picture, uint8 (height, width), that depends on ``rng`` alone."""
    canvas = _shade(rng, height * SCALE, width * SCALE, max(height, width))
    leaves = height * width // 70  # most of the background is covered
    for _ in range(leaves):
        outline = _outline(rng, SCALE * _radius(rng))
        place = rng.uniform(0, (width * SCALE, height * SCALE))
        corners = np.round(outline + place).astype(np.int32)
        left, top = np.maximum(corners.min(axis=0), 0)
        right, bottom = np.minimum(corners.max(axis=0) + 1, (width * SCALE, height * SCALE))
        if left >= right or top >= bottom:
            continue
        mask = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(mask, [corners - (left, top)], 1)
        part = canvas[top:bottom, left:right]
        part[:] = np.where(mask, _shade(rng, mask.shape[0], mask.shape[1], float(np.ptp(corners))), part)
    small = cv2.resize(canvas.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return small.clip(0, 255).round().astype(np.uint8)


def write(folder: Path, size: int = 160, seed: int = 0) -> None:
    """``folder/train`` and ``folder/val``; what is there already is kept, for it would be the same."""
    for part, (split, count) in enumerate(COUNTS.items()):
        for i in range(count):
            path = folder / split / f"{i:03d}.png"
            if not path.is_file():
                write_picture(path, picture(size, size, np.random.default_rng([seed, part, i])))


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate gray pictures of dead leaves.")
    parser.add_argument("--output", default="data/dead_leaves", help="folder; default data/dead_leaves")
    output = Path(parser.parse_args().output)
    write(output)
    print(f"{' and '.join(f'{count} pictures in {output / split}' for split, count in COUNTS.items())}")


if __name__ == "__main__":
    main()
