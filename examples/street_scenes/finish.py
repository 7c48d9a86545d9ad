"""Turns a painted street into a photograph: texture, lens, sensor, and the parts that are not scored."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageFilter

from examples.street_scenes.canvas import FIRST_OBJECT, Array, Camera, Canvas, value_noise
from examples.street_scenes.labels import IGNORE

# Strength of fine and of coarse texture by train id; what is not listed gets the last row.
_FINE = np.full(256, 0.03, np.float32)
_COARSE = np.full(256, 0.03, np.float32)
for _label, _fine, _coarse in (
    (2, 0.045, 0.06), (3, 0.07, 0.08), (4, 0.06, 0.04), (8, 0.2, 0.16), (10, 0.004, 0.0),
):  # fmt: skip
    _FINE[_label], _COARSE[_label] = _fine, _coarse
_GROUND = np.zeros(256, np.float32)
_GROUND[[0, 1, 9]] = 0.09, 0.1, 0.24


def halve_image(image: Array) -> Array:
    """uint8 (2 H, 2 W, 3) averaged to float32 (H, W, 3) in 0..1."""
    rows = image[::2].astype(np.float32) + image[1::2]
    mean: Array = (rows[:, ::2] + rows[:, 1::2]) * np.float32(1 / 1020)
    return mean


def halve_marks(marks: Array, classes: list[int]) -> tuple[Array, Array]:
    """From marks, (2 H, 2 W), to labels, uint8 (H, W), and objects numbered from 1, int32 (H, W), by majority.

    An object's pixel has the object's class as its label, and a pixel labelled as a thing belongs to an object.
    """
    table = np.array([*range(FIRST_OBJECT), *classes], np.uint8)
    quarters = np.stack([marks[i::2, j::2] for i in (0, 1) for j in (0, 1)])
    labels = table[quarters]
    label = _majority(labels, np.ones(labels.shape, bool))
    mark = _majority(quarters, labels == label)
    return label, np.maximum(mark - (FIRST_OBJECT - 1), 0)


def _majority(values: Array, eligible: Array) -> Array:
    """The commonest of the eligible values along the first axis, (4, H, W) to (H, W); of equals the first."""
    votes = (values[:, None] == values).sum(axis=0) * eligible
    return np.take_along_axis(values, votes.argmax(axis=0)[None], axis=0)[0]


def _lookup(tile: Array, x: Array, z: Array) -> Array:
    """Bilinear value of a repeating tile at real positions."""
    size = tile.shape[0]
    x0, z0 = np.floor(x), np.floor(z)
    fx, fz = x - x0, z - z0
    i, j = x0.astype(np.int64) % size, z0.astype(np.int64) % size
    i1, j1 = (i + 1) % size, (j + 1) % size
    low = tile[j, i] * (1 - fx) + tile[j, i1] * fx
    high = tile[j1, i] * (1 - fx) + tile[j1, i1] * fx
    return low * (1 - fz) + high * fz


def _ground(rng: np.random.Generator, camera: Camera, label: Array) -> Array:
    """Texture that lies on the ground in perspective, float32 (H, W): a multiplier's deviation from 1."""
    height, width = label.shape
    tile = rng.uniform(-1, 1, (64, 64)).astype(np.float32)
    texture = np.zeros(label.shape, np.float32)
    first = max(0, math.ceil(camera.horizon / 2) + 1)
    if first >= height:
        return texture
    rows = np.arange(first, height, dtype=np.float32)[:, None] * 2 + 1
    columns = np.arange(width, dtype=np.float32)[None, :] * 2 + 1
    z = camera.focal * camera.eye / (rows - camera.horizon)
    x = (columns - camera.centre) * z / camera.focal
    z = np.broadcast_to(z, x.shape)
    # Grain finer than a pixel fades out before it turns to moiré.
    pixel = 2 * z * z / (camera.focal * camera.eye)
    grain = sum(
        _lookup(tile, x * scale, z * scale) * np.clip(1 / (pixel * scale + 1e-3), 0, 1) * weight
        for scale, weight in ((0.25, 0.5), (1.1, 0.5), (4.3, 0.6), (11.0, 0.7))
    )
    below = label[first:]
    texture[first:] = grain * _GROUND[below]
    slab = rng.uniform(0.6, 1.6)
    joint = ((x % slab) < 0.06 * slab) | ((z % slab) < 0.06 * slab)
    texture[first:] -= (joint & (below == 1)) * np.clip(0.5 * slab / (pixel + 0.05), 0, 1) * 0.1
    return texture


def finish(rng: np.random.Generator, canvas: Canvas) -> tuple[Array, Array, Array]:
    """The photograph, its train ids and its objects at half the canvas' size: see ``render_scene``."""
    camera, light = canvas.camera, canvas.light
    colours = halve_image(np.asarray(canvas.rgb))
    label, objects = halve_marks(np.asarray(canvas.marks), canvas.classes)
    height, width = label.shape
    texture = _FINE[label] * value_noise(rng, (height, width), 40, 2)
    texture += _COARSE[label] * value_noise(rng, (height, width), 9, 2)
    colours *= (1 + texture + _ground(rng, camera, label))[..., None]

    if light.lamps:
        # Bright spots spill over their surroundings.
        bright = np.clip(colours - 0.72, 0, 1) * 3
        spill = Image.fromarray((bright.clip(0, 1) * 255).astype(np.uint8))
        spread = spill.filter(ImageFilter.GaussianBlur(height / 40))
        colours += np.asarray(spread, np.float32) / 255 * 0.5

    ys = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    xs = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    slope = rng.uniform(-0.06, 0.06, 2)
    exposure = 1 + slope[0] * xs + slope[1] * ys + 0.05 * value_noise(rng, (height, width), 2, 1)
    exposure *= 1 - rng.uniform(0.02, 0.16) * (xs * xs + ys * ys)
    colours *= exposure[..., None] * rng.uniform(0.96, 1.04, 3).astype(np.float32)
    middle = float(colours.mean())
    contrast, lift = rng.uniform(0.85, 1.12), rng.uniform(-0.02, 0.03)
    colours = (colours - middle) * np.float32(contrast) + np.float32(middle + lift)

    label = _unscored(rng, colours, label)
    picture = Image.fromarray((colours.clip(0, 1) * 255).astype(np.uint8))
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.15, 0.55) * math.sqrt(height / 128)))
    sigma = rng.uniform(1.2, 3.5) * (1.8 if light.lamps else 1.0)
    noise = rng.standard_normal((height, width, 3), np.float32) * np.float32(sigma)
    image = (np.asarray(picture, np.float32) + noise).clip(0, 255).astype(np.uint8)
    return image, label, np.where(label == IGNORE, 0, objects)


def _unscored(rng: np.random.Generator, colours: Array, label: Array) -> Array:
    """Add the camera car's bonnet to ``colours``, in place, and return the labels with 255 where due."""
    height, width = label.shape
    label = label.copy()
    if rng.random() < 0.35:
        xs = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
        ys = np.arange(height, dtype=np.float32)[:, None]
        rise, droop, middle = rng.uniform(0.04, 0.09), rng.uniform(0.2, 0.6), rng.uniform(-0.1, 0.1)
        top = height * (1 - rise * (1 - droop * (xs - middle) ** 2))
        bonnet = ys > top
        paint = np.float32(rng.uniform(0.06, 0.3)) + np.array([0.0, 0.005, 0.02], np.float32)
        gloss = np.clip(1 - (ys - top) / (0.07 * height), 0, 1)[..., None] * np.float32(0.18)
        mirrored = colours[: height // 3].mean(axis=(0, 1)) * gloss
        shade = mirrored + paint * np.float32(0.3 + 0.7 * float(colours.mean()))
        colours[bonnet] = shade[bonnet]
        label[bonnet] = IGNORE
    if rng.random() < 0.4:
        # Cityscapes marks the border that its rectification has made unreliable.
        edge = max(1, round(height * rng.uniform(0.004, 0.012)))
        label[:edge] = label[-edge:] = IGNORE
        label[:, :edge] = label[:, -edge:] = IGNORE
    return label
