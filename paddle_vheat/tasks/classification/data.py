"""Images with one class each: ImageNet and data sets laid out like it.

Either a list file, as PaddleClas has it, one "relative/path label" in a line, or one folder for each class.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat._paddle import paddle
from paddle_vheat.config import did_you_mean
from paddle_vheat.data.image_file import absent_files, open_image
from paddle_vheat.data.image_ops import build_ops, pipeline

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


class ImageNetDataset(paddle.io.Dataset):
    """Images and their classes, transformed.

    Args:
        image_root: folder that the list's paths are relative to, or that holds the folders of the classes.
        cls_label_path: the list file; None for class folders, of which the names in sorted order are the classes
            0, 1, 2 ...
        transform_ops: a list as for :func:`paddle_vheat.data.image_ops.build_ops`; None only decodes, and gives
            values from 0 to 255.
        delimiter: between path and label in the list; the last one in the line counts. A space by default.
        num_classes: labels must be below it; without it, it is the number of class folders, or the largest
            label + 1.
        source: what to call ``transform_ops`` in an error.

    Attributes:
        file_list: (path, class) of every sample.
        class_names: the folders' names; None for a list file, which has no names.
        num_classes: as above.

    Raises:
        FileNotFoundError: if the folder or the list is missing, or images that the list names.
        ValueError: for an empty list or folder, a line that is no path and label, or a label out of range. The
            message names file and line.
        ConfigError: for unusable ``transform_ops``.
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
        super().__init__()
        ops = build_ops([{"DecodeImage": None}] if transform_ops is None else transform_ops, source)
        self.transform = pipeline(ops, source=source)
        self.image_root = Path(image_root)
        self.cls_label_path = None if cls_label_path is None else Path(cls_label_path)
        self.class_names: list[str] | None = None
        self.file_list: list[tuple[str, int]] = []
        self._lines: list[int] = []
        if not self.image_root.is_dir():
            raise FileNotFoundError(f"no such folder of images: {self.image_root}")
        if self.cls_label_path is None:
            self._read_folders(num_classes)
        else:
            self._read_list(self.cls_label_path, " " if delimiter is None else delimiter, num_classes)
            self._check_all_are_there()
        largest = max(label for _, label in self.file_list)
        self.num_classes = largest + 1 if num_classes is None else num_classes
        if self.class_names is not None:
            self.num_classes = max(self.num_classes, len(self.class_names))

    def _read_list(self, path: Path, delimiter: str, num_classes: int | None) -> None:
        if not path.is_file():
            near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.txt")])
            raise FileNotFoundError(f"no such list of images: {path}{near}")
        root = os.fspath(self.image_root)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: no text file in UTF-8: {error}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            name, found, text = line.strip().rpartition(delimiter)
            if not found or not name.strip():
                raise ValueError(f"{path}, line {number}: expected 'path{delimiter}label', got {line!r}")
            try:
                label = int(text)
            except ValueError:
                raise ValueError(
                    f"{path}, line {number}: expected a whole number as the label behind the last {delimiter!r}, "
                    f"got {text!r}"
                ) from None
            if label < 0 or (num_classes is not None and label >= num_classes):
                upper = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
                raise ValueError(f"{path}, line {number}: the label is {label}, expected {upper}")
            self.file_list.append((os.path.join(root, name.strip()), label))
            self._lines.append(number)
        if not self.file_list:
            raise ValueError(f"{path}: lists no images; expected lines of 'path{delimiter}label'")

    def _check_all_are_there(self) -> None:
        absent = absent_files(path for path, _ in self.file_list)
        if absent:
            index = [path for path, _ in self.file_list].index(absent[0])
            more = f", and {len(absent) - 1} more" if len(absent) > 1 else ""
            raise FileNotFoundError(f"no such image: {self._where(index)}{more}")

    def _read_folders(self, num_classes: int | None) -> None:
        root = self.image_root
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
        if not names:
            raise ValueError(f"{root}: expected one folder for each class, found none; or give cls_label_path")
        if num_classes is not None and len(names) > num_classes:
            raise ValueError(f"{root}: holds {len(names)} folders of classes, expected at most {num_classes}")
        for label, name in enumerate(names):
            before = len(self.file_list)
            self.file_list += [(path, label) for path in _images(os.path.join(root, name))]
            if len(self.file_list) == before:
                raise ValueError(f"{root / name}: holds no images ({', '.join(EXTENSIONS)}), but its name is a class")
        self.class_names = names

    def _where(self, index: int) -> str:
        line = f" ({self.cls_label_path}, line {self._lines[index]})" if self._lines else ""
        return self.file_list[index][0] + line

    def __len__(self) -> int:
        return len(self.file_list)

    def check_file(self, index: int) -> None:
        """Decode an image; raise as ``[index]`` does if that cannot be done."""
        path, _ = self.file_list[index]
        try:
            with open_image(path) as image:
                image.load()
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{self._where(index)}: {error}") from error

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample: "img" float32 (3, H, W), "label" int64 (), "index" int64 ().

        Raises:
            FileNotFoundError: if the image is gone.
            ValueError: if it cannot be read or transformed. Both name it, and its line in the list.
        """
        path, label = self.file_list[index]
        try:
            with open(path, "rb") as file:
                image = self.transform(file.read())
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no such image: {self._where(index)}") from error
        except (OSError, ValueError) as error:
            raise ValueError(f"{self._where(index)}: {error}") from error
        return {"img": image, "label": np.asarray(label, np.int64), "index": np.asarray(index, np.int64)}


def _images(folder: str) -> Iterator[str]:
    """Paths of the images in a folder and the folders in it, sorted."""
    for path, folders, files in os.walk(folder):
        folders.sort()
        yield from (os.path.join(path, name) for name in sorted(files) if name.lower().endswith(EXTENSIONS))
