"""A training run that is killed again and again.

``python -m tests.engine.killed FOLDER instants|steps|RUNS`` prints what became of it, as JSON.

Every attempt is a fork of this process, which has imported Paddle and computed nothing: so an attempt takes a fraction
of a second, and a test can afford many.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat._paddle import F, nn, paddle
from paddle_vheat.engine.checkpoint import list_checkpoints, read_checkpoint
from paddle_vheat.engine.optim import Recipe, Schedule, TrainOptions
from paddle_vheat.engine.saving import BEST_FILES
from paddle_vheat.engine.trainer import Trainer
from tests.engine.small import SmallData, SmallTask

ITERS = 24
# What a run's folder holds at its end, apart from the records, whose name is the time.
AT_THE_END = [".lock", "best_model", "ema_best_model", "iter_22", "iter_24", "train.log"]


class NoisyData(SmallData):
    """With augmentation."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        item["img"] += 0.1 * random.random() * np.random.standard_normal(item["img"].shape).astype(np.float32)
        return item


class NoisyTask(SmallTask):
    """With everything that a checkpoint must bring back: moments, running statistics, dropout, random numbers."""

    data = NoisyData()

    def make_recipe(self, lr, clip):
        return Recipe(Schedule(0.05, "PolynomialDecay", {"end_lr": 0.0}), iters=ITERS)

    @cached_property
    def model(self):
        layers = nn.Conv2D(3, 4, 3, padding=1), nn.BatchNorm2D(4), nn.GELU(), nn.Dropout(0.2), nn.Conv2D(4, 3, 1)
        return nn.Sequential(*layers)

    def dataset(self, split):
        return self.data if split == "train" else [self.data[0], self.data[1]]  # one for each of two processes

    def losses(self, model, batch):
        loss = F.cross_entropy(model(batch["img"]), batch["label"], axis=1) * (1 + 0.1 * random.random())
        return {"first": loss, "second": loss * float(0.1 * np.random.random())}

    def score(self):
        """Goes up and down, so that some models are the best and some are not."""
        return float(abs(np.sin(100 * self.evaluations[-1]["0.weight"].astype(np.float64).sum())))


def train(out: Path, workers: int, task: Any = None) -> dict[str, Any]:
    options = {"save_interval": 2, "log_iters": 3, "keep_checkpoint_max": 2, "num_workers": workers}
    flags = {"use_ema": True, "do_eval": True, "use_vdl": True}
    return Trainer(
        task or NoisyTask(),
        TrainOptions(iters=ITERS, batch_size=2, save_dir=str(out), resume_model="auto", **options, **flags),
    ).run()


def attempt(out: Path, workers: int, prepare: Callable[[], None] = lambda: None) -> int:
    """Start the run in a process of its own; its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(os.open(out.with_suffix(".said"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        prepare()
        train(out, workers)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended_well(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status


def slow_disk() -> None:
    """About half of the time goes into saving."""
    sync = os.fsync

    def slowly(handle):
        time.sleep(0.004)
        sync(handle)

    os.fsync = slowly


def count_writes(out: Path, kill_at: int | None, report: Path | None = None) -> None:
    """Count what this process does to the folder, logs apart, and kill it before the step ``kill_at``."""
    steps: list[str] = []

    def step(name: str) -> None:
        steps.append(name)
        if len(steps) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if report is not None:
            report.write_text(json.dumps(steps), encoding="utf-8")

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        path = str(arguments[0]) if arguments else ""
        if event == "open" and not set(str(arguments[1])) & set("wax+"):
            return
        known = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod")
        # rmtree gives names relative to a folder that it holds open
        ours = path.startswith(f"{out}/") or (event in ("os.remove", "os.rmdir") and "/" not in path)
        if event in known and ours and not re.search(r"train\.log|vdlrecords", path):
            step(f"{event} {path.replace(f'{out}/', '')}")

    sync = os.fsync

    def counted(handle):
        step("fsync")
        sync(handle)

    os.fsync = counted
    sys.addaudithook(audit)


# --- what a run has left ----------------------------------------------------------------------------


def records(out: Path) -> list[tuple[Any, ...]]:
    """Iteration, name and value of the scalars in the folder's one file of VisualDL, speed apart."""
    from visualdl.proto import record_pb2

    (path,) = out.glob("vdlrecords.*.log")
    content, found = path.read_bytes(), []
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        (value,) = record_pb2.Record.FromString(content[8 : 8 + size]).values
        if value.WhichOneof("one_value") == "value" and "per_second" not in value.tag:
            found.append((value.id, value.tag, value.value))
        content = content[8 + size :]
    return found


def log_lines(out: Path) -> dict[str, str]:
    """The last line of each kind and iteration, without date, speed and waiting."""
    lines = {}
    for line in (out / "train.log").read_text(encoding="utf-8").splitlines():
        if match := re.search(
            r"(\[(?:TRAIN|EVAL)\] iter \d+.*?)(, [\d.]+ images/s.*?ETA [\d:?]+)?(?:$|(?=, first))", line
        ):
            kind = re.match(r"\[\w+\] iter \d+(?:.*?:)?", match[1])
            assert kind is not None
            lines[kind[0]] = match[1] + line[match.end() :]
    return lines


def differences(out: Path, expected: Path) -> list[str]:
    """In what a finished run's folder is not bit for bit the other one's."""
    names = sorted(name for name in os.listdir(out) if not name.startswith("vdlrecords"))
    found = [] if names == AT_THE_END else [f"the folder holds {names}"]
    for path in list_checkpoints(expected):
        found += different_checkpoints(out / path.name, path)
    for kind, file in BEST_FILES.items():
        for name in (file, "metrics.json"):
            if (out / kind / name).read_bytes() != (expected / kind / name).read_bytes():
                found.append(f"{kind}/{name}")
    return found + different_logs(out, expected)


def different_checkpoints(one: Path, other: Path) -> list[str]:
    (state, arrays), (expected_state, expected_arrays) = read_checkpoint(one), read_checkpoint(other)
    found = [] if arrays.keys() == expected_arrays.keys() else [f"{one}: files {sorted(arrays)}"]
    for key in ("iteration", "best", "best_reports", "stale_intervals", "lr_scheduler", "log_losses"):
        if state[key] != expected_state[key]:
            found.append(f"{one}: {key} {state[key]} {expected_state[key]}")
    for file, content in expected_arrays.items():
        for name, array in content.items():
            if array.tobytes() != arrays[file][name].tobytes():
                found.append(f"{one}: {file} {name}")
    return found


def different_logs(out: Path, expected: Path) -> list[str]:
    found = [] if records(out) == records(expected) else ["VisualDL records"]
    return found if log_lines(out) == log_lines(expected) else [*found, "train.log"]


def lost(out: Path) -> list[str]:
    """Saved iterations that a later attempt did not find, and checkpoints that were not whole."""
    found, saved = [], 0
    for line in (out / "train.log").read_text(encoding="utf-8").splitlines():
        if match := re.search(r"saved .*iter_(\d+)$", line):
            saved = int(match[1])
        elif match := re.search(r"resumed .* at iteration (\d+)", line):
            if int(match[1]) < saved:
                found.append(line)
        elif ("nothing to resume" in line and saved) or "skipped: " in line:
            found.append(line)
    return found


# --- the two kinds of kills -------------------------------------------------------------------------


def join(rank: int, ports: list[int]) -> None:
    """Make this process one of two, as Paddle's launcher does it."""
    endpoints = [f"127.0.0.1:{port}" for port in ports]
    os.environ.update(
        PADDLE_TRAINER_ID=str(rank), PADDLE_TRAINERS_NUM="2", PADDLE_TRAINER_ENDPOINTS=",".join(endpoints),
        PADDLE_CURRENT_ENDPOINT=endpoints[rank], PADDLE_MASTER=endpoints[0], PADDLE_DISTRI_BACKEND="gloo",
    )  # fmt: skip
    paddle.set_device("cpu")
    paddle.distributed.init_parallel_env()


def two(out: Path, workers: int) -> list[int]:
    """Start the run in two processes; their ids."""
    with socket.socket() as one, socket.socket() as other:
        ports = []
        for place in (one, other):
            place.bind(("127.0.0.1", 0))
            ports.append(place.getsockname()[1])
    return [attempt(out, workers, lambda rank=rank: join(rank, ports)) for rank in (0, 1)]


def soak(folder: Path, runs: int) -> dict[str, Any]:
    """Runs of one or two processes with 0 to 2 workers, each killed at random instants until it comes to its end."""
    rng = random.Random(5)
    straight, whole = {}, {}
    for count in (1, 2):
        straight[count], start = folder / f"straight{count}", time.monotonic()
        for child in [attempt(straight[count], 0)] if count == 1 else two(straight[count], 0):
            ended_well(child)
        whole[count] = time.monotonic() - start
    report: dict[str, Any] = {"runs": 0, "of two": 0, "killed": 0, "differences": [], "lost": []}
    while report["runs"] < runs:
        count, out = 1 + (rng.random() < 0.2), folder / "run"
        for kill in [True] * rng.randrange(1, 4) + [False]:
            workers = rng.randrange(3)
            children = [attempt(out, workers)] if count == 1 else two(out, workers)
            if kill:
                time.sleep(rng.uniform(0, whole[count]))
                rng.shuffle(children)
                for child in children:
                    os.kill(child, signal.SIGKILL)
                report["killed"] += sum(os.waitpid(child, 0)[1] == signal.SIGKILL for child in children)
            else:
                for child in children:
                    ended_well(child)
        report["runs"] += 1
        report["of two"] += count == 2
        report["differences"] += differences(out, straight[count])
        report["lost"] += lost(out)
        shutil.rmtree(out)
    return report


def at_random_instants(folder: Path, kills: int) -> dict[str, Any]:
    straight = folder / "straight"
    start = time.monotonic()
    ended_well(attempt(straight, 0, slow_disk))
    whole = time.monotonic() - start
    rng = random.Random(11)
    runs = [folder / "run0"]
    report: dict[str, Any] = {"killed": 0, "while saving": 0, "differences": [], "lost": []}
    while report["killed"] < kills:
        out = runs[-1]
        child = attempt(out, 2 * rng.randrange(2), slow_disk)
        end = time.monotonic() + rng.uniform(0, whole / 2)
        while time.monotonic() < end and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.002)
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):  # it had come to its end
            runs.append(folder / f"run{len(runs)}")
            continue
        report["killed"] += 1
        report["while saving"] += out.is_dir() and any(
            name.startswith((".iter", ".best", ".ema")) for name in os.listdir(out)
        )
    for out in runs:
        ended_well(attempt(out, 0))
        report["differences"] += differences(out, straight)
        report["lost"] += lost(out)
    return report


def at_every_step_of_saving(folder: Path) -> dict[str, Any]:
    """From the checkpoint before the last to the end: before each step that changes the folder.

    The steps are those of clearing away what an earlier process left, of the last checkpoint, of the best models and
    of removing the oldest checkpoint.
    """
    straight = folder / "straight"
    ended_well(attempt(straight, 0))
    start = folder / "start"
    shutil.copytree(straight, start)
    shutil.rmtree(start / f"iter_{ITERS}")
    for left in ("iter_20", ".iter_24.abcd_123", ".best_model.abcd_123", ".iter_22.old", ".iter_18.gone"):
        shutil.copytree(start / "iter_22", start / left)
    log = start / "train.log"
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    end = next(i for i, line in enumerate(lines) if f"[TRAIN] iter {ITERS}/" in line)
    log.write_text("".join(lines[:end]), encoding="utf-8")
    steps_file = folder / "steps.json"
    out = folder / "run"
    shutil.copytree(start, out)
    ended_well(attempt(out, 0, lambda: count_writes(out, None, steps_file)))
    steps = json.loads(steps_file.read_text(encoding="utf-8"))
    report: dict[str, Any] = {"steps": steps, "killed": 0, "differences": differences(out, straight), "lost": []}
    for number in range(1, len(steps) + 1):
        shutil.rmtree(out)
        shutil.copytree(start, out)
        child = attempt(out, 0, lambda number=number: count_writes(out, number))
        _, status = os.waitpid(child, 0)
        report["killed"] += os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        ended_well(attempt(out, 0))
        where = f"killed before {steps[number - 1]}: "
        report["differences"] += [where + text for text in differences(out, straight)]
        report["lost"] += [where + text for text in lost(out)]
    return report


if __name__ == "__main__":
    place = Path(sys.argv[1])
    kinds = {"steps": at_every_step_of_saving, "instants": lambda out: at_random_instants(out, 25)}
    kind = kinds.get(sys.argv[2], lambda out: soak(out, int(sys.argv[2])))
    print(json.dumps(kind(place)))
