"""What a job takes around its network: reading data, scoring large images, saving checkpoints, a second process.

    python benchmarks/whole_job.py [--parts data scoring checkpoint processes] [--json FILE]

On generated street scenes: of 1024 x 2048 for data, scoring (vHeat-T with UPerNet and random weights) and checkpoints;
`processes` trains configs/demo.yml, by one process of all threads and by two of half of them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from paddle_vheat.cpu import configure_cpu

SETTINGS = configure_cpu()

import _common as common  # noqa: E402

from paddle_vheat._paddle import paddle  # noqa: E402
from paddle_vheat.config import load_config  # noqa: E402
from paddle_vheat.engine.evaluate import evaluate  # noqa: E402
from paddle_vheat.engine.loader import SeededDataset, load_batches  # noqa: E402
from paddle_vheat.engine.optim import TrainOptions  # noqa: E402
from paddle_vheat.engine.trainer import Trainer  # noqa: E402
from paddle_vheat.tasks.segmentation.task import SegmentationTask  # noqa: E402

sys.path.insert(0, str(common.ROOT))
from examples.street_scenes import write_dataset  # noqa: E402

SIZE = (1024, 2048)
WORKERS = (0, 1, 2, 3, 4)
CROPS = 48
# Ways to score an image of that size: whole, and by windows (height, width) that overlap by a quarter.
WINDOWS = {"whole": None, "windows of 512 x 1024": (512, 1024), "windows of 768 x 768": (768, 768)}


def cityscapes(folder: Path, *options: str, **flags: Any) -> SegmentationTask:
    if not folder.is_dir():
        write_dataset(folder, 4, 1, SIZE, seed=0, progress=False)
    roots = [f"{split}_dataset.dataset_root={folder}" for split in ("train", "val")]
    config = load_config(common.ROOT / "configs" / "vheat_t_cityscapes.yml", [*roots, *options])
    return SegmentationTask(config, "cityscapes", SimpleNamespace(**flags))


def data(folder: Path) -> dict[str, float]:
    """Crops of 1024 x 512 a second, by the number of processes that read."""
    dataset = SeededDataset(cityscapes(folder / "scenes").dataset("train"), 0)
    found = {}
    for workers in WORKERS:
        batches = [[(i, i % 4), (i + 1, (i + 1) % 4)] for i in range(0, CROPS, 2)]
        loaded = load_batches(dataset, batches, workers)
        next(loaded)  # the processes have started
        start = time.perf_counter()
        for _ in loaded:
            pass
        found[str(workers)] = (CROPS - 2) / (time.perf_counter() - start)
    return found


def scoring(folder: Path) -> dict[str, dict[str, float]]:
    """Seconds and peak memory beyond the model for an image of 1024 x 2048, each way in a process of its own."""
    cityscapes(folder / "scenes")
    return {way: common.in_own_process(__file__, {"way": way, "scenes": str(folder / "scenes")}) for way in WINDOWS}


def score(job: dict[str, Any]) -> dict[str, float]:
    flags: dict[str, Any] = {}
    if window := WINDOWS[job["way"]]:
        height, width = window
        crop, stride = [width, height], [width * 3 // 4, height * 3 // 4]  # as PaddleSeg takes them
        flags = {"is_slide": True, "crop_size": crop, "stride": stride}
    task = cityscapes(Path(job["scenes"]), **flags)
    model = task.build_model(pretrained=False)

    def run() -> None:
        evaluate(task, model, progress=False)

    run()
    start = time.perf_counter()
    peak = common.peak_mib(run)
    return {"seconds": time.perf_counter() - start, "peak_mib": peak}


def checkpoint(folder: Path) -> dict[str, float]:
    """Size and time of a checkpoint of vHeat-T with UPerNet, AdamW's state with it."""
    task = cityscapes(folder / "scenes", "batch_size=1", "train_dataset.transforms.1.crop_size=[64, 64]")
    options = TrainOptions(iters=1, save_interval=1, save_dir=str(folder / "run"))
    trainer = Trainer(task, options)
    trainer.run()
    hook = next(hook for hook in trainer.hooks if hasattr(hook, "save"))

    def save() -> None:
        hook.save(trainer)

    seconds = common.seconds(save, repeats=3)
    size = sum(path.stat().st_size for path in (folder / "run" / "iter_1").iterdir())
    count = sum(parameter.size for parameter in trainer.model.parameters())
    return {"parameters": count / 1e6, "mib": size / 2**20, "seconds": seconds}


def processes(folder: Path) -> dict[str, float]:
    """Images a second of training, by one process of all threads and by two of half of them."""
    write_dataset(folder / "small", 40, 4, (128, 256), seed=0, progress=False)
    threads = len(os.sched_getaffinity(0))
    rates = {}
    for count in (1, 2):
        launcher = (
            []
            if count == 1
            else ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(folder / "log")]
        )
        command = [
            sys.executable, *launcher, "train.py", "--config", "configs/demo.yml", "--device", "cpu", "--iters", "60",
            "--save_interval", "60", "--log_iters", "20", "--save_dir", str(folder / f"{count}"), "--opts",
            f"batch_size={8 // count}", f"train_dataset.dataset_root={folder / 'small'}",
            f"val_dataset.dataset_root={folder / 'small'}",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(common.ROOT), "OMP_NUM_THREADS": str(max(1, threads // count))}
        subprocess.run(command, cwd=common.ROOT, env=environment, capture_output=True, check=True)
        log = (folder / f"{count}" / "train.log").read_text(encoding="utf-8")
        rates[str(count)] = max(float(rate) for rate in re.findall(r"([\d.]+) images/s", log))
    return rates


PARTS: dict[str, Callable[[Path], Any]] = {
    "data": data, "scoring": scoring, "checkpoint": checkpoint, "processes": processes,
}  # fmt: skip


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    args = parser.parse_args()
    if args.job is not None:
        print(json.dumps(score(args.job)))
        return
    print(SETTINGS)
    report: dict[str, Any] = {"settings": SETTINGS}
    paddle.seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        for part in args.parts:
            report[part] = PARTS[part](Path(temporary))
            print(f"{part}: {json.dumps(report[part])}", flush=True)
    common.write_json(args.json, report)


if __name__ == "__main__":
    main()
