"""Reading the text files that list images and their labels."""

from __future__ import annotations

import os

from paddle_vheat._files import not_a_file
from paddle_vheat.errors import DataError, MissingFileError


def read_list(path: str | os.PathLike[str], separator: str = " ") -> list[str]:
    """The lines of a list file, in order and with the empty ones, without their ends.

    A byte order mark, as editors on Windows write it, is no part of the first line.

    Args:
        path: a text file in UTF-8.
        separator: what stands between the columns; a line that has a tab in its place is an error.

    Raises:
        MissingFileError: if there is no such file, or the path is that of a folder, a FIFO or a device.
        DataError: naming the file and the line, if it is no text in UTF-8, or has a tab where the separator is none.
    """
    name = os.fspath(path)
    why = not_a_file(path)
    if why:
        raise MissingFileError(f"cannot read the list {name}: {why}")
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.rstrip("\n") for line in file]
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: no text file in UTF-8: {error}") from error
    for number, line in enumerate(lines, start=1):
        if "\t" in line.strip() and "\t" not in separator:
            raise DataError(f"{name}, line {number}: a tab; expected {separator!r} between the columns, got {line!r}")
    return lines
