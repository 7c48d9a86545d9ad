"""Images with classes, from a list and from folders, and what is said about files that cannot be used."""

from __future__ import annotations

import builtins
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddle_vheat.config import ConfigError, MissingFileError
from paddle_vheat.errors import DataError
from paddle_vheat.tasks.classification.data import ImageNetDataset

CLASSES = ("n01440764", "n01443537", "n01484850")
OPS = [
    {"DecodeImage": None},
    {"RandCropImage": {"size": 16, "backend": "pil"}},
    {"NormalizeImage": {"order": ""}},
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes with two images each; all of an image is of the value 40 times class plus number."""
    for label, name in enumerate(CLASSES):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (20, 24), (40 * label + i,) * 3).save(folder / f"{name}_{i}.png")
    return tmp_path / "images"


def write_list(root: Path, *lines: str) -> Path:
    path = root.parent / "train_list.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_list_decides_order_and_labels(root: Path):
    path = write_list(root, "n01484850/n01484850_1.png 7", "", "n01440764/n01440764_0.png 0")
    dataset = ImageNetDataset(root, path)
    assert len(dataset) == 2
    assert dataset.class_names is None
    assert dataset.ranked_folders is None
    assert dataset.file_list == [
        (str(root / "n01484850" / "n01484850_1.png"), 7), (str(root / "n01440764" / "n01440764_0.png"), 0),
    ]  # fmt: skip
    for index, (value, label) in enumerate(((81, 7), (0, 0))):
        item = dataset[index]
        assert set(item) == {"img", "label", "meta"}
        assert (item["img"].dtype, item["img"].shape) == (np.float32, (3, 24, 20))
        assert (item["img"] == value).all()
        assert (item["label"].dtype, item["label"].shape, int(item["label"])) == (np.int64, (), label)
        assert item["meta"] == {"index": index}
        assert dataset.files(index) == [dataset.file_list[index][0]]
        dataset.check(index)
    ImageNetDataset(root, path, num_classes=1000)  # labels need not reach the last class


def test_paths_with_spaces_and_another_delimiter(root: Path):
    (root / "n01440764" / "n01440764_0.png").rename(root / "a tabby cat.png")
    dataset = ImageNetDataset(root, write_list(root, "a tabby cat.png 3"))
    assert dataset.file_list == [(str(root / "a tabby cat.png"), 3)]
    for mark in ("", "\ufeff"):  # editors on Windows begin a file with a byte order mark
        dataset = ImageNetDataset(root, write_list(root, f"{mark}a tabby cat.png\t4"), delimiter="\t")
        assert dataset.file_list == [(str(root / "a tabby cat.png"), 4)]


def test_images_of_folders_are_found_in_order(root: Path):
    (root / ".cache").mkdir()
    for name in ("b/2.JPEG", "a/1.JPEG", "b/1.JPEG"):
        path = root / "n01443537" / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, "JPEG")
    (root / "n01443537" / "notes.txt").write_text("no image")
    dataset = ImageNetDataset(root, None, OPS, num_classes=3)
    assert dataset.class_names == [
        "tench, Tinca tinca", "goldfish, Carassius auratus",
        "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias",
    ]  # fmt: skip
    assert dataset.ranked_folders == list(CLASSES)
    assert [label for _, label in dataset.file_list] == [0, 0, 1, 1, 1, 1, 1, 2, 2]
    second = [Path(path).relative_to(root / "n01443537") for path, label in dataset.file_list if label == 1]
    assert [path.as_posix() for path in second] == [
        "n01443537_0.png", "n01443537_1.png", "a/1.JPEG", "b/1.JPEG", "b/2.JPEG",
    ]  # fmt: skip
    assert dataset[8]["img"].shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("names", "num_classes", "labels"),
    [
        (("n01440764", "n02119022", "n12267677"), 1000, [0, 277, 988]),
        (("n01440764", "n02119022", "n12267677"), 3, [0, 1, 2]),
        (("2", "0", "1"), 3, [2, 0, 1]),
        (("tench", "ant", "cat"), 3, [2, 0, 1]),
    ],
)
def test_folder_names_decide_the_classes(root: Path, names: tuple[str, ...], num_classes: int, labels: list[int]):
    for old, new in zip(CLASSES, names):
        (root / old).rename(root / f"{new}.tmp")
    for new in names:
        (root / f"{new}.tmp").rename(root / new)
    dataset = ImageNetDataset(root, num_classes=num_classes)
    assert len(dataset.class_names) == num_classes
    found = {Path(path).parent.name: label for path, label in dataset.file_list}
    assert found == dict(zip(names, labels))
    assert [label for _, label in dataset.file_list] == sorted(2 * labels)


def test_a_sample_opens_its_file_once(root: Path, monkeypatch: pytest.MonkeyPatch):
    dataset = ImageNetDataset(root, None, OPS, num_classes=3)
    opened: Counter[str] = Counter()
    original = builtins.open

    def counted(path, *args, **options):
        opened[str(path)] += 1
        return original(path, *args, **options)

    monkeypatch.setattr(builtins, "open", counted)
    for index in range(len(dataset)):
        dataset[index]
    assert opened == {path: 1 for path, _ in dataset.file_list}


@pytest.mark.parametrize(
    ("line", "num_classes", "message"),
    [
        ("n01440764/n01440764_0.png", None, "line 2: expected 'path label', got 'n01440764/n01440764_0.png'"),
        ("n01440764/n01440764_0.png\t3", None, "line 2: a tab; expected ' ' between the columns"),
        ("n01440764/n01440764_0.png x", None, "line 2: expected an integer as the label behind the last ' '"),
        ("n01440764/n01440764_0.png 1.0", None, "line 2: expected an integer"),
        ("n01440764/n01440764_0.png -1", None, "line 2: the label is -1, expected 0 or more"),
        ("n01440764/n01440764_0.png 3", 3, "line 2: the label is 3, expected 0 to 2"),
    ],
)  # fmt: skip
def test_unusable_lines_are_named(root: Path, line: str, num_classes: int | None, message: str):
    path = write_list(root, "n01440764/n01440764_0.png 0", line)
    with pytest.raises(DataError, match=re.escape(f"{path}, {message}")):
        ImageNetDataset(root, path, num_classes=num_classes)


def test_missing_files_are_named(root: Path):
    path = write_list(root, "n01440764/n01440764_0.png 0", "n01440764/none.png 1")
    wanted = f"no such image: {root / 'n01440764' / 'none.png'} ({path}, line 2)"
    with pytest.raises(MissingFileError, match=re.escape(wanted)):
        ImageNetDataset(root, path)
    with pytest.raises(MissingFileError, match=r"no such list of images: .*train_lists\.txt; did you mean 'train_list"):
        ImageNetDataset(root, path.with_name("train_lists.txt"))
    with pytest.raises(MissingFileError, match=r"no such folder of images: .*nowhere"):
        ImageNetDataset(root / "nowhere", path)
    # A file that goes missing later.
    dataset = ImageNetDataset(root, num_classes=3)
    Path(dataset.file_list[1][0]).unlink()
    for read in (dataset.check, dataset.__getitem__):
        with pytest.raises(DataError, match=re.escape(f"{dataset.file_list[1][0]}: there is no such file")):
            read(1)
    os.mkfifo(dataset.file_list[1][0])  # to open it would wait for ever
    with pytest.raises(DataError, match=r"it is a FIFO \(named pipe\), not a file"):
        dataset[1]


def test_empty_lists_and_folders_are_refused(root: Path):
    with pytest.raises(DataError, match="lists no images; expected lines of 'path label'"):
        ImageNetDataset(root, write_list(root, "", "  "))
    path = root.parent / "binary.txt"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match=r"binary\.txt: no text file in UTF-8"):
        ImageNetDataset(root, path)
    (root / "n01491361").mkdir()
    with pytest.raises(DataError, match=r"n01491361: holds no images .*but its name is a class"):
        ImageNetDataset(root, num_classes=4)
    with pytest.raises(DataError, match="n01491361: expected one folder for each class, found none"):
        ImageNetDataset(root / "n01491361")
    with pytest.raises(ConfigError, match=re.escape(f"{root}: holds folders of 4 of ImageNet's 1000 classes")):
        ImageNetDataset(root, num_classes=3)


def test_unreadable_images_are_named(root: Path):
    names = ("n01440764/n01440764_0.png", "n01440764/n01440764_1.png", "n01443537/n01443537_0.png")
    path = write_list(root, *(f"{name} 0" for name in names))
    dataset = ImageNetDataset(root, path, [{"DecodeImage": None}, {"CropImage": {"size": 20}}])
    (root / names[0]).write_bytes(b"<html>")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(root / names[1])
    (root / names[1]).write_bytes((root / names[1]).read_bytes()[:6000])
    Image.new("RGB", (10, 30)).save(root / names[2])
    for index, message in enumerate((
        "the file is no image that Pillow knows",
        "the image is damaged: ",
        "CropImage: the image is 10 x 30",
    )):  # fmt: skip
        wanted = re.escape(f"{root / names[index]} ({path}, line {index + 1}): {message}")
        with pytest.raises(DataError, match=wanted):
            dataset[index]
        if index < 2:
            with pytest.raises(DataError, match=wanted):
                dataset.check(index)
    dataset.check(2)  # sound as it is stored


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ([{"DecodeImages": None}], "'x.yml: Train.0': nothing is called 'DecodeImages'; did you mean 'DecodeImage'"),
        ([{"CropImage": {"size": 4}}], "'x.yml: Train.0': CropImage works on an image"),
    ],
)
def test_unusable_transforms_are_named(root: Path, ops: list[dict], message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        ImageNetDataset(root, None, ops, source="x.yml: Train")
