"""The main job from start to end on the embedded data: train, evaluate, export, run the export, show a picture.

    python tools/demo.py

Every step is a command of the project, printed as it is run.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from paddle_vheat.cpu import configure_cpu

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/demo.yml"
DATA = "data/street_scenes"
MARK = ".demo"  # a file that says whose folder it is


def run(*words: str) -> None:
    """Run one of the project's commands, showing it."""
    print(f"\n$ python {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
    if code:
        sys.exit(code)


def keep_aside(folder: Path) -> None:
    """Move an earlier demo's folder out of the way; anybody else's folder is an error."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / MARK).is_file():
        sys.exit(f"error: {folder} exists and is not from an earlier demo; give another --save_dir")
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime((folder / MARK).stat().st_mtime))
    aside = folder.with_name(f"{folder.name}-{stamp}")
    folder.rename(aside)
    print(f"the earlier demo is kept in {aside}")


def class_table(scores: dict[str, Any]) -> str:
    """Markdown table of per-class IoU beside what predicting the commonest class everywhere would reach."""
    commonest = max(scores["classes"], key=lambda c: c["share"])
    lines = ["| class | IoU | majority baseline | share of pixels |", "|---|---|---|---|"]
    for row in scores["classes"]:
        # Predicted everywhere, the commonest class is right on its share of the pixels and wrong on the rest.
        baseline = row["share"] if row is commonest else 0.0
        iou = "-" if row["iou"] is None else f"{100 * row['iou']:.1f}"
        lines.append(f"| {row['name']} | {iou} | {100 * baseline:.1f} | {100 * row['share']:.1f}% |")
    present = sum(row["share"] > 0 for row in scores["classes"])
    lines.append(f"| **mean** | **{100 * scores['mIoU']:.1f}** | {100 * commonest['share'] / present:.1f} | |")
    lines.append(f"| pixel accuracy | {100 * scores['Acc']:.1f} | {100 * commonest['share']:.1f} | |")
    return "\n".join(lines) + "\n"


def exported_pictures(folder: Path, count: int) -> list[Any]:
    """image | truth | prediction of validation scenes, predicted by the exported model."""
    import numpy as np
    from paddle_vheat.engine.pictures import compose_triptych
    from paddle_vheat.engine.tasks.segmentation import SegmentationTask
    from PIL import Image

    from paddle_vheat.config import load_config
    from paddle_vheat.data.image_file import read_bgr
    from paddle_vheat.deploy import Predictor

    task = SegmentationTask(load_config(ROOT / CONFIG), CONFIG)
    predictor = Predictor(folder)
    files = task.val_dataset.file_list
    pictures = []
    for image_path, label_path in files[:: max(len(files) // count, 1)][:count]:
        label = np.asarray(Image.open(label_path)).astype(np.int64)
        image = read_bgr(image_path)
        pictures.append(compose_triptych(image[..., ::-1], label, predictor.predict(image), task.palette))
    return pictures


def heading(width: int) -> Any:
    """The names of the three columns, RGB uint8 (16, width, 3)."""
    import numpy as np
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (width, 16), "white")
    for i, name in enumerate(("image", "truth", "prediction of the exported model")):
        ImageDraw.Draw(strip).text((i * width // 3 + 4, 2), name, fill="black")
    return np.asarray(strip)


def legend(width: int, columns: int = 7) -> Any:
    """The colours of the classes, RGB uint8 (H, width, 3)."""
    import numpy as np
    from paddle_vheat.data.street_scenes import CLASS_NAMES, PALETTE
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (width, 16 * -(-len(CLASS_NAMES) // columns)), "white")
    draw = ImageDraw.Draw(strip)
    for i, (name, colour) in enumerate(zip(CLASS_NAMES, PALETTE)):
        x, y = i % columns * width // columns + 4, i // columns * 16
        draw.rectangle((x, y + 3, x + 10, y + 13), fill=colour)
        draw.text((x + 15, y + 2), name, fill="black")
    return np.asarray(strip)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train, evaluate, export and show a small vHeat on street scenes.")
    parser.add_argument("--save_dir", default="output/demo", help="default output/demo")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY=VALUE", help="replace values of the configuration"
    )
    args = parser.parse_args()
    out = Path(args.save_dir)
    opts = ["--opts", *args.opts] if args.opts else []
    start = time.perf_counter()
    keep_aside(ROOT / out)
    (ROOT / out).mkdir(parents=True, exist_ok=True)
    (ROOT / out / MARK).touch()
    run("-m", "paddle_vheat.data.street_scenes", "--output", DATA)
    run(
        "train.py",
        "--config",
        CONFIG,
        "--do_eval",
        "--use_vdl",
        "--save_interval",
        "300",
        "--save_dir",
        str(out),
        *opts,
    )
    model = str(out / "best_model" / "model.pdparams")
    run("val.py", "--config", CONFIG, "--model_path", model, "--json", str(out / "scores.json"), *opts)
    exported = str(out / "inference_model")
    shape = ["1", "3", "128", "256"]
    run("export.py", "--config", CONFIG, "--model_path", model, "--save_dir", exported, "--input_shape", *shape, *opts)

    configure_cpu()
    from paddle_vheat.engine.pictures import write_gallery

    scores = json.loads((ROOT / out / "scores.json").read_text(encoding="utf-8"))
    (ROOT / out / "per_class_iou.md").write_text(class_table(scores), encoding="utf-8")
    pictures = exported_pictures(ROOT / exported, count=6)
    write_gallery(ROOT / out / "demo.png", [heading(pictures[0].shape[1]), *pictures, legend(pictures[0].shape[1])])
    print(f"\n{class_table(scores)}")
    print(f"image | truth | prediction of the exported model: {out / 'demo.png'}")
    print(f"per-class IoU: {out / 'per_class_iou.md'}")
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
