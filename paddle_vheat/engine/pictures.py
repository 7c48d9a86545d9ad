"""Pictures of predictions: pseudo-colour, overlay, and image | truth | prediction. Needs no Paddle."""

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

from paddle_vheat._files import write_atomically
from paddle_vheat.data.image_file import read_bgr

Images = Sequence[tuple[Path, Path]]  # files, and their paths relative to where they were looked for

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def list_images(source: str | Path) -> list[tuple[Path, Path]]:
    """(file, path relative to the source) of the images in a file, a folder, or a list file.

    A list file has one image per line, relative to the list's folder or absolute; what follows the first space
    (a label) is not used. The relative path of an image that is not below the list's folder is its name.

    Raises:
        FileNotFoundError: if the source, or an image in the list, does not exist.
        ValueError: if there is no image.
    """
    source = Path(source)
    if source.is_dir():
        found = sorted(p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        pairs = [(path, path.relative_to(source)) for path in found]
    elif source.is_file() and source.suffix.lower() in IMAGE_SUFFIXES:
        pairs = [(source, Path(source.name))]
    elif source.is_file():
        try:
            lines = source.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{source}: neither an image nor a list of images") from error
        names = [line.split(" ")[0].strip() for line in lines if line.strip()]
        pairs = []
        for number, name in enumerate(names, start=1):
            path = source.parent / name
            if not path.is_file():
                raise FileNotFoundError(f"{source}, read as a list of images, line {number}: no such image: {path}")
            inside = not Path(name).is_absolute() and ".." not in Path(name).parts
            pairs.append((path, Path(name) if inside else Path(path.name)))
    else:
        raise FileNotFoundError(f"no such image, folder or list: {source}")
    if not pairs:
        raise ValueError(f"{source}: no images in it (known suffixes: {', '.join(IMAGE_SUFFIXES)})")
    return pairs


def colourise(classes: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Palette colours of a class map, RGB uint8 (H, W, 3); what is no class is black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    return table[np.clip(classes, 0, 255)]


def overlay(image: np.ndarray, colours: np.ndarray, weight: float = 0.6) -> np.ndarray:
    """The image shining through the colours; all uint8 (H, W, 3)."""
    mixed = weight * image.astype(np.float32) + (1 - weight) * colours
    return np.clip(mixed + 0.5, 0, 255).astype(np.uint8)


def _write_png(path: Path, picture: Image.Image) -> None:
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))


def write_pictures(
    images: Images, save_dir: str | Path, palette: np.ndarray, classify: Callable[[np.ndarray], np.ndarray]
) -> Path:
    """Write ``pseudo_color_prediction`` (palette PNG of class ids) and ``added_prediction`` (overlay) pictures.

    Args:
        images: as from :func:`list_images`.
        save_dir: folder to write into.
        palette: RGB of each class, uint8 (classes, 3).
        classify: BGR image, uint8 (H, W, 3), to class of every pixel (H, W).

    Returns:
        The folder ``save_dir``.

    Raises:
        ValueError: naming the images that failed, after all others have been predicted.
    """
    save_dir = Path(save_dir)
    names = picture_names(images)
    failures: list[str] = []
    for (path, _), name in zip(tqdm(images, desc="predicting", unit="img", disable=None), names):
        try:
            image = read_bgr(path)
            classes = classify(image)
        except ValueError as error:
            failures.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        pseudo = Image.fromarray(classes.astype(np.uint8))
        pseudo.putpalette(palette.reshape(-1).tolist())  # makes it a picture of mode P
        _write_png(save_dir / "pseudo_color_prediction" / name, pseudo)
        added = overlay(image[..., ::-1], colourise(classes, palette))
        _write_png(save_dir / "added_prediction" / name, Image.fromarray(added))
    if failures:
        done = f"{len(images) - len(failures)} of {len(images)} images were predicted"
        raise ValueError("\n  ".join([f"{done} into {save_dir}; these failed:", *failures]))
    return save_dir


def write_top_classes(images: Images, save_dir: str | Path, classify: Callable[[Path], list[dict[str, Any]]]) -> Path:
    """Print the likeliest classes of each image and write ``predictions.json``.

    Args:
        images: as from :func:`list_images`.
        save_dir: folder to write into.
        classify: file to [{"class": index, "name": name, "score": probability or None}, ...], best first.

    Returns:
        The file written.
    """
    results = {}
    for path, relative in tqdm(images, desc="predicting", unit="img", disable=None):
        results[str(relative)] = best = classify(path)
        scores = ["" if one["score"] is None else f" {100 * one['score']:.1f}%" for one in best]
        tqdm.write(f"{relative}: {', '.join(one['name'] + score for one, score in zip(best, scores))}")
    target = Path(save_dir) / "predictions.json"
    write_atomically(target, lambda t: Path(t).write_text(json.dumps(results, indent=1), encoding="utf-8"))
    return target


def picture_names(images: Sequence[tuple[Path, Path]]) -> list[Path]:
    """Where each image's pictures go: its relative path as ``.png``, with the old suffix kept where two would be one.

    Raises:
        ValueError: if two images would still have the same name.
    """
    short = [relative.with_suffix(".png") for _, relative in images]
    taken = Counter(short)
    names = [r.with_name(f"{r.name}.png") if taken[s] > 1 else s for (_, r), s in zip(images, short)]
    seen: dict[Path, Path] = {}
    for (path, _), name in zip(images, names):
        if name in seen:
            raise ValueError(f"{seen[name]} and {path} would both be written as {name}; predict them one by one")
        seen[name] = path
    return names


def compose_triptych(image: np.ndarray, label: np.ndarray, classes: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Image (RGB) | truth | prediction side by side, uint8 (H, 3 W, 3).

    Where there is no truth, the prediction is neither right nor wrong: both are black there.
    """
    unknown = (label >= len(palette))[..., None]
    panels = [np.where(unknown, 0, colourise(ids, palette)).astype(np.uint8) for ids in (label, classes)]
    return np.concatenate([image, *panels], axis=1)


def write_gallery(path: str | Path, rows: Sequence[np.ndarray]) -> None:
    """Write pictures of equal width one below the other, as a PNG."""
    _write_png(Path(os.fspath(path)), Image.fromarray(np.concatenate(list(rows), axis=0)))
