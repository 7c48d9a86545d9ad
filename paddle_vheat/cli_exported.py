"""``predict.py --exported`` and ``val.py --exported``: the command lines of exported models."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from paddle_vheat._files import check_folder
from paddle_vheat.cli_options import user_path
from paddle_vheat.errors import UserError

if TYPE_CHECKING:
    from paddle_vheat.deploy import Predictor


def add_options(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--exported``, which ``text`` explains, and what goes with it."""
    parser.add_argument("--exported", metavar="FOLDER", type=user_path, help=text)
    parser.add_argument(
        "--runtime", choices=("auto", "paddle", "onnx", "openvino"), help="for --exported; default auto"
    )
    text = "for --exported: fp32 (default), int8 (an export with --quantize int8), bf16 (OpenVINO), fp16 (a GPU)"
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16", "int8"), help=text)
    parser.add_argument("--threads", type=int, help="for --exported; default all cores")


def check_options(args: argparse.Namespace, unused: Iterable[str]) -> None:
    """Raise a UserError for options that say nothing with, or without, ``--exported``.

    Args:
        unused: names of options that an exported model leaves no use for.
    """
    if args.exported is None:
        if (args.runtime, args.threads, args.precision) != (None, None, None):
            raise UserError("--runtime, --threads and --precision are for --exported, which is not given")
        return
    given = [f"--{name}" for name in unused if getattr(args, name) not in (None, False, [])]
    if given:
        raise UserError(f"--exported: the folder says all that is needed, and takes no {', '.join(given)}")
    if args.device not in (None, "cpu", "gpu"):
        raise UserError(f"--device {args.device}: an exported model is run on cpu or gpu")


def make_predictor(args: argparse.Namespace, device: str) -> Predictor:
    """The exported model, and a line that says what runs it."""
    from paddle_vheat.deploy import Predictor

    precision = args.precision or "fp32"
    predictor = Predictor(args.exported, args.runtime or "auto", args.threads, device=device, precision=precision)
    print(f"{args.exported}: {predictor.runtime}", flush=True)
    return predictor


def predict(args: argparse.Namespace, device: str) -> int:
    """``predict.py --exported``; imports Paddle only if Paddle is to run the model."""
    from paddle_vheat.deploy.writing import list_images, write_predictions

    check_folder(args.save_dir, "--save_dir")
    images = list_images(args.image_path, args.save_dir)
    predictor = make_predictor(args, device)
    written = write_predictions(images, args.save_dir, lambda path: predictor.predictions([path])[0])
    print(f"{len(images)} images; written: {' and '.join(map(str, written))}")
    return 0
