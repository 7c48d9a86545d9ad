"""Images and labels that do not belong together are found before the first step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.engine import tiny


def test_a_missing_label_would_shift_all_that_follow(cityscapes, tmp_path):
    root = tiny.copy_tree(cityscapes, tmp_path / "data")
    gone = sorted((root / "gtFine" / "train").glob("*/*_labelTrainIds.png"))[0]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"1 of . pairs are incomplete, the first: no .*{gone.name}"):
        _ = tiny.make_task(tiny.cityscapes_config(root)).train_dataset


def test_a_missing_image(cityscapes, tmp_path):
    root = tiny.copy_tree(cityscapes, tmp_path / "data")
    gone = sorted((root / "leftImg8bit" / "val").glob("*/*.png"))[-1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"no .*{gone.name}"):
        _ = tiny.make_task(tiny.cityscapes_config(root)).val_dataset


def test_a_missing_folder_of_labels(cityscapes, tmp_path):
    root = tiny.copy_tree(cityscapes, tmp_path / "data")
    shutil.rmtree(root / "gtFine")
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*gtFine/train"):
        _ = tiny.make_task(tiny.cityscapes_config(root)).train_dataset


def test_a_list_that_names_a_missing_file(lists, tmp_path):
    root = tiny.copy_tree(lists, tmp_path / "data")
    task = tiny.make_task(tiny.lists_config(root))
    gone = task.train_dataset.file_list[0][1]
    Path(gone).unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.txt, line 1: no such file: .*train0\.png"):
        _ = tiny.make_task(tiny.lists_config(root)).train_dataset
