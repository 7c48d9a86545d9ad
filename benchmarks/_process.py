"""Time and peak memory of this process; imports neither Paddle nor PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _status(key: str) -> float:
    """A size of ``/proc/self/status``, in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def measure(run: Callable[[], Any], least: float, before: float) -> dict[str, float]:
    """Best time of three calls and more, until ``least`` seconds are over; best processor time, which of one thread
    other work disturbs less; and the peak of memory beyond ``before``."""
    run()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak counts from here (proc(5))
    times: list[float] = []
    processor_times: list[float] = []
    while len(times) < 3 or (sum(times) < least and len(times) < 200):
        start, processor_start = time.perf_counter(), time.process_time()
        run()
        processor_times.append(time.process_time() - processor_start)
        times.append(time.perf_counter() - start)
    return {"seconds": min(times), "processor_seconds": min(processor_times), "peak_mib": _status("VmHWM") - before}


def resident_mib() -> float:
    """Memory of the process now, in MiB."""
    return _status("VmRSS")
