"""Writes data sets of street scenes in Cityscapes' layout, with COCO annotations of their objects."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from examples.street_scenes.cities import TRAIN_CITIES, VAL_CITIES, City
from examples.street_scenes.instances import CATEGORIES, annotate
from examples.street_scenes.scene import check_size, render_scene

GENERATOR_VERSION = 1
"""Raised whenever the same arguments give other pictures."""

META_NAME = "meta.json"
SPLITS: dict[str, tuple[City, ...]] = {"train": TRAIN_CITIES, "val": VAL_CITIES}


class SceneFiles(NamedTuple):
    """One scene of a data set: where it belongs, relative to the data set, and what it is drawn from."""

    image: str
    label: str
    seed: tuple[int, int, int]
    city: City


def list_scenes(split: str, count: int, seed: int) -> list[SceneFiles]:
    """The first ``count`` scenes of a split, "train" or "val", in the order of writing."""
    cities = SPLITS[split]
    scenes = []
    for index in range(count):
        city = cities[index % len(cities)]
        stem = f"{split}/{city.name}/{city.name}_{index // len(cities):06d}_{index:06d}"
        scenes.append(
            SceneFiles(
                f"leftImg8bit/{stem}_leftImg8bit.png",
                f"gtFine/{stem}_gtFine_labelTrainIds.png",
                (seed, list(SPLITS).index(split), index),
                city,
            )
        )
    return scenes


def annotations_path(split: str) -> str:
    """Where a split's COCO annotations are, relative to the data set; their file names are relative to it too."""
    return f"annotations/instances_{split}.json"


def write_dataset(
    root: str | Path,
    train: int = 200,
    val: int = 50,
    size: tuple[int, int] = (128, 256),
    seed: int = 0,
    progress: bool = True,
    overwrite: bool = False,
) -> bool:
    """Write a data set, or replace one that has lost files.

    Everything is drawn in a folder of its own in ``root`` and moved to its place when it is complete.

    Args:
        root: the folder; made if missing.
        train: number of training scenes.
        val: number of validation scenes.
        size: height and width of the pictures in pixels, at least 64 x 128.
        seed: a non-negative integer.
        progress: show a progress bar, if tqdm is installed.
        overwrite: replace scenes that were made with other arguments.

    Returns:
        False if the folder already held the complete data set, True if it was written.

    Raises:
        ValueError: for arguments out of range, or if the folder holds something else: scenes made with
            other arguments (the message names them), or anything that does not come from here.
    """
    root = Path(root)
    height, width = check_size(size)
    for name, value in (("train", train), ("val", val), ("seed", seed)):
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    if train + val == 0:
        raise ValueError("train and val are both 0: nothing to write")
    meta = {
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "train": train,
        "val": val,
        "height": height,
        "width": width,
    }
    splits = {split: list_scenes(split, count, seed) for split, count in (("train", train), ("val", val)) if count}
    part = root / ".part"
    shutil.rmtree(part, ignore_errors=True)
    if _holds(root, meta, overwrite) and _complete(root, splits):
        return False

    for split, scenes in splits.items():
        _write_split(part, split, scenes, (height, width), progress)
    (part / META_NAME).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    for name in ("leftImg8bit", "gtFine", "annotations", META_NAME):
        if (root / name).is_dir():
            shutil.rmtree(root / name)
        (part / name).replace(root / name)
    part.rmdir()
    return True


def _holds(root: Path, meta: dict[str, Any], overwrite: bool) -> bool:
    """Whether the folder's scenes were made with these arguments; ValueError if they may not be replaced."""
    ours = {city.name for cities in SPLITS.values() for city in cities}
    strangers = [path for path in root.glob("*/*/*") if path.name not in ours]
    if strangers:
        raise ValueError(f"{root} holds {min(strangers)}, which is from elsewhere: choose another folder")
    path = root / META_NAME
    if not path.exists():
        if root.exists() and any(root.iterdir()):
            raise ValueError(
                f"{root} holds files but no {META_NAME}, so they are from elsewhere: choose another folder"
            )
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        differences = [f"{n} is {found.get(n)!r} there and {meta[n]!r} here" for n in meta if found.get(n) != meta[n]]
    except (ValueError, AttributeError):
        raise ValueError(f"{path} is not a JSON object: choose another folder") from None
    if differences and not overwrite:
        raise ValueError(f"{root} holds other scenes: {'; '.join(differences)} (--overwrite replaces them)")
    return not differences


def _complete(root: Path, splits: dict[str, list[SceneFiles]]) -> bool:
    wanted = [name for scenes in splits.values() for scene in scenes for name in (scene.image, scene.label)]
    return all((root / name).is_file() for name in [*wanted, *map(annotations_path, splits)])


def _write_split(root: Path, split: str, scenes: list[SceneFiles], size: tuple[int, int], progress: bool) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for scene in _progress(scenes, split) if progress else scenes:
        image, label, objects = render_scene(scene.seed, size, city=scene.city)
        for name, array in ((scene.image, image), (scene.label, label)):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / name)
        images.append({"id": len(images) + 1, "file_name": scene.image, "height": size[0], "width": size[1]})
        for annotation in annotate(label, objects):
            annotations.append({"id": len(annotations) + 1, "image_id": len(images), **annotation})
    path = root / annotations_path(split)
    path.parent.mkdir(parents=True, exist_ok=True)
    coco = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    path.write_text(json.dumps(coco) + "\n", encoding="utf-8")


def _progress(scenes: list[SceneFiles], split: str) -> Iterable[SceneFiles]:
    try:
        from tqdm import tqdm
    except ImportError:
        return scenes
    bar: Iterable[SceneFiles] = tqdm(scenes, desc=f"street scenes ({split})", unit="scene", disable=None)
    return bar
