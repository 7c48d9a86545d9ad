"""Procedural street scenes in Cityscapes' layout: data to train and to test on without a download.

    python -m paddle_vheat.data.street_scenes --output data/street_scenes --train 200 --val 50

writes ``leftImg8bit/{train,val}/{city}/*_leftImg8bit.png`` (RGB) and
``gtFine/{train,val}/{city}/*_gtFine_labelTrainIds.png`` (train ids 0-18, 255 for what is not scored).
Training and validation scenes come from different invented cities, which differ in facades, plants,
weather and kinds of streets.

The same arguments give the same bytes with the same versions of numpy and Pillow, and a scene does not
depend on how many others are written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from paddle_vheat.data._scene_canvas import Array
from paddle_vheat.data._scene_cities import TRAIN_CITIES, VAL_CITIES, City
from paddle_vheat.data._scene_finish import finish
from paddle_vheat.data._scene_layout import Scene

CLASS_NAMES: tuple[str, ...] = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
    "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
"""Cityscapes' classes; the position is the train id."""

PALETTE: tuple[tuple[int, int, int], ...] = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
    (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60),
    (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
"""Cityscapes' colours, RGB, by train id."""

GENERATOR_VERSION = 1
"""Raised whenever the same arguments give other pictures."""

MIN_SIZE = (64, 128)
META_NAME = "meta.json"
README_NAME = "README.txt"
SPLITS: dict[str, tuple[City, ...]] = {"train": TRAIN_CITIES, "val": VAL_CITIES}

_README = """Procedural street scenes in the layout of Cityscapes, written by paddle-vheat.

leftImg8bit/<split>/<city>/*_leftImg8bit.png           pictures, 8-bit RGB
gtFine/<split>/<city>/*_gtFine_labelTrainIds.png       train ids 0-18, 255 is not scored
meta.json                                              what they were made with; written last

Nothing in here is a photograph or comes from Cityscapes itself. The same data can be made again with:
python -m paddle_vheat.data.street_scenes --output DIR --train {train} --val {val} \\
    --height {height} --width {width} --seed {seed}
"""


class SceneFiles(NamedTuple):
    """One scene of a data set: where it belongs and what it is drawn from."""

    image: Path
    label: Path
    seed: tuple[int, int, int]
    city: City


def _check_size(size: Sequence[int]) -> tuple[int, int]:
    height, width = (int(length) for length in size)
    if height < MIN_SIZE[0] or width < MIN_SIZE[1]:
        raise ValueError(
            f"size {height} x {width} (height x width) is too small: at least {MIN_SIZE[0]} x {MIN_SIZE[1]}"
        )
    return height, width


def render_scene(
    seed: int | Sequence[int], size: tuple[int, int] = (128, 256), *, city: City | None = None
) -> tuple[Array, Array]:
    """Draw one street scene.

    Args:
        seed: a non-negative integer, or a sequence of them; equal seeds give equal scenes.
        size: height and width in pixels, at least 64 x 128. Twice as wide as high looks right.
        city: the city it lies in; by default the seed chooses one of the training cities.

    Returns:
        The image, uint8 (height, width, 3), RGB, and its train ids, uint8 (height, width), each 0-18 or
        255 for what is not scored.

    Raises:
        ValueError: if the size is too small or a seed is negative.
    """
    height, width = _check_size(size)
    rng = np.random.default_rng(seed)
    if city is None:
        city = TRAIN_CITIES[int(rng.integers(len(TRAIN_CITIES)))]
    # Painted at twice the size: the halved picture has soft edges, the halved labels hard ones.
    canvas = Scene(rng, city, (2 * height, 2 * width)).paint()
    return finish(rng, canvas)


def colour_label(label: Array) -> Array:
    """Train ids, uint8 (height, width), in Cityscapes' colours, uint8 (height, width, 3); 255 is black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(PALETTE)] = PALETTE
    return table[label]


def list_scenes(root: Path, split: str, count: int, seed: int) -> list[SceneFiles]:
    """The files of the first ``count`` scenes of a split, "train" or "val", in the order of writing."""
    cities = SPLITS[split]
    scenes = []
    for index in range(count):
        city = cities[index % len(cities)]
        stem = f"{city.name}_{index // len(cities):06d}_{index:06d}"
        scenes.append(
            SceneFiles(
                root / "leftImg8bit" / split / city.name / f"{stem}_leftImg8bit.png",
                root / "gtFine" / split / city.name / f"{stem}_gtFine_labelTrainIds.png",
                (seed, list(SPLITS).index(split), index),
                city,
            )
        )
    return scenes


def _replace(path: Path, data: Array | str) -> None:
    """Write a PNG or a text under a temporary name and move it into place, so no half file is ever read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        if isinstance(data, str):
            temporary.write_text(data, encoding="utf-8")
        else:
            Image.fromarray(data).save(temporary, format="PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no readable JSON ({error}) (overwrite replaces it)") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object (overwrite replaces it)")
    return found


def _progress(scenes: list[SceneFiles], show: bool) -> Iterator[SceneFiles]:
    if show:
        try:
            from tqdm import tqdm
        except ImportError:
            show = False
    yield from tqdm(scenes, desc="street scenes", unit="scene", disable=None) if show else scenes


def write_dataset(
    root: str | Path,
    train: int = 200,
    val: int = 50,
    size: tuple[int, int] = (128, 256),
    seed: int = 0,
    progress: bool = True,
    overwrite: bool = False,
) -> bool:
    """Write a data set, or finish one that an interrupted call with the same arguments has begun.

    Args:
        root: the folder; made if missing. ``meta.json`` in it, written last, marks it as complete.
        train: number of training scenes.
        val: number of validation scenes.
        size: height and width of the pictures in pixels, at least 64 x 128.
        seed: a non-negative integer.
        progress: show a progress bar, if tqdm is installed.
        overwrite: remove the scenes that the folder holds, and begin anew.

    Returns:
        False if the folder already held the complete data set, True if anything was written.

    Raises:
        ValueError: for arguments out of range, or if the folder holds something else: scenes made with
            other arguments (the message names them), or pictures that do not come from here.
    """
    root = Path(root)
    height, width = _check_size(size)
    for name, value in (("train", train), ("val", val), ("seed", seed)):
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    if train + val == 0:
        raise ValueError("train and val are both 0: nothing to write")
    wanted: dict[str, Any] = {
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "train": train,
        "val": val,
        "height": height,
        "width": width,
    }
    scenes = list_scenes(root, "train", train, seed) + list_scenes(root, "val", val, seed)
    begun, complete = root / f"{META_NAME}.part", root / META_NAME
    marker = next((path for path in (complete, begun) if path.exists()), None)
    present = _pictures(root)
    if overwrite:
        # The old marker outlives the old pictures: what an interruption here leaves is still explained.
        for path in present:
            path.unlink()
        present = set()
    elif marker is not None:
        found = _read_meta(marker)
        differences = [
            f"{name} is {found.get(name)!r} there and {wanted[name]!r} here"
            for name in wanted
            if found.get(name) != wanted[name]
        ]
        if differences:
            raise ValueError(f"{root} holds other scenes: {'; '.join(differences)} (overwrite replaces them)")
    elif present or (root / README_NAME).exists():
        raise ValueError(f"{root} has contents but no {META_NAME} that explains them (overwrite replaces them)")
    strangers = present - {path for scene in scenes for path in (scene.image, scene.label)}
    if strangers:
        raise ValueError(f"{root} holds {min(strangers)}, which is no part of it (overwrite removes it)")
    missing = [scene for scene in scenes if not present.issuperset((scene.image, scene.label))]
    if not missing and complete.exists():
        return False

    _replace(begun, json.dumps(wanted, indent=2) + "\n")
    complete.unlink(missing_ok=True)
    for scene in _progress(missing, progress):
        image, label = render_scene(scene.seed, (height, width), city=scene.city)
        _replace(scene.image, image)
        _replace(scene.label, label)
    _replace(root / README_NAME, _README.format(**wanted))
    os.replace(begun, complete)
    return True


def _pictures(root: Path) -> set[Path]:
    """All pictures and labels in the folder that a loader of this layout would read.

    Raises:
        ValueError: if some are from elsewhere (the real Cityscapes, say), so that they are never removed.
    """
    found = {*root.glob("leftImg8bit/*/*/*_leftImg8bit.png"), *root.glob("gtFine/*/*/*_gtFine_*")}
    ours = {city.name for cities in SPLITS.values() for city in cities}
    foreign = [path for path in found if path.parent.name not in ours]
    if foreign:
        raise ValueError(f"{root} holds pictures from elsewhere, such as {min(foreign)}: choose another folder")
    # Temporary files of an interrupted run are no pictures.
    return {path for path in found if path.suffix == ".png"}


def write_preview(path: str | Path, pairs: Sequence[tuple[Array, Array]], columns: int = 2) -> None:
    """Write a contact sheet of (image, label) pairs side by side, ``columns`` pairs to a row."""
    height, width = pairs[0][1].shape
    gap = 4
    rows = -(-len(pairs) // columns)
    sheet = Image.new("RGB", (columns * (2 * width + gap) - gap, rows * (height + gap) - gap), (255, 255, 255))
    for i, (image, label) in enumerate(pairs):
        x, y = i % columns * (2 * width + gap), i // columns * (height + gap)
        sheet.paste(Image.fromarray(image), (x, y))
        sheet.paste(Image.fromarray(colour_label(label)), (x + width, y))
        ImageDraw.Draw(sheet).line([x + width, y, x + width, y + height - 1], fill=(255, 255, 255))
    _replace(Path(path), np.asarray(sheet))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m paddle_vheat.data.street_scenes",
        description="Write procedural street scenes in the layout of Cityscapes.",
    )
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--train", type=int, default=200, help="training scenes (default %(default)s)")
    parser.add_argument("--val", type=int, default=50, help="validation scenes (default %(default)s)")
    parser.add_argument("--height", type=int, default=128, help="in pixels (default %(default)s)")
    parser.add_argument("--width", type=int, default=256, help="in pixels (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="remove the scenes that are there first")
    parser.add_argument("--preview", metavar="FILE.png", help="also write a contact sheet of some scenes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, 2 for unusable arguments."""
    args = _parser().parse_args(argv)
    size = (args.height, args.width)
    try:
        written = write_dataset(args.output, args.train, args.val, size, args.seed, overwrite=args.overwrite)
        if args.preview:
            root = Path(args.output)
            chosen = list_scenes(root, "train", min(args.train, 8), args.seed)
            chosen += list_scenes(root, "val", min(args.val, 4), args.seed)
            pairs = [(np.array(Image.open(s.image)), np.array(Image.open(s.label))) for s in chosen]
            write_preview(args.preview, pairs)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    state = "written to" if written else "already complete in"
    print(f"{args.train} training and {args.val} validation scenes {state} {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
