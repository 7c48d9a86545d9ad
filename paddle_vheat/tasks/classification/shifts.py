"""Images of ImageNet's classes under a shift: ImageNet-A, -R, -Sketch, V2, -C, ReaL and ObjectNet, as published.

A class comes from a folder's name, never from its rank. Layouts, counts and class lists are facts of the data sets:
``imagenet_subsets.txt`` has the 200 classes of A and R (after hendrycks/natural-adv-examples and hendrycks/imagenet-r,
MIT, and timm, Apache-2.0), ``objectnet.txt`` ObjectNet's 313 folders with their ids and, of the 113 that overlap, the
ImageNet indices and numbers of images (after abarbu/objectnet-template-pytorch, MIT).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from paddle_vheat.config import ConfigError, MissingFileError, did_you_mean
from paddle_vheat.errors import UserError
from paddle_vheat.tasks.classification.data import ImageNetDataset, class_images, read_file, subfolders
from paddle_vheat.tasks.classification.deploy import evaluation_ops
from paddle_vheat.tasks.classification.operation import Operation
from paddle_vheat.tasks.classification.transforms import DecodeImage, ResizeImage, pipeline
from paddle_vheat.tasks.classification.wnids import folder_classes, imagenet_classes

# Images as published, and of ReaL those with a label.
PUBLISHED = {
    "imagenet-a": 7500, "imagenet-r": 30000, "imagenet-sketch": 50889, "imagenetv2": 10000, "imagenet-c": 50000,
    "objectnet": 18574, "validation": 50000, "imagenet-real": 46837, "imagenet-a clean": 10000,
    "imagenet-r clean": 10000,
}  # fmt: skip
SETS = ("imagenet-a", "imagenet-r", "imagenet-sketch", "imagenetv2", "imagenet-c", "objectnet")
ARCHIVES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
SEVERITIES = ("1", "2", "3", "4", "5")
BORDER = 2  # pixels on every side of ObjectNet's images that are not part of the picture


class ObjectNetClass(NamedTuple):
    """A folder of ObjectNet: its id, and of an overlapping one the ImageNet indices and the number of images."""

    folder: str
    id: int
    indices: tuple[int, ...] = ()
    images: int = 0


@lru_cache(maxsize=1)
def objectnet_classes() -> list[ObjectNetClass]:
    """The 313 folders in the order of their names."""
    lines = Path(__file__).with_name("objectnet.txt").read_text(encoding="utf-8").splitlines()
    found = []
    for folder, number, *overlap in (line.split("\t") for line in lines):
        indices = tuple(map(int, overlap[0].split(","))) if overlap else ()
        found.append(ObjectNetClass(folder, int(number), indices, int(overlap[1]) if overlap else 0))
    return found


@lru_cache(maxsize=1)
def subsets() -> dict[str, list[int]]:
    """The 200 indices of "imagenet-a" and of "imagenet-r", ascending."""
    lines = Path(__file__).with_name("imagenet_subsets.txt").read_text(encoding="utf-8").splitlines()
    return {name: list(map(int, text.split(","))) for name, text in (line.split("\t") for line in lines)}


@dataclass(eq=False)
class CutBorder(Operation):
    """The image without ``BORDER`` pixels on every side."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.crop((BORDER, BORDER, image.width - BORDER, image.height - BORDER))


@dataclass(frozen=True)
class Source:
    """Images that are scored together: a set, one of its parts, or the validation images."""

    kind: str  # of SETS, or "validation"
    name: str
    published: int
    folders: int


class _Folder(NamedTuple):
    source: Source
    path: str
    label: int


class ShiftedData:
    """All the sets that were asked for, one after the other.

    Args:
        sets: folder of each set, by its name.
        validation: gives the validation set, which the clean companions of A and R and ReaL are of; a FileNotFoundError
            means that there is none.
        transform_ops: of validation.
        real: the file of ReaL's labels; None to leave it out.
        where: what to call ``transform_ops`` in an error.

    Attributes:
        sources: what is scored.
        real: labels of every validation image by its number, from 1.
        notes: what differs from the published sets, for people.

    Raises:
        MissingFileError, ConfigError: for a folder that is not laid out as the set is, naming up to three folders.
    """

    def __init__(
        self,
        sets: dict[str, str],
        validation: Callable[[], ImageNetDataset],
        transform_ops: Sequence[Any],
        real: str | None = None,
        where: str = "transform_ops",
    ) -> None:
        self.sources: list[Source] = []
        self.notes: list[str] = []
        self._names: list[str] = []  # of every image, within its folder
        self._folders: list[_Folder] = []  # of every image
        ops = evaluation_ops(transform_ops, where)
        without_resize = [op for op in ops if not isinstance(op, ResizeImage)]
        cut = [op for one in ops for op in ([one, CutBorder()] if isinstance(one, DecodeImage) else [one])]
        self._transforms = {
            "imagenet-c": pipeline(without_resize, source=where), "objectnet": pipeline(cut, source=where),
        }  # fmt: skip
        self._usual = pipeline(ops, source=where)
        self.real = None if real is None else read_real(real)
        for name, folder in sets.items():
            if not Path(folder).is_dir():
                raise MissingFileError(f"--shift {name}={folder}: there is no such folder")
            _READERS[name](self, name, Path(folder))
        self._add_validation(validation, [name for name in sets if name in subsets()])
        found = Counter(folder.source.name for folder in self._folders)
        for source in self.sources:
            if found[source.name] != source.published:
                self.notes.append(f"{source.name}: {found[source.name]} images, published are {source.published}")

    def __len__(self) -> int:
        return len(self._names)

    def file(self, index: int) -> str:
        return os.path.join(self._folders[index].path, self._names[index])

    def files(self, index: int) -> list[str]:
        return [self.file(index)]

    def source(self, index: int) -> Source:
        return self._folders[index].source

    def check(self, index: int) -> None:
        read_file(self.file(index), DecodeImage())

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample: "img" float32 (3, H, W), "label" (an ImageNet index; for ObjectNet the place among the 113)."""
        transform = self._transforms.get(self.source(index).kind, self._usual)
        label = np.asarray(self._folders[index].label, np.int64)
        return {"img": read_file(self.file(index), transform), "label": label, "meta": {"index": index}}

    # --- layouts ---------------------------------------------------------------------------------------

    def add(self, kind: str, name: str, root: Path, labels: dict[str, int]) -> None:
        """A source of folders, each of which has one class."""
        source = Source(kind, name, PUBLISHED[kind], len(labels))
        self.sources.append(source)
        for folder, label in sorted(labels.items(), key=lambda item: item[1]):
            path = str(root / folder)
            # Names return in every corruption and severity, and are kept once.
            names = [sys.intern(file[len(path) + 1 :]) for file in class_images(path, deep=False)]
            self._names += names
            self._folders += [_Folder(source, path, label)] * len(names)

    def _add_validation(self, validation: Callable[[], ImageNetDataset], clean: list[str]) -> None:
        if not clean and self.real is None:
            return
        try:
            dataset = validation()
        except FileNotFoundError as error:
            if self.real is not None:
                raise
            self.notes.append(f"no clean companion, as there are no validation images ({error})")
            return
        wanted = set().union(*(subsets()[name] for name in clean)) if self.real is None else set(range(1000))
        kept = [(path, label) for path, label in dataset.file_list if label in wanted]
        source = Source("validation", "validation", 50 * len(wanted), len({label for _, label in kept}))
        self.sources.append(source)
        for path, label in kept:
            if self.real is not None:
                validation_number(path)
            self._names.append(path)
            self._folders.append(_Folder(source, "", label))


def _exactly(found: Sequence[str], expected: Sequence[str], root: Path, what: str) -> None:
    """Raise a ConfigError that names three folders if these are not just the expected ones."""
    absent, strange = (sorted(set(a) - set(b)) for a, b in ((expected, found), (found, expected)))
    if absent or strange:
        texts = [f"{len(x)} {w}, such as {', '.join(x[:3])}" for x, w in ((absent, "absent"), (strange, "other")) if x]
        raise ConfigError(f"{root}: expected {what}; {'; '.join(texts)}")


def _read_subset(data: ShiftedData, name: str, root: Path) -> None:
    wnids = list(imagenet_classes())
    labels = {wnids[index]: index for index in subsets()[name]}
    _exactly(subfolders(root), list(labels), root, f"the folders of {name}'s 200 classes")
    data.add(name, name, root, labels)


def _read_thousand(data: ShiftedData, name: str, root: Path) -> None:
    data.add(name, name, root, _thousand(root))


def _thousand(root: Path) -> dict[str, int]:
    """Labels of 1000 folders whose names are the wnids, or the numbers 0 to 999."""
    found = subfolders(root)
    if len(found) != 1000 or not all(name.isdigit() for name in found):
        _exactly(found, list(imagenet_classes()), root, "the folders of ImageNet's 1000 classes")
    return folder_classes(found, 1000, os.fspath(root)).labels


def _read_v2(data: ShiftedData, kind: str, root: Path) -> None:
    for part in [name for name in subfolders(root) if name.startswith("imagenetv2-")] or [""]:
        folder = root / part
        name = part or root.resolve().name
        data.add(kind, name if name.startswith(kind) else f"{kind} ({name})", folder, _thousand(folder))


def _read_corruptions(data: ShiftedData, kind: str, root: Path) -> None:
    for archive, corruptions in ARCHIVES.items():
        for corruption in corruptions:
            found = [folder for folder in (root / corruption, root / archive / corruption) if folder.is_dir()]
            severities = [s for s in SEVERITIES if found and (found[0] / s).is_dir()]
            if found and len(severities) < len(SEVERITIES):
                data.notes.append(f"{found[0]}: {len(severities)} of 5 severities are there, so it has no CE")
            for severity in severities:
                folder = found[0] / severity
                data.add(kind, f"{kind}/{corruption}/{severity}", folder, _thousand(folder))
    if not any(source.kind == kind for source in data.sources):
        raise ConfigError(f"{root}: holds none of ImageNet-C's corruptions, such as {', '.join(ARCHIVES['noise'])}")


def _read_objectnet(data: ShiftedData, name: str, root: Path) -> None:
    root = root / "images" if (root / "images").is_dir() else root
    overlap = [one for one in objectnet_classes() if one.indices]
    found = subfolders(root)
    known = [one.folder for one in objectnet_classes()]
    _exactly(found, known if len(found) > len(overlap) else [one.folder for one in overlap], root,
             "ObjectNet's 313 folders, or the 113 that overlap with ImageNet")  # fmt: skip
    data.add(name, name, root, {one.folder: place for place, one in enumerate(overlap)})


_READERS: dict[str, Callable[[ShiftedData, str, Path], None]] = {
    "imagenet-a": _read_subset,
    "imagenet-r": _read_subset,
    "imagenet-sketch": _read_thousand,
    "imagenetv2": _read_v2,
    "imagenet-c": _read_corruptions,
    "objectnet": _read_objectnet,
}


# --- what the command line gives -------------------------------------------------------------------------


def read_flags(entries: Sequence[str]) -> dict[str, str]:
    """Folder of each set, by its name, of NAME=DIR.

    Raises:
        UserError: for another form, an unknown name, and one that is given twice.
    """
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, folder = entry.partition("=")
        if name not in SETS or not equals or not folder:
            hint = "" if name in SETS else did_you_mean(name, SETS)
            raise UserError(f"--shift {entry!r}: expected NAME=DIR, the name one of {', '.join(SETS)}{hint}")
        if name in found:
            raise UserError(f"--shift: {name} is given twice")
        found[name] = str(Path(folder).expanduser())
    return found


def read_real(path: str) -> list[list[int]]:
    """ReaL's labels: a list of classes for each validation image by its number (Beyer et al., 2020; ``real.json``).

    Raises:
        MissingFileError, ConfigError: naming the file.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"--real {path}: there is no such file")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"--real {path}: not valid JSON: {error}") from error
    right = isinstance(content, list) and len(content) == PUBLISHED["validation"]
    right = right and all(isinstance(one, list) for one in content)
    if not right or not all(type(c) is int and 0 <= c < 1000 for one in content for c in one):
        raise ConfigError(
            f"--real {path}: expected 50000 lists of classes from 0 to 999, one for each validation image"
        )
    return content


def validation_number(path: str) -> int:
    """The number of a validation image by its name: 17 of ILSVRC2012_val_00000017.JPEG.

    Raises:
        ConfigError: for another name.
    """
    found = re.fullmatch(r"ILSVRC2012_val_(\d+)", Path(path).stem, re.ASCII)
    if found is None or not 1 <= int(found[1]) <= 50000:
        raise ConfigError(f"{path}: --real needs the images' own names, such as ILSVRC2012_val_00000001.JPEG")
    return int(found[1])
