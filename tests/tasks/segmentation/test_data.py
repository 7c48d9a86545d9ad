"""Images and labels that do not belong together are found before the first step."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddle_vheat.engine.data_check import scan
from tests.engine import tiny


def test_a_missing_label_would_shift_all_that_follow(cityscapes, tmp_path):
    root = tiny.copy_tree(cityscapes, tmp_path / "data")
    gone = sorted((root / "gtFine" / "train").glob("*/*_labelTrainIds.png"))[0]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"1 of . pairs are incomplete, the first: no .*{gone.name}"):
        tiny.make_task(tiny.cityscapes_config(root)).dataset("train")


def test_a_missing_image(cityscapes, tmp_path):
    root = tiny.copy_tree(cityscapes, tmp_path / "data")
    gone = sorted((root / "leftImg8bit" / "val").glob("*/*.png"))[-1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"no .*{gone.name}"):
        tiny.make_task(tiny.cityscapes_config(root)).dataset("val")


def test_a_missing_folder_of_labels(cityscapes, tmp_path):
    root = tiny.copy_tree(cityscapes, tmp_path / "data")
    shutil.rmtree(root / "gtFine")
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*gtFine/train"):
        tiny.make_task(tiny.cityscapes_config(root)).dataset("train")


def test_a_list_that_names_a_missing_file(lists, tmp_path):
    root = tiny.copy_tree(lists, tmp_path / "data")
    task = tiny.make_task(tiny.lists_config(root))
    gone = task.dataset("train").files(0)[1]
    Path(gone).unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.txt, line 1: no such file: .*train0\.png"):
        tiny.make_task(tiny.lists_config(root)).dataset("train")


def test_labels_of_which_all_are_ignored(lists, tmp_path, monkeypatch):
    """Nothing could be learnt or scored; one labelled pixel in the whole set is enough to go on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tiny.copy_tree(lists, tmp_path / "data")
    labels = sorted((root / "labels").glob("train*.png"))
    for path in labels:
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 255)).save(path)
    task = tiny.make_task(tiny.lists_config(root))
    (problem,) = scan(task.dataset("train"), "data")
    assert problem == f"{labels[0]} and all other labels: every pixel is 255 (ignored)"
    last = np.full_like(np.asarray(Image.open(labels[-1])), 255)
    last[0, 0] = 1
    Image.fromarray(last).save(labels[-1])
    assert scan(tiny.make_task(tiny.lists_config(root)).dataset("train"), "data") == []


def test_an_image_that_exif_would_turn_is_reported(lists, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tiny.copy_tree(lists, tmp_path / "data")
    path = root / "images" / "train1.png"
    exif = Image.Exif()
    exif[274] = 6
    Image.open(path).save(path, exif=exif)
    assert scan(tiny.make_task(tiny.lists_config(root)).dataset("train"), "data") == []
    note = f"note: {path} has an EXIF orientation, which is ignored everywhere, as PaddleSeg and PaddleClas do"
    assert note in capsys.readouterr().out.splitlines()
