"""Unpickling that can build arrays and plain containers, and nothing else.

A pickle is a program. ``paddle.load`` and ``torch.load`` run it; this module does not: every class or function
that a file names outside a short list becomes an error (``.pdparams``) or an inert placeholder (``.pth``, whose
training state names arbitrary classes). What is on the list is ours, not NumPy's, and takes no more memory than
the file: an array is a read-only view of the bytes that the file holds for it.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat._files import no_such_file
from paddle_vheat.errors import UserError


class UnsafeFileError(UserError):
    """A file that asks for code to be run, or is not what its name stands for."""


class _Dtype:
    """A NumPy dtype of numbers, as pickles describe one: a code, and a state that holds the byte order."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        # Objects, above all, would bring the whole of pickle back in.
        if not (isinstance(code, str) and re.fullmatch(r"[biufc][0-9]{1,2}", code)):
            raise UnsafeFileError(f"an array of {code!r}; weights are arrays of numbers")
        self.value = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.value = self.value.newbyteorder(state[1])


class _Array:
    """An array that is being built: nothing at first, then given its state."""

    def __init__(self) -> None:
        self.value = np.zeros(0, np.int8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.fill(content, dtype, shape, "F" if fortran else "C")

    def fill(self, content: Any, dtype: Any, shape: Any, order: Any) -> None:
        if not isinstance(content, (bytes, bytearray)) or not isinstance(dtype, _Dtype):
            raise UnsafeFileError(f"an array made of {type(content).__name__}, not of numbers")
        if min(shape, default=0) < 0 or len(content) != math.prod(shape) * dtype.value.itemsize:
            raise UnsafeFileError(f"an array of shape {shape} made of {len(content)} bytes")
        self.value = np.frombuffer(content, dtype.value).reshape(shape, order=order)
        self.value.flags.writeable = False


class _Dict(dict):
    """Stands for an ``OrderedDict``; what is set on it beside its items (PyTorch's ``_metadata``) is dropped."""

    def __init__(self) -> None:  # no items here: a file could repeat the same ones without end
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


_NDARRAY = object()  # the name of NumPy's array class in a file; there is nothing to call


def _reconstruct(subtype: Any, shape: Any, dtype: Any) -> _Array:
    """NumPy's ``_reconstruct``: the empty array whose state the pickle then sets."""
    if subtype is not _NDARRAY:
        raise UnsafeFileError(f"expected a plain array, got {subtype!r}")
    return _Array()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """NumPy's ``_frombuffer`` (pickle protocol 5)."""
    array = _Array()
    array.fill(content, dtype, shape, order)
    return array


def _paddle_tensor(name_and_array: Any) -> Any:
    """The call ``tuple((name, array))`` by which Paddle writes a tensor that is not in a flat dict."""
    _, array = name_and_array
    return array


ARRAY_BUILDERS: dict[tuple[str, str], Any] = {
    ("builtins", "tuple"): _paddle_tensor,
    ("collections", "OrderedDict"): _Dict,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Dtype,
}
for _core in ("numpy.core", "numpy._core"):
    ARRAY_BUILDERS[(f"{_core}.multiarray", "_reconstruct")] = _reconstruct
    ARRAY_BUILDERS[(f"{_core}.numeric", "_frombuffer")] = _from_buffer


# The C unpickler keeps its memo in an array as long as the largest index in the file, so that ten bytes can ask
# for all memory; the one in Python keeps a dict. It is as fast here: nearly all of a file is a few large blocks.
class ArrayUnpickler(pickle._Unpickler):
    """Unpickler of arrays and containers."""

    dispatch = dict(pickle._Unpickler.dispatch)
    builders = ARRAY_BUILDERS
    """The classes and functions that the file may name."""
    stateful: tuple[type, ...] = (_Array, _Dtype, _Dict)
    """Classes whose instances may be given a state."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.builders:
            return self.builders[(module, name)]
        raise UnsafeFileError(f"asks for {module}.{name}; a file of weights holds arrays only, so it was not read")

    def _set_state(self) -> None:
        """The opcode BUILD. Python's own would set any attribute, of the classes and functions above as well."""
        state, target = self.stack.pop(), self.stack[-1]  # type: ignore[attr-defined]
        if not isinstance(target, self.stateful):
            raise UnsafeFileError(f"sets the state of a {type(target).__name__}")
        target.__setstate__(state)  # type: ignore[attr-defined]

    dispatch[pickle.BUILD[0]] = _set_state  # type: ignore[assignment]

    def load(self) -> Any:
        """What the file describes, with the finished arrays."""
        return _finished(super().load(), {})


def _finished(value: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    """Put every array in the place of what built it, throughout nested dicts, lists and tuples.

    ``done`` holds (before, after) by the identity of what was before, so that what the file names twice is
    visited once.
    """
    if isinstance(value, _Array):
        return value.value
    if not isinstance(value, (dict, list, tuple)):
        return value
    if id(value) in done:
        return done[id(value)][1]
    if isinstance(value, tuple):
        result = tuple(_finished(item, done) for item in value)
        done[id(value)] = value, result
        return result
    done[id(value)] = value, value
    for key in value if isinstance(value, dict) else range(len(value)):
        value[key] = _finished(value[key], done)
    return value


@contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Inside, whatever goes wrong with a file becomes an UnsafeFileError that names it."""
    try:
        yield
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{path}: {error}") from error
    except Exception as error:
        # A damaged file can fail in any way: EOFError, KeyError, ValueError, UnicodeDecodeError ...
        raise UnsafeFileError(
            f"{path}: damaged or truncated ({path.stat().st_size} bytes; {type(error).__name__}: {error})"
        ) from error


def load_arrays(path: str | Path) -> Any:
    """Read a file written by ``paddle.save`` (or pickled arrays) without running code from it.

    Returns:
        What was saved, with read-only NumPy arrays for tensors (bfloat16 as uint16, as Paddle stores it).

    Raises:
        FileNotFoundError: if there is no such file.
        UnsafeFileError: if it is no such file, is truncated, or asks for anything but arrays.
    """
    path = Path(path)
    if why := no_such_file(path):
        raise FileNotFoundError(why)
    with path.open("rb") as file:
        head = file.read(16)
        if not head.startswith(b"\x80"):
            kind = "is empty" if not head else f"starts with {head!r}"
            raise UnsafeFileError(f"{path}: not a file of Paddle weights (it {kind}, a pickle starts with b'\\x80')")
        file.seek(0)
        with errors_naming(path):
            return ArrayUnpickler(file).load()
