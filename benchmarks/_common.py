"""What the benchmarks share: the machine's matrix-product limit, multiply-adds as they happen, processes of their own.

A benchmark sets up the CPU (``paddle_vheat.cpu.configure_cpu``) before it imports this module.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat._paddle import paddle
from paddle_vheat.ops import native

ROOT = Path(__file__).resolve().parents[1]


def make_parser(
    description: str | None, rounds: int | None = None, own_processes: bool = True
) -> argparse.ArgumentParser:
    """A parser with what benchmarks have in common; ``--job`` is for those of :func:`in_own_process`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each; default {rounds}")
    parser.add_argument("--json", metavar="FILE")
    if own_processes:
        parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    return parser


def seconds(run: Callable[[], Any], repeats: int = 5, least: float = 0.0) -> float:
    """Median time of ``run`` after one call that does not count; more than ``repeats`` if that took less than
    ``least`` seconds altogether."""
    run()
    times: list[float] = []
    while len(times) < repeats or sum(times) < least:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def matmul_limit() -> float:
    """Gigaflops (two per multiply-add) of a product of two 2048 x 2048 float32 matrices: the best of twenty."""
    a, b = paddle.randn([2048, 2048]), paddle.randn([2048, 2048])
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        paddle.matmul(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best / 1e9


@contextlib.contextmanager
def multiply_adds() -> Iterator[list[int]]:
    """Count the multiply-adds of matrix products and convolutions as Paddle is asked for them.

    Whatever layer asks: the counts are of the kernels called in the meantime, by the shapes that they are given.
    Norms, activations and interpolation count nothing. Kernels in C, which ask nobody, are switched off. Gives a list
    with the sum.
    """
    operations: Any = paddle._C_ops
    total = [0]
    originals = {}

    def product(x: Any, output: Any, transposed: bool = False) -> None:
        total[0] += math.prod(output.shape) * (x.shape[-2] if transposed and x.ndim > 1 else x.shape[-1])

    def convolution(weight: Any, output: Any) -> None:
        total[0] += math.prod(output.shape) * math.prod(weight.shape[1:])

    def watch(name: str, add: Callable[..., None]) -> None:
        original = getattr(operations, name, None)
        if original is None:
            return

        def called(*args: Any, **options: Any) -> Any:
            output = original(*args, **options)
            add(args, options, output)
            return output

        originals[name] = original
        setattr(operations, name, called)

    def of_matmul(args: Any, options: Any, output: Any) -> None:
        product(args[0], output, args[2] if len(args) > 2 else options.get("transpose_x", False))

    watch("matmul", of_matmul)
    watch("addmm", lambda args, options, output: product(args[1], output))
    for name in ("bmm", "linear"):
        watch(name, lambda args, options, output: product(args[0], output))
    for name in ("conv2d", "depthwise_conv2d"):
        watch(name, lambda args, options, output: convolution(args[1], output))
    usable, native.usable = native.usable, lambda *_: False
    try:
        yield total
    finally:
        native.usable = usable
        for name, original in originals.items():
            setattr(operations, name, original)


def allocated_mib() -> float:
    """What Paddle has allocated for tensors and kernels' buffers on the CPU, in MiB."""
    return paddle.base.core.host_memory_stat_current_value("Allocated", 0) / 2**20


def peak_mib(run: Callable[[], Any]) -> float:
    """By how much that grows at most while ``run`` runs.

    By Paddle's own account, which knows every allocation: the size of the process says less, since freed memory is
    kept for the next operator and the libraries' buffers come and go.
    """
    before = allocated_mib()
    paddle.base.core.host_memory_stat_reset_peak_value("Allocated", 0)
    run()
    return paddle.base.core.host_memory_stat_peak_value("Allocated", 0) / 2**20 - before


def in_own_process(script: str, job: dict[str, Any], **environment: str | None) -> dict[str, Any]:
    """Run ``script --job JSON`` and read the JSON that it prints last.

    Results of one process do not depend on what another left behind: threads that spin, caches, settings. Variables
    that are None are taken out of its environment.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "FLAGS_"))}
    wanted = {**inherited, "PYTHONPATH": str(ROOT), **environment}
    result = subprocess.run(
        [sys.executable, script, "--job", json.dumps(job)],
        cwd=ROOT,
        env={name: value for name, value in wanted.items() if value is not None},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"{job}: {result.stderr[-2000:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def fitted_exponent(pixels: list[int], values: list[float]) -> float:
    """The b of values = a * pixels^b, by least squares in logarithms."""
    return float(np.polyfit(np.log(pixels), np.log(values), 1)[0])


def write_json(path: str | None, report: Any) -> None:
    if path:
        Path(path).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"written: {path}")
