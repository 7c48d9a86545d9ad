"""The command lines: train, evaluate, predict, export. Options and their abbreviations are PaddleSeg's.

Nothing here imports Paddle before the options are read and the CPU is set up, so ``--help`` is instant.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from paddle_vheat.cpu import configure_cpu

EXIT_ERROR = 2  # a mistake in what the command was given; named in one line
EXIT_SIGNAL = 143  # stopped by SIGTERM or Ctrl-C, with a checkpoint saved


def _gpu_is_there() -> bool:
    """Whether Paddle's GPU build is installed and a GPU is visible; asked before Paddle is imported."""
    try:
        importlib.metadata.version("paddlepaddle-gpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all") != "" and any(Path("/dev").glob("nvidia[0-9]*"))


def _common(description: str, config_needed: bool = True) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--config",
        required=config_needed,
        help="YAML configuration (PaddleSeg's format; for classification PaddleClas')",
    )
    parser.add_argument(
        "--opts",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="replace values, such as batch_size=4 model.channels=64",
    )
    parser.add_argument(
        "--device", choices=("cpu", "gpu", "xpu", "npu", "mlu"), help="default: the GPU if there is one"
    )
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    return parser


def _add_model_path(parser: argparse.ArgumentParser) -> None:
    text = "checkpoint: .pdparams, .safetensors, or a folder with model.pdparams; needed"
    parser.add_argument("--model_path", help=text)


def _add_test_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--aug_eval", action="store_true", help="average over --scales and flips")
    parser.add_argument("--scales", nargs="+", type=float, default=[1.0], help="for --aug_eval; default 1.0")
    parser.add_argument("--flip_horizontal", action="store_true", help="for --aug_eval: also the mirrored image")
    parser.add_argument("--flip_vertical", action="store_true", help="for --aug_eval: also upside down")
    parser.add_argument("--is_slide", action="store_true", help="sliding windows instead of the whole image")
    parser.add_argument("--crop_size", nargs=2, type=int, metavar=("W", "H"), help="window of --is_slide")
    parser.add_argument("--stride", nargs=2, type=int, metavar=("W", "H"), help="step of --is_slide")


def _test_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of evaluation; the rest stays as the configuration's test_config has it."""
    options: dict[str, Any] = {}
    if args.aug_eval:
        options.update(aug_eval=True, scales=args.scales)
        options.update(flip_horizontal=args.flip_horizontal, flip_vertical=args.flip_vertical)
    elif args.flip_horizontal or args.flip_vertical or args.scales != [1.0]:
        raise ValueError("--scales and --flip_* are for --aug_eval, which is not given")
    if args.is_slide:
        options["is_slide"] = True
    if args.crop_size:
        options["crop_size"] = args.crop_size
    if args.stride:
        options["stride"] = args.stride
    return options


def _check_data(text: str) -> str | int:
    """What --check_data takes: auto, all, none or a number of samples."""
    if text in ("auto", "all", "none"):
        return text
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"expected auto, all, none or a number of samples, got {text!r}")


def _add_check_data(parser: argparse.ArgumentParser) -> None:
    text = "samples to read before the start: auto (default; all of up to 3000, else 1000), all, none, or a number"
    parser.add_argument("--check_data", type=_check_data, default="auto", metavar="auto|all|none|N", help=text)


def _set_up(args: argparse.Namespace) -> None:
    """Choose the device and import Paddle for it."""
    # Paddle's C++ side logs warnings that say nothing to a user, such as one per static graph.
    os.environ.setdefault("GLOG_minloglevel", "2")
    on_cpu = args.device == "cpu" or (args.device is None and not _gpu_is_there())
    line = configure_cpu() if on_cpu and "paddle" not in sys.modules else ""
    if line and int(os.environ.get("PADDLE_TRAINER_ID", 0)) == 0:
        print(line, flush=True)
    from paddle_vheat._paddle import paddle

    device = "cpu" if on_cpu else args.device or "gpu"
    if device == "gpu" and not (paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count()):
        raise ValueError("--device gpu: this Paddle sees no GPU (is paddlepaddle-gpu installed, is one visible?)")
    if int(os.environ.get("PADDLE_TRAINERS_NUM", 1)) > 1:
        paddle.set_device(device)
        paddle.distributed.init_parallel_env()
    else:
        paddle.set_device(device)


def _make_task(args: argparse.Namespace, report: Any) -> Any:
    """The task of the configuration; mistakes in that go into the report."""
    from paddle_vheat.config import load_config
    from paddle_vheat.engine.tasks import make_task

    config = load_config(args.config, args.opts)
    iters, batch_size, rate = (getattr(args, name, None) for name in ("iters", "batch_size", "learning_rate"))
    problems: list[str] = []
    task = make_task(config, args.config, iters, batch_size, rate, problems)
    report.add(problems)
    return task


def load_checkpoint(task: Any, path: str | None) -> None:
    """Fill a task's model from what ``--model_path`` says, strictly, and print what was loaded."""
    if path is None:
        raise ValueError("--model_path is needed: the checkpoint, such as output/best_model/model.pdparams")
    if Path(path).is_dir():
        candidates = [p for p in (Path(path) / "model.pdparams", Path(path) / "ema_model.pdparams") if p.is_file()]
        if not candidates:
            raise ValueError(f"--model_path {path}: is a folder without model.pdparams")
        path = str(candidates[0])
    print(f"{path}: {task.load(path)}", flush=True)


def _load_into(report: Any, task: Any, path: str | None) -> None:
    """:func:`load_checkpoint` if the configuration is sound; a mistake goes into the report."""
    if not task.broken:
        with report.collecting():
            load_checkpoint(task, path)


def _guarded(run: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser, argv: Any) -> int:
    """Run a command; a mistake of the user's is one line, not a traceback."""
    args = parser.parse_args(argv)
    try:
        return run(args)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, NotImplementedError, SystemError, ImportError) as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except Exception as error:
        if args.debug:
            raise
        print(f"error: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
        return EXIT_ERROR


# --- train ------------------------------------------------------------------------------------------


def train_parser() -> argparse.ArgumentParser:
    parser = _common("Train a model.")
    add = parser.add_argument
    add("--iters", type=int, help="iterations; default: the configuration's")
    add("--batch_size", type=int, help="images per process and step; default: the configuration's")
    add("--learning_rate", type=float, help="default: the configuration's")
    add("--save_dir", default="output", help="folder of checkpoints and logs; default output")
    add("--save_interval", type=int, help="iterations between checkpoints (and evaluations); default 1000, or an epoch")
    add("--log_iters", type=int, default=10, help="iterations between log lines; default 10")
    add("--num_workers", type=int, help="processes that read and augment; default 0, or the configuration's")
    add("--keep_checkpoint_max", type=int, default=5, help="checkpoints kept, 0 for all; default 5")
    add("--do_eval", action="store_true", help="evaluate at every --save_interval and keep the best model")
    add("--early_stop_intervals", type=int, help="stop after that many evaluations without a better score")
    add("--use_vdl", action="store_true", help="write VisualDL records into --save_dir")
    add("--use_ema", action="store_true", help="keep an exponential moving average of the weights")
    add(
        "--resume_model",
        metavar="DIR|auto",
        help="checkpoint folder to continue; auto: the newest whole one in --save_dir",
    )
    text = "iterations with a loss or gradients that are not finite to skip, checked in each; default 0: stop"
    add("--max_skipped_steps", type=int, default=0, metavar="N", help=text)
    _add_check_data(parser)
    add("--seed", type=int, default=42, help="of weights, data order and augmentation; default 42")
    add("--precision", choices=("fp32", "fp16", "bf16"), help="on a GPU; default fp32, or the configuration's")
    add("--amp_level", choices=("O1", "O2"), default="O1", help="how far mixed precision goes; default O1")
    return parser


def _train(args: argparse.Namespace) -> int:
    _set_up(args)
    from paddle_vheat.engine.check import Report, check_resume, check_training
    from paddle_vheat.engine.trainer import Trainer

    report, trainer = Report(), None
    task = _make_task(args, report)
    if not task.broken:
        with report.collecting():
            trainer = Trainer(task, _train_options(args, task))
        if args.resume_model is not None:
            with report.collecting():
                check_resume(args.save_dir, args.resume_model, task.model)
    check_training(task, report, args.do_eval, args.check_data, args.num_workers or 0)
    report.close()
    assert trainer is not None  # or there had been something to report
    return EXIT_SIGNAL if trainer.run()["stopped"] == "signal" else 0


def _train_options(args: argparse.Namespace, task: Any) -> Any:
    from paddle_vheat.engine.trainer import TrainOptions

    return TrainOptions(
        iters=task.iters,
        batch_size=task.batch_size,
        accumulation=task.accumulation,
        save_dir=args.save_dir,
        save_interval=task.save_interval if args.save_interval is None else args.save_interval,
        log_iters=args.log_iters,
        num_workers=task.num_workers if args.num_workers is None else args.num_workers,
        keep_checkpoint_max=args.keep_checkpoint_max,
        seed=args.seed,
        do_eval=args.do_eval,
        use_vdl=args.use_vdl,
        use_ema=args.use_ema or task.ema_decay is not None,
        ema_decay=0.999 if task.ema_decay is None else task.ema_decay,
        precision=task.precision if args.precision is None else args.precision,
        amp_level=args.amp_level,
        resume_model=args.resume_model,
        early_stop_intervals=args.early_stop_intervals,
        max_skipped_steps=args.max_skipped_steps,
    )


# --- val --------------------------------------------------------------------------------------------


def val_parser() -> argparse.ArgumentParser:
    parser = _common("Evaluate a trained model on the validation set.")
    _add_model_path(parser)
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read images; default 0")
    parser.add_argument("--json", metavar="FILE", help="also write the scores to a JSON file")
    _add_check_data(parser)
    _add_test_options(parser)
    return parser


def _val(args: argparse.Namespace) -> int:
    options = _test_options(args)
    _set_up(args)
    from paddle_vheat.engine.check import Report, check_data

    report = Report()
    task = _make_task(args, report)
    _load_into(report, task, args.model_path)
    if "val_dataset" not in task.broken:
        with report.collecting():
            check_data(task, report, "val_dataset", "the validation data", args.check_data, args.num_workers)
    report.close()
    result = task.evaluate(task.model, num_workers=args.num_workers, **options)
    from paddle_vheat._paddle import paddle

    if paddle.distributed.get_rank() == 0:
        print(f"{result['images']} images")
        print(result["table"])
        if args.json:
            import json

            from paddle_vheat.weights.loading import write_atomically

            text = json.dumps({"config": args.config, "model_path": args.model_path, **result["report"]}, indent=1)
            write_atomically(args.json, lambda path: Path(path).write_text(text + "\n", encoding="utf-8"))
            print(f"written: {args.json}")
    return 0


# --- predict ----------------------------------------------------------------------------------------


def predict_parser() -> argparse.ArgumentParser:
    parser = _common("Predict images and write pictures of the result.", config_needed=False)
    _add_model_path(parser)
    text = "predict with this exported model, without --config and --model_path"
    parser.add_argument("--exported", metavar="FOLDER", help=text)
    parser.add_argument("--runtime", choices=("auto", "paddle", "onnx"), help="for --exported; default auto")
    parser.add_argument("--threads", type=int, help="for --exported; default all cores")
    parser.add_argument("--image_path", required=True, help="image, folder of images, or list file")
    parser.add_argument("--save_dir", default="output/result", help="folder for the pictures; default output/result")
    _add_test_options(parser)
    return parser


def _predict(args: argparse.Namespace) -> int:
    options = _test_options(args)
    if args.exported is not None:
        return _predict_exported(args, options)
    if args.config is None:
        raise ValueError("--config is needed: the configuration that the model was trained with (or give --exported)")
    if args.runtime is not None or args.threads is not None:
        raise ValueError("--runtime and --threads are for --exported, which is not given")
    _set_up(args)
    from paddle_vheat.engine.check import Report
    from paddle_vheat.engine.pictures import list_images

    report, images = Report(), []
    task = _make_task(args, report)
    with report.collecting():
        images = list_images(args.image_path)
    _load_into(report, task, args.model_path)
    report.close()
    written = task.predict(images, args.save_dir, **options)
    print(f"{len(images)} images; written: {written}")
    return 0


def _predict_exported(args: argparse.Namespace, options: dict[str, Any]) -> int:
    """Predict with an exported model; imports Paddle only if Paddle is to run it."""
    unused = [f"--{name}" for name in ("config", "model_path", "opts") if getattr(args, name)]
    unused += ["--aug_eval"] * bool(options.get("aug_eval")) + ["--is_slide"] * bool(options.get("is_slide"))
    if unused:
        raise ValueError(f"--exported: the folder says all that is needed, and takes no {', '.join(unused)}")
    if args.device not in (None, "cpu", "gpu"):
        raise ValueError(f"--device {args.device}: an exported model is run on cpu or gpu")
    os.environ.setdefault("GLOG_minloglevel", "2")
    if "paddle" not in sys.modules:
        configure_cpu()
    import numpy as np

    from paddle_vheat.deploy import Predictor
    from paddle_vheat.engine.pictures import list_images, write_pictures, write_top_classes

    images = list_images(args.image_path)
    predictor = Predictor(args.exported, args.runtime or "auto", args.threads, device=args.device or "cpu")
    print(f"{args.exported}: {predictor.runtime}", flush=True)
    description = predictor.description
    if description.task == "segmentation":
        palette = np.array(description.palette or [], np.uint8).reshape(-1, 3)
        folder = write_pictures(images, args.save_dir, palette, predictor.predict)
        written = f"{folder}/pseudo_color_prediction and {folder}/added_prediction"
    else:
        written = str(write_top_classes(images, args.save_dir, predictor.predict))
    print(f"{len(images)} images; written: {written}")
    return 0


# --- export -----------------------------------------------------------------------------------------


def export_parser() -> argparse.ArgumentParser:
    parser = _common("Export a trained model for Paddle Inference and ONNX, and check that it gives the same results.")
    _add_model_path(parser)
    parser.add_argument("--save_dir", default="output/inference_model", help="default output/inference_model")
    parser.add_argument(
        "--input_shape",
        nargs=4,
        type=int,
        metavar=("N", "C", "H", "W"),
        help="-1 for what is decided at run time; default: -1 3 -1 -1",
    )
    parser.add_argument("--format", choices=("paddle", "onnx", "both"), default="paddle", help="default paddle")
    text = "default argmax for segmentation, softmax for classification"
    parser.add_argument("--output_op", choices=("argmax", "softmax", "none"), help=text)
    return parser


def _export(args: argparse.Namespace) -> int:
    _set_up(args)
    from paddle_vheat.engine.check import Report
    from paddle_vheat.engine.export import export_model

    report = Report()
    task = _make_task(args, report)
    _load_into(report, task, args.model_path)
    report.close()
    say = functools.partial(print, flush=True)
    export_model(task, args.save_dir, args.input_shape, args.output_op, say, args.format)
    print(f"written and checked: {args.save_dir} ({', '.join(sorted(os.listdir(args.save_dir)))})")
    return 0


def train(argv: Sequence[str] | None = None) -> int:
    """``train.py``; returns the exit code."""
    return _guarded(_train, train_parser(), argv)


def val(argv: Sequence[str] | None = None) -> int:
    """``val.py``; returns the exit code."""
    return _guarded(_val, val_parser(), argv)


def predict(argv: Sequence[str] | None = None) -> int:
    """``predict.py``; returns the exit code."""
    return _guarded(_predict, predict_parser(), argv)


def export(argv: Sequence[str] | None = None) -> int:
    """``export.py``; returns the exit code."""
    return _guarded(_export, export_parser(), argv)
