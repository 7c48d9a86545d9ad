"""Writing files and folders whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from paddle_vheat.errors import UserError

_OLD = 24 * 3600  # seconds after which a temporary folder of another computer is a dead process's
_KINDS = (
    (stat.S_ISREG, ""),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO (named pipe)"),
    (stat.S_ISSOCK, "a socket"),
)


def not_a_file(path: str | os.PathLike[str]) -> str:
    """Why a path is not that of a file, such as "it is a folder, not a file"; empty if it is one.

    Opening a FIFO would wait for ever, and reading a device may never end.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file"
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        return f"it cannot be opened ({error})"
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "a device")
    return kind and f"it is {kind}, not a file"


def no_such_file(path: str | os.PathLike[str], what: str = "file") -> str:
    """ "no such file: PATH", and what it is instead; empty if it is a file."""
    why = not_a_file(path)
    return why and f"no such {what}: {os.fspath(path)}" + ("" if "no such" in why else f" ({why})")


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Inside, a system's error that names no file, such as a full disk's, is raised with this file's name."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


def cache_home() -> Path:
    """``$PADDLE_VHEAT_HOME``, or ``~/.cache/paddle_vheat``."""
    home = os.environ.get("PADDLE_VHEAT_HOME")
    return Path(home or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "paddle_vheat")).expanduser()


def write_atomically(path: str | Path, write: Callable[[str], Any]) -> None:
    """Call ``write(temporary path)``, flush the result to disk and move it to ``path``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = str(path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp"))
    try:
        with naming(path):
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            mode = stat.S_IMODE(os.stat(temporary).st_mode)  # any new file's
            write(temporary)
            sync(temporary)
        os.chmod(temporary, mode)  # safetensors makes a file of its own, which is the user's alone
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def replace_folder(folder: str | Path, write: Callable[[Path], Any]) -> None:
    """Fill a folder by ``write(temporary folder)`` and put it in the place of ``folder`` in one step.

    A symbolic link stays one: what it points to is replaced. What dead processes left of earlier calls is removed.
    """
    folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(folder)
    temporary = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        write(temporary)
        for path in temporary.iterdir():
            sync(path)
        aside = _aside(folder)
        shutil.rmtree(aside, ignore_errors=True)
        if folder.exists():
            os.replace(folder, aside)
        try:
            os.replace(temporary, folder)
        except BaseException:
            if aside.exists():
                os.replace(aside, folder)
            raise
        sync(folder.parent)
        shutil.rmtree(aside, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def clear_leftovers(folder: Path) -> None:
    """Remove what killed calls of :func:`replace_folder` left beside ``folder``, and finish or undo their exchange."""
    aside = _aside(folder)
    if aside.exists():
        if folder.exists():
            shutil.rmtree(aside)
        else:  # killed between the two renames
            os.replace(aside, folder)
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.(?P<host>.+)\.(?P<process>\d+)\.tmp")
    for path in folder.parent.iterdir():
        found = pattern.fullmatch(path.name)
        if found is not None and not _may_be_alive(found["host"], int(found["process"]), path):
            shutil.rmtree(path, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _may_be_alive(host: str, process: int, path: Path) -> bool:
    if host != socket.gethostname():
        with contextlib.suppress(OSError):
            return time.time() - path.stat().st_mtime < _OLD
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return process != os.getpid()  # one call at a time in a process: of the own there is none yet


def sync(path: str | Path) -> None:
    """Have a file or folder written to the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_disk(folder: Path) -> None:
    """Raise the system's error if no file can be written into a folder; libraries hide it, or go on without a word."""
    with naming(folder), tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())


def check_output(path: str, name: str) -> None:
    """Raise a UserError if a file cannot be written there, before time is spent; ``name`` is the option's."""
    folder = Path(path).parent
    if not folder.is_dir():
        raise UserError(f"{name} {path}: there is no folder {folder}")
    if Path(path).is_dir():
        raise UserError(f"{name} {path}: is a folder")


def check_folder(path: str | Path, name: str) -> None:
    """Raise a UserError if nothing can be written into a folder, or it cannot be made; ``name`` is the option's."""
    folder = Path(os.path.realpath(path))
    there = next(one for one in (folder, *folder.parents) if one.exists())
    if not there.is_dir():
        raise UserError(f"{name} {path}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{name} {path}: nothing may be written into {there}")


def write_output(path: str, text: str) -> None:
    """Write a text file whole or not at all; into what is no regular file (a pipe, a device) as it comes."""
    target = Path(path)
    if target.exists() and not target.is_file():
        with naming(target), target.open("w", encoding="utf-8") as file:  # replacing it would remove the device
            file.write(text)
        return
    write_atomically(
        Path(os.path.realpath(target)), lambda temporary: Path(temporary).write_text(text, encoding="utf-8")
    )


def finite(value: Any) -> Any:
    """Plain values for JSON, which has neither NaN nor infinity: None in their place."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
