"""Export to Paddle Inference and ONNX, proven equal to the trained model before it is called done."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from paddle_vheat._paddle import F, nn, paddle
from paddle_vheat.deploy.description import INPUT_NAME, OUTPUT_NAMES, OUTPUT_OPS
from paddle_vheat.engine.checkpoint import replace_folder
from paddle_vheat.engine.export_check import (
    ONEDNN,
    ONNX,
    ONNX_FILE,
    PADDLE,
    REDUCED,
    Difference,
    check_inputs,
    check_runtimes,
    first_output,
    program_file,
    right_onednn,
)
from paddle_vheat.engine.export_onnx import convert_to_onnx, onnx_libraries
from paddle_vheat.models.vheat import MIN_SIZE, VHeat, fold_model
from paddle_vheat.ops import adaptive_average_pool

FORMATS = ("paddle", "onnx", "both")
DEFAULT_OUTPUT_OPS = {"segmentation": "argmax", "classification": "softmax"}
EXPORT_FILES = ("model.json", "model.pdmodel", "model.pdiparams", "model.pdiparams.info", ONNX_FILE, "deploy.yaml")


class _Exported(nn.Layer):
    """A model with one output, and what is done to it."""

    def __init__(self, model: Any, output_op: str) -> None:
        super().__init__()
        self.model = model
        self.output_op = output_op

    def forward(self, x: Any) -> Any:
        logits = first_output(self.model(x))
        if self.output_op == "argmax":
            return paddle.argmax(logits, axis=1, dtype="int32")
        return F.softmax(logits, axis=1) if self.output_op == "softmax" else logits


class _Pool(nn.Layer):
    """``nn.AdaptiveAvgPool2D`` as a matrix product."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Any) -> Any:
        return adaptive_average_pool(x, self.bins)


def _write_pooling_as_products(model: Any) -> None:
    """In place: the pyramid pooling of PaddleSeg's heads in the form that converters get right (``ops/pool.py``)."""
    for layer in model.sublayers(include_self=True):
        for name, child in list(layer.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2D):
                size = child._output_size
                bins = size[0] if isinstance(size, (list, tuple)) and size[0] == size[1] else size
                if isinstance(bins, int):
                    layer.add_sublayer(name, _Pool(bins))


def _has_trunk(model: Any) -> bool:
    return any(isinstance(layer, VHeat) for layer in model.sublayers(include_self=True))


def parse_input_shape(shape: Sequence[int] | None) -> list[Any]:
    """[N, C, H, W] with None for what is decided at run time (given as -1); all but C if not given."""
    if shape is None:
        return [None, 3, None, None]
    if len(shape) != 4:
        raise ValueError(f"--input_shape: expected N C H W, got {list(shape)}")
    if any(side == 0 or side < -1 for side in shape):
        raise ValueError(f"--input_shape: expected numbers of at least 1, or -1, got {list(shape)}")
    parsed: list[Any] = [side if side > 0 else None for side in shape]
    for name, side in (("H", parsed[2]), ("W", parsed[3])):
        if side is not None and side < MIN_SIZE:
            raise ValueError(f"--input_shape: {name} must be at least {MIN_SIZE} pixels, got {side}")
    if (parsed[2] is None) != (parsed[3] is None):
        raise ValueError(f"--input_shape: H and W must both be fixed or both be -1, got {list(shape)}")
    if parsed[1] is None:
        raise ValueError("--input_shape: the number of channels must be given")
    return parsed


def _check_folder(save_dir: Path) -> None:
    """Raise a ValueError if the folder may not be replaced by an export."""
    if save_dir.exists() and not save_dir.is_dir():
        raise ValueError(f"{save_dir} is a file; give an empty or new folder")
    foreign = sorted(p.name for p in save_dir.iterdir() if p.name not in EXPORT_FILES) if save_dir.is_dir() else []
    if foreign:
        raise ValueError(f"{save_dir} holds {foreign[0]}, which is no part of an export; give an empty or new folder")


def save_program(core: Any, output_op: str, shape: Sequence[Any], folder: Path) -> None:
    """Write ``model.json`` (or ``.pdmodel``) and ``model.pdiparams``."""
    wrapped = _Exported(core, output_op)
    wrapped.eval()
    spec = [paddle.static.InputSpec(shape=list(shape), dtype="float32", name=INPUT_NAME)]
    with warnings.catch_warnings():
        # Paddle's own operators ask graph values for their place, which have none; 2.6's warn of their own attribute.
        warnings.filterwarnings("ignore", message=r"Value do not have 'place'|The Attr\(force_cpu\)")
        static = paddle.jit.to_static(wrapped, input_spec=spec, full_graph=True)
        paddle.jit.save(static, str(folder / "model"))


def export_model(
    task: Any,
    save_dir: str | Path,
    input_shape: Sequence[int] | None = None,
    output_op: str | None = None,
    say: Any = print,
    model_format: str = "paddle",
) -> list[Difference]:
    """Write the model for Paddle Inference, ONNX or both, and ``deploy.yaml``, into ``save_dir``.

    With a fixed size, the frequency embeddings and the decay are folded into constants; with a dynamic size the
    whole operator is in the graph, for any height and width of at least 32. The export is run by Paddle
    Inference, without and with oneDNN, and by ONNX Runtime, and compared with the model before ``save_dir`` is
    touched.

    Args:
        task: with its trained model loaded.
        save_dir: folder to write; replaced if it is an earlier export, else it must be empty or absent.
        input_shape: N C H W, -1 for what is decided at run time.
        output_op: "argmax" gives int32 (N, H, W), "softmax" and "none" float32 (N, C, H, W); (N,) and (N, C) for
            classification. Default: argmax for segmentation, softmax for classification.
        say: prints a line.
        model_format: "paddle" (``model.json`` or ``.pdmodel``, ``model.pdiparams``), "onnx" (``model.onnx``) or "both".

    Returns:
        The differences found. Those of Paddle Inference without oneDNN and of ONNX Runtime are within the bound;
        where those with oneDNN are not, it is tried with some passes left out ("reduced"), and ``deploy.yaml`` says
        which of the two is right, if any.

    Raises:
        ExportError: if a runtime's results differ from the model's, or a conversion fails; nothing is then written.
    """
    if model_format not in FORMATS:
        raise ValueError(f"--format: expected one of {', '.join(FORMATS)}, got {model_format!r}")
    output_op = DEFAULT_OUTPUT_OPS[task.kind] if output_op is None else output_op
    if output_op not in OUTPUT_OPS:
        raise ValueError(f"--output_op: expected one of {', '.join(OUTPUT_OPS)}, got {output_op!r}")
    save_dir = Path(save_dir)
    _check_folder(save_dir)
    if model_format != "paddle":
        onnx_libraries()  # before minutes are spent
    shape = parse_input_shape(input_shape)
    model = task.model
    model.eval()
    for trunk in (layer for layer in model.sublayers(include_self=True) if isinstance(layer, VHeat)):
        if trunk.in_channels != shape[1]:
            raise ValueError(f"--input_shape: C must be {trunk.in_channels}, the model's channels, got {shape[1]}")
    fixed = shape[2] is not None
    # A copy in any case: Paddle 2.6 leaves the code that it converts in the layers.
    core = fold_model(model, (shape[2], shape[3])) if fixed and _has_trunk(model) else copy.deepcopy(model)
    _write_pooling_as_products(core)
    differences: list[Difference] = []

    def write(folder: Path) -> None:
        deploy: dict[str, Any] = {}
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as temporary:
            programs = Path(temporary) if model_format == "onnx" else folder
            save_program(core, output_op, shape, programs)
            files = programs / program_file(programs), programs / "model.pdiparams"
            if model_format != "onnx":
                deploy.update(model=files[0].name, params=files[1].name)
            if model_format != "paddle":
                opset = convert_to_onnx(*files, folder / ONNX_FILE, OUTPUT_NAMES[output_op])
                deploy.update(onnx=ONNX_FILE, opset=opset)
        paddles = [PADDLE, ONEDNN, REDUCED]
        names = {"paddle": paddles, "onnx": [ONNX], "both": [*paddles, ONNX]}[model_format]
        differences.extend(check_runtimes(folder, model, check_inputs(task, shape), output_op, names, say))
        if ONEDNN in names:
            deploy["onednn"] = right_onednn(differences)
            if deploy["onednn"] != "full":
                use = "uses the reduced one" if deploy["onednn"] == "reduced" else "keeps it off"
                say(f"oneDNN is not safe for this model on this Paddle: deploy.yaml says so, and Predictor {use}")
        deploy["checked_on"] = _versions(names)
        (folder / "deploy.yaml").write_text(_deploy_yaml(task, deploy, shape, output_op), encoding="utf-8")

    replace_folder(save_dir, write)
    return differences


def _versions(names: Sequence[str]) -> dict[str, str]:
    versions = {"paddle": str(paddle.__version__)}
    if ONNX in names:
        import onnxruntime

        versions["onnxruntime"] = str(onnxruntime.__version__)
    return versions


def _deploy_yaml(task: Any, files: dict[str, Any], shape: list[int | None], output_op: str) -> str:
    palette = {"palette": np.asarray(task.palette).tolist()} if task.kind == "segmentation" else {}
    deploy = {
        **files,
        "task": task.kind,
        "transforms": task.export_transforms,
        "input_shape": [side or -1 for side in shape],
        "min_size": MIN_SIZE if _has_trunk(task.model) else 1,
        "output_op": output_op,
        "output_dtype": "int32" if output_op == "argmax" else "float32",
        "num_classes": task.num_classes,
        "class_names": task.class_names,
        **palette,
    }
    return yaml.safe_dump({"Deploy": deploy}, sort_keys=False, allow_unicode=True)
