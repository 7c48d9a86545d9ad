"""Mask R-CNN T on one image of 800 x 1216 on the CPU: images a second and memory in each runtime, and where time goes.

    python benchmarks/detection.py [--json FILE] [--size 800 1216] [--runtimes dygraph paddle onednn onnx]

Weights are random, but for a bias by which every proposal has one class: 1000 candidates, of which 100 detections and
masks remain and are pasted. Each runtime has a process of its own; times are the best of all calls, memory is the
process's peak beyond what it held before the model was loaded. The network takes a normalised image; reading and
resizing are not in it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paddle_vheat.cpu import configure_cpu

SETTINGS = configure_cpu()

import _common as common  # noqa: E402
import _process  # noqa: E402
import numpy as np  # noqa: E402

from paddle_vheat._paddle import paddle  # noqa: E402
from paddle_vheat.deploy import runtimes  # noqa: E402
from paddle_vheat.deploy.description import read_description  # noqa: E402
from paddle_vheat.deploy.processor import make_processor  # noqa: E402
from paddle_vheat.export import export_model  # noqa: E402
from paddle_vheat.models.mask_rcnn import Selection, build_mask_rcnn  # noqa: E402
from paddle_vheat.models.mask_rcnn.roi_heads import select_detections  # noqa: E402
from paddle_vheat.ops import fold  # noqa: E402
from paddle_vheat.tasks.detection.deploy import Options  # noqa: E402
from paddle_vheat.tasks.detection.export import detection_spec  # noqa: E402
from paddle_vheat.tasks.detection.visualize import Masks  # noqa: E402

ONEDNN = {"paddle": "off", "onednn": "full"}
CLASSES = 80


def detector() -> Any:
    paddle.seed(0)
    model = build_mask_rcnn("mask_rcnn_vheat_tiny", CLASSES)
    with paddle.no_grad():
        model.roi_head.box_head.scores.bias[0] = 5.0
    model.eval()
    return model


def say(line: str) -> None:
    print(line, file=sys.stderr)


def write_exports(folder: Path, size: tuple[int, int]) -> None:
    numbers = Selection()
    options = Options(
        num_classes=CLASSES, channels=256, scale=[max(size), min(size)], mean=[0.0] * 3, std=[1.0] * 3,
        per_level=numbers.test_per_level, proposals=numbers.proposals, score_threshold=numbers.score_threshold,
        detections=numbers.detections,
    )  # fmt: skip
    spec = detection_spec(detector(), (1, 3, *size), options, [])
    export_model(spec, "detection", folder, (1, 3, *size), model_format="both", say=say)


def stages(model: Any, image: Any, size: Any) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """What an image goes through, a step at a time; each takes and adds to what is there."""

    limits = model.selection.score_threshold, model.selection.detections

    def detect(at: dict[str, Any]) -> Any:
        return select_detections(at["proposals"], *at["boxes"], size[0], *limits)

    def masks(at: dict[str, Any]) -> Any:
        return model.roi_head.segment(at["pyramid"], at["detections"][0], at["detections"][2])

    def paste(at: dict[str, Any]) -> Any:
        sides = int(size[0, 0]), int(size[0, 1])
        pasted = Masks(at["masks"].numpy(), at["detections"][0].numpy(), sides)
        return sum(int(mask.sum()) for mask in pasted)

    return {
        "backbone": lambda at: model.backbone(image),
        "pyramid": lambda at: model.neck(at["backbone"]),
        "rpn": lambda at: model.rpn_head(at["pyramid"]),
        "proposals": lambda at: model.proposals(*at["rpn"], size)[0],
        "boxes": lambda at: model.roi_head.classify(at["pyramid"], at["proposals"]),
        "detections": detect,
        "masks": masks,
        "paste": paste,
    }


@paddle.no_grad()
def dygraph(size: tuple[int, int], rounds: int) -> dict[str, Any]:
    before = _process.resident_mib()
    model = fold(detector(), size)
    model.eval()
    image, sides = paddle.randn([1, 3, *size]), paddle.to_tensor([size], "float32")
    found: dict[str, float] = {}
    for _ in range(rounds + 1):
        at: dict[str, Any] = {}
        for name, run in stages(model, image, sides).items():
            start = time.perf_counter()
            at[name] = run(at)
            found[name] = min(time.perf_counter() - start, found.get(name, float("inf")))
    whole = _process.measure(lambda: model.predict(image, sides), 0, before)
    return {**whole, "stages": found}


def exported(folder: Path, runtime: str, size: tuple[int, int]) -> dict[str, Any]:
    before = _process.resident_mib()
    description = read_description(folder)
    processor = make_processor(description)
    form = "onnx" if runtime == "onnx" else "paddle"
    options = runtimes.Options(onednn=ONEDNN.get(runtime, "off"))
    programs = runtimes.load_programs(description, processor.programs, form, options)
    batch = np.random.default_rng(0).standard_normal((1, 3, *size)).astype(np.float32)
    return _process.measure(lambda: processor.run(programs, batch), 0, before)


def main() -> None:
    parser = common.make_parser(__doc__, rounds=3)
    parser.add_argument("--size", nargs=2, type=int, default=[800, 1216], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--runtimes", nargs="+", default=["dygraph", *ONEDNN, "onnx"])
    args = parser.parse_args()
    if args.job is not None:
        job = args.job
        size = tuple(job["size"])
        runtime = job.get("runtime")
        if runtime is None:
            write_exports(Path(job["folder"]), size)
            print("{}")
        elif runtime == "dygraph":
            print(json.dumps(dygraph(size, job["rounds"])))
        else:
            print(json.dumps(exported(Path(job["folder"]), runtime, size)))
        return
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        job = {"size": args.size, "folder": f"{temporary}/exported", "rounds": args.rounds}
        if set(args.runtimes) - {"dygraph"}:
            say("exporting ...")
            common.in_own_process(__file__, job)
        for runtime in args.runtimes:
            results[runtime] = found = common.in_own_process(__file__, {**job, "runtime": runtime})
            rate = f"{found['seconds']:.2f} s, {1 / found['seconds']:.2f} images/s, {found['peak_mib']:.0f} MiB"
            print(f"{runtime:<10} {rate}", flush=True)
            for name, value in found.get("stages", {}).items():
                print(f"  {name:<12} {value:7.3f} s  {value / sum(found['stages'].values()):4.0%}", flush=True)
    common.write_json(args.json, {"settings": SETTINGS, "size": args.size, "results": results})


if __name__ == "__main__":
    main()
