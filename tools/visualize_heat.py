"""Pictures of what a trained network's heat conduction does: one PNG for each concept, all numbers in heat.json.

python tools/visualize_heat.py --config configs/vheat_micro_cifar10.yml --model_path output/best_model --before
python tools/visualize_heat.py --config C --model_path W --image street.png --what image stages erf cam --size 512
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from paddle_vheat._files import write_atomically
from paddle_vheat.cli_tools import run_tool, trained
from paddle_vheat.data.image_file import read_bgr
from paddle_vheat.deploy.writing import list_images
from paddle_vheat.errors import UserError

WHAT = ("k", "reach", "response", "patch", "image", "stages", "erf", "cam")
MAX_IMAGES = 50


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pictures of heat conduction in a trained model.")
    add = parser.add_argument
    add("--config", required=True, help="configuration of any model with heat conduction")
    add("--model_path", required=True, help="checkpoint, or a folder with model.pdparams")
    add("--opts", nargs="+", default=[], metavar="KEY=VALUE", help="as of train.py")
    text = "image files or folders; the first is shown, up to 50 are used for the receptive field"
    add("--image", nargs="+", default=[], metavar="I", help=text)
    text = "concepts; default: all that can be shown (with --image all eight)"
    add("--what", nargs="+", choices=WHAT, help=text)
    add("--patch", nargs=2, type=int, metavar=("Y", "X"), help="where heat starts on the first stage's map")
    add("--size", nargs="+", type=int, metavar="N", help="pixels: N, or H W; default: what the model is made for")
    add("--class", dest="label", type=int, help="class for cam; default the likeliest")
    add("--before", action="store_true", help="also show the model with random weights")
    add("--seed", type=int, default=42, help="of --before; default 42, as of train.py")
    add("--save_dir", default="output/heat", help="folder to write into; default output/heat")
    return parser.parse_args(argv)


def normalisation(config: Any) -> Iterator[tuple[list[float], list[float]]]:
    """Every mean and standard deviation that a configuration names, the last being those of evaluation."""
    values = config.values() if isinstance(config, Mapping) else config if isinstance(config, list) else ()
    if isinstance(config, Mapping) and {"mean", "std"} <= set(config):
        yield config["mean"], config["std"]
    for value in values:
        yield from normalisation(value)


def read(path: Path, size: tuple[int, int], channels: int) -> Any:
    """An image file squashed to ``size``: float32 (H, W, channels) of 0 to 1."""
    image = Image.fromarray(np.ascontiguousarray(read_bgr(path)[..., ::-1]))
    image = image.convert("L" if channels == 1 else "RGB").resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32).reshape(*size, channels) / 255


def plain(value: Any) -> Any:
    """For JSON: arrays as lists, six digits, None for what is no number."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def visualize(args: argparse.Namespace) -> None:
    from heat_pictures import CONCEPTS, NEED_AN_IMAGE, Subject

    from paddle_vheat._paddle import paddle
    from paddle_vheat.analysis.observe import backbone_of, input_shape
    from paddle_vheat.models.vheat import size_pair

    files = [path for name in args.image for path, _ in list_images(name)][:MAX_IMAGES]
    what = args.what or [name for name in WHAT if files or name not in NEED_AN_IMAGE]
    if not files and set(what) & set(NEED_AN_IMAGE):
        raise UserError(f"--what {' '.join(n for n in what if n in NEED_AN_IMAGE)} needs --image")
    task, model = trained(args)
    paddle.seed(args.seed)
    before = task.build_model(pretrained=False) if args.before else None
    network = backbone_of(model)
    if args.size and len(args.size) > 2:
        raise UserError(f"--size takes N, or H W; got {args.size}")
    channels, *made_for = input_shape(model)
    given = args.size or made_for
    size = size_pair(given[0] if len(given) == 1 else given, "--size")
    pictures = [read(path, size, channels) for path in files]
    restores = hasattr(network, "img_range")  # takes values of 0 to 1 as they are
    mean, std = ([0.0], [1.0]) if restores else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    for mean, std in normalisation(task.config):  # noqa: B007
        pass
    arrays = [((picture - mean) / np.asarray(std)).transpose(2, 0, 1).astype(np.float32) for picture in pictures]
    folder = Path(args.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    subject = Subject(
        Path(args.config).stem,
        model,
        arrays[0] if arrays else np.zeros((channels, *size), np.float32),
        folder,
        before,
        np.repeat(pictures[0], 3 // channels, axis=2) if pictures else None,
        arrays,
        tuple(args.patch) if args.patch else None,
        args.label,
    )
    numbers = {"config": args.config, "model_path": args.model_path, "size": size, "picture": list(map(str, files[:1]))}
    for name in what:
        numbers[name] = CONCEPTS[name](subject)
        print(f"{name} done", flush=True)
    text = json.dumps(plain(numbers)) + "\n"
    write_atomically(folder / "heat.json", lambda path: Path(path).write_text(text, encoding="utf-8"))
    print(f"written: {folder} ({', '.join(sorted(p.name for p in folder.iterdir()))})")


def main(argv: list[str] | None = None) -> int:
    return run_tool(visualize, parse(argv))


if __name__ == "__main__":
    sys.exit(main())
