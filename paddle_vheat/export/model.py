"""An export from beginning to end: programs, ``deploy.yaml``, the comparison, and only then the folder."""

from __future__ import annotations

import contextlib
import importlib.metadata
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from paddle_vheat._files import check_disk, naming, replace_folder
from paddle_vheat._paddle import paddle
from paddle_vheat.config.read import read_yaml
from paddle_vheat.deploy import runtimes
from paddle_vheat.deploy.description import FILE, Shape, Signature, read_description, size_problem
from paddle_vheat.deploy.processor import make_processor
from paddle_vheat.engine.task import ExportSpec, Program
from paddle_vheat.errors import ConfigError, UserError
from paddle_vheat.export.onnx import convert_to_onnx, onnx_libraries
from paddle_vheat.export.parity import ONEDNN, ONNX, OPENVINO, PADDLE, REDUCED, Difference, check_runtimes, right_onednn
from paddle_vheat.export.program import save_program
from paddle_vheat.export.quantize import SEED, Quantization, check, compare, learned_weights, quantize

FORMATS = ("paddle", "onnx", "both")
_SUFFIXES = (".json", ".pdmodel", ".pdiparams", ".pdiparams.info", ".onnx", ".int8.onnx")


def parse_input_shape(shape: Sequence[int] | None, channels: int = 3) -> Shape:
    """(N, C, H, W) with None for what is decided at run time (given as -1); all but C if not given."""
    if shape is None:
        return (None, channels, None, None)
    if len(shape) != 4:
        raise UserError(f"--input_shape: expected N C H W, got {list(shape)}")
    if any(side == 0 or side < -1 for side in shape):
        raise UserError(f"--input_shape: expected numbers of at least 1, or -1, got {list(shape)}")
    if (shape[2] < 0) != (shape[3] < 0):
        raise UserError(f"--input_shape: H and W must both be fixed or both be -1, got {list(shape)}")
    if shape[1] < 0:
        raise UserError("--input_shape: the number of channels must be given")
    problem = size_problem(shape)
    if problem:
        raise UserError(f"--input_shape {problem}")
    return tuple(side if side > 0 else None for side in shape)


def export_model(
    spec: ExportSpec,
    task: str,
    save_dir: str | Path,
    input_shape: Shape,
    say: Callable[[str], Any] = print,
    model_format: str = "paddle",
    quantization: Quantization | None = None,
) -> list[Difference]:
    """Write a model for Paddle Inference, ONNX or both, and ``deploy.yaml``, into ``save_dir``.

    The export is run by Paddle Inference, without and with oneDNN, and by ONNX Runtime and, where it is installed,
    OpenVINO, through the task's own processor, and every output is compared with the model's before ``save_dir`` is
    touched.

    Args:
        spec: what the task exports, and how it is compared.
        task: the name by which its processor is found.
        save_dir: folder to write; replaced if it is an earlier export, else it must be empty or absent.
        input_shape: as :func:`parse_input_shape` gives it; the same that ``spec`` was made for.
        say: prints a line.
        model_format: "paddle" (``NAME.json`` or ``.pdmodel``, ``NAME.pdiparams``), "onnx" (``NAME.onnx``) or "both".
        quantization: write ``NAME.int8.onnx`` too, and say how far it is from the model, how well it scores and how
            fast it is; None for not.

    Returns:
        The differences found. Those of Paddle Inference without oneDNN and of ONNX Runtime are within their bounds;
        where those with oneDNN are not, it is tried with some passes left out ("reduced"), and ``deploy.yaml`` says
        which of the two is right, if any, and whether OpenVINO is.

    Raises:
        ExportError: if a runtime's results differ from the model's, or a conversion fails; nothing is then written.
    """
    if model_format not in FORMATS:
        raise UserError(f"--format: expected one of {', '.join(FORMATS)}, got {model_format!r}")
    _check_shape(spec, input_shape)
    _check_folder(Path(save_dir))
    if model_format != "paddle":
        onnx_libraries()  # before minutes are spent
    if quantization is not None:
        if model_format == "paddle":
            raise UserError("--quantize int8 is of the ONNX model: expected --format onnx or both, got 'paddle'")
        check(quantization)
    differences: list[Difference] = []
    weights: dict[str, set[str]] = {}  # of what an int8 program multiplies by, by the program's name

    def write(folder: Path) -> None:
        try:
            deploy = {"task": task, **_save(spec, folder, model_format, weights)}
            deploy.update(
                input_shape=[side or -1 for side in input_shape],
                min_size=spec.min_size,
                transforms=[dict(transform) for transform in spec.transforms],
                options=dict(spec.options),
            )
            _write_yaml(folder, deploy)
            names = [PADDLE, ONEDNN, REDUCED] * (model_format != "onnx") + [ONNX] * (model_format != "paddle")
            names += [OPENVINO] * (model_format != "paddle" and runtimes.is_installed("openvino"))
            description = read_description(folder)
            processor = make_processor(description)
            differences.extend(check_runtimes(description, processor, spec, names, say))
            deploy.update(_verdict(differences, names, say))
            _write_yaml(folder, deploy)
            if quantization is not None:
                files, count = quantize(folder, description, processor.programs, weights, quantization)
                images = min(quantization.images, len(quantization.task.dataset("val")))
                say(f"int8: {count} products, calibrated on {images} validation images (seed {SEED})")
                _write_yaml(folder, {**deploy, "int8": _plain(files)})
                compare(folder, spec, quantization, say)
        except Exception:
            check_disk(folder)  # libraries do not say that the disk is full, or go on
            raise

    with _on_cpu(spec.model):
        replace_folder(save_dir, write)
    return differences


def _check_shape(spec: ExportSpec, shape: Shape) -> None:
    if shape[1] != spec.channels:
        raise UserError(f"--input_shape: C must be {spec.channels}, the model's channels, got {shape[1]}")
    for name, side in (("H", shape[2]), ("W", shape[3])):
        if side is not None and side < spec.min_size:
            raise UserError(f"--input_shape: {name} must be at least {spec.min_size} pixels, got {side}")


def _check_folder(save_dir: Path) -> None:
    """Raise a UserError if the folder may not be replaced by an export."""
    if save_dir.exists() and not save_dir.is_dir():
        raise UserError(f"{save_dir} is a file; give an empty or new folder")
    if not save_dir.is_dir():
        return
    programs = {"model"}
    with contextlib.suppress(ConfigError, OSError, TypeError, KeyError, AttributeError):
        programs |= set(read_yaml(save_dir / FILE)["Deploy"]["programs"])
    own = {FILE} | {f"{name}{suffix}" for name in programs for suffix in _SUFFIXES}
    foreign = sorted(path.name for path in save_dir.iterdir() if path.name not in own)
    if foreign:
        raise UserError(f"{save_dir} holds {foreign[0]}, which is no part of an export; give an empty or new folder")


@contextlib.contextmanager
def _on_cpu(model: Any) -> Iterator[None]:
    """Inside, the model is on the CPU, where the export is made and compared; in evaluation mode, also afterwards."""
    model.eval()
    device = paddle.get_device()
    if device == "cpu":
        yield
        return
    model.to("cpu")
    paddle.set_device("cpu")
    try:
        yield
    finally:
        paddle.set_device(device)
        model.to(device)


def _save(spec: ExportSpec, folder: Path, model_format: str, weights: dict[str, set[str]]) -> dict[str, Any]:
    """Write the programs; what ``deploy.yaml`` says of them. ``weights`` gets those of the ONNX programs."""
    deploy: dict[str, Any] = {}
    programs: dict[str, Program] = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".programs.") as temporary:
        saved: dict[str, tuple[Path, Path]] = {}
        if model_format != "onnx":
            programs.update(spec.programs("paddle"))
            saved = {name: save_program(program, folder, name) for name, program in programs.items()}
            deploy["model"] = _plain({name: files[0].name for name, files in saved.items()})
            deploy["params"] = _plain({name: files[1].name for name, files in saved.items()})
        if model_format != "paddle":
            for name, program in spec.programs("onnx").items():
                same = programs.setdefault(name, program)
                if same != program:
                    raise ValueError(f"the program {name!r} is not the same for Paddle and ONNX; give it another name")
                files = saved.get(name) or save_program(program, Path(temporary), name)
                target, weights[name] = folder / f"{name}.onnx", learned_weights(program.layer)
                deploy["opset"] = convert_to_onnx(*files, target, program.inputs, program.outputs)
                deploy.setdefault("onnx", {})[name] = target.name
            deploy["onnx"] = _plain(deploy["onnx"])
    deploy["programs"] = {name: str(Signature(program.inputs, program.outputs)) for name, program in programs.items()}
    return deploy


def _plain(files: Mapping[str, str]) -> Any:
    """The file of the one program "model" by itself, as PaddleSeg's DeployConfig reads it, or files by program."""
    return files["model"] if set(files) == {"model"} else dict(files)


def _verdict(differences: Sequence[Difference], names: Sequence[str], say: Callable[[str], Any]) -> dict[str, Any]:
    """What ``deploy.yaml`` says of the comparison."""
    verdict: dict[str, Any] = {"checked_on": {"paddle": runtimes.paddle_version()}}
    if ONNX in names:
        verdict["checked_on"]["onnxruntime"] = str(onnx_libraries()[1].__version__)
    if OPENVINO in names:
        if all(one.ok for one in differences if one.runtime == OPENVINO):
            verdict["checked_on"]["openvino"] = importlib.metadata.version("openvino")
        else:
            say(f"OpenVINO is not safe for this model: {FILE} does not name it, and Predictor refuses it")
    if ONEDNN in names:
        verdict["onednn"] = right_onednn(differences)
        if verdict["onednn"] != "full":
            use = "uses the reduced one" if verdict["onednn"] == "reduced" else "keeps it off"
            say(f"oneDNN is not safe for this model on this Paddle: {FILE} says so, and Predictor {use}")
    return verdict


def _write_yaml(folder: Path, deploy: Mapping[str, Any]) -> None:
    text = yaml.safe_dump({"Deploy": deploy}, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    with naming(folder / FILE):
        (folder / FILE).write_text(text, encoding="utf-8")
