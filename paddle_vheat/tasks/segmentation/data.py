"""PaddleSeg's data sets as the engine takes them, and what is looked at before PaddleSeg reads anything."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat._files import no_such_file
from paddle_vheat.config import ConfigError, MissingFileError, building, did_you_mean
from paddle_vheat.engine.loader import SeededDataset, read_sample
from paddle_vheat.errors import DataError
from paddle_vheat.integrations import paddleseg as seg


class SegmentationData:
    """A PaddleSeg data set: "img" float32 (C, h, w), "label" (h, w) or (1, H, W), perhaps "edge"; "undo" in "meta".

    Args:
        dataset: PaddleSeg's, with its transforms.
        for_training: check the labels of every sample after its transforms.
    """

    def __init__(self, dataset: Any, for_training: bool) -> None:
        self.dataset, self.for_training = dataset, for_training
        self.channels = int(dataset.transforms.img_channels)
        self.rules = f"2 {type(dataset).__name__} {dataset.num_classes} {dataset.ignore_index} {self.channels}"

    def __len__(self) -> int:
        return len(self.dataset)

    def files(self, index: int) -> list[str]:
        return [str(name) for name in self.dataset.file_list[index] if name]

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset[index]
        if self.for_training:
            self._check_label(index, item)
        arrays = {name: item[name] for name in ("img", "label", "edge") if name in item}
        return {**arrays, "meta": {"undo": [(kind, tuple(map(int, size))) for kind, size in item["trans_info"]]}}

    def check(self, index: int) -> bool:
        """Whether any pixel has a class."""
        return self._check_label(index, self._plain(index))

    def _plain(self, index: int) -> dict[str, Any]:
        """A sample without transforms, labels as the data set's class reads them."""
        plain = copy.copy(self.dataset)
        plain.transforms = seg.reading_transforms([], self.channels)
        return read_sample(plain, index)

    def stored(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image, uint8 RGB (H, W, 3), and label, int64 (H, W), of a sample before its transforms."""
        item = self._plain(index)
        image = np.moveaxis(item["img"], 0, -1).astype(np.uint8)
        label = np.asarray(item["label"], dtype=np.int64).squeeze()
        return (image if image.shape[2] == 3 else np.repeat(image, 3, 2)), label

    def check_all(self, values: list[bool]) -> list[str]:
        if any(values):
            return []
        return [f"{self.files(0)[-1]} and all other labels: every pixel is {self.dataset.ignore_index} (ignored)"]

    def _check_label(self, index: int, item: Mapping[str, Any]) -> bool:
        """Raise a DataError that names the file for labels that are no classes."""
        label, image, path = np.asarray(item["label"]), item["img"], self.files(index)[-1]
        if label.dtype.kind not in "iu":
            raise DataError(f"{path}: the label holds {label.dtype} numbers; expected integers")
        if label.shape[-2:] != image.shape[-2:] or label.size != label.shape[-2] * label.shape[-1]:
            raise DataError(f"{path}: the label is {label.shape[-2:]}, its image {image.shape[-2:]} (H, W)")
        ignored, classes = self.dataset.ignore_index, self.dataset.num_classes
        labelled = label[label != ignored]
        wrong = labelled[(labelled >= classes) | (labelled < 0)]
        if wrong.size:
            raise DataError(
                f"{path}: label value {int(wrong.flat[0])} is outside 0 to {classes - 1} and is not {ignored} (ignored)"
            )
        return bool(labelled.size)


def build_dataset(block: Mapping[str, Any] | None, key: str, source: str, registry: Mapping[str, Any]) -> Any:
    """The data set of a block, with every file that it lists there.

    Raises:
        ConfigError: naming the key.
        MissingFileError, FileNotFoundError: for folders and files that are not there.
    """
    if not block:
        raise ConfigError(f"{source}: no {key!r}")
    found = list_problems(block, key)
    if found:
        raise (MissingFileError if "no such" in found[0] else ConfigError)(source, found)
    root = Path(block["dataset_root"])
    if block.get("type") == "Cityscapes":
        _check_cityscapes(root, str(block.get("mode", "train")), f"{source}: '{key}'")
    dataset = seg.assemble(block, registry, f"{source}: {key}")
    if len(dataset) == 0:
        raise ConfigError(f"{source}: {key!r} finds no images in {root}")
    dataset.file_list.sort()  # ADE20K lists its folder in the file system's order
    absent = [path for pair in dataset.file_list for path in pair if path and not Path(path).is_file()]
    if absent:
        raise MissingFileError(f"{source}: '{key}': {len(absent)} files are missing, the first is {absent[0]}")
    seg.wrap_dataset(dataset)
    data = SegmentationData(dataset, str(dataset.mode) == "train")
    # PaddleSeg's transforms do not check their arguments. What is wrong with a file is left to the check of the data.
    with contextlib.suppress(DataError), building(f"{source}: '{key}.transforms'"):
        SeededDataset(data, seed=0)[0, 0]
    return data


def list_problems(block: Mapping[str, Any], key: str) -> list[str]:
    """What is wrong with the folder and the list file that a data set is read from; [] if PaddleSeg can read them."""
    root = block.get("dataset_root")
    # Before PaddleSeg looks: where the folder is missing, its ADE20K starts a download.
    if not isinstance(root, str) or not Path(root).is_dir():
        return [
            f"'{key}.dataset_root' is {root!r}, and there is no such folder; put the data there, or give "
            f"--opts {key}.dataset_root=FOLDER"
        ]
    name = f"{block.get('mode', 'train')}_path"
    if not isinstance(block.get(name), str):
        return []
    path = Path(block[name])
    if why := no_such_file(path, "list file"):
        near = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        return [f"'{key}.{name}': {why}{did_you_mean(path.name, near)}"]
    try:
        lines = path.read_text().splitlines()  # in the encoding in which PaddleSeg reads it
    except UnicodeDecodeError as error:
        return [f"'{key}.{name}': {path} is no text file: {error}"]
    separator = block.get("separator", " ")
    if not isinstance(separator, str) or not separator:
        return [f"'{key}.separator' must be a word or a sign, got {separator!r}"]
    problems = []
    for number, line in enumerate(lines, start=1):
        names = line.strip().split(separator)
        if line.startswith("\ufeff"):
            problems.append(f"{path}, line {number}: begins with a byte order mark; save the file without one")
        elif len(names) != 2:
            problems.append(f"{path}, line {number}: expected 'image{separator}label', got {line!r}")
        else:
            gone = [Path(root) / file for file in names if not (Path(root) / file).is_file()]
            problems += [f"{path}, line {number}: no such file: {file}" for file in gone]
    return problems


def _check_cityscapes(root: Path, mode: str, where: str) -> None:
    """PaddleSeg pairs sorted images with sorted labels: one missing label would shift all that follow."""
    images, labels = root / "leftImg8bit" / mode, root / "gtFine" / mode
    for folder in (images, labels):
        if not folder.is_dir():
            raise MissingFileError(f"{where}: no such folder: {folder}")
    stems = {
        (folder, ending): {path.relative_to(folder).as_posix()[: -len(ending)] for path in folder.glob(f"*/*{ending}")}
        for folder, ending in ((images, "_leftImg8bit.png"), (labels, "_gtFine_labelTrainIds.png"))
    }
    every = set().union(*stems.values())
    for (folder, ending), found in stems.items():
        absent = sorted(every - found)
        if absent:
            raise MissingFileError(
                f"{where}: {len(absent)} of {len(every)} pairs are incomplete, the first: no "
                f"{folder / absent[0]}{ending}"
            )
