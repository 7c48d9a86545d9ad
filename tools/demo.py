"""The main job from start to end on generated data: train, evaluate, export, run the export, show a picture.

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

import numpy as np
from PIL import Image, ImageDraw

from paddle_vheat.deploy import Predictor
from paddle_vheat.tasks.segmentation.cityscapes import CITYSCAPES_NAMES, CITYSCAPES_PALETTE
from paddle_vheat.tasks.segmentation.visualize import compose_triptych

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/demo.yml"
DATA = Path("data/street_scenes")
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


def start(description: str, save_dir: str) -> tuple[str, list[str]]:
    """Read a demo's options and make its folder; gives ``--save_dir`` and ``--opts`` as the commands take them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--save_dir", default=save_dir, help=f"default {save_dir}")
    text = "replace values of the configuration"
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY=VALUE", help=text)
    args = parser.parse_args()
    out = ROOT / args.save_dir
    keep_aside(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    return args.save_dir, ["--opts", *args.opts] if args.opts else []


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


def gallery(exported: Path, count: int = 6, columns: int = 7) -> Image.Image:
    """image | truth | prediction of validation scenes by the exported model, with headings and a legend."""
    predictor, palette = Predictor(exported), np.array(CITYSCAPES_PALETTE, np.uint8)
    files = sorted((ROOT / DATA / "leftImg8bit/val").glob("*/*.png"))
    rows = []
    for path in files[:: max(len(files) // count, 1)][:count]:
        label = str(path).replace("leftImg8bit/val", "gtFine/val").replace("_leftImg8bit.", "_gtFine_labelTrainIds.")
        truth, image = np.asarray(Image.open(label)), np.asarray(Image.open(path))
        rows.append(compose_triptych(image, truth, predictor.predict(str(path)), palette))
    pictures = np.concatenate(rows)
    width, bottom = pictures.shape[1], 16 + pictures.shape[0]
    sheet = Image.new("RGB", (width, bottom + 16 * -(-len(palette) // columns)), "white")
    sheet.paste(Image.fromarray(pictures), (0, 16))
    draw = ImageDraw.Draw(sheet)
    for i, heading in enumerate(("image", "truth", "prediction of the exported model")):
        draw.text((i * width // 3 + 4, 2), heading, fill="black")
    for i, (name, colour) in enumerate(zip(CITYSCAPES_NAMES, CITYSCAPES_PALETTE)):
        x, y = i % columns * width // columns + 4, bottom + i // columns * 16
        draw.rectangle((x, y + 3, x + 10, y + 13), fill=colour)
        draw.text((x + 15, y + 2), name, fill="black")
    return sheet


def main() -> None:
    began = time.perf_counter()
    save_dir, opts = start("Train, evaluate, export and show a small vHeat on street scenes.", "output/demo")
    out = ROOT / save_dir
    model, exported, scores = (f"{save_dir}/{name}" for name in ("best_model", "inference_model", "scores.json"))

    run("-m", "examples.street_scenes", "--output", str(DATA))
    saving = ["--do_eval", "--use_vdl", "--save_interval", "300", "--save_dir", save_dir]
    run("train.py", "--config", CONFIG, *saving, *opts)
    trained = ["--config", CONFIG, "--model_path", f"{model}/model.pdparams"]
    run("val.py", *trained, "--json", scores, *opts)
    run("export.py", *trained, "--save_dir", exported, "--input_shape", "1", "3", "128", "256", *opts)

    table = class_table(json.loads((ROOT / scores).read_text(encoding="utf-8")))
    (out / "per_class_iou.md").write_text(table, encoding="utf-8")
    gallery(ROOT / exported).save(out / "demo.png")
    print(f"\n{table}\nimage | truth | prediction of the exported model: {out / 'demo.png'}")
    print(f"per-class IoU: {out / 'per_class_iou.md'}")
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
