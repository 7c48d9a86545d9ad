"""docs/errors.md: every row of its table of restoration, as a user would make the mistake."""

from __future__ import annotations

import re
import shutil

import pytest
from PIL import Image

from paddle_vheat import cli
from paddle_vheat.weights.loading import save_weights
from tests.engine import tiny
from tests.engine.test_errors import pattern, table
from tests.tasks.restoration.small import config, make_task, picture

SWIN = {"name": "swin_ir", "width": 8, "depths": [1], "heads": 2, "window": 4}
TABLE = table("Restoration")


def set_to(**changes):
    return lambda folder, colour: changes


def empty(folder, colour):
    (folder / "empty").mkdir()
    return {"train__folders": [str(folder / "empty")]}


def one_of_colour(folder, colour):
    shutil.copy(colour / "1.png", folder / "data" / "1.png")
    return {}


def unreadable(folder, colour):
    (folder / "data" / "1.png").write_bytes(b"<html>")
    return {}


def tiny_picture(folder, colour):
    (folder / "val").mkdir()
    Image.fromarray(picture(9, 20, 0)).save(folder / "val" / "1.png")
    return {"val__folders": [str(folder / "val")], "options": ["--do_eval"]}


CASES = {
    "ir_model": set_to(model__name="vheat_irr"),
    "ir_degradation": set_to(degradation={"type": "noise"}),
    "ir_folder": set_to(train__folders=["/no/such/folder"]),
    "ir_empty": empty,
    "ir_small": set_to(train__crop=41, only="0.png"),
    "ir_small_jpeg": set_to(train__crop=32, degradation={"type": "jpeg", "quality": 10}),
    "ir_colour": one_of_colour,
    "ir_unreadable": unreadable,
    "ir_val": tiny_picture,
    "ir_several": lambda folder, colour: {"train__folders": [str(colour)]},
    "ir_ablate": set_to(model=SWIN, command="val", options=["--ablate", "k=0"]),
    "ir_shape": set_to(model=SWIN, command="export"),
}


def test_the_table_and_the_tests_are_of_the_same_cases():
    assert list(TABLE) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_row(gray, colour, tmp_path, capsys, name):
    data = tiny.copy_tree(gray, tmp_path / "data")
    changes = dict(CASES[name](tmp_path, colour))
    command, options = changes.pop("command", "train"), changes.pop("options", [])
    only = changes.pop("only", None)
    for path in data.iterdir():
        if only not in (None, path.name):
            path.unlink()
    path = tiny.write_config(tmp_path / "small.yml", config(data, **changes))
    words = ["--config", path, "--save_dir", tmp_path / "out", *options]
    if command != "train":
        task = make_task(data, **changes)
        save_weights(task.build_model(), tmp_path / "model.pdparams")
        words = ["--config", path, "--model_path", tmp_path / "model.pdparams", *options]
        words += ["--save_dir", tmp_path / "out"] if command == "export" else []
    capsys.readouterr()
    message, expected = TABLE[name]
    assert getattr(cli, command)([*map(str, words), "--device", "cpu"]) == expected == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    text = err[err.index("error: ") + len("error: ") :].strip()
    assert re.fullmatch(pattern(message), text), f"{text!r}\nis not\n{message!r}"
    assert not (tmp_path / "out").exists()
