"""Training on the CPU: step time and peak memory beside a plain port under autograd, and the speed of the data.

    python benchmarks/training.py [--json FILE]

The plain port (``tests/models/plain_port.py``) is vHeat written down line by line: NCHW, plain operations. Both take
the same weights and batch, in processes of their own that take turns; a step is forward, backward and AdamW.
"recompute" recomputes activations in the backward pass.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from paddle_vheat.cpu import configure_cpu

SETTINGS = configure_cpu()

import _common as common  # noqa: E402
import _plain  # noqa: E402

from paddle_vheat._paddle import F, paddle  # noqa: E402
from paddle_vheat.engine.adamw import AdamW  # noqa: E402
from paddle_vheat.ops.training import accelerate_training  # noqa: E402

JOBS = {
    "classifier 224": {"kind": "classifier", "size": 224, "batch": 4},
    "UPerNet 512": {"kind": "segmentor", "size": 512, "batch": 1},
}
FORMS = ("plain", "ours", "ours, recompute")


def build(kind: str, size: int, form: str) -> Any:
    """A module from images to a list of logits."""
    from paddle_vheat.models import UPerNet, VHeat, create_model

    paddle.seed(0)
    recompute = form == "ours, recompute"
    if kind == "classifier":
        ours = create_model("vheat_tiny", img_size=size, drop_path_rate=0.0, recompute=recompute)
        return _plain.PlainClassifier(ours) if form == "plain" else ours
    ours = UPerNet(150, VHeat(img_size=size, drop_path_rate=0.0, recompute=recompute))
    return _plain.PlainUPerNet(ours) if form == "plain" else ours


def measure(job: dict[str, Any]) -> dict[str, float]:
    """Seconds of a training step, peak memory (MiB), and how much of it the step adds to the model, the optimizer's
    state and the batch: activations, gradients and buffers."""
    model = build(job["kind"], job["size"], job["form"])
    model.train()
    if job["form"] == "plain":
        optimizer = paddle.optimizer.AdamW(1e-4, parameters=model.parameters())
    else:  # as the trainer does
        optimizer = AdamW(1e-4, parameters=accelerate_training(model).parameters())
    images = paddle.randn([job["batch"], 3, job["size"], job["size"]])
    if job["kind"] == "classifier":
        labels = paddle.randint(0, 1000, [job["batch"]])
    else:
        labels = paddle.randint(0, 150, [job["batch"], job["size"], job["size"]])

    def loss(output: Any) -> Any:
        if isinstance(output, list):
            return sum(w * F.cross_entropy(o, labels, axis=1) for w, o in zip((1.0, 0.4), output))
        return F.cross_entropy(output, labels)

    def step() -> None:
        loss(model(images)).backward()
        optimizer.step()
        optimizer.clear_grad()

    step()  # makes the optimizer's state, which is the same in every form
    constant, added = common.allocated_mib(), common.peak_mib(step)
    return {"seconds": common.seconds(step, repeats=3), "peak_mib": constant + added, "step_mib": added}


def data_speed(folder: Path) -> dict[str, float]:
    """Images per second and core of the two pipelines, on pictures of their data sets' sizes."""
    import sys

    sys.path.insert(0, str(common.ROOT))
    from examples.street_scenes import write_dataset
    from paddle_vheat.config import load_config
    from paddle_vheat.tasks.classification.task import ClassificationTask
    from paddle_vheat.tasks.segmentation.task import SegmentationTask

    configs = common.ROOT / "configs"
    root = folder / "scenes"
    write_dataset(root, 4, 1, (1024, 2048), seed=0, progress=False)
    config = load_config(configs / "vheat_t_cityscapes.yml")
    config["train_dataset"]["dataset_root"] = str(root)
    data = SegmentationTask(config, "cityscapes").dataset("train")
    speeds = {"Cityscapes, crop 1024x512": _speed(data, 24)}

    import cv2

    pictures = folder / "pictures"
    for i, path in enumerate(sorted(root.glob("leftImg8bit/train/*/*.png"))):
        (pictures / str(i % 2)).mkdir(parents=True, exist_ok=True)
        image = cv2.resize(cv2.imread(str(path))[:, 512:1877], (500, 375))  # ImageNet's usual size
        cv2.imwrite(str(pictures / str(i % 2) / f"{i}.jpg"), image)
    config = load_config(configs / "vheat_t_imagenet.yml")
    dataset = config["DataLoader"]["Train"]["dataset"]
    dataset.update(image_root=str(pictures), cls_label_path=None)
    config["Arch"]["class_num"] = 2
    speeds["ImageNet, crop 224"] = _speed(ClassificationTask(config, "imagenet").dataset("train"), 200)
    return speeds


def _speed(dataset: Any, count: int) -> float:
    dataset[0]
    start = time.perf_counter()
    for i in range(count):
        dataset[i % len(dataset)]
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = common.make_parser(__doc__, rounds=3)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    args = parser.parse_args()
    if args.job is not None:
        print(json.dumps(measure(args.job)))
        return
    print(SETTINGS)
    report: dict[str, Any] = {"settings": SETTINGS, "gflops_limit": common.matmul_limit()}
    for name in args.jobs:
        found: dict[str, list[dict[str, float]]] = {form: [] for form in FORMS}
        for _ in range(args.rounds):
            for form in FORMS:
                found[form].append(common.in_own_process(__file__, {**JOBS[name], "form": form}))
        rows = {f: {k: sorted(r[k] for r in runs)[len(runs) // 2] for k in runs[0]} for f, runs in found.items()}
        report[name] = rows
        plain = rows["plain"]
        print(f"\n{name}, batch {JOBS[name]['batch']}")
        print(f"{'':<18} {'s / step':>9} {'':>7} {'peak MiB':>9} {'less':>6} {'of it the step':>15} {'less':>6}")
        for form, row in rows.items():
            faster = plain["seconds"] / row["seconds"]
            cells = []
            for key, width in (("peak_mib", 9), ("step_mib", 15)):
                cells.append(f"{row[key]:>{width}.0f} {100 * (1 - row[key] / plain[key]):>4.0f} %")
            print(f"{form:<18} {row['seconds']:>9.2f} {faster:>6.2f}x {' '.join(cells)}")
    with tempfile.TemporaryDirectory() as folder:
        report["images_per_second_and_core"] = speeds = data_speed(Path(folder))
    print("\ndata, images per second and core: " + ", ".join(f"{name} {speed:.1f}" for name, speed in speeds.items()))
    common.write_json(args.json, report)


if __name__ == "__main__":
    main()
