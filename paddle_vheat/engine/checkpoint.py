"""Checkpoints that are complete or absent, and that know whether they are damaged.

A checkpoint is a folder ``iter_N`` in PaddleSeg's layout: ``model.pdparams``, ``model.pdopt``, with EMA
``ema_model.pdparams``, and ``state.json``. It is written under a temporary name and renamed when everything is
on disk; ``state.json`` holds the size and CRC-32 of every file, and the CRC-32 of itself.

Temporary names start with a dot. What a killed process leaves of them is cleared away by the next run that has the
folder to itself (:func:`run_lock`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import socket
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat._files import not_a_file, replace_folder, sync, write_atomically
from paddle_vheat._paddle import paddle
from paddle_vheat.errors import CheckpointError
from paddle_vheat.weights.loading import read_weights

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

STATE_FILE = "state.json"
LOCK_FILE = ".lock"
METRICS_FILE = "metrics.json"
_NAME = re.compile(r"iter_(\d+)")
# What replacing and removing leave if the process is killed: a word, mkdtemp's eight characters, or host and process.
_LEFT = re.compile(r"\.(?P<name>iter_\d+|(ema_)?best_model)\.(?P<end>[a-z0-9_]{8}|old|gone|.+\.\d+\.tmp)")
_LEFT_FILE = re.compile(r"\.vdlrecords\..+\.tmp")


@contextlib.contextmanager
def run_lock(save_dir: Path) -> Iterator[bool]:
    """Keep other runs from writing into a folder, and clear away what a killed one left there.

    The lock is the system's, on ``save_dir/.lock``: it ends with the process, however that ends, and it reaches across
    nodes where the file system's locks do. It is ``lockf``, since the ``flock`` of lock libraries is inherited by
    forked loader workers, which may outlive a killed run by a moment.

    Yields:
        False if the file system has no locks. Nothing is cleared away then, for it could be a live run's.

    Raises:
        CheckpointError: if another process has the folder; says which.
    """
    if fcntl is None:
        yield False
        return
    with (save_dir / LOCK_FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise CheckpointError(
                    f"{save_dir}: another run is writing there ({file.read().strip() or 'of another node'}); "
                    "end it, or give another --save_dir"
                ) from error
            locked = False
        if locked:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            _clear_away(save_dir)
        yield locked


def _clear_away(save_dir: Path) -> None:
    for path in sorted(save_dir.iterdir()):
        found = _LEFT.fullmatch(path.name)
        if path.is_dir() and found is not None:
            if found["end"] == "old" and not (save_dir / found["name"]).exists():
                os.replace(path, save_dir / found["name"])  # killed between the two renames of replace_folder
            else:
                shutil.rmtree(path)
        elif path.is_file() and _LEFT_FILE.fullmatch(path.name):
            path.unlink()


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _state_crc32(state: Mapping[str, Any]) -> int:
    """Checksum of what ``state.json`` holds, but for the checksum."""
    content = {key: value for key, value in state.items() if key != "crc32"}
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def save_best(folder: Path, file: str, weights: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    """Write weights as ``folder/file`` and their scores as ``folder/metrics.json``; what else is there stays.

    Both are on disk before either gets its name. Killed in between, a process leaves weights without scores, never
    with those of others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        paddle.save(dict(weights), str(temporary / file))
        (temporary / METRICS_FILE).write_text(json.dumps(report, indent=1), encoding="utf-8")
        for path in temporary.iterdir():
            sync(path)
        (folder / METRICS_FILE).unlink(missing_ok=True)
        for name in (file, METRICS_FILE):
            os.replace(temporary / name, folder / name)
        sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_best(folder: Path, file: str) -> dict[str, Any] | None:
    """The scores of the weights in ``folder``; None if they are not both there."""
    try:
        report = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) and (folder / file).is_file() else None


def save_checkpoint(
    save_dir: Path, iteration: int, arrays: Mapping[str, Mapping[str, Any]], state: Mapping[str, Any]
) -> Path:
    """Write ``save_dir/iter_<iteration>``.

    Args:
        arrays: file name -> names and tensors.
        state: what else is needed to resume; must fit JSON.
    """
    folder = save_dir / f"iter_{iteration}"

    def write(temporary: Path) -> None:
        files = {}
        for name, content in arrays.items():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The input state dict is empty")  # of plain gradient descent
                paddle.save(dict(content), str(temporary / name))
            files[name] = {"size": (temporary / name).stat().st_size, "crc32": _crc32(temporary / name)}
        (temporary / STATE_FILE).write_text(_sealed({**state, "iteration": iteration, "files": files}))

    replace_folder(folder, write)
    return folder


def update_state(folder: Path, changes: Mapping[str, Any]) -> None:
    """Replace entries of a checkpoint's state, in one step."""
    state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    text = _sealed({**state, **changes})
    write_atomically(folder / STATE_FILE, lambda path: Path(path).write_text(text, encoding="utf-8"))


def _sealed(state: Mapping[str, Any]) -> str:
    """A state as it is written, with its checksum."""
    # As it will be read: JSON's keys are strings, and arrays are lists.
    content = json.loads(json.dumps(state, default=lambda array: np.asarray(array).tolist()))
    content["crc32"] = _state_crc32(content)
    return json.dumps(content, indent=1)


def _check_state(state: Mapping[str, Any]) -> None:
    """Raise a ValueError for what no run has written, though its checksum be right: anybody can compute one."""
    iteration = state["iteration"]
    if not isinstance(iteration, int) or not 0 <= iteration < 1 << 62:
        raise ValueError(f"its iteration is {iteration!r}")
    for name, entry in state["files"].items():
        if Path(name).name != name or not isinstance(entry["size"], int) or not isinstance(entry["crc32"], int):
            raise ValueError(f"it names the file {name!r}, expected names within the folder, sizes and checksums")
    for key in ("best", "options", "lr_scheduler", "config"):
        if not isinstance(state.get(key, {}), dict):
            raise ValueError(f"its {key!r} is {type(state[key]).__name__}, expected keys and values")
    for name, best in state.get("best", {}).items():
        if not all(isinstance(best[key], (int, float)) for key in ("score", "iteration")):
            raise ValueError(f"its 'best.{name}' is {best!r}")


@contextlib.contextmanager
def resuming(where: str | Path) -> Iterator[None]:
    """Inside, a state of another program or version than this one's is a :class:`CheckpointError`."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        text = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{where}: holds no state that this run can resume from ({text})") from error


def read_checkpoint(folder: str | Path) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """State and arrays (by file name) of a checkpoint.

    Raises:
        CheckpointError: if it is not complete, or damaged; says which file.
        OSError: if the disk does not give it back, which is no damage.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"no such checkpoint folder: {folder}")
    if (folder / STATE_FILE).exists() and not (folder / STATE_FILE).is_file():
        raise CheckpointError(f"{folder}: {STATE_FILE} is missing ({not_a_file(folder / STATE_FILE)})")
    try:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        if state["crc32"] != _state_crc32(state):
            raise ValueError("its checksum is not what was written")
        files = state["files"]
        _check_state(state)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: {STATE_FILE} is missing ({error})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder}: {STATE_FILE} is damaged ({error})") from error
    named = _NAME.fullmatch(folder.name)
    if named is not None and int(named[1]) != state["iteration"]:
        raise CheckpointError(f"{folder}: holds iteration {state['iteration']}; a copy or link of another checkpoint")
    arrays = {}
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder}: {name} is missing")
        if path.stat().st_size != expected["size"] or _crc32(path) != expected["crc32"]:
            raise CheckpointError(f"{path}: damaged (its size or checksum is not what was written)")
        arrays[name] = read_weights(path)
    return state, arrays


def list_checkpoints(save_dir: str | Path) -> list[Path]:
    """Checkpoint folders, oldest iteration first."""
    save_dir = Path(save_dir)
    try:
        entries = list(os.scandir(save_dir))
    except (FileNotFoundError, NotADirectoryError):  # any other error of the disk does not mean that there are none
        return []
    found = [(int(m[1]), save_dir / e.name) for e in entries if (m := _NAME.fullmatch(e.name)) and e.is_dir()]
    return [path for _, path in sorted(found)]


def read_newest(save_dir: str | Path) -> tuple[Path | None, Any, list[str]]:
    """The newest checkpoint that is whole, what :func:`read_checkpoint` gives of it, and why newer ones were skipped.

    Returns:
        (None, None, []) if the folder holds no checkpoint.

    Raises:
        CheckpointError: if there are checkpoints and none is whole: starting over would overwrite them.
        OSError: if the disk does not give one back, which is no damage: another attempt may succeed.
    """
    skipped: list[str] = []
    for folder in reversed(list_checkpoints(save_dir)):
        try:
            return folder, read_checkpoint(folder), skipped
        except ValueError as error:
            skipped.append(str(error))
    if skipped:
        raise CheckpointError(
            f"{save_dir}: none of its {len(skipped)} checkpoints can be resumed from; to start over, give another "
            f"--save_dir or remove them: {'; '.join(skipped[:5])}"
        )
    return None, None, []


def read_resumed(save_dir: str | Path, where: str) -> tuple[Path | None, Any, list[str]]:
    """What :func:`read_newest` gives of the checkpoint to resume from, which may be a folder by name or "auto"."""
    return read_newest(save_dir) if where == "auto" else (Path(where), read_checkpoint(where), [])


def prune_checkpoints(save_dir: Path, keep: int, iteration: int) -> None:
    """Remove the oldest checkpoints beyond ``keep`` (0 keeps all) of those up to ``iteration``.

    Later ones are of another run in the same folder; they neither count nor push this run's out.
    """
    if keep > 0:
        mine = [path for path in list_checkpoints(save_dir) if int(path.name[len("iter_") :]) <= iteration]
        for folder in mine[:-keep]:
            gone = folder.with_name(f".{folder.name}.gone")  # not half of it under a checkpoint's name
            shutil.rmtree(gone, ignore_errors=True)
            os.replace(folder, gone)
            shutil.rmtree(gone)


def optimizer_arrays(optimizer: Any, model: Any) -> dict[str, Any]:
    """An optimizer's state by the model's parameter names.

    Paddle keys it by names counted up within the process ("linear_3.w_0"), which differ when anything else was
    built before.
    """
    state = optimizer.state_dict()
    state.pop("LR_Scheduler", None)
    masters = state.pop("master_weights", {})
    arrays = {}
    for name, parameter in model.named_parameters():
        prefix = f"{parameter.name}_"
        for key in [key for key in state if key.startswith(prefix)]:
            arrays[f"{name}|{key[len(prefix) :]}"] = state.pop(key)
        if parameter.name in masters:
            arrays[f"{name}|master"] = masters.pop(parameter.name)
    if state or masters:
        raise CheckpointError(f"optimizer state of no parameter: {', '.join([*state, *masters][:5])}")
    return arrays


def restore_optimizer(optimizer: Any, model: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Inverse of :func:`optimizer_arrays`.

    Raises:
        CheckpointError: if the state belongs to another model.
    """
    parameters = dict(model.named_parameters())
    names = {name: parameter.name for name, parameter in parameters.items()}
    # Paddle insists on a state of the scheduler, which is kept apart: its own changes nothing.
    scheduler = optimizer._learning_rate
    state: dict[str, Any] = {"LR_Scheduler": scheduler.state_dict() if hasattr(scheduler, "state_dict") else {}}
    masters: dict[str, Any] = {}
    for key, array in arrays.items():
        name, _, kind = key.partition("|")
        if name not in names:
            raise CheckpointError(f"the optimizer's state has {name!r}, which the model does not have")
        shape = tuple(parameters[name].shape)
        if array.size > 1 and array.shape != shape:
            raise CheckpointError(f"the optimizer's state of {name!r} is {array.shape}, the model's parameter {shape}")
        if kind == "master":
            masters[names[name]] = paddle.to_tensor(array)
        else:
            state[f"{names[name]}_{kind}"] = paddle.to_tensor(array)
    if masters:
        state["master_weights"] = masters
    with warnings.catch_warnings():
        # LinearWarmup says so of its own state, always.
        warnings.filterwarnings("ignore", "There are some unused values in state_dict")
        optimizer.set_state_dict(state)
