"""Reading PyTorch's zip-format checkpoints without PyTorch and without running code from them.

A ``.pth`` of PyTorch 1.6 or later is a zip archive: ``<root>/data.pkl``, a pickle that describes tensors as
(storage, offset, shape, strides), and one ``<root>/data/<key>`` of raw little-endian values per storage.
"""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat.weights.safe_pickle import ARRAY_BUILDERS, ArrayUnpickler, UnsafeFileError

# bfloat16 has no NumPy dtype: it is read as uint16 and widened to float32 below.
_STORAGE_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bf16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class Placeholder:
    """Stands for an object of a class that is none of our business (configs, optimizers, ...); holds nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


class _StorageType:
    def __init__(self, name: str) -> None:
        self.name = name


def _rebuild_tensor(storage: np.ndarray, offset: int, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """The (copied, contiguous) array that a tensor describes: a strided view of its storage."""
    size, stride = tuple(size), tuple(stride)
    if len(size) != len(stride) or offset < 0 or min((*size, *stride), default=0) < 0:
        raise UnsafeFileError(f"a tensor of impossible shape {size}, strides {stride}, offset {offset}")
    if math.prod(size) == 0:
        return np.zeros(size, storage.dtype)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride))
    # A stride of 0 would let a few bytes in the file claim terabytes in memory.
    if last >= storage.size or math.prod(size) > storage.size:
        raise UnsafeFileError(f"a tensor of shape {size} reaches past the {storage.size} values of its storage")
    view = np.lib.stride_tricks.as_strided(
        storage[offset:], size, [s * storage.itemsize for s in stride], writeable=False
    )
    array = np.array(view, order="C")
    if storage.dtype == np.dtype("<u2"):  # bfloat16: the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


_BUILDERS: dict[tuple[str, str], Any] = {
    **ARRAY_BUILDERS,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): _StorageType(name) for name in _STORAGE_DTYPES},
}


class _TorchUnpickler(ArrayUnpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str, path: str) -> None:
        stream = io.BytesIO(archive.read(f"{root}data.pkl"))
        super().__init__(stream, path, _BUILDERS, placeholder=lambda module, name: Placeholder)
        self.archive = archive
        self.root = root
        self.storages: dict[str, np.ndarray] = {}

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage_type, key, _, count = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise UnsafeFileError(f"{self.name}: unknown reference {kind!r}")
        if key not in self.storages:
            dtype = _STORAGE_DTYPES[storage_type.name]
            raw = self.archive.read(f"{self.root}data/{key}")
            array = np.frombuffer(raw, "<u2" if dtype == "bf16" else dtype)
            if array.size != count:
                raise UnsafeFileError(f"{self.name}: storage {key} holds {array.size} values, expected {count}")
            self.storages[key] = array
        return self.storages[key]


def read_torch_file(path: str | Path) -> Any:
    """Read a zip-format ``.pth``.

    Returns:
        The saved object, with NumPy arrays for tensors (bfloat16 widened to float32) and a
        :class:`Placeholder` for every object of another class.

    Raises:
        FileNotFoundError: if there is no such file.
        UnsafeFileError: if it is not a zip-format checkpoint, or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    with path.open("rb") as file:
        head = file.read(16)
    if not head.startswith(b"PK"):
        if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
            kind = "an HTML page (a download that failed?)"
        elif head.startswith(b"\x80"):
            kind = "a bare pickle: PyTorch's format before 1.6, or a Paddle file; save it again with PyTorch >= 1.6"
        else:
            kind = f"of an unknown kind (it starts with {head!r})"
        raise UnsafeFileError(f"{path}: expected a zip-format PyTorch checkpoint, but it is {kind}")
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise UnsafeFileError(f"{path}: a zip archive, but not a PyTorch checkpoint (no data.pkl in it)")
            root = pickles[0][: -len("data.pkl")]
            return _TorchUnpickler(archive, root, str(path)).load()
    except UnsafeFileError:
        raise
    except Exception as error:
        raise UnsafeFileError(
            f"{path}: damaged or truncated ({path.stat().st_size} bytes; {type(error).__name__}: {error})"
        ) from error
