"""VisualDL records of a run that goes on: one file, without gap and without repetition.

VisualDL shows the newest file of a folder only, so a resumed run that began another would hide its own past. And
what was recorded after the checkpoint is recorded again.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paddle_vheat.weights.loading import write_atomically


def _read(path: Path) -> Iterator[tuple[int, bytes]]:
    """Iteration and content of a file's records (each its length in 8 bytes, then a protocol buffer).

    Ends at one that was cut short by a kill.
    """
    from google.protobuf.message import DecodeError
    from visualdl.proto import record_pb2

    with path.open("rb") as file:
        while len(head := file.read(8)) == 8:
            (size,) = struct.unpack("<Q", head)
            content = file.read(min(size, path.stat().st_size))
            try:
                values = record_pb2.Record.FromString(content).values
            except DecodeError:
                return
            if len(content) < size or not values:
                return
            yield int(values[0].id), content


def continue_records(folder: Path, iteration: int) -> Any:
    """A ``LogWriter`` that adds to the records in ``folder``, once those after ``iteration`` have been taken out."""
    from visualdl import LogWriter

    earlier = sorted(folder.glob("vdlrecords.*.log"))
    if not earlier:
        return LogWriter(str(folder))
    kept = [content for path in earlier for step, content in _read(path) if step <= iteration]

    def write(temporary: str) -> None:
        with open(temporary, "wb") as file:
            for content in kept:
                file.write(struct.pack("<Q", len(content)) + content)

    write_atomically(earlier[-1], write)
    for path in earlier[:-1]:
        path.unlink()
    with contextlib.redirect_stdout(io.StringIO()):  # it says that the file exists
        return LogWriter(str(folder), file_name=earlier[-1].name)
