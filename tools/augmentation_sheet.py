"""Draw a contact sheet of the ImageNet recipe's augmentations, on procedural street scenes.

python tools/augmentation_sheet.py
python tools/augmentation_sheet.py --output sheet.png --seed 3
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from paddle_vheat.data._array_ops import IMAGENET_MEAN, IMAGENET_STD
from paddle_vheat.data._rand_augment import TRANSFORMS, Canvas
from paddle_vheat.data.batch_ops import build_batch_ops
from paddle_vheat.data.image_ops import TimmAutoAugment, build_ops
from paddle_vheat.data.street_scenes import render_scene

COLUMNS = 8
SIZE = 224
TILE = 128
CAPTION = 17
GAP = 6
HEADING = 26
MARGIN = 10
COLOURS = 256  # of the PNG's palette
BACKGROUND, INK, FAINT = (255, 255, 255), (20, 20, 20), (95, 95, 95)
SCENES = {"A": 9, "B": 22, "C": 3, "D": 11}
"""Letters of the scenes and the seeds that they are rendered from."""

CROP: Op = {"RandCropImage": {"size": SIZE, "interpolation": "bicubic", "backend": "pil"}}
FLIP: Op = {"RandFlipImage": {"flip_code": 1}}
RAND_AUGMENT: Op = {"TimmAutoAugment": {"config_str": "rand-m9-mstd0.5-inc1", "interpolation": "bicubic"}}
NORMALIZE: Op = {"NormalizeImage": {"scale": "1.0/255.0", "order": ""}}
ERASING: Op = {"sl": 0.02, "sh": "1.0/3.0", "r1": 0.3, "attempt": 10, "use_log_aspect": True, "mode": "pixel"}

Tile = tuple[str, Image.Image]
Op = dict[str, Any]


def shown(array: np.ndarray) -> Image.Image:
    """A normalised image, float32 (H, W, 3), as a picture."""
    pixels = (array * np.asarray(IMAGENET_STD) + np.asarray(IMAGENET_MEAN)) * 255
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def run(ops: Sequence[Op], image: Image.Image) -> Image.Image:
    """The image after some operations."""
    result = image
    for op in build_ops(ops):
        result = op(result)
    return shown(result) if isinstance(result, np.ndarray) else result


def rand_augmented(image: Image.Image) -> Tile:
    """The image after RandAugment, with the transforms that were drawn as the caption."""
    (op,) = build_ops([RAND_AUGMENT])
    state = random.getstate()
    names = [name.replace("Increasing", "").replace("Rel", "") for name, _ in op.augment.draw()]
    random.setstate(state)
    return ", ".join(names) or "none", op(image)


def mixed(scenes: dict[str, Image.Image], name: str, alpha: float, rng: np.random.Generator, item: int) -> Tile:
    """One image of a mixed batch, with the weights of its target as the caption."""
    (normalize,) = build_ops([NORMALIZE])
    images = np.stack([np.moveaxis(normalize(image), -1, 0) for image in scenes.values()])
    transform = build_batch_ops([{name: {"alpha": alpha}}], len(scenes))
    images, targets = transform(np.ascontiguousarray(images), np.arange(len(scenes)), rng)
    weights = [f"{weight:.2f} {letter}" for letter, weight in zip(scenes, targets[item]) if weight > 0]
    return " + ".join(weights), shown(np.moveaxis(images[item], 0, -1))


def sections(seed: int) -> list[tuple[str, list[Tile]]]:
    """Headings, and the captions and pictures below each."""
    random.seed(seed)
    rng = np.random.default_rng(seed)
    wide = {letter: Image.fromarray(render_scene(number, (256, 512))[0]) for letter, number in SCENES.items()}
    square = {letter: run([{"CropImage": {"size": SIZE}}], image) for letter, image in wide.items()}
    letters = list(SCENES)
    canvas = Canvas("bicubic", TimmAutoAugment().augment.canvas.fill)

    crops = [(f"crop, flip of {letters[i % 4]}", run([CROP, FLIP], wide[letters[i % 4]])) for i in range(4)]
    single = [("scene A", square["A"])]
    single += [(name, transform(square["A"], 0.9, canvas)) for name, transform in TRANSFORMS.items()]
    drawn = [rand_augmented(square[letters[i % 4]]) for i in range(COLUMNS)]
    erasing: list[Op] = [NORMALIZE, {"RandomErasing": {"EPSILON": 1, **ERASING}}]
    erased = [("", run(erasing, square[letters[i % 4]])) for i in range(COLUMNS)]
    recipe: list[Op] = [CROP, FLIP, RAND_AUGMENT, NORMALIZE, {"RandomErasing": {"EPSILON": 0.25, **ERASING}}]
    whole = [("", run(recipe, wide[letters[i % 4]])) for i in range(COLUMNS)]
    return [
        (
            "Scenes; random crops (8% to 100% of the area, 3:4 to 4:3), half of them flipped",
            [(f"scene {letter}", image) for letter, image in square.items()] + crops,
        ),
        ("RandAugment's transforms at magnitude 9 (of either sign, if it has one)", single),
        ("RandAugment m9-mstd0.5-inc1: two transforms drawn, each applied with probability 0.5", drawn),
        ("Random erasing, by pixel (2% to 33% of the area; here always, in training with probability 0.25)", erased),
        ("All of the above, as in training", whole),
        (
            "mixup (four on the left) and CutMix, with the weights of the classes",
            [mixed(square, "MixupOperator", 0.8, rng, i) for i in range(4)]
            + [mixed(square, "CutmixOperator", 1.0, rng, i) for i in range(4)],
        ),
    ]  # fmt: skip


def draw_sheet(parts: list[tuple[str, list[Tile]]]) -> Image.Image:
    """All sections below each other."""
    rows = [-(-len(tiles) // COLUMNS) for _, tiles in parts]
    captioned = [any(caption for caption, _ in tiles) for _, tiles in parts]
    step = [TILE + GAP + (CAPTION if has else 0) for has in captioned]
    width = 2 * MARGIN + COLUMNS * (TILE + GAP) - GAP
    height = 2 * MARGIN + sum(HEADING + n * s for n, s in zip(rows, step))
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    heading_font, caption_font = ImageFont.load_default(14), ImageFont.load_default(11)
    top = MARGIN
    for (heading, tiles), count, row_height in zip(parts, rows, step):
        pen.text((MARGIN, top + 4), heading, INK, heading_font)
        top += HEADING
        for i, (caption, image) in enumerate(tiles):
            x, y = MARGIN + i % COLUMNS * (TILE + GAP), top + i // COLUMNS * row_height
            sheet.paste(image.resize((TILE, TILE), Image.Resampling.LANCZOS), (x, y))
            pen.text((x + 1, y + TILE + 1), caption, FAINT, caption_font)
        top += count * row_height
    return sheet


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw a contact sheet of the ImageNet recipe's augmentations.")
    parser.add_argument("--output", default="docs/images/augmentations.png", help="PNG to write; default %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of everything random; default %(default)s")
    args = parser.parse_args(argv)
    path = Path(args.output)
    try:
        if path.suffix.lower() != ".png":
            raise ValueError(f"{path}: expected a name that ends in .png")
        sheet = draw_sheet(sections(args.seed)).quantize(COLOURS)
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, optimize=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path}: {sheet.width} x {sheet.height} pixels, {path.stat().st_size / 1024:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
