"""What the invented cities of the street scenes look like: their colours, weather and streets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from examples.street_scenes.canvas import Array, Camera, Colour, Light, dim, mix, value_noise


@dataclass(frozen=True)
class City:
    """Tendencies of a city; each scene still draws its own street from them."""

    name: str
    facades: tuple[Colour, ...]
    leaves: tuple[Colour, ...]
    paving: Colour
    asphalt: Colour
    moods: dict[str, float]
    """Weights of the kinds of weather and daylight in `MOODS`."""
    streets: dict[str, float]
    """Weights of the kinds of street in `STREETS`."""


@dataclass(frozen=True)
class Mood:
    """Weather and daylight, before each scene varies them."""

    zenith: Colour
    low: Colour
    """Colour of the sky at the horizon, and of the haze."""
    ambient: Colour
    strength: float
    visibility: float
    lamps: bool


@dataclass(frozen=True)
class StreetKind:
    """A kind of street; lengths in metres, shares as probabilities."""

    heights: tuple[float, float]
    walk: tuple[float, float]
    verge: float
    """Probability of a strip of grass."""
    sides: dict[str, float]
    """Weights of what stands along it."""
    trees: float
    """Probability of a row of trees along either side."""
    crowd: float
    """Mean number of groups of people."""
    pitched: float
    """Probability of a pitched roof."""


MOODS = {
    "clear": Mood((74, 128, 202), (192, 212, 230), (1.0, 0.98, 0.94), 0.9, 420, False),
    "hazy": Mood((150, 176, 206), (214, 219, 222), (0.96, 0.95, 0.93), 0.5, 130, False),
    "overcast": Mood((164, 171, 179), (206, 209, 211), (0.84, 0.86, 0.88), 0.1, 260, False),
    "golden": Mood((108, 132, 180), (250, 204, 146), (1.06, 0.88, 0.7), 0.8, 240, False),
    "rain": Mood((116, 124, 132), (166, 171, 175), (0.66, 0.69, 0.72), 0.0, 110, True),
    "dusk": Mood((54, 62, 112), (214, 134, 112), (0.55, 0.5, 0.58), 0.1, 230, True),
    "night": Mood((12, 14, 30), (54, 48, 54), (0.42, 0.41, 0.48), 0.0, 240, True),
}

STREETS = {
    "centre": StreetKind(
        heights=(11, 24), walk=(3.5, 6.0), verge=0.1, sides={"building": 9, "park": 0.6, "wall": 0.4},
        trees=0.35, crowd=6.4, pitched=0.25,
    ),
    "avenue": StreetKind(
        heights=(9, 18), walk=(3.0, 5.0), verge=0.55, sides={"building": 6, "park": 1.5, "fence": 0.7},
        trees=1.0, crowd=4.8, pitched=0.3,
    ),
    "suburb": StreetKind(
        heights=(5, 9), walk=(1.8, 3.2), verge=0.65,
        sides={"building": 4, "park": 1.6, "hedge": 1.5, "fence": 1.2, "wall": 0.8},
        trees=0.55, crowd=2.9, pitched=0.8,
    ),
    "open": StreetKind(
        heights=(6, 14), walk=(2.0, 3.4), verge=0.85,
        sides={"building": 1.6, "park": 4, "wall": 0.8, "fence": 1},
        trees=0.6, crowd=1.9, pitched=0.4,
    ),
}  # fmt: skip

TRAIN_CITIES = (
    City(
        "arbourg",
        ((222, 206, 172), (206, 182, 140), (190, 164, 132), (232, 222, 200)),
        ((74, 104, 42), (92, 118, 50), (58, 90, 40)),
        (156, 150, 142),
        (86, 87, 90),
        {"clear": 4, "golden": 2, "hazy": 1.5, "overcast": 1, "dusk": 0.6, "night": 0.3, "rain": 0.4},
        {"centre": 3, "avenue": 4, "suburb": 2, "open": 1},
    ),
    City(
        "brickmoor",
        ((142, 74, 58), (160, 92, 70), (120, 66, 56), (176, 128, 100), (206, 200, 190)),
        ((66, 92, 46), (84, 104, 58), (50, 78, 42)),
        (138, 136, 134),
        (74, 75, 79),
        {"overcast": 4, "rain": 2, "clear": 1.5, "hazy": 1, "dusk": 0.6, "night": 0.4},
        {"centre": 2, "avenue": 1.5, "suburb": 4, "open": 1},
    ),
    City(
        "glasshaven",
        ((132, 146, 158), (168, 174, 178), (108, 116, 128), (196, 198, 198), (90, 110, 124)),
        ((60, 98, 54), (76, 112, 62)),
        (166, 166, 166),
        (96, 97, 99),
        {"clear": 3, "overcast": 2, "hazy": 2, "dusk": 0.9, "night": 0.7, "golden": 0.8, "rain": 0.6},
        {"centre": 5, "avenue": 2, "suburb": 0.7, "open": 1.3},
    ),
    City(
        "greenfold",
        ((226, 224, 216), (212, 190, 160), (172, 120, 92), (180, 192, 196), (224, 204, 150)),
        ((60, 96, 34), (96, 124, 44), (128, 128, 44), (48, 82, 40)),
        (150, 144, 136),
        (90, 90, 92),
        {"clear": 3, "hazy": 1.5, "overcast": 2.5, "golden": 1.5, "dusk": 0.5, "night": 0.2, "rain": 0.8},
        {"suburb": 4, "open": 4, "avenue": 2, "centre": 1},
    ),
)

VAL_CITIES = (
    City(
        "coralport",
        ((226, 176, 150), (206, 140, 116), (236, 214, 178), (176, 198, 200), (226, 226, 220)),
        ((84, 108, 62), (104, 122, 60), (66, 96, 62)),
        (172, 160, 148),
        (100, 98, 96),
        {"clear": 3, "golden": 2.5, "hazy": 2, "overcast": 1, "dusk": 0.8, "night": 0.4, "rain": 0.3},
        {"centre": 3, "avenue": 3, "suburb": 2, "open": 2},
    ),
    City(
        "slatewick",
        ((112, 108, 106), (150, 138, 124), (128, 96, 84), (176, 172, 166), (92, 100, 110)),
        ((72, 96, 52), (118, 110, 48), (140, 98, 44), (56, 80, 44)),
        (130, 130, 132),
        (70, 71, 76),
        {"overcast": 3.5, "rain": 1.5, "hazy": 1.5, "clear": 1.5, "golden": 0.7, "dusk": 0.8, "night": 0.5},
        {"suburb": 3, "centre": 2.5, "avenue": 2, "open": 2},
    ),
)


def choose(rng: np.random.Generator, weights: dict[str, float]) -> str:
    """One of the keys, as often as its weight says."""
    shares = np.array(list(weights.values()), np.float64)
    return str(rng.choice(list(weights), p=shares / shares.sum()))


def make_light(rng: np.random.Generator, mood: Mood) -> Light:
    """The light of one scene of this mood."""
    azimuth = rng.uniform(-math.pi, math.pi)
    climb = rng.uniform(0.15, 0.4) if mood.low[0] > mood.low[2] + 40 else rng.uniform(0.45, 1.1)
    sun = (math.sin(azimuth) * math.cos(climb), math.sin(climb), math.cos(azimuth) * math.cos(climb))
    gain = rng.uniform(0.88, 1.1)
    ambient = (
        mood.ambient[0] * gain * rng.uniform(0.96, 1.04),
        mood.ambient[1] * gain,
        mood.ambient[2] * gain * rng.uniform(0.96, 1.04),
    )
    return Light(ambient, sun, mood.strength, mood.low, mood.visibility * rng.uniform(0.75, 1.4), mood.lamps)


def paint_sky(rng: np.random.Generator, mood: Mood, light: Light, camera: Camera) -> Array:
    """The sky over the whole surface, uint8 (height, width, 3)."""
    shape = (camera.height, camera.width)
    rows = np.arange(camera.height, dtype=np.float32)[:, None]
    columns = np.arange(camera.width, dtype=np.float32)[None, :]
    up = np.clip((camera.horizon - rows) / camera.horizon, 0, 1) ** 0.6
    zenith, low = np.array(mood.zenith, np.float32), np.array(mood.low, np.float32)
    sky = np.repeat(low + (zenith - low) * up[..., None], camera.width, axis=1)
    # Where the sun stands the sky is brighter, widely so when it is low.
    sun_x = camera.centre + light.sun[0] / max(abs(light.sun[2]), 0.3) * camera.focal
    if light.sun[2] > 0:
        distance = np.hypot((columns - sun_x) / camera.width, (rows - camera.horizon * 0.7) / camera.height)
        glare = np.exp(-distance * 5) * 70 * light.strength
        sky += glare[..., None] * np.array([1.0, 0.85, 0.6], np.float32)
    cover = rng.uniform(-0.5, 0.45) + (0.2 if mood.strength < 0.2 else 0.0)
    clouds = value_noise(rng, shape, 4, 4)
    amount = np.clip((clouds + cover) * 1.6, 0, 1) * 0.75
    white = mix(dim(mood.low, 1.06), (255, 255, 255), 0.5 if mood.strength > 0.2 else 0.0)
    bright = np.array(white, np.float32)
    shaded = bright * np.clip(1.02 - 0.3 * np.clip(clouds, 0, 1), 0.5, 1.1)[..., None]
    sky += (shaded - sky) * amount[..., None]
    return sky.clip(0, 255).astype(np.uint8)
