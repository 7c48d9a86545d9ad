"""One file operation below a folder that fails as a disk fails: once, and then all is well again."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.conftest import paddle

ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES)
_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.listdir", "os.scandir")
_active: list[Faults] = []


class Faults:
    """Counts the operations below ``folder``, or of names relative to a folder that rmtree holds open.

    Args:
        at: the number of the operation that fails, from 0; None for none.
        code: the system's error.
    """

    def __init__(self, folder: Path, at: int | None, code: int) -> None:
        self.folder, self.at, self.code = str(folder), at, code
        self.operations: list[str] = []

    def step(self, what: str, path: Any) -> None:
        name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else ""
        relative = what in ("os.remove", "os.rmdir") and name and "/" not in name
        if not (relative or name == self.folder or name.startswith((f"{self.folder}/", f"{self.folder}."))):
            return
        self.operations.append(f"{what} {name.replace(self.folder, '')}")
        if len(self.operations) - 1 == self.at:
            raise OSError(self.code, os.strerror(self.code), name)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _active and event in _EVENTS:
        _active[-1].step(event, arguments[0])


sys.addaudithook(_audit)  # for good; does nothing outside of `failing`


def _half(original: Callable[..., Any], place: int) -> Callable[..., Any]:
    """A writing function that, where it fails, has written a half."""

    def write(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        path = arguments[place]
        try:
            _active[-1].step("write", path)
        except OSError:
            os.truncate(path, os.path.getsize(path) // 2)
            raise
        return result

    return write


def _before(original: Callable[..., Any], what: str, name: Callable[[Any], Any]) -> Callable[..., Any]:
    def call(path: Any, *arguments: Any, **options: Any) -> Any:
        _active[-1].step(what, name(path))
        return original(path, *arguments, **options)

    return call


@contextlib.contextmanager
def failing(monkeypatch: Any, folder: Path, at: int | None = None, code: int = errno.EIO) -> Iterator[Faults]:
    """Inside, the operation fails; yields what has been counted."""
    faults = Faults(folder, at, code)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", _half(Path.write_text, 0))
        patch.setattr(paddle, "save", _half(paddle.save, 1))
        patch.setattr(os, "stat", _before(os.stat, "stat", lambda path: path))
        patch.setattr(os, "fsync", _before(os.fsync, "fsync", lambda handle: os.readlink(f"/proc/self/fd/{handle}")))
        _active.append(faults)
        try:
            yield faults
        finally:
            _active.pop()
