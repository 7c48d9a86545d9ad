"""Denoising from start to end on generated pictures: train, score, export, and a picture of it.

    python tools/demo_restoration.py

Every step is a command of the project, printed as it is run. The scores stand beside those of the noisy pictures, of
OpenCV's non-local means, and of the model itself without conduction.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import cv2
import numpy as np
from demo import ROOT, run, start
from PIL import Image, ImageDraw

from paddle_vheat.deploy import Predictor
from paddle_vheat.tasks.restoration.degrade import scored_noise
from paddle_vheat.tasks.restoration.metrics import psnr, ssim, to_uint8

CONFIG = "configs/demo_restoration.yml"
DATA = Path("data/dead_leaves")
SIGMA = 25
STRENGTHS = range(12, 37, 4)  # of non-local means; the best on training pictures is taken


def non_local_means(noisy: np.ndarray, strength: int) -> np.ndarray:
    return cv2.fastNlMeansDenoising(noisy, None, strength, 7, 21)


def read_gray(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L"))


def best_strength(files: list[Path]) -> int:
    """Of non-local means, by its PSNR on some clean pictures with noise."""
    pairs = [(to_uint8(scored_noise(clean, SIGMA)), clean) for clean in map(read_gray, files)]
    return max(STRENGTHS, key=lambda h: np.mean([psnr(non_local_means(noisy, h), clean) for noisy, clean in pairs]))


def table(report: dict, smoothed: list[tuple[np.ndarray, np.ndarray]]) -> str:
    """Markdown: mean PSNR and SSIM of the noisy pictures, non-local means, the model, and the model with k = 0."""
    means = report["means"]
    scores = {metric.__name__.upper(): np.mean([metric(*pair) for pair in smoothed]) for metric in (psnr, ssim)}
    rows = {
        "noisy": means["input"],
        "OpenCV's non-local means": scores,
        "vHeatIR": means["restored"],
        "vHeatIR without conduction (k = 0)": means["k=0"],
    }
    lines = ["| | PSNR (dB) | SSIM |", "|---|---|---|"]
    lines += [f"| {name} | {row['PSNR']:.2f} | {row['SSIM']:.4f} |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def gallery(columns: list[tuple[str, list[np.ndarray]]]) -> Image.Image:
    """Columns of pictures of one size with headings."""
    height, width = columns[0][1][0].shape
    rows = len(columns[0][1])
    sheet = Image.new("L", (len(columns) * width, 16 + rows * height), 255)
    draw = ImageDraw.Draw(sheet)
    for i, (heading, pictures) in enumerate(columns):
        draw.text((i * width + 4, 2), heading, fill=0)
        sheet.paste(Image.fromarray(np.concatenate(pictures)), (i * width, 16))
    return sheet


def main() -> None:
    began = time.perf_counter()
    text = "Train a small denoiser on generated pictures and show what it does."
    save_dir, opts = start(text, "output/demo_restoration")
    out = ROOT / save_dir
    exported, scores = f"{save_dir}/inference_model", f"{save_dir}/scores.json"

    run("-m", "examples.dead_leaves", "--output", str(DATA))
    run("train.py", "--config", CONFIG, "--do_eval", "--log_iters", "50", "--save_dir", save_dir, *opts)
    trained = ["--config", CONFIG, "--model_path", f"{save_dir}/best_model"]
    run("val.py", *trained, "--ablate", "k=0", "--json", scores, *opts)
    run("export.py", *trained, "--save_dir", exported, *opts)

    predictor = Predictor(ROOT / exported)
    strength = best_strength(sorted((ROOT / DATA / "train").glob("*.png"))[:8])
    clean = [read_gray(path) for path in sorted((ROOT / DATA / "val").glob("*.png"))]
    noisy = [to_uint8(scored_noise(image, SIGMA)) for image in clean]
    smoothed = [non_local_means(image, strength) for image in noisy]
    found = table(json.loads((ROOT / scores).read_text(encoding="utf-8")), list(zip(smoothed, clean)))
    (out / "scores.md").write_text(found, encoding="utf-8")
    restored = [predictor.predict(image) for image in noisy[:3]]
    names = ("noisy", "non-local means", "vHeatIR", "clean")
    shown = (noisy[:3], smoothed[:3], restored, clean[:3])
    gallery(list(zip(names, shown))).save(out / "demo.png")
    print(f"\n{found}\n{' | '.join(names)}: {out / 'demo.png'}")
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
