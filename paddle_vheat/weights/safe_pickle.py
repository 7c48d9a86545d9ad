"""Unpickling that can build arrays and plain containers, and nothing else.

A pickle is a program. ``paddle.load`` and ``torch.load`` run it; this module does not: every class or function
that a file names outside a short list becomes an error (``.pdparams``) or an inert placeholder (``.pth``, whose
training state names arbitrary classes).
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


class UnsafeFileError(ValueError):
    """A file that asks for code to be run, or is not what its name says."""


def _reconstruct_array(subtype: Any, shape: Any, dtype: Any) -> np.ndarray:
    """Stand-in for NumPy's ``_reconstruct``: the empty array whose contents the pickle then sets."""
    if subtype is not np.ndarray:
        raise UnsafeFileError(f"expected a plain array, got {subtype!r}")
    return np.ndarray.__new__(np.ndarray, (0,), "b")


def _array_from_buffer(buffer: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    """Stand-in for NumPy's ``_frombuffer`` (pickle protocol 5)."""
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)  # type: ignore[call-overload]


def _plain_dtype(*args: Any) -> np.dtype:
    """NumPy dtype of numbers; object arrays would bring the whole of pickle back in."""
    dtype = np.dtype(*args)
    if dtype.hasobject:
        raise UnsafeFileError("arrays of Python objects are not weights")
    return dtype


ARRAY_BUILDERS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _plain_dtype,
}
for _core in ("numpy.core", "numpy._core"):
    ARRAY_BUILDERS[(f"{_core}.multiarray", "_reconstruct")] = _reconstruct_array
    ARRAY_BUILDERS[(f"{_core}.numeric", "_frombuffer")] = _array_from_buffer


class ArrayUnpickler(pickle.Unpickler):
    """Unpickler of arrays and containers.

    Args:
        file: open binary file.
        name: what to call the file in an error.
        builders: the classes and functions that the file may name.
        placeholder: called with (module, name) for anything else; None makes that an error.
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        builders: dict[tuple[str, str], Any] = ARRAY_BUILDERS,
        placeholder: Callable[[str, str], Any] | None = None,
    ) -> None:
        super().__init__(file)
        self.name = name
        self.builders = builders
        self.placeholder = placeholder

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.builders:
            return self.builders[(module, name)]
        if self.placeholder is not None:
            return self.placeholder(module, name)
        raise UnsafeFileError(
            f"{self.name}: asks for {module}.{name}; a file of weights holds arrays only, so it was not read"
        )


def load_arrays(path: str | Path) -> Any:
    """Read a file written by ``paddle.save`` (or pickled arrays) without running code from it.

    Returns:
        What was saved, with NumPy arrays for tensors (bfloat16 as uint16, as Paddle stores it).

    Raises:
        FileNotFoundError: if there is no such file.
        UnsafeFileError: if it is no such file, is truncated, or asks for anything but arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    with path.open("rb") as file:
        head = file.read(16)
        if not head.startswith(b"\x80"):
            kind = "is empty" if not head else f"starts with {head!r}"
            raise UnsafeFileError(f"{path}: not a file of Paddle weights (it {kind}, a pickle starts with b'\\x80')")
        file.seek(0)
        try:
            return ArrayUnpickler(file, str(path)).load()
        except UnsafeFileError:
            raise
        except Exception as error:
            # A damaged pickle can fail in any way: EOFError, KeyError, ValueError, UnicodeDecodeError ...
            raise UnsafeFileError(
                f"{path}: damaged or truncated ({path.stat().st_size} bytes; {type(error).__name__}: {error})"
            ) from error
