"""Images with one class each: ImageNet and data sets laid out like it.

Either a list file, as PaddleClas has it, one "relative/path label" in a line, or one folder for each class.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat._files import not_a_file
from paddle_vheat.config import MissingFileError, did_you_mean
from paddle_vheat.data.image_file import absent_files
from paddle_vheat.data.list_file import read_list
from paddle_vheat.errors import DataError
from paddle_vheat.tasks.classification.transforms import DecodeImage, build_ops, pipeline
from paddle_vheat.tasks.classification.wnids import folder_classes

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


class ImageNetDataset:
    """Images and their classes, transformed.

    Args:
        image_root: folder that the list's paths are relative to, or that holds the folders of the classes.
        cls_label_path: the list file; None for class folders, whose names decide the classes as
            :func:`paddle_vheat.tasks.classification.wnids.folder_classes` says.
        transform_ops: a list as for :func:`paddle_vheat.tasks.classification.transforms.build_ops`; None only
            decodes, and gives values from 0 to 255.
        delimiter: between path and label in the list; the last one in the line counts. A space by default.
        num_classes: of the model, to compare folders or labels with.
        source: what to call ``transform_ops`` in an error.

    Attributes:
        file_list: (path, class) of every sample.
        class_names: for people; None for a list file, which has no names.
        ranked_folders: the folders in the order of their classes, if a class is the rank among them; else None.

    Raises:
        MissingFileError: if the folder or the list is missing, or images that the list names.
        DataError: for an empty list or folder, a line that is no path and label, or a label out of range. The
            message names file and line.
        ConfigError: for unusable ``transform_ops``, and for folders that do not fit ``num_classes`` or each other.
    """

    def __init__(
        self,
        image_root: str | Path,
        cls_label_path: str | Path | None = None,
        transform_ops: Sequence[dict] | None = None,
        delimiter: str | None = None,
        num_classes: int | None = None,
        source: str = "transform_ops",
    ) -> None:
        ops = build_ops([{"DecodeImage": None}] if transform_ops is None else transform_ops, source)
        self.transform = pipeline(ops, source=source)
        self.image_root = Path(image_root)
        self.cls_label_path = None if cls_label_path is None else Path(cls_label_path)
        self.class_names: list[str] | None = None
        self.ranked_folders: list[str] | None = None
        self.file_list: list[tuple[str, int]] = []
        self._lines: list[int] = []
        if not self.image_root.is_dir():
            raise MissingFileError(f"no such folder of images: {self.image_root}")
        if self.cls_label_path is None:
            self._read_folders(num_classes)
        else:
            self._read_list(self.cls_label_path, " " if delimiter is None else delimiter, num_classes)

    def _read_list(self, path: Path, delimiter: str, num_classes: int | None) -> None:
        if not path.exists():
            near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.txt")])
            raise MissingFileError(f"no such list of images: {path}{near}")
        root = os.fspath(self.image_root)
        for number, line in enumerate(read_list(path, delimiter), 1):
            if not line.strip():
                continue
            name, found, text = line.strip().rpartition(delimiter)
            if not found or not name.strip():
                raise DataError(f"{path}, line {number}: expected 'path{delimiter}label', got {line!r}")
            try:
                label = int(text)
            except ValueError:
                raise DataError(
                    f"{path}, line {number}: expected an integer as the label behind the last {delimiter!r}, "
                    f"got {text!r}"
                ) from None
            if label < 0 or (num_classes is not None and label >= num_classes):
                upper = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
                raise DataError(f"{path}, line {number}: the label is {label}, expected {upper}")
            self.file_list.append((os.path.join(root, name.strip()), label))
            self._lines.append(number)
        if not self.file_list:
            raise DataError(f"{path}: lists no images; expected lines of 'path{delimiter}label'")
        absent = absent_files(image for image, _ in self.file_list)
        if absent:
            index = [image for image, _ in self.file_list].index(absent[0])
            more = f", and {len(absent) - 1} more" if len(absent) > 1 else ""
            raise MissingFileError(f"no such image: {self._where(index)}{more}")

    def _read_folders(self, num_classes: int | None) -> None:
        root = self.image_root
        folders = subfolders(root)
        if not folders:
            raise DataError(f"{root}: expected one folder for each class, found none; or give cls_label_path")
        classes = folder_classes(folders, num_classes, os.fspath(root))
        for folder, label in sorted(classes.labels.items(), key=lambda item: item[1]):
            self.file_list += [(path, label) for path in class_images(os.path.join(root, folder))]
        self.class_names, self.ranked_folders = classes.names, classes.ranked

    def _where(self, index: int) -> str:
        line = f" ({self.cls_label_path}, line {self._lines[index]})" if self._lines else ""
        return self.file_list[index][0] + line

    def __len__(self) -> int:
        return len(self.file_list)

    def files(self, index: int) -> list[str]:
        """The image's file."""
        return [self.file_list[index][0]]

    def check(self, index: int) -> None:
        """Raise a DataError for an image that cannot be decoded to its end."""
        self._read(index, DecodeImage())

    def _read(self, index: int, transform: Callable[[bytes], Any]) -> Any:
        return read_file(self.file_list[index][0], transform, self._where(index))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample: "img" float32 (3, H, W), "label" int64 (), "meta" {"index": its index}.

        Raises:
            DataError: if the image cannot be read or transformed; names it, and its line in the list.
        """
        image = self._read(index, self.transform)
        return {"img": image, "label": np.asarray(self.file_list[index][1], np.int64), "meta": {"index": index}}


def read_file(path: str | os.PathLike[str], transform: Callable[[bytes], Any], where: str | None = None) -> Any:
    """What a transform makes of a file's bytes; what goes wrong is a DataError that names the file (``where``)."""
    try:
        if why := not_a_file(path):
            raise DataError(why)
        with open(path, "rb") as file:
            return transform(file.read())
    except (OSError, ValueError) as error:
        raise DataError(f"{where or path}: {getattr(error, 'strerror', None) or error}") from error


def subfolders(root: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones are none."""
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def class_images(folder: str, deep: bool = True) -> list[str]:
    """Paths of the images in a class's folder, and in the folders in it if ``deep``, sorted.

    Raises:
        DataError: if there is none.
    """
    found: list[str] = []
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(folders) if deep else []
        found += [os.path.join(path, name) for name in sorted(files) if name.lower().endswith(EXTENSIONS)]
    if not found:
        raise DataError(f"{folder}: holds no images ({', '.join(EXTENSIONS)}), but its name is a class")
    return found
