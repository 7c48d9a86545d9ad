"""docs/errors.md: every row of its table, as a user would make the mistake."""

from __future__ import annotations

import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from paddle_vheat import cli
from paddle_vheat.engine.data_check import try_losses
from paddle_vheat.engine.optim import TrainOptions
from paddle_vheat.engine.trainer import Trainer
from tests.conftest import paddle
from tests.engine import tiny

DOCS = tiny.REPOSITORY / "docs" / "errors.md"


def table(heading: str = "Mistakes and their messages") -> dict[str, tuple[str, int]]:
    """(message, exit code) by the name in the first column, of the table under a heading."""
    rows = {}
    text = re.split(r"^#+ ", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (section,) = [part for part in text if part.startswith(f"{heading}\n")]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if line.startswith("| ") and len(cells) >= 3 and cells[-1].strip("| ").isdecimal():
            message = cells[2].strip("`") if len(cells) == 4 else ""
            rows[cells[0]] = message, int(cells[-1].strip("| "))
    return rows


def pattern(message: str) -> str:
    """``...`` is anything, white space any."""
    parts = [r"\s+".join(map(re.escape, part.split(" "))) for part in message.split("...")]
    return r"[\s\S]*".join(parts)


class Case:
    """A copy of the data, a configuration to spoil, and the command to run."""

    def __init__(self, folder: Path, lists: Path, checkpoint: Path) -> None:
        self.folder = folder
        self.root = tiny.copy_tree(lists, folder / "data")
        self.config = tiny.lists_config(self.root)
        self.checkpoint = checkpoint
        self.text: str | None = None
        self.command = "train"
        self.options: list[Any] = ["--iters", "1", "--save_dir", folder / "out"]

    def use(self, command: str, *options: Any) -> None:
        self.command, self.options = command, list(options)

    def run(self) -> int:
        path = tiny.write_config(self.folder / "tiny.yml", self.config)
        if self.text is not None:
            path.write_text(self.text, encoding="utf-8")
        given = ["--config", path] if "--config" not in self.options else []
        try:
            return getattr(cli, self.command)([*map(str, given + self.options), "--device", "cpu"])
        except SystemExit as stop:  # argparse
            return int(stop.code or 0)


def png(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and is not."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000)))


def put(path: str, value: Any) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        *parents, last = path.split(".")
        block: Any = case.config
        for name in parents:
            block = block[int(name)] if isinstance(block, list) else block[name]
        block[last] = value

    return change


def add(*options: Any) -> Callable[[Case], None]:
    return lambda case: case.options.extend(options)


def cut(path: Path, share: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def relabel(name: str, value: int = 7) -> Callable[[Case], None]:
    return lambda case: tiny.spoil_label(case.root / "labels" / f"{name}.png", value)


def change_line(number: int, text: str) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        path = case.root / "train.txt"
        lines = path.read_text(encoding="utf-8").splitlines()
        lines[number - 1] = text
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    return change


def truncated_jpeg(case: Case) -> None:
    path = case.root / "images" / "train1.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (33, 64, 3), np.uint8)).save(path)
    cut(path, 0.7)
    change_line(2, "images/train1.jpg labels/train1.png")(case)


def other_size(case: Case) -> None:
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(case.root / "labels" / "train1.png")


def colours(case: Case) -> None:
    Image.fromarray(np.zeros((33, 64, 3), np.uint8)).save(case.root / "labels" / "train1.png")


def evaluate(case: Case) -> None:
    relabel("val1")(case)
    case.use("val", "--model_path", case.checkpoint)


def several(case: Case) -> None:
    case.config["iterz"] = 3
    relabel("train1")(case)
    relabel("train3", 8)(case)


def four_classes(case: Case) -> None:
    for path in ("model", "train_dataset", "val_dataset"):
        case.config[path]["num_classes"] = 4
    case.use("val", "--model_path", case.checkpoint)


def resume_classes(case: Case) -> None:
    four_classes(case)
    case.use("train", "--iters", "2", "--save_dir", case.folder / "out", "--resume_model", case.checkpoint)


def code(case: Case) -> None:
    path = case.folder / "evil.pdparams"
    path.write_bytes(b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00:;\x85R.")
    case.use("val", "--model_path", path)


def bombs(case: Case) -> None:
    names = "abcdefghij"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip(names, names[1:])]
    case.text = "\n".join(lines)


def yaml_tag(case: Case) -> None:
    case.text = yaml.safe_dump(case.config) + 'class_names: !!python/object/apply:os.system ["true"]\n'


def predict(case: Case) -> None:
    pictures = case.folder / "pictures"
    pictures.mkdir()
    shutil.copy(case.root / "images" / "val0.png", pictures / "sound.png")
    (pictures / "broken.png").write_bytes(b"<html>")
    options = ["--image_path", pictures, "--save_dir", case.folder / "result"]
    case.use("predict", "--model_path", case.checkpoint, *options)


def among(case: Case) -> None:
    predict(case)
    case.options[-1] = case.folder / "pictures"


def no_folder(case: Case) -> None:
    (case.folder / "notes.txt").write_text("mine", encoding="utf-8")
    case.options[-1] = case.folder / "notes.txt"


def foreign(case: Case) -> None:
    (case.folder / "export").mkdir()
    (case.folder / "export" / "notes.txt").write_text("mine", encoding="utf-8")
    case.use("export", "--model_path", case.checkpoint, "--save_dir", case.folder / "export")


def ended(case: Case) -> None:
    shutil.copytree(case.checkpoint, case.folder / "out" / "iter_1")


def export_shape(case: Case) -> None:
    options = ["--save_dir", case.folder / "export", "--input_shape", 1, 3, 16, 16]
    case.use("export", "--model_path", case.checkpoint, *options)


CASES: dict[str, Callable[[Case], Any]] = {
    "key": put("iterz", 3),
    "argument": put("model.channelz", 8),
    "component": put("optimizer.type", "AdamV"),
    "type": put("batch_size", "two"),
    "option": add("--do_evil"),
    "opts": add("--opts", "modle.x=1"),
    "finite": put("optimizer.weight_decay", float("nan")),
    "range": put("train_dataset.transforms.1.prob", 7),
    "std": lambda case: put("train_dataset.transforms.2.std", [0, 0, 0])(case),
    "clip": put("optimizer.grad_clip_cfg.clip_norm", -1),
    "schedule": put("lr_scheduler.end_lr", -1),
    "nothing": put("optimizer.custom_cfg.0.name", "nrom"),
    "no_folder": no_folder,
    "no_file": lambda case: add("--config", case.root)(case),
    "config": add("--config", "/no/such.yml"),
    "yaml": yaml_tag,
    "anchors": bombs,
    "folder": put("train_dataset.dataset_root", "/no/such/folder"),
    "list": lambda case: put("train_dataset.train_path", str(case.root / "trian.txt"))(case),
    "line": change_line(2, "images/gone.png labels/train1.png"),
    "words": change_line(3, "images/train2.png"),
    "unreadable": lambda case: (case.root / "images" / "train1.png").write_bytes(b"<html>"),
    "truncated": lambda case: cut(case.root / "images" / "train1.png"),
    "truncated_jpeg": truncated_jpeg,
    "header": lambda case: (case.root / "images" / "train1.png").write_bytes(png(100_000, 100_000)),
    "sizes": other_size,
    "colours": colours,
    "value": relabel("train1"),
    "val_value": lambda case: [relabel("val1")(case), add("--do_eval")(case)],
    "evaluate": evaluate,
    "unchecked": lambda case: [relabel("train1")(case), add("--check_data", "none", "--batch_size", 4)(case)],
    "several": several,
    "crop": put("train_dataset.transforms.0.crop_size", [16, 64]),
    "outputs": put("loss.coef", [1.0, 0.4, 0.1]),
    "classes": four_classes,
    "resume_classes": resume_classes,
    "no_model": lambda case: case.use("val"),
    "code": code,
    # The only step's loss is as large as float32 goes, twice.
    "nan": put("loss.coef", [3e38, 3e38]),
    "absurd": put("model.backbone.embed_dim", 10**6),
    "deep": put("model.backbone.depths", [1000000, 1, 1, 1]),
    "integer": put("model.num_classes", 3.0),
    "seed": add("--seed", 10**30),
    "predict": predict,
    "among": among,
    "nowhere": lambda case: case.use("predict", "--model_path", case.checkpoint, "--image_path", "/no/such/image.png"),
    "shape": export_shape,
    "foreign": foreign,
    "ended": ended,
    "fine": lambda case: None,
}


@pytest.fixture(scope="module")
def checkpoint(lists, tmp_path_factory) -> Path:
    """A checkpoint of the tiny model for three classes."""
    folder = tmp_path_factory.mktemp("trained")
    task = tiny.make_task(tiny.lists_config(lists))
    Trainer(task, TrainOptions(iters=1, batch_size=2, save_dir=str(folder), save_interval=1)).run()
    return folder / "iter_1"


@pytest.fixture
def case(tmp_path, lists, checkpoint) -> Case:
    return Case(tmp_path, lists, checkpoint)


def test_the_table_and_the_tests_are_of_the_same_cases():
    assert list(table()) == list(CASES)
    assert len(CASES) > 30


@pytest.mark.parametrize("name", CASES)
def test_row(case, capsys, name):
    message, expected = table()[name]
    CASES[name](case)
    capsys.readouterr()
    assert case.run() == expected
    err = capsys.readouterr().err
    assert "Traceback" not in err
    told = [line for line in err.splitlines() if "error: " in line]
    assert len(told) == (expected != 0), err
    if expected:
        text = err[err.index("error: ") + len("error: ") :].strip()
        assert re.fullmatch(pattern(message), text), f"{text!r}\nis not\n{message!r}"
    if name != "ended":
        assert (case.folder / "out" / "iter_1").exists() == (expected == 0)


@pytest.mark.parametrize("name", ["several", "code", "fine"])
def test_row_as_a_process(case, name):
    message, expected = table()[name]
    CASES[name](case)
    path = tiny.write_config(case.folder / "tiny.yml", case.config)
    done = tiny.run([f"{case.command}.py", "--config", path, *case.options], XDG_CACHE_HOME=str(case.folder / "cache"))
    assert done.returncode == expected, done.stderr
    assert "Traceback" not in done.stderr
    if expected:
        text = done.stderr[done.stderr.index("error: ") + len("error: ") :].strip()
        assert re.fullmatch(pattern(message), text), text


def test_twenty_of_many_are_told(case, capsys):
    lines = [f"images/gone{i}.png labels/train0.png" for i in range(30)]
    (case.root / "train.txt").write_text("\n".join(lines), encoding="utf-8")
    assert case.run() == 2
    err = capsys.readouterr().err
    assert "error: 30 mistakes" in err
    assert [f"line {i}: no such file" in err for i in (1, 20, 21)] == [True, True, False]
    assert "... and 10 more" in err


def test_nothing_is_left_of_a_run_that_was_refused(case):
    relabel("train2")(case)
    assert case.run() == 2
    assert not (case.folder / "out").exists()


def test_the_check_of_the_outputs_changes_nothing(case):
    """Neither running statistics nor the random state: a run is the same with and without it."""
    task = tiny.make_task(case.config)
    paddle.seed(3)
    before = {name: value.numpy().copy() for name, value in task.model.state_dict().items()}
    state = [s.current_seed() if hasattr(s, "current_seed") else repr(s) for s in paddle.get_rng_state()]
    task.model.eval()
    try_losses(task, task.model)
    assert not task.model.training
    for name, value in task.model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name], err_msg=name)
    assert [s.current_seed() if hasattr(s, "current_seed") else repr(s) for s in paddle.get_rng_state()] == state


def test_an_absurd_header_takes_little_memory(tmp_path):
    (tmp_path / "x.png").write_bytes(png(2**31 - 1, 2**31 - 1))
    (tmp_path / "y.png").write_bytes(png(13_000, 13_000))
    text = (
        "import resource, sys\n"
        "from paddle_vheat.data.image_file import read_bgr, read_label\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[1:]:\n"
        "    for read in (read_bgr, read_label):\n"
        "        try: read(path)\n"
        "        except ValueError as error: assert 'too large' in str(error), error\n"
        "        else: raise SystemExit('was read')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = tiny.run(["-c", text, tmp_path / "x.png", tmp_path / "y.png"])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60_000  # kilobytes: OpenCV itself; the smaller picture would take 500 MB


def test_help_says_what_check_data_takes():
    text = " ".join(cli.train_parser().format_help().split())
    assert "auto (default; all of up to 3000, else 1000)" in text
    assert os.environ["XDG_CACHE_HOME"]  # the tests leave the user's alone
