"""docs/errors.md: every row of detection, as a user would make the mistake."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from paddle_vheat import cli
from paddle_vheat.weights.loading import save_weights
from tests.engine import tiny
from tests.engine.test_errors import pattern, table
from tests.tasks.detection import small


class Case:
    def __init__(self, folder: Path, coco: Path) -> None:
        self.folder, self.root = folder, shutil.copytree(coco, folder / "coco")
        self.config = small.config(self.root)
        self.command, self.options = "train", ["--iters", "1", "--save_dir", folder / "out"]

    def edit(self, index: int, split: str = "train", **values: Any) -> None:
        small.edit(self.root, split, lambda content: content["annotations"][index].update(values))

    def put(self, path: str, value: Any) -> None:
        *parents, last = path.split(".")
        block = self.config
        for name in parents:
            block = block[name]
        block[last] = value

    def use(self, command: str, *options: Any, model: bool = True) -> None:
        save_weights(small.make_task(self.root).build_model(), self.folder / "model.pdparams")
        self.command = command
        self.options = [*(["--model_path", self.folder / "model.pdparams"] if model else []), *options]

    def run(self) -> int:
        path = tiny.write_config(self.folder / "small.yml", self.config)
        return getattr(cli, self.command)([*map(str, ["--config", path, *self.options]), "--device", "cpu"])


EMPTY_MASK = {"size": [64, 96], "counts": [64 * 96]}


def several(case):
    case.edit(1, category_id=4)
    case.edit(2, segmentation=EMPTY_MASK)
    case.edit(4, category_id=5)


def other_classes(case):
    case.use("val")
    case.put("model.num_classes", 4)
    for split in ("train", "val"):
        small.edit(case.root, split, lambda content: content["categories"].append({"id": 99, "name": "new"}))


def first_image(**values):
    return lambda case: small.edit(case.root, "train", lambda content: content["images"][0].update(values))


def predicting(*options):
    return lambda case: case.use("predict", "--image_path", case.root / "val", *options)


CASES = {
    "key": lambda case: case.put("model.num_clases", 3),
    "name": lambda case: case.put("model.name", "mask_rcnn_vheat_tinny"),
    "classes": lambda case: case.put("model.num_classes", 4),
    "folder": lambda case: case.put("data.train.image_dir", "/no/such"),
    "file": lambda case: case.put("data.train.annotations", str(case.root / "trian.json")),
    "json": lambda case: (case.root / "train.json").write_text("{", encoding="utf-8"),
    "missing": first_image(file_name="gone.png"),
    "unreadable": lambda case: (case.root / "train" / "1.png").write_bytes(b"<html>"),
    "size": first_image(height=65),
    "outside": lambda case: case.edit(1, bbox=[90, 10, 30, 10]),
    "category": lambda case: case.edit(1, category_id=4),
    "mask": lambda case: case.edit(1, segmentation=EMPTY_MASK),
    "nan": lambda case: case.edit(1, bbox=[math.nan, 5, 10, 10]),
    "twice": lambda case: case.edit(1, id=100),
    "several": several,
    "val": lambda case: [case.edit(1, "val", category_id=4), case.options.append("--do_eval")],
    "unchecked": lambda case: [
        case.edit(1, category_id=4),
        case.options.extend(["--check_data", "none", "--batch_size", "4", "--iters", "2"]),
    ],
    "checkpoint": other_classes,
    "threshold": predicting("--threshold", 3),
    "option": predicting("--aug_eval"),
    "save": lambda case: case.use("val", "--save_json", "/no/such/found.json"),
    "fine": lambda case: None,
}


def test_the_table_and_the_tests_are_of_the_same_cases():
    assert list(table("Detection")) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_row(coco, tmp_path, capsys, name):
    message, expected = table("Detection")[name]
    case = Case(tmp_path, coco)
    CASES[name](case)
    capsys.readouterr()
    assert case.run() == expected
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert ("error: " in err) == (expected != 0)
    if expected:
        text = err[err.index("error: ") + len("error: ") :].strip()
        assert re.fullmatch(pattern(message), text), f"{text!r}\nis not\n{message!r}"
    assert (case.folder / "out" / "iter_1").exists() == (expected == 0)
