"""Inference on the CPU: vHeat-T, folded, in each runtime, as a share of the machine's matrix-product limit.

    python benchmarks/inference.py [--json FILE] [--threads 1 2] [--sizes 224 768] [--batches 1 4 8]

The limit is the rate of ``paddle.matmul`` of 2048 x 2048 float32 in the same process, between the measurements;
useful work is the dense multiply-adds of the folded network (``paddle_vheat.models.analysis``), two operations each.
"plain" is the line-by-line port of the tests (``tests/models/plain_port.py``), its decay folded too. All take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paddle_vheat.cpu import configure_cpu

SETTINGS = configure_cpu()

import _common as common  # noqa: E402
import _plain  # noqa: E402

from paddle_vheat._paddle import paddle  # noqa: E402
from paddle_vheat.models import create_model  # noqa: E402
from paddle_vheat.models.analysis import count, total  # noqa: E402

RUNTIMES = ("dygraph", "Paddle Inference", "Paddle Inference oneDNN", "ONNX Runtime")


def runners(model: Any, batch: int, size: int, threads: int, folder: Path) -> dict[str, Callable[[], Any]]:
    """A function per runtime that runs the model once, on the same images."""
    from paddle_vheat.deploy.runtimes import load_onnx, load_paddle
    from paddle_vheat.engine.export import save_program
    from paddle_vheat.engine.export_check import program_file
    from paddle_vheat.engine.export_onnx import convert_to_onnx

    images = paddle.randn([batch, 3, size, size])
    array = images.numpy()
    model.eval()
    with paddle.no_grad():
        expected = model(images).numpy()

    def dygraph() -> Any:
        with paddle.no_grad():
            return model(images)

    found: dict[str, Callable[[], Any]] = {"dygraph": dygraph}
    save_program(model, "none", [batch, 3, size, size], folder)
    program, params = folder / program_file(folder), folder / "model.pdiparams"
    convert_to_onnx(program, params, folder / "model.onnx", "logits")
    runs = {
        "Paddle Inference": load_paddle(program, params, threads=threads),
        "Paddle Inference oneDNN": load_paddle(program, params, onednn=True, threads=threads),
        "ONNX Runtime": load_onnx(folder / "model.onnx", threads=threads),
    }
    for name, run in runs.items():
        difference = abs(run(array) - expected).max() / abs(expected).max()
        if difference < 1e-3:  # a runtime that is wrong has no speed
            found[name] = lambda run=run: run(array)  # type: ignore[misc]
    return found


def measure(job: dict[str, Any]) -> dict[str, Any]:
    size, batch, threads = job["size"], job["batch"], job["threads"]
    paddle.seed(0)
    base = create_model("vheat_tiny", img_size=size)
    ours = base.fold(size)
    operations = 2 * batch * total(count(ours, size)).multiply_adds
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in ("plain", "ours")]
        for folder in folders:
            folder.mkdir()
        plain = _plain.PlainClassifier(base, folded_for=size)
        models = dict(zip(("plain", "ours"), (plain, ours)))
        runs = {n: runners(m, batch, size, threads, f) for (n, m), f in zip(models.items(), folders)}
        times: dict[tuple[str, str], list[float]] = {(n, r): [] for n, found in runs.items() for r in found}
        shares: dict[tuple[str, str], list[float]] = {key: [] for key in times}
        limits = []
        for _ in range(job["rounds"]):
            for name, runtime in times:
                limits.append(common.matmul_limit())
                time = common.seconds(runs[name][runtime], repeats=3, least=0.3)
                times[name, runtime].append(time)
                shares[name, runtime].append(operations / time / 1e9 / limits[-1])
    rows = {
        f"{n}, {r}": {"ms": 1e3 * statistics.median(times[n, r]), "share": statistics.median(shares[n, r])}
        for n, r in times
    }
    return {**job, "gflops_limit": statistics.median(limits), "gmacs": operations / 2e9, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 768])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4], help="768 is measured at batch 1 only")
    parser.add_argument("--threads", nargs="+", type=int, default=[len(os.sched_getaffinity(0))])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(measure(json.loads(args.job))))
        return
    results = []
    for threads in args.threads:
        for size in args.sizes:
            for batch in args.batches if size < 512 else args.batches[:1]:
                job = {"size": size, "batch": batch, "threads": threads, "rounds": args.rounds}
                found = common.in_own_process(__file__, job, OMP_NUM_THREADS=str(threads))
                results.append(found)
                print(
                    f"\n{size} x {size}, batch {batch}, {threads} threads: {found['gmacs']:.1f} G multiply-adds, limit "
                    f"{found['gflops_limit']:.0f} GFLOP/s = {2e3 * found['gmacs'] / found['gflops_limit']:.1f} ms"
                )
                print(f"{'':<26} {'plain':>16} {'ours':>16}")
                for runtime in RUNTIMES:
                    cells = []
                    for name in ("plain", "ours"):
                        row = found["rows"].get(f"{name}, {runtime}")
                        cells.append(f"{row['ms']:>8.1f} ms {row['share']:>4.2f}" if row else f"{'wrong':>16}")
                    print(f"{runtime:<26} {' '.join(cells)}")
    common.write_json(args.json, {"settings": SETTINGS, "results": results})


if __name__ == "__main__":
    main()
