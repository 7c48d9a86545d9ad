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

from paddle_vheat._files import no_such_file
from paddle_vheat.weights.safe_pickle import ARRAY_BUILDERS, ArrayUnpickler, UnsafeFileError, errors_naming

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

    def __call__(self, *args: Any, **kwargs: Any) -> Placeholder:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass


class _StorageType:
    def __init__(self, name: str) -> None:
        self.name = name


def _rebuild_tensor(storage: np.ndarray, offset: int, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """The array that a tensor describes: a read-only, strided view of its storage.

    A copy would let a small file claim any amount of memory, by many tensors of one storage.
    """
    size, stride = tuple(size), tuple(stride)
    if len(size) != len(stride) or offset < 0 or min((*size, *stride), default=0) < 0:
        raise UnsafeFileError(f"a tensor of impossible shape {size}, strides {stride}, offset {offset}")
    if math.prod(size) == 0:
        return np.zeros(size, storage.dtype)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride))
    # A stride of 0 would let a few bytes in the file claim terabytes in memory.
    if last >= storage.size or math.prod(size) > storage.size:
        raise UnsafeFileError(f"a tensor of shape {size} reaches past the {storage.size} values of its storage")
    return np.lib.stride_tricks.as_strided(
        storage[offset:], size, [s * storage.itemsize for s in stride], writeable=False
    )


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


class _TorchUnpickler(ArrayUnpickler):
    builders = {
        **ARRAY_BUILDERS,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        **{("torch", name): _StorageType(name) for name in _STORAGE_DTYPES},
    }
    stateful = (*ArrayUnpickler.stateful, Placeholder)

    def __init__(self, archive: zipfile.ZipFile, root: str, size: int) -> None:
        self.archive = archive
        self.root = root
        self.left = size  # bytes of the file that have not been used yet
        self.storages: dict[str, np.ndarray] = {}
        super().__init__(io.BytesIO(self.read_entry("data.pkl")))

    def find_class(self, module: str, name: str) -> Any:
        return self.builders.get((module, name), Placeholder)

    def read_entry(self, name: str) -> bytes:
        """An entry of the archive; no more of them than the file can hold, so that a small one stays small."""
        entry = self.archive.getinfo(f"{self.root}{name}")
        self.left -= entry.file_size
        if entry.compress_type != zipfile.ZIP_STORED or self.left < 0:
            raise UnsafeFileError(f"the entry {name} is compressed or overlaps another; PyTorch writes no such file")
        return self.archive.read(entry)

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage_type, key, _, count = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise UnsafeFileError(f"a reference to {kind!r}, which is no storage of numbers that NumPy knows")
        if key not in self.storages:
            dtype = _STORAGE_DTYPES[storage_type.name]
            array = np.frombuffer(self.read_entry(f"data/{key}"), "<u2" if dtype == "bf16" else dtype)
            if array.size != count:
                raise UnsafeFileError(f"storage {key} holds {array.size} values, expected {count}")
            if dtype == "bf16":  # the upper half of a float32
                array = (array.astype(np.uint32) << 16).view(np.float32)
                array.flags.writeable = False
            self.storages[key] = array
        return self.storages[key]


def read_torch_file(path: str | Path) -> Any:
    """Read a zip-format ``.pth``.

    Returns:
        The saved object, with read-only NumPy arrays for tensors (bfloat16 widened to float32; not contiguous
        where the tensor was not) and a :class:`Placeholder` for every object of another class.

    Raises:
        FileNotFoundError: if there is no such file.
        UnsafeFileError: if it is not a zip-format checkpoint, or is damaged.
    """
    path = Path(path)
    if why := no_such_file(path):
        raise FileNotFoundError(why)
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
    with errors_naming(path), zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UnsafeFileError("a zip archive, but not a PyTorch checkpoint (no data.pkl in it)")
        unpickler = _TorchUnpickler(archive, pickles[0][: -len("data.pkl")], path.stat().st_size)
        if f"{unpickler.root}byteorder" in archive.namelist() and unpickler.read_entry("byteorder") != b"little":
            raise UnsafeFileError("written on a big-endian machine, which is not supported")
        return unpickler.load()
