"""From a Paddle export to ONNX, by paddle2onnx, with the constants folded by ONNX Runtime."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from paddle_vheat._paddle import paddle
from paddle_vheat.deploy.description import INPUT_NAME
from paddle_vheat.deploy.runtimes import ONNX_ERRORS_ONLY
from paddle_vheat.engine.export_check import ExportError

OPSET = 17  # the first with LayerNormalization; ONNX Runtime 1.12 and later run it


def _libraries() -> tuple[Any, Any, Any]:
    if int(paddle.__version__.split(".")[0]) < 3:
        raise ExportError(
            f"--format onnx needs Paddle 3, which paddle2onnx 2 is made for; here is {paddle.__version__}. Export with "
            "Paddle 3.2.2 (the weights are the same), or use --format paddle"
        )
    modules = []
    for name in ("onnx", "onnxruntime", "paddle2onnx"):
        try:
            modules.append(importlib.import_module(name))
        except (ImportError, ValueError) as error:  # paddle2onnx raises a ValueError at a Paddle that it does not know
            raise ExportError(
                f"--format onnx needs the package {name}, which does not import ({error}); requirements.txt has the "
                "versions that were tested"
            ) from error
    return modules[0], modules[1], modules[2]


@contextlib.contextmanager
def _captured() -> Iterator[IO[bytes]]:
    """What native code writes to standard output and error goes to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as file:
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield file
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in zip((1, 2), kept):
                os.dup2(copy, number)
                os.close(copy)


def _convert(paddle2onnx: Any, program: Path, params: Path, target: Path) -> None:
    with _captured() as said:
        try:
            # Its default optimize_tool would install packages with pip, at run time.
            options = {"opset_version": OPSET, "optimize_tool": "None"}
            paddle2onnx.export(str(program), str(params), str(target), **options)
        except Exception as error:  # it prints what is wrong, and then stumbles over the missing result
            said.seek(0)
            lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
            text = " | ".join(lines[-3:]) or str(error)
            raise ExportError(f"paddle2onnx cannot convert this model: {text}") from error


def _fold_constants(onnxruntime: Any, source: Path, target: Path) -> None:
    """Compute what depends on no input; remove what nothing needs. The result has standard operators only."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = ONNX_ERRORS_ONLY
    try:
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base but this
        raise ExportError(f"paddle2onnx wrote a graph that ONNX Runtime does not load: {error}") from error


def _rename(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new


def _set_shape(value: Any, sizes: Sequence[int | str]) -> None:
    """Sizes of an input or output: numbers, or names of what is decided at run time."""
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for size in sizes:
        dim = shape.dim.add()
        if isinstance(size, int):
            dim.dim_value = size
        else:
            dim.dim_param = size


def convert_to_onnx(
    program: Path, params: Path, target: Path, output_name: str, shape: Sequence[int | None], num_classes: int
) -> int:
    """Write an ONNX file for a Paddle export.

    Args:
        program, params: the files of the Paddle export; its input is called ``x``.
        target: file to write.
        output_name: what to call the output; "classes" has no axis for the classes.
        shape: N C H W, None for what is decided at run time.
        num_classes: length of the output's second axis.

    Returns:
        The opset.

    Raises:
        ExportError: if a package is missing, or the conversion fails or gives a graph that is not valid.
    """
    onnx, onnxruntime, paddle2onnx = _libraries()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".onnx.") as temporary:
        raw, folded = Path(temporary) / "raw.onnx", Path(temporary) / "folded.onnx"
        _convert(paddle2onnx, program, params, raw)
        _fold_constants(onnxruntime, raw, folded)
        model = onnx.load(str(folded))
    graph = model.graph
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in graph.node if node.domain not in ("", "ai.onnx")})
    if foreign:
        raise ExportError(f"the folded graph has operators that are not ONNX's own: {', '.join(foreign)}")
    standard = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.add(domain="", version=standard[0])
    batch, height, width = (size or name for size, name in zip((shape[0], *shape[2:]), ("batch", "height", "width")))
    _set_shape(graph.input[0], [batch, shape[1] or 3, height, width])
    value = graph.output[0]
    rank = len(value.type.tensor_type.shape.dim)
    classes: list[int | str] = [] if output_name == "classes" else [num_classes]
    sizes = [batch, *classes, height, width]
    _set_shape(value, sizes[:rank])
    _rename(graph, value.name, output_name)
    value.name = output_name
    model.producer_name, graph.name, model.doc_string = "paddle-vheat", "vHeat", ""
    # After ONNX Runtime has loaded it: on a pooling with strides of 0, the checker takes the whole process down.
    onnx.checker.check_model(model, full_check=True)
    if [value.name for value in graph.input] != [INPUT_NAME]:
        raise ExportError(f"the ONNX graph's inputs are {[v.name for v in graph.input]}, not one called {INPUT_NAME!r}")
    onnx.save(model, str(target))
    return int(standard[0])
