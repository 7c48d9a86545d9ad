"""Turn published PyTorch checkpoints (vHeat's, SwinIR's) into ours, without PyTorch and without running their code.

python tools/convert_weights.py SRC.pth DST.pdparams
python tools/convert_weights.py SRC.pth DST.safetensors --ema
python tools/convert_weights.py SRC.pth DST.pdparams --img_size 512 --resize zero_pad
python tools/convert_weights.py --download vheat_tiny [DST.pdparams] [--sha256 ...]

Downloads are kept in ~/.cache/paddle_vheat/weights, or in $PADDLE_VHEAT_HOME/weights. The released weights carry no
licence: they are the authors', and only they may say what may be done with them.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from paddle_vheat.cli_tools import run_tool


def source_and_target(parser: argparse.ArgumentParser, args: argparse.Namespace) -> tuple[str, str]:
    """The two files; the source of a download is known later."""
    if len(args.files) not in ((0, 1) if args.download else (2,)):
        parser.error("give SRC.pth and DST, or --download NAME and, if you like, DST")
    if args.sha256 and not args.download:
        parser.error("--sha256 is for --download, which is not given")
    if args.download:
        return "", args.files[0] if args.files else f"weights/{Path(args.download).stem}.pdparams"
    return args.files[0], args.files[1]


def restoration_rows(content: Any, args: argparse.Namespace) -> list[tuple[str, str]]:
    """Convert a checkpoint of SwinIR, and what to say of it."""
    import numpy as np

    from paddle_vheat._paddle import paddle
    from paddle_vheat.models import build_swin_ir
    from paddle_vheat.ops import fold
    from paddle_vheat.weights.loading import load_state, save_weights
    from paddle_vheat.weights.swinir_keys import read_swinir

    if args.img_size is not None:
        raise ValueError(f"{args.source}: is of SwinIR, which has no frequency embeddings to resize (--img_size)")
    options, state = read_swinir(args.source, args.ema, content)
    model = build_swin_ir(**options)
    report = load_state(model, state, args.source)
    save_weights(model, args.target)
    rows = [
        ("recognised", "restoration, SwinIR"),
        ("model", ", ".join(f"{name}: {value}" for name, value in {"name": "swin_ir", **options}.items())),
        ("converted", f"{len(report.loaded)} arrays, every one of the model's"),
        ("note", "img_range is not in the file: 255 for window 7 (JPEG), else 1, as published"),
    ]
    if args.check:
        image = paddle.to_tensor(np.random.default_rng(0).random((1, options["in_channels"], 40, 56), np.float32))
        model.eval()
        with paddle.no_grad():
            ours, folded = model(image).numpy(), fold(model)(image).numpy()
        difference = np.abs(ours - folded).max() / np.abs(ours).max()
        rows.append(("check", f"training form against the one for evaluation: {difference:.1e}"))
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Turn published PyTorch checkpoints into ours.")
    text = "published checkpoint (.pth), of vHeat or SwinIR; and the file to write: .pdparams or .safetensors"
    parser.add_argument("files", nargs="*", metavar="SRC DST", help=text)
    text = "fetch a release (vheat_tiny, ...) or an address in the place of SRC; DST is then weights/NAME.pdparams"
    parser.add_argument("--download", metavar="NAME", help=text)
    parser.add_argument("--sha256", metavar="HEX", help="what the download's SHA-256 must be")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights of a training checkpoint")
    parser.add_argument("--img_size", type=int, metavar="N", help="make the frequency embeddings for N x N pixels")
    parser.add_argument("--resize", choices=("bicubic", "zero_pad"), default="bicubic", help="how; default bicubic")
    parser.add_argument(
        "--check", action="store_true", help="compare the training form with the folded one on an image"
    )
    args = parser.parse_args(argv)
    args.source, args.target = source_and_target(parser, args)
    return run_tool(run, args)


def run(args: argparse.Namespace) -> None:
    from paddle_vheat.weights.convert import check, convert, read_published
    from paddle_vheat.weights.download import fetch, release
    from paddle_vheat.weights.loading import save_weights
    from paddle_vheat.weights.swinir_keys import is_swinir
    from paddle_vheat.weights.torch_file import read_torch_file

    start = time.perf_counter()
    if Path(args.target).suffix not in (".pdparams", ".safetensors"):
        raise ValueError(f"{args.target}: expected a name that ends in .pdparams or .safetensors")
    if args.download:
        address = args.download if "://" in args.download else release(args.download, "--download")
        args.source = str(fetch(address, args.sha256))
    content = read_torch_file(args.source)
    if is_swinir(content):
        rows = restoration_rows(content, args)
        _say([("source", args.source), *rows, ("written", f"{args.target} in {time.perf_counter() - start:.1f} s")])
        return
    published = read_published(args.source, args.ema, content)
    del content
    model, report = convert(published, args.img_size, args.resize)
    save_weights(model, args.target)
    classes = "" if published.num_classes is None else f", {published.num_classes} classes"
    size = "x".join(map(str, published.img_size))
    by_reason: dict[str, list[str]] = {}
    for name, why in published.dropped.items():
        by_reason.setdefault(why, []).append(name)
    rows = [
        ("source", f"{args.source} ({published.weights})"),
        ("recognised", f"{published.kind}, {published.variant}{classes}"),
        ("form", "folded" if published.folded else "training"),
        ("made for", f"{size} pixels"),
        ("converted", f"{len(report.loaded)} arrays, every one of the model's"),
        *(("resized", text) for text in report.resized),
        *(("dropped", f"{', '.join(names)}: {why}") for why, names in by_reason.items()),
        ("written", f"{args.target} in {time.perf_counter() - start:.1f} s"),
    ]
    _say(rows)
    if args.check:
        if published.folded:
            print(f"{'check':<11} the checkpoint is folded: there is no training form to compare it with")
        else:
            for name, difference in check(model, published.img_size).items():
                print(f"{'check':<11} training form against folded, {name}: {difference:.1e}")


def _say(rows: list[tuple[str, str]]) -> None:
    for name, text in rows:
        print(f"{name:<11} {text}")


if __name__ == "__main__":
    sys.exit(main())
