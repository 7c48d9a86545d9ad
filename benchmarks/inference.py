"""Inference on the CPU: vHeat-T, folded, in each runtime, as a share of the machine's matrix-product limit.

    python benchmarks/inference.py [--json FILE] [--threads 1 2] [--sizes 224 768] [--batches 1 4 8]

The limit is the best rate of ``paddle.matmul`` of 2048 x 2048 float32 in the same process, between the measurements.
Where MKL's AVX-512 path is in force, the limit of its AVX2 path is measured too, in a process of its own, and the share
of that limit stands in brackets. Times are the best of all rounds; useful work is the dense multiply-adds of the folded
network (``paddle_vheat.analysis.cost``), two operations each. "plain" is the line-by-line port of the tests
(``tests/models/plain_port.py``), its decay folded too.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paddle_vheat.cpu import configure_cpu

SETTINGS = configure_cpu()

import _common as common  # noqa: E402
import _plain  # noqa: E402

from paddle_vheat._paddle import paddle  # noqa: E402
from paddle_vheat.analysis.cost import count, total  # noqa: E402
from paddle_vheat.deploy import runtimes  # noqa: E402
from paddle_vheat.deploy.scores import signature  # noqa: E402
from paddle_vheat.engine.task import Program  # noqa: E402
from paddle_vheat.export.onnx import convert_to_onnx  # noqa: E402
from paddle_vheat.export.parity import ONEDNN, ONNX, OPENVINO, PADDLE  # noqa: E402
from paddle_vheat.export.program import save_program  # noqa: E402
from paddle_vheat.models import create_model  # noqa: E402

RUNTIMES = ("dygraph", PADDLE, ONEDNN, ONNX, *((OPENVINO,) if runtimes.is_installed("openvino") else ()))


def runner(model: Any, images: Any, runtime: str, threads: int, folder: Path) -> Callable[[], Any] | None:
    """A function that runs the model once in a runtime; None if the runtime's result is wrong, or it crashes."""
    model.eval()
    if runtime == "dygraph":

        def dygraph() -> Any:
            with paddle.no_grad():
                return model(images)

        return dygraph
    array = images.numpy()
    with paddle.no_grad():
        expected = model(images).numpy()
    takes = signature("none", expected.shape[1], tuple(array.shape), per_pixel=False)
    files = save_program(Program(model, *takes), folder)
    try:
        if runtime in (ONNX, OPENVINO):
            convert_to_onnx(*files, folder / "model.onnx", *takes)
            load = runtimes.load_onnx if runtime == ONNX else runtimes.load_openvino
            run = load(folder / "model.onnx", takes, runtimes.Options(threads=threads))
        else:
            _, onednn = next(key for key, name in runtimes.NAMES.items() if name == runtime)
            run = runtimes.load_paddle(*files, takes, runtimes.Options(threads=threads, onednn=onednn))
        output = run(array)["logits"]
    except (RuntimeError, ValueError) as error:
        print(f"{runtime}: {error}", file=sys.stderr)
        return None
    # A runtime that is wrong has no speed.
    return (lambda: run(array)) if abs(output - expected).max() < 1e-3 * abs(expected).max() else None


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """One runtime, both models taking turns, in a process of its own: the threads of runtimes spin for a while after
    their work, and would be in each other's way. Or the limit alone, for a job without a runtime."""
    if "runtime" not in job:
        return {"gflops_limit": max(common.matmul_limit() for _ in range(3))}
    size, batch, threads = job["size"], job["batch"], job["threads"]
    paddle.seed(0)
    base = create_model("vheat_tiny", img_size=size)
    ours = base.fold(size)
    operations = 2 * batch * total(count(ours, size)).multiply_adds
    models = {"plain": _plain.PlainClassifier(base, folded_for=size), "ours": ours}
    images = paddle.randn([batch, 3, size, size])
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        limits = [common.matmul_limit()]
        runs = {}
        for name, model in models.items():
            folder = Path(temporary) / name
            folder.mkdir()
            runs[name] = runner(model, images, job["runtime"], threads, folder)
        times: dict[str, list[float]] = {name: [] for name, run in runs.items() if run is not None}
        for _ in range(job["rounds"]):
            for name, found in times.items():
                time.sleep(0.3)
                found.append(common.seconds(runs[name], repeats=3, least=0.3))  # type: ignore[arg-type]
            time.sleep(0.3)
            limits.append(common.matmul_limit())
    limit = max(limits)
    for name, found in times.items():
        rows[name] = {"ms": 1e3 * min(found), "share": operations / min(found) / 1e9 / limit}
    return {**job, "gflops_limit": limit, "gmacs": operations / 2e9, "rows": rows}


def main() -> None:
    parser = common.make_parser(__doc__, rounds=5)
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 768])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4], help="768 is measured at batch 1 only")
    parser.add_argument("--threads", nargs="+", type=int, default=[len(os.sched_getaffinity(0))])
    args = parser.parse_args()
    if args.job is not None:
        print(json.dumps(measure(args.job)))
        return
    results, avx2_limits = [], {}
    for threads in args.threads:
        settings = {"OMP_NUM_THREADS": str(threads)}
        if os.environ.get("MKL_DEBUG_CPU_TYPE") == "7":  # set by configure_cpu, or by the user
            found = common.in_own_process(__file__, {}, **settings, MKL_DEBUG_CPU_TYPE="5")
            avx2_limits[threads] = found["gflops_limit"]
            print(f"{threads} threads: MKL's AVX2 path makes {found['gflops_limit']:.0f} GFLOP/s; shares in brackets")
        for size in args.sizes:
            for batch in args.batches if size < 512 else args.batches[:1]:
                job = {"size": size, "batch": batch, "threads": threads, "rounds": args.rounds}
                print(f"\n{size} x {size}, batch {batch}, {threads} threads", flush=True)
                print(f"{'':<26} {'plain':>23} {'ours':>23} {'limit':>18}", flush=True)
                for runtime in RUNTIMES:
                    found = common.in_own_process(__file__, {**job, "runtime": runtime}, **settings)
                    results.append(found)
                    cells = []
                    for name in ("plain", "ours"):
                        row = found["rows"].get(name)
                        cell = f"{row['ms']:.1f} ms {row['share']:>4.2f}" if row else "wrong"
                        if row and threads in avx2_limits:
                            row["share_of_avx2"] = 2e3 * found["gmacs"] / row["ms"] / avx2_limits[threads]
                            cell += f" ({row['share_of_avx2']:.2f})"
                        cells.append(f"{cell:>23}")
                    least = 2e3 * found["gmacs"] / found["gflops_limit"]
                    limit = f"{found['gflops_limit']:.0f} GFLOP/s {least:.0f} ms"
                    print(f"{runtime:<26} {' '.join(cells)} {limit:>18}", flush=True)
    common.write_json(args.json, {"settings": SETTINGS, "gflops_limit_avx2": avx2_limits, "results": results})


if __name__ == "__main__":
    main()
