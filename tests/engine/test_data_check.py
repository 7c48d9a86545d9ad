"""The check of the data before a run."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddle_vheat.engine import data_check as check
from paddle_vheat.engine.data_check import CHECKED_WHOLE, SAMPLE, Report, scan, shortened, which_samples
from paddle_vheat.errors import DataError, UserError
from paddle_vheat.tasks.classification.data import ImageNetDataset
from paddle_vheat.tasks.classification.task import ClassificationTask
from tests.engine import tiny
from tests.engine.test_mutated import classification_config, write_folders


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "paddle_vheat" / "checked_data"


@pytest.mark.parametrize("which", ["auto", "all", "none", 1, 7, 100])
@pytest.mark.parametrize("length", [1, 7, 20, CHECKED_WHOLE, CHECKED_WHOLE + 1])
def test_which_samples(length, which):
    found = which_samples(length, which)
    expected = {"all": length, "none": 0, "auto": length if length <= CHECKED_WHOLE else SAMPLE}
    assert len(found) == expected.get(which, min(which, length) if isinstance(which, int) else 0)
    assert len(set(found.tolist())) == len(found)
    if len(found) > 1:
        assert (found[0], found[-1]) == (0, length - 1)
        assert np.ptp(np.diff(found)) <= 1  # evenly


def reads(monkeypatch, dataset) -> list[int]:
    """The indices that a scan in this process reads from now on."""
    seen: list[int] = []
    plain = dataset.check
    monkeypatch.setattr(dataset, "check", lambda i: (seen.append(i), plain(i))[1])
    return seen


def test_sound_data_is_read_once(lists, cache, tmp_path, monkeypatch):
    root = tiny.copy_tree(lists, tmp_path / "data")
    task = tiny.make_task(tiny.lists_config(root))
    dataset = task.dataset("train")
    seen = reads(monkeypatch, dataset)
    assert scan(dataset, "data") == []
    assert seen == [0, 1, 2, 3]
    assert len(list(cache.iterdir())) == 1
    assert scan(dataset, "data") == []
    assert len(seen) == 4
    # Another file time, other rules, other samples: each is read again.
    os.utime(root / "labels" / "train1.png", (1, 1))
    scan(dataset, "data")
    assert len(seen) == 8
    dataset.rules += " of another version"
    scan(dataset, "data")
    assert len(seen) == 12
    scan(dataset, "data", 2)
    assert seen[12:] == [0, 3]


def test_mistakes_are_not_remembered(lists, cache, tmp_path):
    root = tiny.copy_tree(lists, tmp_path / "data")
    tiny.spoil_label(root / "labels" / "train2.png", 9)
    task = tiny.make_task(tiny.lists_config(root))
    for _ in range(2):
        (problem,) = scan(task.dataset("train"), "data")
        assert problem == f"{root}/labels/train2.png: label value 9 is outside 0 to 2 and is not 255 (ignored)"
    assert not cache.exists()


def test_a_cache_that_cannot_be_written(lists, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    task = tiny.make_task(tiny.lists_config(lists))
    assert scan(task.dataset("train"), "data") == []


@pytest.mark.parametrize("workers", [0, 2])
def test_the_bar_and_the_problems_with_any_number_of_processes(lists, tmp_path, capsys, workers, monkeypatch):
    root = tiny.copy_tree(lists, tmp_path / "data")
    for i in (0, 3):
        tiny.spoil_label(root / "labels" / f"train{i}.png", 9)
    monkeypatch.setattr(check, "BATCH", 1)
    task = tiny.make_task(tiny.lists_config(root))
    plain = check.tqdm
    monkeypatch.setattr(check, "tqdm", lambda **options: plain(**{**options, "disable": False}))
    problems = scan(task.dataset("train"), "the training data", "all", workers)
    assert [Path(problem.split(":")[0]).name for problem in problems] == ["train0.png", "train3.png"]
    err = capsys.readouterr().err
    assert "checking the training data: 100%" in err
    assert "4/4" in err
    assert "img/s" in err or "s/img" in err


@pytest.mark.parametrize(("value", "wrong"), [(0, None), (150, None), (151, 150), (200, 199)])
def test_labels_as_the_data_set_gives_them(ade20k, tmp_path, value, wrong):
    """ADE20K's are stored from 1, with 0 for no class."""
    root = tiny.copy_tree(ade20k, tmp_path / "data")
    path = sorted((root / "annotations" / "training").iterdir())[1]
    tiny.spoil_label(path, value)
    task = tiny.make_task(tiny.ade20k_config(root))
    said = [f"{path}: label value {wrong} is outside 0 to 149 and is not 255 (ignored)"] if wrong else []
    assert scan(task.dataset("train"), "data") == said


def test_an_ade20k_label_with_an_absurd_header(ade20k, tmp_path):
    """PaddleSeg's class opens it itself."""
    from tests.engine.test_errors import png

    root = tiny.copy_tree(ade20k, tmp_path / "data")
    path = sorted((root / "annotations" / "training").iterdir())[1]
    path.write_bytes(png(12_000, 12_000))
    task = tiny.make_task(tiny.ade20k_config(root))
    (problem,) = scan(task.dataset("train"), "data")
    assert str(path) in problem
    assert "its header says 12000 x 12000 pixels" in problem


def test_the_transforms_have_no_part_in_it(lists, monkeypatch):
    """A crop would hide most of a label."""
    config = tiny.lists_config(lists)
    task = tiny.make_task(config)
    shapes, dataset = [], task.dataset("train")
    monkeypatch.setattr(dataset, "_check_label", lambda i, item: shapes.append(item["img"].shape))
    monkeypatch.setattr(dataset, "check_all", lambda values: [])
    scan(dataset, "data")
    assert shapes == [(3, 40, 56), (3, 33, 64), (3, 48, 48), (3, 40, 56)]


def test_classification(tmp_path):
    root = write_folders(tmp_path / "folders")
    path = root / "dog" / "1.jpg"
    task = ClassificationTask(classification_config(root))
    assert scan(task.dataset("train"), "data") == []
    path.write_bytes(path.read_bytes()[:-100])
    (problem,) = scan(task.dataset("train"), "data")
    assert str(path) in problem
    assert "truncated" in problem


def test_data_without_files_is_not_scanned(tmp_path):
    config = classification_config(tmp_path)
    for part in ("Train", "Eval"):
        config["DataLoader"][part]["dataset"] = {"name": "Digits", "mode": "train", "size": 32}
    config["Arch"]["class_num"] = 10
    task = ClassificationTask(config)
    assert not hasattr(task.dataset("train"), "check")
    assert scan(task.dataset("train"), "data", "all") == []


def test_every_listed_file_must_be_there(tmp_path):
    """Not only some of them: thousands, of which one is missing."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    lines = ["a.png 0"] * 3000
    lines[1234] = "b.png 0"
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"no such image: .*b\.png .*list\.txt, line 1235\)"):
        ImageNetDataset(tmp_path, tmp_path / "list.txt")


def test_reports():
    report = Report()
    report.close()
    with report.collecting():
        raise FileNotFoundError("one")
    with pytest.raises(FileNotFoundError, match=r"^one$"):
        report.close()
    with report.collecting():
        raise DataError("one")  # reported already
    report.add(["two", "two"])
    assert report.problems == ["one", "two"]
    with pytest.raises(UserError, match=r"2 mistakes, found before the start:\n  one\n  two$"):
        report.close()
    text = shortened([str(i) for i in range(31)])
    assert text.startswith("31 mistakes")
    assert text.endswith("  19\n  ... and 11 more")
    with pytest.raises(KeyError), report.collecting():
        raise KeyError("a fault of the program")
