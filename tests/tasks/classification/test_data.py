"""Images with classes, from a list and from folders, and what is said about files that cannot be used."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddle_vheat._paddle import paddle
from paddle_vheat.config import ConfigError
from paddle_vheat.data.imagenet import ImageNetDataset
from paddle_vheat.engine.data import SeededDataset

CLASSES = ("n01440764", "n01443537", "n01484850")
OPS = [
    {"DecodeImage": None},
    {"RandCropImage": {"size": 16, "backend": "pil"}},
    {"RandFlipImage": {"flip_code": 1}},
    {"NormalizeImage": {"order": ""}},
    {"RandomErasing": {"EPSILON": 0.5, "mode": "pixel"}},
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes with two images each; the first is wholly of the value 40 times class plus number."""
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
    assert dataset.num_classes == 8
    assert dataset.class_names is None
    assert dataset.file_list == [
        (str(root / "n01484850" / "n01484850_1.png"), 7), (str(root / "n01440764" / "n01440764_0.png"), 0),
    ]  # fmt: skip
    for index, (value, label) in enumerate(((81, 7), (0, 0))):
        item = dataset[index]
        assert set(item) == {"img", "label", "index"}
        assert (item["img"].dtype, item["img"].shape) == (np.float32, (3, 24, 20))
        assert (item["img"] == value).all()
        assert (item["label"].dtype, item["label"].shape, int(item["label"])) == (np.int64, (), label)
        assert int(item["index"]) == index


def test_paths_with_spaces_and_another_delimiter(root: Path):
    (root / "n01440764" / "n01440764_0.png").rename(root / "a tabby cat.png")
    dataset = ImageNetDataset(root, write_list(root, "a tabby cat.png 3"))
    assert dataset.file_list == [(str(root / "a tabby cat.png"), 3)]
    dataset = ImageNetDataset(root, write_list(root, "a tabby cat.png\t4"), delimiter="\t")
    assert dataset.file_list[0][1] == 4


def test_folders_are_the_classes_in_sorted_order(root: Path):
    (root / ".cache").mkdir()
    for name in ("b/2.JPEG", "a/1.JPEG", "b/1.JPEG"):
        path = root / "n01443537" / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, "JPEG")
    (root / "n01443537" / "notes.txt").write_text("no image")
    dataset = ImageNetDataset(root, None, OPS)
    assert dataset.class_names == list(CLASSES)
    assert dataset.num_classes == 3
    assert [label for _, label in dataset.file_list] == [0, 0, 1, 1, 1, 1, 1, 2, 2]
    second = [Path(path).relative_to(root / "n01443537") for path, label in dataset.file_list if label == 1]
    assert [path.as_posix() for path in second] == [
        "n01443537_0.png", "n01443537_1.png", "a/1.JPEG", "b/1.JPEG", "b/2.JPEG",
    ]  # fmt: skip
    assert dataset[8]["img"].shape == (3, 16, 16)
    assert ImageNetDataset(root, num_classes=1000).num_classes == 1000


def test_augmentation_is_decided_by_seed_and_position(root: Path):
    plain = ImageNetDataset(root, None, OPS)
    seeded = SeededDataset(plain, seed=3)
    keys = [(position, position % 6) for position in range(24)]
    first = [seeded[key]["img"].tobytes() for key in keys]
    assert first[::-1] == [seeded[key]["img"].tobytes() for key in reversed(keys)]
    other = SeededDataset(plain, seed=4)
    assert [other[key]["img"].tobytes() for key in keys] != first


def test_a_loader_makes_batches(root: Path):
    loader = paddle.io.DataLoader(ImageNetDataset(root, None, OPS), batch_size=4, shuffle=False)
    batches = list(loader)
    assert [tuple(batch["img"].shape) for batch in batches] == [(4, 3, 16, 16), (2, 3, 16, 16)]
    assert np.concatenate([batch["label"].numpy() for batch in batches]).tolist() == [0, 0, 1, 1, 2, 2]
    assert batches[0]["label"].dtype == paddle.int64


@pytest.mark.parametrize(
    ("line", "num_classes", "message"),
    [
        ("n01440764/n01440764_0.png", None, "line 2: expected 'path label', got 'n01440764/n01440764_0.png'"),
        ("n01440764/n01440764_0.png\t3", None, "line 2: expected 'path label'"),
        ("n01440764/n01440764_0.png x", None, "line 2: expected a whole number as the label behind the last ' '"),
        ("n01440764/n01440764_0.png 1.0", None, "line 2: expected a whole number"),
        ("n01440764/n01440764_0.png -1", None, "line 2: the label is -1, expected 0 or more"),
        ("n01440764/n01440764_0.png 3", 3, "line 2: the label is 3, expected 0 to 2"),
    ],
)  # fmt: skip
def test_unusable_lines_are_named(root: Path, line: str, num_classes: int | None, message: str):
    path = write_list(root, "n01440764/n01440764_0.png 0", line)
    with pytest.raises(ValueError, match=re.escape(f"{path}, {message}")):
        ImageNetDataset(root, path, num_classes=num_classes)


def test_missing_files_are_named(root: Path):
    path = write_list(root, "n01440764/n01440764_0.png 0", "n01440764/none.png 1")
    wanted = f"no such image: {root / 'n01440764' / 'none.png'} ({path}, line 2)"
    with pytest.raises(FileNotFoundError, match=re.escape(wanted)):
        ImageNetDataset(root, path)
    with pytest.raises(
        FileNotFoundError, match=r"no such list of images: .*train_lists\.txt; did you mean 'train_list"
    ):
        ImageNetDataset(root, path.with_name("train_lists.txt"))
    with pytest.raises(FileNotFoundError, match=r"no such folder of images: .*nowhere"):
        ImageNetDataset(root / "nowhere", path)
    # A file that goes missing later, of a folder.
    dataset = ImageNetDataset(root)
    Path(dataset.file_list[1][0]).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"no such image: {dataset.file_list[1][0]}")):
        dataset[1]


def test_empty_lists_and_folders_are_refused(root: Path):
    with pytest.raises(ValueError, match="lists no images; expected lines of 'path label'"):
        ImageNetDataset(root, write_list(root, "", "  "))
    path = root.parent / "binary.txt"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match=r"binary\.txt: no text file in UTF-8"):
        ImageNetDataset(root, path)
    (root / "n0_empty").mkdir()
    with pytest.raises(ValueError, match=r"n0_empty: holds no images .*but its name is a class"):
        ImageNetDataset(root)
    with pytest.raises(ValueError, match="holds 4 folders of classes, expected at most 3"):
        ImageNetDataset(root, num_classes=3)
    with pytest.raises(ValueError, match="n0_empty: expected one folder for each class, found none"):
        ImageNetDataset(root / "n0_empty")


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
        with pytest.raises(ValueError, match=re.escape(f"{root / names[index]} ({path}, line {index + 1}): {message}")):
            dataset[index]


def test_unusable_transforms_are_named(root: Path):
    with pytest.raises(ConfigError, match=r"x\.yml: Train:\n  0: no operation 'DecodeImages'; did you mean 'DecodeI"):
        ImageNetDataset(root, None, [{"DecodeImages": None}], source="x.yml: Train")
    with pytest.raises(ConfigError, match=r"x\.yml: 0.CropImage works on an image"):
        ImageNetDataset(root, None, [{"CropImage": {"size": 4}}], source="x.yml")
