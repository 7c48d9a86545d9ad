"""vHeat for PaddlePaddle: a vision backbone that conducts heat instead of attending.

The public names are loaded on first use, so that ``import paddle_vheat`` is instant and quiet, and so that
the command lines can choose CPU settings which the framework reads only once, before it is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paddle_vheat import ops
    from paddle_vheat.models import UPerNet, VHeat, VHeatClassifier, create_model, list_models
    from paddle_vheat.tasks.classification.transforms import create_transform

__version__ = "0.2.0"
__all__ = [
    "UPerNet", "VHeat", "VHeatClassifier", "__version__", "create_model", "create_transform", "list_models", "ops",
]  # fmt: skip

# Paddle 2.6's library offers the old zlib that it contains to whatever is loaded after it. OpenCV and Pillow take a
# part of its functions and the rest from the system's zlib, and then crash or fail on PNG files; not so if the
# system's is offered first, which it must be before anything imports Paddle.
with contextlib.suppress(OSError):  # not Linux
    ctypes.CDLL("libz.so.1", mode=ctypes.RTLD_GLOBAL)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'paddle_vheat' has no attribute {name!r}")
    if name == "ops":
        return importlib.import_module("paddle_vheat.ops")
    home = "paddle_vheat.tasks.classification.transforms" if name == "create_transform" else "paddle_vheat.models"
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
