"""Mistakes of the user: told in one line, with exit code 2. Anything else that is raised is a fault of the program.

The commands print a :class:`UserError` and the system's errors of files (``OSError``) without a traceback, and every
other exception with one. So code that reads what a user wrote raises one of these, and wraps what a library raises
there.
"""

from __future__ import annotations

from collections.abc import Sequence


class UserError(ValueError):
    """A mistake in what a command or function was given. ``problems`` holds one text for each mistake."""

    _problems: Sequence[str] = ()

    @property
    def problems(self) -> list[str]:
        return list(self._problems) or [str(self)]


class ConfigError(UserError):
    """A configuration that cannot be used; the message names the file and the key.

    Args:
        text: the message; with ``problems``, the file's name.
        problems: several mistakes in one file, each on a line of its own.
    """

    def __init__(self, text: str, problems: Sequence[str] = ()) -> None:
        super().__init__(f"{text}:\n  " + "\n  ".join(problems) if problems else text)
        self._problems = [f"{text}: {problem}" for problem in problems]


class MissingFileError(ConfigError, FileNotFoundError):
    """A configuration names a folder or a file that does not exist."""


class DataError(UserError):
    """A sample of a data set that cannot be used; the message names its file."""


class CheckpointError(UserError):
    """A checkpoint that cannot be resumed from, or a folder that may not be written; the message says why."""


class ExportError(UserError):
    """The exported model does not do what the trained one does, or cannot be made."""
