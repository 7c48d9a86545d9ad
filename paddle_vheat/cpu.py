"""CPU settings that must be chosen before Paddle is imported; used by the command lines.

Importing this module imports neither Paddle nor NumPy. What it sets, measured on two AMD cores (2048 x 2048
float32 products): 38 GFLOP/s as installed, 74 with both cores, 199 with MKL's fast path as well.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path

# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def count_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else (os.cpu_count() or 1)


def _is_amd() -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "AuthenticAMD" in text


def _keep_freed_memory() -> bool:
    """Have glibc reuse large freed blocks rather than return them to the system after every operator.

    Each return costs page faults at the next operator's output, which for maps of several megabytes takes
    longer than the operator.
    """
    if platform.system() != "Linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from musl
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


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

    Sets, where unset: ``OMP_NUM_THREADS`` (all cores, shared out between the processes of a distributed run),
    ``MKL_DEBUG_CPU_TYPE=5`` on AMD (Paddle's bundled MKL otherwise takes a slow path there), and
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
    if _is_amd():
        wanted["MKL_DEBUG_CPU_TYPE"] = "5"
    if _set_by_paddle("OMP_NUM_THREADS"):
        os.environ.pop("OMP_NUM_THREADS", None)
    kept = [f"{name}={os.environ[name]}" for name in wanted if name in os.environ]
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    _keep_freed_memory()
    line = f"CPU: {os.environ['OMP_NUM_THREADS']} threads"
    if os.environ.get("MKL_DEBUG_CPU_TYPE") == "5":
        line += ", MKL fast path for AMD"
    return f"{line}; yours: {', '.join(kept)}" if kept else line
