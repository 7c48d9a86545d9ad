"""Kernels in C for a CPU (``native.c``, ``products.c``): compiled on first use, done without if no compiler is there.

Paddle's kernels for anything but matrix products run in one thread and pass over memory several times, which in a
training step takes as long as the products (docs/performance.md). These share the threads of Paddle's own products:
they are linked to the OpenMP library that Paddle has loaded, and to its MKL.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import operator
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from paddle_vheat._files import cache_home, write_atomically
from paddle_vheat._paddle import paddle
from paddle_vheat.cpu import processor_fields

Tensor = Any

SOURCES = tuple(Path(__file__).with_name(name) for name in ("native.c", "products.c", "kernels.h"))
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels are there and take these tensors."""
    if not paddle.in_dynamic_mode() or missing():
        return False
    float32 = paddle.float32
    return all(x.dtype == float32 and x.place.is_cpu_place() and 0 not in x.shape for x in tensors)


def missing() -> str:
    """Why the kernels are not there; empty where they are."""
    return _load()[1]


# Calls that Paddle's tracing of bytecode does not look into; 2.6 knows no such methods of a tensor, and gives up.
_is_contiguous, _address = operator.methodcaller("is_contiguous"), operator.methodcaller("data_ptr")


def run(name: str, *arguments: Any) -> None:
    """Call a kernel: float32 tensors on the CPU as ``float *``, ints as ``int64_t``, floats, None as no array."""
    kept: list[Any] = []  # a copy lives until the kernel is done
    given: list[Any] = []
    for value in arguments:
        if isinstance(value, int):
            given.append(ctypes.c_int64(value))
        elif isinstance(value, float):
            given.append(ctypes.c_float(value))
        elif value is None:
            given.append(ctypes.c_void_p(None))
        else:
            kept.append(value if _is_contiguous(value) else value.contiguous())
            given.append(ctypes.c_void_p(_address(kept[-1])))
    getattr(_load()[0], name)(*given)


@functools.lru_cache(maxsize=1)
def _load() -> tuple[Any, str]:
    """The library, and why there is none."""
    if os.environ.get("PADDLE_VHEAT_NATIVE", "").lower() == "off":
        return None, "switched off by PADDLE_VHEAT_NATIVE=off"
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        openmp = next((line.split(maxsplit=5)[-1] for line in maps if line.endswith("/libiomp5.so")), None)
        if openmp is None:
            return None, "this Paddle is without Intel's OpenMP library"
        mkl = Path(openmp).with_name("libmklml_intel.so")  # beside it; loaded with Paddle's first product
        if not mkl.exists():
            return None, "this Paddle is without Intel's MKL"
        return ctypes.CDLL(str(_compiled([openmp, str(mkl)]))), ""
    except subprocess.CalledProcessError as error:
        return None, f"{error.cmd[0]}: {(error.stderr.splitlines() or ['failed'])[0]}"
    except OSError as error:
        return None, str(error)


def _compiled(libraries: list[str]) -> Path:
    """The shared library, compiled for this processor; kept in the cache."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    # The processor is to be taken for one without AVX-512, as by MKL (see cpu.py).
    flags = (*FLAGS, "-mno-avx512f") if os.environ.get("MKL_DEBUG_CPU_TYPE") == "5" else FLAGS
    fields = processor_fields()
    kind = [" ".join(fields.get(name, ())) for name in ("model name", "flags")]
    sources = [source.read_text(encoding="utf-8") for source in SOURCES]
    key = hashlib.sha256("\n".join([*sources, *compiler, *flags, *libraries, *kind]).encode())
    path = cache_home() / "native" / f"{key.hexdigest()[:16]}.so"

    def compile_to(target: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            # In two steps: linked with -fopenmp, it would have a second pool of threads, the compiler's own.
            compiled = {str(source): os.path.join(folder, f"{source.stem}.o") for source in SOURCES[:2]}
            commands = [[*compiler, *flags, "-c", source, "-o", target] for source, target in compiled.items()]
            commands.append([*compiler, "-shared", *compiled.values(), *libraries, "-lm", "-o", target])
            for command in commands:
                subprocess.run(command, check=True, capture_output=True, text=True)

    if not path.exists():
        write_atomically(path, compile_to)
    return path
