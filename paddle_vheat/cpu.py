"""CPU settings that must be chosen before Paddle is imported; used by the command lines.

Importing this module imports neither Paddle nor NumPy. What it sets, measured on two cores of an AMD EPYC of 2025
(2048 x 2048 float32 products): 45 GFLOP/s as installed, 88 with both cores, 225 with MKL's AVX2 path,
415 with its AVX-512 path.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path

# MKL_DEBUG_CPU_TYPE: instructions of the path, the fastest first, and the processor's flags that it needs.
MKL_PATHS = {
    "7": ("AVX-512", {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}),
    "5": ("AVX2", {"avx2", "fma"}),
}

# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def count_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else (os.cpu_count() or 1)


def processor_fields() -> dict[str, list[str]]:
    """What Linux says of the first processor, the words of each field; {} elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.split())
    return fields


def _mkl_path_for_amd() -> str | None:
    """MKL's number for the fast path that this processor can run, or None if it is not AMD's or too old.

    MKL chooses by the vendor's name, and takes a slow path on AMD. Its numbers for the others are undocumented and
    unchecked: one whose instructions the processor lacks kills the process, so the flags decide.
    """
    fields = processor_fields()
    if fields.get("vendor_id") != ["AuthenticAMD"]:
        return None
    flags = set(fields.get("flags", ()))
    return next((path for path, (_, needed) in MKL_PATHS.items() if needed <= flags), None)


def _keep_freed_memory() -> None:
    """Have glibc reuse large freed blocks rather than return them to the system after every operator.

    Each return costs page faults at the next operator's output, which for maps of several megabytes takes
    longer than the operator.
    """
    if platform.system() != "Linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from musl
    if mallopt is not None and mallopt(_M_MMAP_MAX, 0):
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _set_by_paddle(name: str) -> bool:
    """Whether ``paddle.distributed.launch`` has put this variable into the environment.

    On import, Paddle sets ``OMP_NUM_THREADS=1`` where it is unset, so every process that the launcher starts has
    it; what the user had set is in the environment that the launcher itself was started with.
    """
    if "PADDLE_LOCAL_SIZE" not in os.environ:
        return False
    try:
        launchers = Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:
        return False
    return not any(entry.startswith(f"{name}=".encode()) for entry in launchers.split(b"\0"))


def configure_cpu() -> str:
    """Use the machine's cores and the fast library paths; leave every variable that the user has set alone.

    Sets, where unset: ``OMP_NUM_THREADS`` (all cores, divided between the processes of a distributed run),
    ``MKL_DEBUG_CPU_TYPE`` on AMD (7 with AVX-512, 5 with AVX2: Paddle's bundled MKL otherwise takes a slow path), and
    ``FLAGS_use_stride_kernel=0`` (Paddle's strided copy is about ten times slower than its transposition).
    ``PADDLE_VHEAT_CPU=off`` switches all of it off.

    Returns:
        One line that says what is in force.

    Raises:
        RuntimeError: if Paddle has been imported already, because it is then too late.
    """
    if os.environ.get("PADDLE_VHEAT_CPU", "").lower() == "off":
        return "CPU: settings left alone (PADDLE_VHEAT_CPU=off)"
    if "paddle" in sys.modules:
        raise RuntimeError("configure_cpu must be called before paddle is imported")
    processes = max(int(os.environ.get("PADDLE_LOCAL_SIZE") or 1), 1)
    wanted = {"OMP_NUM_THREADS": str(max(count_cores() // processes, 1)), "FLAGS_use_stride_kernel": "0"}
    path = _mkl_path_for_amd()
    if path is not None:
        wanted["MKL_DEBUG_CPU_TYPE"] = path
    if _set_by_paddle("OMP_NUM_THREADS"):
        os.environ.pop("OMP_NUM_THREADS", None)
    kept = [f"{name}={os.environ[name]}" for name in wanted if name in os.environ]
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    _keep_freed_memory()
    line = f"CPU: {os.environ['OMP_NUM_THREADS']} threads"
    if os.environ.get("MKL_DEBUG_CPU_TYPE") in MKL_PATHS:
        line += f", MKL's {MKL_PATHS[os.environ['MKL_DEBUG_CPU_TYPE']][0]} path"
    return f"{line}; yours: {', '.join(kept)}" if kept else line
