"""Predicting files and writing what comes of it: pictures, lines and ``predictions.json``. Needs no Paddle."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from paddle_vheat._files import no_such_file, write_atomically
from paddle_vheat.data.list_file import read_list
from paddle_vheat.deploy.processor import Prediction
from paddle_vheat.errors import DataError, UserError

Images = Sequence[tuple[Path, Path]]  # files, and their paths relative to where they were looked for

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
JSON_FILE = "predictions.json"


def list_images(source: str | Path, save_dir: str | Path | None = None) -> list[tuple[Path, Path]]:
    """(file, path relative to the source) of the images in a file, a folder, or a list file.

    A list file has one image per line, relative to the list's folder or absolute; what follows the first space
    (a label) is not used. The relative path of an image that is not below the list's folder is its name.

    Args:
        save_dir: where the results will be written. If it is within a folder of images, what is there is skipped, for
            it would be predicted the next time.

    Raises:
        FileNotFoundError: if the source, or an image in the list, does not exist.
        UserError: if there is no image, or ``save_dir`` is the folder of images itself.
    """
    source = Path(source)
    if source.is_dir():
        pairs = _in_folder(source, None if save_dir is None else Path(os.path.realpath(save_dir)))
    elif source.is_file() and source.suffix.lower() in IMAGE_SUFFIXES:
        pairs = [(source, Path(source.name))]
    elif source.is_file():
        pairs = _in_list(source)
    else:
        raise FileNotFoundError(no_such_file(source, "image, folder or list"))
    if not pairs:
        raise UserError(f"{source}: no images in it (known suffixes: {', '.join(IMAGE_SUFFIXES)})")
    return pairs


def _in_folder(source: Path, save_dir: Path | None) -> list[tuple[Path, Path]]:
    found: list[Path] = []
    for folder, folders, names in os.walk(source):
        images = [Path(folder) / name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        if Path(os.path.realpath(folder)) != save_dir:
            found += images
        elif images or save_dir == Path(os.path.realpath(source)):
            raise UserError(f"--save_dir {folder} has images in it, and pictures would get among them; give another")
        else:
            folders.clear()
    return [(path, path.relative_to(source)) for path in sorted(found) if path.is_file()]


def _in_list(source: Path) -> list[tuple[Path, Path]]:
    try:
        lines = read_list(source)
    except DataError as error:
        raise UserError(f"{source} is neither an image nor a list of images: {error}") from error
    pairs = []
    for number, name in enumerate((line.split(" ")[0].strip() for line in lines if line.strip()), start=1):
        path = source.parent / name
        if not path.is_file():
            raise FileNotFoundError(f"{source}, read as a list of images, line {number}: no such image: {path}")
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts
        pairs.append((path, Path(name) if inside else Path(path.name)))
    return pairs


def picture_names(images: Images) -> list[Path]:
    """Where each image's pictures go: its relative path as ``.png``, with the old suffix kept where two would be one.

    Raises:
        UserError: if two images would still have the same name.
    """
    short = [relative.with_suffix(".png") for _, relative in images]
    taken = Counter(short)
    names = [r.with_name(f"{r.name}.png") if taken[s] > 1 else s for (_, r), s in zip(images, short)]
    seen: dict[Path, Path] = {}
    for (path, _), name in zip(images, names):
        if name in seen:
            raise UserError(f"{seen[name]} and {path} would both be written as {name}; predict them one by one")
        seen[name] = path
    return names


def write_picture(path: str | Path, picture: Any) -> None:
    """Write a PNG file: uint8 RGB (H, W, 3), or a :class:`PIL.Image.Image` as it is."""
    image = Image.fromarray(np.ascontiguousarray(picture)) if isinstance(picture, np.ndarray) else picture
    write_atomically(path, lambda temporary: image.save(temporary, format="PNG"))


def write_predictions(images: Images, save_dir: str | Path, predict_one: Callable[[Path], Prediction]) -> list[Path]:
    """Predict files and write their pictures to ``save_dir/<name of the picture>/<name of the file>.png``.

    Predictions that have JSON are in ``save_dir/predictions.json``, by the files' relative paths; their lines are
    printed.

    Args:
        images: as from :func:`list_images`.
        predict_one: a file to its prediction, the same for a trained model and an exported one.

    Returns:
        The folders and files that were written.

    Raises:
        DataError: naming the images that failed, after all others have been predicted.
    """
    save_dir, sources = Path(save_dir), {os.path.realpath(path) for path, _ in images}
    written: dict[Path, None] = {}
    results: dict[str, Any] = {}
    failures: list[str] = []
    for (path, relative), name in zip(tqdm(images, desc="predicting", unit="img", disable=None), picture_names(images)):
        try:
            prediction = predict_one(path)
            pictures = prediction.draw(path)
        except ValueError as error:
            failures.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        for kind, picture in pictures.items():
            if os.path.realpath(save_dir / kind / name) in sources:
                raise UserError(f"{path}: the picture would be written over the image {save_dir / kind / name}")
            write_picture(save_dir / kind / name, picture)
            written[save_dir / kind] = None
        if (result := prediction.to_json()) is not None:
            results[str(relative)] = result
        if line := prediction.line():
            with tqdm.external_write_mode():
                print(f"{relative}: {line}")
    if results:
        text = json.dumps(results, indent=1)
        write_atomically(save_dir / JSON_FILE, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))
        written[save_dir / JSON_FILE] = None
    if failures:
        done = f"{len(images) - len(failures)} of {len(images)} images were predicted"
        raise DataError("\n  ".join([f"{done} into {save_dir}; these failed:", *failures]))
    return list(written)
