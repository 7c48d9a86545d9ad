"""Stopping anywhere, what cannot be written, and what a resumed run finds and leaves."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from paddle_vheat import _files
from paddle_vheat.engine import checkpoint, hooks, saving
from paddle_vheat.engine.checkpoint import CheckpointError, list_checkpoints, read_checkpoint, run_lock
from paddle_vheat.engine.log import continue_records
from paddle_vheat.engine.optim import TrainOptions
from paddle_vheat.engine.trainer import Trainer
from paddle_vheat.weights.loading import read_weights
from tests.engine import killed, tiny
from tests.engine.small import SmallTask, assert_same, train
from tests.engine.small import trainer as make_trainer
from tests.engine.test_trainer import Signalled


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "out"
    killed.train(out, workers=0)
    return out


class Stopped(killed.NoisyTask):
    """Asked to stop while it computes one iteration."""

    def __init__(self, iteration: int) -> None:
        super().__init__()
        self.iteration = iteration

    def losses(self, model, batch):
        self.iteration -= 1
        if self.iteration == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().losses(model, batch)


def test_stopped_anywhere_equals_straight(straight, tmp_path):
    """Stopped three times, by every distance: parameters, optimizer, EMA, scores and what is logged, bit for bit."""
    stops = set()
    for first in range(1, killed.ITERS // 3 + 1):
        out = tmp_path / str(first)
        workers = 2 * (first % 2)
        for _ in range(3):
            result = killed.train(out, workers, Stopped(first))
            if result["stopped"] is not None:
                assert result["stopped"] == "signal"
                stops.add(result["iteration"])
        assert killed.train(out, workers)["iteration"] == killed.ITERS
        last = f"iter_{killed.ITERS}"
        assert killed.different_checkpoints(out / last, straight / last) == []
        assert killed.different_logs(out, straight) == []
    assert len(stops) > 12
    assert any(stop % 3 and stop % 2 for stop in stops)  # between two lines of the log and between two checkpoints


def test_the_comparison_sees_a_difference(straight, tmp_path):
    """Of the tests above: a run with other random numbers is not found equal."""
    out = tmp_path / "out"
    shutil.copytree(straight, out)
    assert killed.differences(out, straight) == []
    options = {"save_interval": 2, "log_iters": 3, "use_ema": True, "do_eval": True, "use_vdl": True}
    shutil.rmtree(out / f"iter_{killed.ITERS}")
    fixed = TrainOptions(iters=killed.ITERS, batch_size=2, save_dir=str(out), resume_model="auto", seed=1, **options)
    Trainer(killed.NoisyTask(), fixed).run()
    found = " ".join(killed.differences(out, straight))
    for part in ("model.pdparams", "model.pdopt", "ema_model.pdparams", "VisualDL records", "train.log"):
        assert part in found


# --- signals ----------------------------------------------------------------------------------------


def test_a_second_sigterm_stops_at_once(tmp_path, monkeypatch):
    assert hooks.REPEATED_SIGNAL_SECONDS > 1.0  # Paddle's launcher sends three within half a second
    monkeypatch.setattr(hooks, "REPEATED_SIGNAL_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train(Signalled(signal.SIGTERM, signal.SIGTERM), tmp_path)
    assert list_checkpoints(tmp_path) == []


def test_a_second_signal_while_saving_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    """The save that it breaks off leaves nothing behind."""
    train(SmallTask(), tmp_path, iters=3)
    sync = _files.sync

    def interrupted(path):
        os.kill(os.getpid(), signal.SIGINT)
        sync(path)

    monkeypatch.setattr(_files, "sync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(Signalled(signal.SIGINT), tmp_path, iters=9, save_interval=100, resume_model="auto")
    assert sorted(os.listdir(tmp_path)) == [".lock", "iter_3", "train.log"]
    assert read_checkpoint(tmp_path / "iter_3")[0]["iteration"] == 3


# --- what cannot be written -------------------------------------------------------------------------


def test_a_write_that_fails_midway(cityscapes, tmp_path):
    """By the limit on a file's size, which like a full disk lets a part of it be written."""
    config = tiny.cityscapes_config(cityscapes)
    path = tiny.write_config(tmp_path / "tiny.yml", config)
    out = tmp_path / "out"
    train(tiny.make_task(config), out, iters=2)
    size = (out / "iter_2" / "model.pdopt").stat().st_size // 2
    names = sorted(os.listdir(out))
    command = ["train.py", "--config", path, "--save_dir", out, "--device", "cpu", "--iters", 6, "--save_interval", 2]
    done = subprocess.run(
        [sys.executable, *map(str, command), "--resume_model", "auto"],
        cwd=tiny.REPOSITORY,
        env=tiny.environment(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    assert done.returncode == 2
    expected = f"error: cannot write {out / 'iter_4'}: File too large; the last checkpoint is {out / 'iter_2'}"
    assert done.stderr.splitlines()[-1] == expected
    assert "Traceback" not in done.stderr
    assert sorted(os.listdir(out)) == names
    assert train(tiny.make_task(config), out, iters=6, resume_model="auto")["iteration"] == 6
    assert "skipped" not in (out / "train.log").read_text(encoding="utf-8")


def test_a_disk_that_is_full_when_the_log_is_written(tmp_path):
    """/dev/full gives the error of a full disk, which names no file."""
    train(SmallTask(), tmp_path, iters=3)
    (tmp_path / "train.log").unlink()
    (tmp_path / "train.log").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"cannot write .*train\.log: No space left on device; .*iter_3$"):
        train(SmallTask(), tmp_path, resume_model="auto")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that another user can enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Inside, nothing can be written there, not by root either."""
    root = os.geteuid() == 0
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)


def test_a_folder_that_becomes_read_only(shared):
    train(SmallTask(), shared, iters=3)
    before = (shared / "iter_3" / "state.json").read_bytes()
    with read_only(shared), pytest.raises(CheckpointError) as error:
        train(SmallTask(), shared, resume_model="auto")
    assert str(error.value) == f"cannot write {shared}: Permission denied; the last checkpoint is {shared / 'iter_3'}"
    assert (shared / "iter_3" / "state.json").read_bytes() == before
    assert train(SmallTask(), shared, resume_model="auto")["iteration"] == 6


def test_a_folder_that_cannot_be_made(shared):
    with read_only(shared), pytest.raises(CheckpointError) as error:
        train(SmallTask(), shared / "out")
    assert str(error.value).startswith(f"cannot write {shared / 'out'}: Permission denied; ")


# --- one run at a time, and what a killed one leaves ------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from paddle_vheat.engine.checkpoint import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    left = tmp_path / ".iter_9.abcd_123"
    left.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=tiny.REPOSITORY,
        env=tiny.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert not left.exists()
        left.mkdir()  # now it is of a live run
        with pytest.raises(CheckpointError, match=rf"another run is writing there \(process {process.pid} on .*\)"):
            train(SmallTask(), tmp_path)
        assert left.exists()
    finally:
        process.kill()
        process.communicate()
    assert train(SmallTask(), tmp_path)["iteration"] == 6  # the lock has ended with the process
    assert not left.exists()


def test_only_what_is_ours_is_cleared_away(tmp_path):
    mine = [".iter_9.abcd_123", ".iter_8.gone", ".iter_3.old", ".best_model.abcd_123", ".ema_best_model.01234567"]
    others = [
        ".git",
        ".iter_9",
        ".iter_9.backup1x2",
        ".iter_x.abcd_123",
        ".cache.abcd_123",
        "iter_3",
        "mine",
        ".iter_9.ABCD1234",
    ]
    for name in [*mine, *others]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("1", encoding="utf-8")
    (tmp_path / ".vdlrecords.1.log.abcd_123.tmp").write_text("1", encoding="utf-8")
    (tmp_path / ".iter_7.abcd_123").write_text("a file", encoding="utf-8")
    with run_lock(tmp_path) as locked:
        assert locked
    assert sorted(os.listdir(tmp_path)) == sorted([*others, ".lock", ".iter_7.abcd_123"])


def test_a_checkpoint_that_was_being_replaced_is_put_back(tmp_path):
    train(SmallTask(), tmp_path, iters=3)
    os.replace(tmp_path / "iter_3", tmp_path / ".iter_3.old")
    assert train(SmallTask(), tmp_path, iters=3, resume_model="auto")["iteration"] == 3
    assert [path.name for path in list_checkpoints(tmp_path)] == ["iter_3"]
    assert "resumed" in (tmp_path / "train.log").read_text(encoding="utf-8")


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    left = tmp_path / ".iter_9.abcd_123"
    left.mkdir()

    def unsupported(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(checkpoint.fcntl, "lockf", unsupported)
    assert train(SmallTask(), tmp_path)["iteration"] == 6
    assert f"note: {tmp_path} cannot be locked" in capsys.readouterr().out
    assert left.exists()


# --- the best model ---------------------------------------------------------------------------------


def test_the_best_changes_after_the_checkpoint(tmp_path, monkeypatch):
    """A checkpoint that cannot be written leaves the best model that the one before it knows of."""
    train(SmallTask(scores=[0.2]), tmp_path, iters=3, do_eval=True)
    best = (tmp_path / "best_model" / "model.pdparams").read_bytes()

    def fail(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(saving, "save_checkpoint", fail)
        with pytest.raises(CheckpointError, match=r"cannot write .*iter_6: No space left on device; .*iter_3$"):
            train(SmallTask(scores=[0.9]), tmp_path, iters=6, do_eval=True, resume_model="auto")
    assert (tmp_path / "best_model" / "model.pdparams").read_bytes() == best
    metrics = json.loads((tmp_path / "best_model" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == {"iteration": 3, "mIoU": 0.2}
    assert sorted(os.listdir(tmp_path)) == [".lock", "best_model", "iter_3", "train.log"]


@pytest.mark.parametrize("left", ["nothing", "weights", "both"])
def test_a_resume_completes_the_best_model(tmp_path, left):
    """Killed between a checkpoint and its best model; other files in the folder stay."""
    train(SmallTask(scores=[0.1, 0.7]), tmp_path, iters=4, save_interval=2, do_eval=True)
    folder = tmp_path / "best_model"
    weights, metrics = read_weights(folder / "model.pdparams"), (folder / "metrics.json").read_bytes()
    if left == "nothing":
        shutil.rmtree(folder)
    elif left == "weights":
        (folder / "metrics.json").unlink()
        (folder / "model.pdparams").write_bytes(b"of another iteration")
    else:
        (folder / "exported").mkdir()
    train(SmallTask(scores=[0.3]), tmp_path, iters=6, save_interval=2, do_eval=True, resume_model="auto")
    assert_same(read_weights(folder / "model.pdparams"), weights)
    assert (folder / "metrics.json").read_bytes() == metrics
    assert (folder / "exported").is_dir() == (left == "both")


# --- VisualDL ---------------------------------------------------------------------------------------


def test_records_go_on_in_one_file(tmp_path):
    """Read back by VisualDL itself, which shows the newest file of a folder only."""
    from visualdl import LogReader, LogWriter

    for name, steps in (("vdlrecords.0000000001.log", (1, 2)), ("vdlrecords.0000000002.log", (3, 4, 5))):
        with LogWriter(str(tmp_path), file_name=name) as writer:
            for step in steps:
                writer.add_scalar("Train/loss", step / 8, step)
        path = tmp_path / name
        path.write_bytes(path.read_bytes() + b"\x20\0\0\0\0\0\0\0cut short")
    writer = continue_records(tmp_path, 4)
    writer.add_scalar("Train/loss", 0.25, 5)
    writer.add_image("Prediction/0", np.zeros((2, 2, 3), np.uint8), 5)
    writer.close()
    (path,) = tmp_path.glob("*vdlrecords*")
    reader = LogReader(file_path=str(path))
    found = [(item.id, item.value) for item in reader.get_data("scalar", "Train/loss")]
    assert found == [(1, 1 / 8), (2, 2 / 8), (3, 3 / 8), (4, 4 / 8), (5, 0.25)]
    assert [item.id for item in reader.get_data("image", "Prediction/0")] == [5]


def test_records_that_are_none(tmp_path):
    (tmp_path / "vdlrecords.0000000001.log").write_bytes(b"\x05\0\0\0\0\0\0\0\xff\xff\xff\xff\xff")
    continue_records(tmp_path, 4).close()
    assert [path.name for path in tmp_path.iterdir()] == ["vdlrecords.0000000001.log"]


class Scaler:
    """Stands for GradScaler, which does nothing on a CPU: only its state matters here."""

    def __init__(self, scale, good_steps):
        self.state = {
            "scale": np.array([scale], np.float32),
            "incr_count": good_steps,
            "use_dynamic_loss_scaling": True,
        }
        self.updates = 0

    def is_enable(self):
        return True

    def scale(self, loss):
        return loss

    def unscale_(self, optimizer):
        pass

    def step(self, optimizer):
        optimizer.step()

    def update(self):
        self.updates += 1

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def test_the_loss_scaler_goes_on(tmp_path):
    """Mixed precision in fp16: its scale and counters are in the checkpoint, and put back before the first step."""
    first = make_trainer(SmallTask(), tmp_path, iters=2, save_interval=2)
    first.precision.scaler = Scaler(512.0, 3)
    first.run()
    assert first.precision.scaler.updates == 2
    second = make_trainer(SmallTask(), tmp_path, iters=4, save_interval=2, resume_model="auto")
    second.precision.scaler = Scaler(1024.0, 0)
    second.run()
    assert sorted(second.precision.scaler.state) == sorted(first.precision.scaler.state)
    assert float(np.ravel(second.precision.scaler.state["scale"])[0]) == 512.0
    assert int(second.precision.scaler.state["incr_count"]) == 3
    assert second.precision.scaler.updates == 2
