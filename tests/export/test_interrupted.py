"""Exports that are stopped, killed, or written through a link or onto a full disk."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paddle_vheat import _files
from paddle_vheat.deploy import Predictor
from paddle_vheat.errors import ExportError, UserError
from paddle_vheat.export import export_model
from tests.conftest import paddle
from tests.export import networks
from tests.export.networks import contents, quiet
from tests.faults import ERRORS, failing

ROOT = Path(__file__).parents[2]

EXPORT = """
import signal, sys, time
from tests.export import networks
from paddle_vheat.export import export_model, parity
def stop(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGTERM, stop)  # after the import: Paddle sets a handler of its own
def slow(*args):
    print("checking", flush=True)
    time.sleep(60)
parity.load_runtime = slow
spec, task, shape = networks.toy(networks.Toy(), [1, 3, 32, 32])
export_model(spec, task, sys.argv[1], shape, networks.quiet)
"""


@pytest.fixture
def running(tmp_path):
    """An export in a process of its own, its programs written and not yet compared."""
    process = subprocess.Popen(
        [sys.executable, "-c", EXPORT, str(tmp_path / "out")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    while "checking" not in (line := process.stdout.readline()):
        assert line, "the export ended by itself"
    yield process
    process.kill()
    process.wait()


def export(folder, shape=(1, 3, 32, 32)) -> None:
    spec, task, shape = networks.toy(networks.Toy(), shape)
    export_model(spec, task, folder, shape, quiet)


def test_sigterm_leaves_nothing(tmp_path, running):
    assert len(os.listdir(tmp_path)) == 1
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=60) != 0
    assert os.listdir(tmp_path) == []


def test_what_a_killed_export_leaves_is_cleared_by_the_next(tmp_path, running):
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".out.")
    export(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == [left, "out"]  # of a process that lives
    before = contents(tmp_path / left)
    running.kill()
    running.wait()
    assert contents(tmp_path / left) == before
    export(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk/export")
    for size in (32, 64):  # to a folder that is not there, and to one that is
        export(tmp_path / "out", (1, 3, size, size))
        assert os.readlink(tmp_path / "out") == "disk/export"
        assert os.listdir(tmp_path / "disk") == ["export"]
        assert Predictor(tmp_path / "out").description.size == (size, size)


def test_a_full_disk_that_paddle_does_not_tell(tmp_path, monkeypatch):
    """On a full disk paddle.jit.save writes what fits and returns."""
    save = paddle.jit.save

    def cut_off(layer, path, **options):
        save(layer, path, **options)
        os.truncate(f"{path}.pdiparams", 10)

    def full(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    monkeypatch.setattr(paddle.jit, "save", cut_off)
    with pytest.raises(ExportError, match="Paddle Inference does not run the exported model"):
        export(tmp_path / "out")
    monkeypatch.setattr("paddle_vheat.export.model.check_disk", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*\.out\."):
        export(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_temporary_folders_of_others(tmp_path):
    """Of this computer's dead processes and of another computer's after a day; never of a live process."""
    host = _files.socket.gethostname()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = [f".out.{host}.{os.getppid()}.tmp", ".out.elsewhere.17.tmp", ".output.x.1.tmp", ".out.notes", "[a]"]
    gone = [f".out.{host}.{dead.pid}.tmp", ".out.far.away.18.tmp"]
    for name in (*kept, *gone):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name, encoding="utf-8")
    os.utime(tmp_path / gone[1], (time.time() - 90_000,) * 2)
    _files.replace_folder(tmp_path / "out", lambda folder: (folder / "new").touch())
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "out"])
    assert os.listdir(tmp_path / "out") == ["new"]


def test_killed_between_the_two_renames(tmp_path):
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "deploy.yaml").touch()

    def write(folder):
        assert os.listdir(tmp_path / "out") == ["deploy.yaml"]  # back in its place
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        _files.replace_folder(tmp_path / "out", write)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux that is always full")
def test_what_cannot_be_written_names_the_file(tmp_path):
    def write(path):
        with open("/dev/full", "w") as file:
            file.write("x")

    with pytest.raises(OSError, match=r"No space left on device: '.*target\.txt'") as error:
        _files.write_atomically(tmp_path / "target.txt", write)
    assert error.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_each_operation_on_files_fails_once(tmp_path, monkeypatch, step):
    """The export of before is there whole, or the new one is; and the next export is as if nothing had been."""
    folder = tmp_path / "exports"
    out = folder / "out"
    export(out)
    number, failed = 0, 0
    while True:
        before, told = contents(out), ""
        with failing(monkeypatch, folder, number, ERRORS[number // step % len(ERRORS)]) as faults:
            try:
                export(out, (1, 3, 64, 64))
            except (UserError, OSError) as error:
                told = str(error)
        if len(faults.operations) <= number:
            break
        where = f"operation {number}, {faults.operations[number]}: {told}"
        failed += bool(told)
        size = Predictor(out).description.size
        assert size == (64, 64) or contents(out) == before, where
        export(out)
        assert os.listdir(folder) == ["out"], where
        assert Predictor(out).description.size == (32, 32), where
        number += step
    assert failed > number / step / 2
