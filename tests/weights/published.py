"""Writing checkpoints in the published layouts, as PyTorch would, without PyTorch."""

from __future__ import annotations

import io
import pickle
import sys
import types
import zipfile
from contextlib import contextmanager

import numpy as np

_STORAGES = {"f4": "FloatStorage", "f2": "HalfStorage", "i8": "LongStorage", "f8": "DoubleStorage"}


class _Storage:
    def __init__(self, key, array):
        self.key, self.array = key, array


class _Tensor:
    """Pickles as a torch tensor: a call of ``_rebuild_tensor_v2`` on a reference to its storage."""

    def __init__(self, key, array):
        self.storage, self.array = _Storage(key, array), array

    def __reduce__(self):
        strides = tuple(s // self.array.itemsize for s in self.array.strides)
        arguments = self.storage, 0, self.array.shape, strides, False, {}
        return sys.modules["torch._utils"]._rebuild_tensor_v2, arguments


@contextmanager
def _fake_torch():
    """Modules of the names that a checkpoint refers to, for as long as it is pickled."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*arguments):
        raise AssertionError("only its name is needed")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    for name in _STORAGES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    previous = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules.update({"torch": torch, "torch._utils": utils})
    try:
        yield torch
    finally:
        for name, module in previous.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def write_torch_file(path, content):
    """Write ``content`` (dicts, with arrays for tensors) as a zip-format ``.pth``."""
    tensors = []

    def wrap(value):
        if isinstance(value, np.ndarray):
            tensors.append(_Tensor(str(len(tensors)), np.ascontiguousarray(value)))
            return tensors[-1]
        return {key: wrap(item) for key, item in value.items()} if isinstance(value, dict) else value

    with _fake_torch() as torch:

        class Pickler(pickle.Pickler):
            def persistent_id(self, item):
                if not isinstance(item, _Storage):
                    return None
                kind = getattr(torch, _STORAGES[item.array.dtype.str[1:]])
                return "storage", kind, item.key, "cpu", item.array.size

        stream = io.BytesIO()
        Pickler(stream, protocol=2).dump(wrap(content))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        for tensor in tensors:
            archive.writestr(f"archive/data/{tensor.storage.key}", tensor.array.tobytes())


def published_shapes(width, depths, post_norm, size=224, classes=1000, folded=False):
    """Names and shapes of a classification checkpoint, from the layout's description."""
    shapes = {
        "patch_embed.conv1.weight": (width // 2, 3, 3, 3),
        "patch_embed.conv1.bias": (width // 2,),
        "patch_embed.norm1.1.weight": (width // 2,),
        "patch_embed.norm1.1.bias": (width // 2,),
        "patch_embed.conv2.weight": (width, width // 2, 3, 3),
        "patch_embed.conv2.bias": (width,),
        "patch_embed.norm2.1.weight": (width,),
        "patch_embed.norm2.1.bias": (width,),
    }
    for stage, depth in enumerate(depths):
        c, side = width * 2**stage, size // 2 ** (stage + 2)
        if not folded:
            shapes[f"freq_embed.{stage}"] = (side, side, c)
        for block in range(depth):
            name = f"layers.{stage}.{block}"
            for norm in ("norm1", "norm2", "op.out_norm"):
                shapes[f"{name}.{norm}.weight"] = shapes[f"{name}.{norm}.bias"] = (c,)
            shapes[f"{name}.op.dwconv.weight"], shapes[f"{name}.op.dwconv.bias"] = (c, 1, 3, 3), (c,)
            shapes[f"{name}.op.linear.weight"], shapes[f"{name}.op.linear.bias"] = (2 * c, c), (2 * c,)
            shapes[f"{name}.op.out_linear.weight"], shapes[f"{name}.op.out_linear.bias"] = (c, c), (c,)
            if folded:
                shapes[f"{name}.op.k_exp"] = (side, side, c)
            else:
                shapes[f"{name}.op.to_k.0.weight"], shapes[f"{name}.op.to_k.0.bias"] = (c, c), (c,)
            shapes[f"{name}.mlp.fc1.weight"], shapes[f"{name}.mlp.fc1.bias"] = (4 * c, c, 1, 1), (4 * c,)
            shapes[f"{name}.mlp.fc2.weight"], shapes[f"{name}.mlp.fc2.bias"] = (c, 4 * c, 1, 1), (c,)
            if post_norm:
                shapes[f"{name}.gamma1"] = shapes[f"{name}.gamma2"] = (c,)
        if stage < 3:
            shapes[f"layers.{stage}.{depth}.0.weight"] = (2 * c, c, 3, 3)
            shapes[f"layers.{stage}.{depth}.1.weight"] = shapes[f"layers.{stage}.{depth}.1.bias"] = (2 * c,)
    last = width * 8
    shapes["classifier.0.weight"] = shapes["classifier.0.bias"] = (last,)
    shapes["classifier.3.weight"], shapes["classifier.3.bias"] = (classes, last), (classes,)
    return shapes


def random_state(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, dtype=np.float32) * 0.05 for name, shape in shapes.items()}
