"""The command lines: train, evaluate, predict, export. Options and their abbreviations are PaddleSeg's.

Nothing here imports Paddle before the options are read and the CPU is set up, so ``--help`` is instant. A task adds its
own options by its package's ``add_flags``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from paddle_vheat import cli_exported
from paddle_vheat._files import check_folder, check_output, finite, write_output
from paddle_vheat.cli_options import TaskFlags, add_check_data, add_model_path, make_parser, user_path
from paddle_vheat.config import load_config
from paddle_vheat.cpu import configure_cpu
from paddle_vheat.errors import UserError
from paddle_vheat.tasks import find_task

EXIT_ERROR = 2  # a mistake in what the command was given; named in one line
EXIT_FAULT = 1  # a fault of the program; with its traceback
EXIT_INTERRUPTED = 130
EXIT_SIGNAL = 143  # stopped by SIGTERM or Ctrl-C; train: with a checkpoint saved


class Terminated(KeyboardInterrupt):
    """SIGTERM, where nothing else handles it."""


# --- what all commands do -----------------------------------------------------------------------------


def _gpu_is_there() -> bool:
    """Whether Paddle's GPU build is installed and a GPU is visible; asked before Paddle is imported."""
    try:
        importlib.metadata.version("paddlepaddle-gpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all") != "" and any(Path("/dev").glob("nvidia[0-9]*"))


def _set_up(args: argparse.Namespace) -> str:
    """Choose the device, set the CPU up for it before Paddle is imported, and give the device's name."""
    # Paddle's C++ side logs warnings that say nothing to a user, such as one per static graph.
    os.environ.setdefault("GLOG_minloglevel", "2")
    on_cpu = args.device == "cpu" or (args.device is None and not _gpu_is_there())
    line = configure_cpu() if on_cpu and "paddle" not in sys.modules else ""
    if line and int(os.environ.get("PADDLE_TRAINER_ID", 0)) == 0:
        print(line, flush=True)
    return "cpu" if on_cpu else args.device or "gpu"


def _start_paddle(args: argparse.Namespace) -> str:
    """Import Paddle and set it up; the device's name."""
    device = _set_up(args)
    from paddle_vheat._paddle import paddle

    if device == "gpu" and not (paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count()):
        raise UserError("--device gpu: this Paddle sees no GPU (is paddlepaddle-gpu installed, is one visible?)")
    paddle.set_device(device)
    if int(os.environ.get("PADDLE_TRAINERS_NUM", 1)) > 1:
        paddle.distributed.init_parallel_env()
    with contextlib.suppress(ValueError):  # not the main thread
        # Importing Paddle put a handler of its own in place of ours, which Python still has on record.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return device


def _make_task(args: argparse.Namespace, flags: TaskFlags, report: Any) -> Any:
    """The task of the configuration; mistakes in that go into the report."""
    config = load_config(args.config, args.opts)
    name, module = find_task(config, args.config)
    flags.check(args, name, args.config)
    return module.make_task(config, args.config, args, report.problems)


def load_checkpoint(task: Any, model: Any, path: str | None) -> None:
    """Fill a model from what ``--model_path`` says, strictly, and print what was loaded."""
    if path is None:
        raise UserError("--model_path is needed: the checkpoint, such as output/best_model/model.pdparams")
    file = Path(path)
    if file.is_dir():
        candidates = [p for p in (file / "model.pdparams", file / "ema_model.pdparams") if p.is_file()]
        if not candidates:
            raise UserError(f"--model_path {path}: is a folder without model.pdparams")
        file = candidates[0]
    print(f"{file}: {task.load(model, str(file))}", flush=True)


def _trained_model(task: Any, args: argparse.Namespace, report: Any) -> Any:
    """The model with its weights loaded, if the configuration is sound; a mistake goes into the report."""
    model = None
    if "model" not in task.broken:
        with report.collecting():
            model = task.build_model(pretrained=False)
            load_checkpoint(task, model, args.model_path)
    return model


def _guarded(run: Callable[[argparse.Namespace, TaskFlags], int], parser: Any, command: str, argv: Any) -> int:
    """Run a command. A mistake of the user's is one line, a fault of the program its traceback."""
    flags = TaskFlags(parser, command)
    args = parser.parse_args(argv)

    def terminate(number: int, frame: Any) -> None:
        raise Terminated

    previous = None
    with contextlib.suppress(ValueError):  # not the main thread
        previous = signal.signal(signal.SIGTERM, terminate)
    try:
        return run(args, flags)
    except Terminated:
        print("stopped by SIGTERM", file=sys.stderr)
        return EXIT_SIGNAL
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (UserError, OSError) as error:
        if args.debug:
            raise
        print(f"error: {_message(error)}", file=sys.stderr)
        return EXIT_ERROR
    except Exception:
        if args.debug:
            raise
        traceback.print_exc()
        return EXIT_FAULT
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _message(error: Exception) -> str:
    """An error's text; the system's error of a file names the file."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


# --- train ------------------------------------------------------------------------------------------


def train_parser() -> argparse.ArgumentParser:
    parser = make_parser("train", "Train a model.")
    add = parser.add_argument
    add("--iters", type=int, help="iterations; default: the configuration's")
    add("--batch_size", type=int, help="images per process and step; default: the configuration's")
    add("--learning_rate", type=float, help="default: the configuration's")
    add("--save_dir", default="output", type=user_path, help="folder of checkpoints and logs; default output")
    add("--save_interval", type=int, help="iterations between checkpoints (and evaluations); default 1000, or an epoch")
    add("--log_iters", type=int, default=10, help="iterations between log lines; default 10")
    add("--num_workers", type=int, help="processes that read and augment; default 0, or the configuration's")
    add("--keep_checkpoint_max", type=int, default=5, help="checkpoints kept, 0 for all; default 5")
    add("--do_eval", action="store_true", help="evaluate at every --save_interval and keep the best model")
    add("--early_stop_intervals", type=int, help="stop after that many evaluations without a better score")
    add("--use_vdl", action="store_true", help="write VisualDL records into --save_dir")
    add("--use_ema", action="store_true", help="keep an exponential moving average of the weights")
    text = "checkpoint folder to continue; auto: the newest whole one in --save_dir"
    add("--resume_model", metavar="DIR|auto", type=user_path, help=text)
    text = "iterations with a loss or gradients that are not finite to skip, checked in each; default 0: stop"
    add("--max_skipped_steps", type=int, default=0, metavar="N", help=text)
    add_check_data(parser)
    add("--seed", type=int, default=42, help="of weights, data order and augmentation; default 42")
    add("--precision", choices=("fp32", "fp16", "bf16"), help="on a GPU; default fp32, or the configuration's")
    add("--amp_level", choices=("O1", "O2"), help="how far mixed precision goes; default O1, or the configuration's")
    return parser


def _train(args: argparse.Namespace, flags: TaskFlags) -> int:
    _start_paddle(args)
    from dataclasses import fields

    from paddle_vheat.engine.data_check import Report, check_data, check_resume, try_losses
    from paddle_vheat.engine.optim import TrainOptions
    from paddle_vheat.engine.trainer import Trainer

    check_folder(args.save_dir, "--save_dir")
    report, trainer = Report(), None
    given: dict[str, Any] = {field.name: getattr(args, field.name, None) for field in fields(TrainOptions)}
    options = TrainOptions(**given)
    task = _make_task(args, flags, report)
    if not task.broken & {"model", "train"}:
        with report.collecting():
            trainer = Trainer(task, options)
        if trainer is not None and args.resume_model is not None:
            with report.collecting():
                check_resume(args.save_dir, args.resume_model, trainer.model)
    for split in ("train", "val") if args.do_eval else ("train",):
        check_data(task, report, split, args.check_data, args.num_workers or 0)
    if args.do_eval and not task.broken:
        with report.collecting():
            task.evaluator()  # class names, as many as there are classes
    if trainer is not None:
        with report.collecting():
            try_losses(task, trainer.model, trainer.precision.autocast)
    report.close()
    assert trainer is not None  # or there had been something to report
    return EXIT_SIGNAL if trainer.run()["stopped"] == "signal" else 0


# --- val --------------------------------------------------------------------------------------------


def val_parser() -> argparse.ArgumentParser:
    parser = make_parser("val", "Evaluate a trained model on the validation set.")
    add_model_path(parser)
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read images; default 0")
    parser.add_argument("--json", metavar="FILE", type=user_path, help="also write the scores to a JSON file")
    cli_exported.add_options(parser, "score this exported model, in the place of --model_path")
    add_check_data(parser)
    return parser


def _val(args: argparse.Namespace, flags: TaskFlags) -> int:
    cli_exported.check_options(args, ("model_path", *flags.owners))
    device = _start_paddle(args)
    from paddle_vheat._paddle import paddle
    from paddle_vheat.engine.data_check import Report, check_data
    from paddle_vheat.engine.evaluate import evaluate, evaluate_exported
    from paddle_vheat.engine.loader import check_workers

    check_workers(args.num_workers, "--num_workers")
    if args.json:
        check_output(args.json, "--json")
    report = Report()
    task = _make_task(args, flags, report)
    if args.exported is None:
        model = _trained_model(task, args, report)
    else:
        with report.collecting():
            predictor = cli_exported.make_predictor(args, device)
    check_data(task, report, "val", args.check_data, args.num_workers)
    report.close()
    if args.exported is None:
        scores = evaluate(task, model, num_workers=args.num_workers)
    else:
        scores = evaluate_exported(task, predictor, num_workers=args.num_workers)
    if scores is not None and paddle.distributed.get_rank() == 0:
        print(f"{scores.samples} images")
        print(scores.table)
        metric = task.metric.name
        if math.isnan(scores.values[metric]):
            print(f"warning: this is no score: nothing was there to evaluate {metric} on", file=sys.stderr)
        if args.json:
            origin = {"model_path": args.model_path} if args.exported is None else {"exported": args.exported}
            text = json.dumps(finite({"config": args.config, **origin, **scores.report}), indent=1)
            write_output(args.json, text + "\n")
            print(f"written: {args.json}")
    return 0


# --- predict ----------------------------------------------------------------------------------------


def predict_parser() -> argparse.ArgumentParser:
    parser = make_parser("predict", "Predict images and write the results.", config_needed=False)
    add_model_path(parser)
    cli_exported.add_options(parser, "predict with this exported model, without --config and --model_path")
    parser.add_argument("--image_path", required=True, type=user_path, help="image, folder of images, or list file")
    text = "folder to write into; default output/result"
    parser.add_argument("--save_dir", default="output/result", type=user_path, help=text)
    return parser


def _predict(args: argparse.Namespace, flags: TaskFlags) -> int:
    if args.config is None and args.exported is None:
        raise UserError("--config is needed: the configuration that the model was trained with (or give --exported)")
    cli_exported.check_options(args, ("config", "model_path", "opts", *flags.owners))
    if args.exported is not None:
        return cli_exported.predict(args, _set_up(args))
    _start_paddle(args)
    from paddle_vheat.deploy.writing import list_images, write_predictions
    from paddle_vheat.engine.data_check import Report
    from paddle_vheat.engine.evaluate import evaluation_form

    report, images = Report(), []
    task = _make_task(args, flags, report)
    with report.collecting():
        check_folder(args.save_dir, "--save_dir")
        images = list_images(args.image_path, args.save_dir)
    model = _trained_model(task, args, report)
    report.close()
    model = evaluation_form(model)
    written = write_predictions(images, args.save_dir, lambda path: task.predict(model, str(path)))
    print(f"{len(images)} images; written: {' and '.join(map(str, written))}")
    return 0


# --- export -----------------------------------------------------------------------------------------


def export_parser() -> argparse.ArgumentParser:
    text = "Export a trained model for Paddle Inference and ONNX, and check that it gives the same results."
    parser = make_parser("export", text)
    add_model_path(parser)
    text = "default output/inference_model"
    parser.add_argument("--save_dir", default="output/inference_model", type=user_path, help=text)
    parser.add_argument(
        "--input_shape",
        nargs=4,
        type=int,
        metavar=("N", "C", "H", "W"),
        help="-1 for what is decided at run time; default: -1 C -1 -1, C being the model's, most often 3",
    )
    parser.add_argument("--format", choices=("paddle", "onnx", "both"), default="paddle", help="default paddle")
    text = "write an int8 ONNX model too, calibrated on validation images; its accuracy and speed are printed"
    parser.add_argument("--quantize", choices=("int8",), help=text)
    text = "for --quantize: how many validation images; default 64"
    parser.add_argument("--calibration_images", type=int, metavar="N", help=text)
    return parser


def _export(args: argparse.Namespace, flags: TaskFlags) -> int:
    _start_paddle(args)
    from paddle_vheat.engine.data_check import Report
    from paddle_vheat.export import Quantization, export_model, parse_input_shape
    from paddle_vheat.export.quantize import CALIBRATION_IMAGES

    if args.calibration_images is not None and (args.quantize is None or args.calibration_images < 1):
        raise UserError(
            f"--calibration_images {args.calibration_images}: expected at least 1, and --quantize int8 with it"
        )
    check_folder(args.save_dir, "--save_dir")
    report = Report()
    task = _make_task(args, flags, report)
    shape = parse_input_shape(args.input_shape, getattr(task, "in_channels", 3))
    model = _trained_model(task, args, report)
    report.close()
    spec = task.export_spec(model, shape, args)
    how = Quantization(task, args.calibration_images or CALIBRATION_IMAGES) if args.quantize else None
    export_model(spec, task.name, args.save_dir, shape, functools.partial(print, flush=True), args.format, how)
    print(f"written and checked: {args.save_dir} ({', '.join(sorted(os.listdir(args.save_dir)))})")
    return 0


def train(argv: Sequence[str] | None = None) -> int:
    """``train.py``; returns the exit code."""
    return _guarded(_train, train_parser(), "train", argv)


def val(argv: Sequence[str] | None = None) -> int:
    """``val.py``; returns the exit code."""
    return _guarded(_val, val_parser(), "val", argv)


def predict(argv: Sequence[str] | None = None) -> int:
    """``predict.py``; returns the exit code."""
    return _guarded(_predict, predict_parser(), "predict", argv)


def export(argv: Sequence[str] | None = None) -> int:
    """``export.py``; returns the exit code."""
    return _guarded(_export, export_parser(), "export", argv)
