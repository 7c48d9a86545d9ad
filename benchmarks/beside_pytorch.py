"""vHeat here beside a plain PyTorch port of it, on the CPU: inference in every runtime, and a training step.

    make bench-torch        (or: python benchmarks/beside_pytorch.py [--json FILE], where PyTorch is installed too)

The port (``pytorch_vheat.py``) has the same weights and gets the same images; its logits, and its losses of the first
two training steps, must be ours. PyTorch runs eagerly and by ``torch.compile``, for inference with every decay a
constant, as ours. Every measurement has a process of its own, and the processes take turns; times are the best of all
rounds. Memory is the peak of the process beyond what it had when its libraries were imported. The last row is
the network's multiply-adds at the rate of Paddle's product of two 2048 x 2048 matrices.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import inference  # isort: skip, sets up the CPU first
import _common as common
import _plain
import _process
import numpy as np

from paddle_vheat._paddle import F, paddle
from paddle_vheat.analysis.cost import count, total
from paddle_vheat.engine.adamw import AdamW
from paddle_vheat.models import create_model
from paddle_vheat.ops.native import missing
from paddle_vheat.ops.training import accelerate_training

PYTORCH = ("PyTorch", "PyTorch, compiled")
LIMIT = "products alone"
TOLERANCE = 1e-4
"""Of logits and losses, relative to the largest: float32 through up to 26 blocks, summed in another order."""


def build(job: dict[str, Any]) -> Any:
    paddle.seed(0)
    return create_model(job["model"], img_size=job["size"], drop_path_rate=0.0)


def trainer(model: Any, images: Any, labels: Any) -> Any:
    """A training step as that of :class:`paddle_vheat.engine.trainer.Trainer`."""
    model = accelerate_training(model)
    optimizer = AdamW(1e-4, parameters=model.parameters())
    model.train()

    def step() -> Any:
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        return loss.detach()

    return step


def measure(job: dict[str, Any]) -> dict[str, float]:
    """One of our forms, in a process of its own."""
    before = _process.resident_mib()
    with np.load(job["inputs"]) as inputs:
        images, labels = paddle.to_tensor(inputs["images"]), paddle.to_tensor(inputs["labels"])
    model = build(job)
    with tempfile.TemporaryDirectory() as folder:
        if job["train"]:
            run: Any = trainer(model, images, labels)
            np.save(job["outputs"], np.array([float(run()) for _ in range(2)]))
        else:
            # Only a runtime whose result is that of the model is timed: see inference.runner.
            run = inference.runner(model.fold(job["size"]), images, job["form"], job["threads"], Path(folder))
            if run is None:
                raise RuntimeError(f"{job['form']}: wrong, or not there")
            found = run()
            np.save(job["outputs"], found.numpy() if hasattr(found, "numpy") else found["logits"])
        return _process.measure(run, job["least"], before)


def limit(job: dict[str, Any]) -> dict[str, float]:
    """Seconds that the multiply-adds alone take at the rate of large products; a training step has three forward
    passes' of them."""
    model = build(job).fold(job["size"])
    operations = 2 * job["batch"] * total(count(model, job["size"])).multiply_adds * (3 if job["train"] else 1)
    rate = max(common.matmul_limit() for _ in range(3))
    return {"seconds": operations / rate / 1e9, "gflops": rate}


def write_inputs(job: dict[str, Any], path: Path) -> None:
    """Images, labels and the model's weights under their published names."""
    rng = np.random.default_rng(0)
    shape = job["batch"], 3, job["size"], job["size"]
    arrays = {"images": rng.standard_normal(shape, np.float32), "labels": rng.integers(0, 1000, job["batch"])}
    np.savez(path, **arrays, **_plain.published_layout(build(job)))


def run_form(job: dict[str, Any], form: str, folder: Path) -> dict[str, Any]:
    pytorch = form in PYTORCH
    inner = {"PyTorch": "eager", "PyTorch, compiled": "compiled"}.get(form, form)
    job = {**job, "form": inner, "outputs": str(folder / f"{form}.npy")}
    here = Path(__file__)
    script = here.with_name("pytorch_vheat.py") if pytorch else here
    # "An AVX2 machine": PyTorch's own kernels and oneDNN's, in both, as MKL_DEBUG_CPU_TYPE=5 limits ours.
    only_avx2 = os.environ.get("MKL_DEBUG_CPU_TYPE") == "5"
    limits = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"} if only_avx2 else {}
    row = common.in_own_process(str(script), job, OMP_NUM_THREADS=str(job["threads"]), **limits)
    processor = f"{1e3 * row['processor_seconds']:.1f} ms of processors"
    print(
        f"  {form}: {1e3 * row['seconds']:.1f} ms, {processor}, {row['peak_mib']:.0f} MiB", file=sys.stderr, flush=True
    )
    return row


def compare(job: dict[str, Any], forms: tuple[str, ...], rounds: int) -> dict[str, dict[str, float]]:
    """Best time and peak memory of every form, by its name."""
    found: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        job = {**job, "inputs": str(folder / "inputs.npz")}
        write_inputs(job, Path(job["inputs"]))
        for _ in range(rounds):
            for form in forms:
                found[form].append(run_form(job, form, folder))
        wanted = np.load(folder / "PyTorch.npy")
        for form in forms:
            difference = np.abs(np.load(folder / f"{form}.npy") - wanted).max() / np.abs(wanted).max()
            if not difference < TOLERANCE:
                text = f"{form} is not PyTorch's model: largest difference {difference:.1e} of the largest"
                if form not in PYTORCH:
                    raise SystemExit(text)
                print(f"  {text}: left out", file=sys.stderr, flush=True)  # torch.compile limited to AVX2 gave NaN
                del found[form]
    return {form: {key: min(run[key] for run in runs) for key in runs[0]} for form, runs in found.items()}


def main() -> None:
    parser = common.make_parser(__doc__, rounds=3)
    parser.add_argument("--models", nargs="+", default=["vheat_tiny"])
    parser.add_argument("--inference", nargs="*", default=["224x1", "224x4", "768x1"], metavar="SIZExBATCH")
    parser.add_argument("--training", nargs="*", default=["224x4"], metavar="SIZExBATCH")
    parser.add_argument(
        "--forms", nargs="+", choices=inference.RUNTIMES, default=inference.RUNTIMES, help="of inference"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no_compile", action="store_true", help="leave out torch.compile, which needs a C++ compiler")
    args = parser.parse_args()
    if args.job is not None:
        print(json.dumps((limit if args.job.get("form") == LIMIT else measure)(args.job)))
        return
    pytorch = PYTORCH[:1] if args.no_compile else PYTORCH
    kernels = missing() or "compiled"
    report: dict[str, Any] = {"settings": inference.SETTINGS, "kernels": kernels, "results": []}
    print(f"{inference.SETTINGS}; kernels: {kernels}")
    for model in args.models:
        for train, sizes in ((False, args.inference), (True, args.training)):
            for text in sizes:
                size, batch = (int(part) for part in text.split("x"))
                job = {"model": model, "size": size, "batch": batch, "train": train, "threads": args.threads}
                ours = ("ours",) if train else tuple(args.forms)
                rows = compare({**job, "least": 2.0}, (*pytorch, *ours), args.rounds)
                best = min(rows[form]["seconds"] for form in pytorch if form in rows)
                print(f"\n{model}, {'training step' if train else 'inference'}, {size} x {size}, batch {batch}")
                print(f"{'':<26} {'ms':>9} {'beside PyTorch':>15} {'processor ms':>13} {'peak MiB':>9}")
                for form, row in rows.items():
                    row["beside_pytorch"] = best / row["seconds"]
                    cells = f"{1e3 * row['seconds']:>9.1f} {row['beside_pytorch']:>14.2f}x"
                    rest = f"{1e3 * row['processor_seconds']:>13.1f} {row['peak_mib']:>9.0f}"
                    print(f"{form:<26} {cells} {rest}", flush=True)
                bound = common.in_own_process(__file__, {**job, "form": LIMIT}, OMP_NUM_THREADS=str(args.threads))
                bound["beside_pytorch"] = best / bound["seconds"]
                cells = f"{1e3 * bound['seconds']:>9.1f} {bound['beside_pytorch']:>14.2f}x"
                print(f"{LIMIT:<26} {cells}  at {bound['gflops']:.0f} GFLOP/s", flush=True)
                report["results"].append({**job, "rows": rows, LIMIT: bound})
    common.write_json(args.json, report)


if __name__ == "__main__":
    main()
