"""From a Paddle program to ONNX, by paddle2onnx, with the constants folded by ONNX Runtime."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paddle_vheat._files import check_disk, naming
from paddle_vheat._paddle import paddle
from paddle_vheat.deploy.description import Tensors
from paddle_vheat.deploy.runtimes import ONNX_ERRORS_ONLY
from paddle_vheat.errors import ExportError

OPSET = 17  # the first with LayerNormalization; ONNX Runtime 1.12 and later run it


# In a process of its own: what paddle2onnx does not know, its native code answers by ending the process.
# Its default optimize_tool would install packages with pip, at run time.
_CONVERT = """
import sys
import paddle2onnx
program, params, target, opset = sys.argv[1:]
paddle2onnx.export(program, params, target, opset_version=int(opset), optimize_tool="None")
"""


def onnx_libraries() -> tuple[Any, Any]:
    """The modules ``onnx`` and ``onnxruntime``.

    Raises:
        ExportError: if one of them or paddle2onnx is missing, or Paddle is not one that paddle2onnx takes.
    """
    if int(paddle.__version__.split(".")[0]) < 3:
        raise ExportError(
            f"--format onnx needs Paddle 3, which paddle2onnx 2 is made for; here is {paddle.__version__}. Export with "
            "Paddle 3.2.2 (the weights are the same), or use --format paddle"
        )
    for name in ("paddle2onnx", "onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise ExportError(
                f"--format onnx needs the package {name}; requirements.txt has the version that was tested"
            )
    return importlib.import_module("onnx"), importlib.import_module("onnxruntime")


def _convert(program: Path, params: Path, target: Path) -> None:
    command = [sys.executable, "-c", _CONVERT, str(program), str(params), str(target), str(OPSET)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode or not target.is_file():
        check_disk(target.parent)
        lines = done.stdout.decode(errors="replace").splitlines()
        # Above the native stack of a crash, or a traceback, it says what is wrong.
        told = [line.strip() for line in lines if re.search("error|unsupported|not support", line, re.IGNORECASE)]
        raise ExportError(f"paddle2onnx cannot convert this model: {' | '.join(told[:3] or lines[-3:])}")


def _fold_constants(onnxruntime: Any, source: Path, target: Path) -> None:
    """Compute what depends on no input; remove what nothing needs. The result has standard operators only."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = ONNX_ERRORS_ONLY
    try:
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base but this
        check_disk(target.parent)
        raise ExportError(f"paddle2onnx wrote a graph that ONNX Runtime does not load: {error}") from error


def _name_values(graph: Any, values: Any, declared: Sequence[Tensors]) -> None:
    """Give the outputs, in order, and the axes of inputs and outputs whose length is free their names."""
    names = {value.name: tensors.name for value, tensors in zip(values, declared)}
    for value, tensors in zip(values, declared):
        value.name = tensors.name
        for dim, axis in zip(value.type.tensor_type.shape.dim, tensors.axes):
            if dim.dim_value <= 0:
                dim.dim_param = axis
    for node in graph.node:
        for used in (node.input, node.output):
            for i, name in enumerate(used):
                used[i] = names.get(name, name)


def convert_to_onnx(
    program: Path, params: Path, target: Path, inputs: Sequence[Tensors], outputs: Sequence[Tensors]
) -> int:
    """Write an ONNX file for a Paddle program.

    Args:
        program, params: the files of the Paddle program.
        target: file to write.
        inputs, outputs: their names and those of their axes; the inputs have their names already.

    Returns:
        The opset.

    Raises:
        ExportError: if a package is missing, or the conversion fails or gives a graph that is not valid.
        OSError: naming the file, if it cannot be written.
    """
    onnx, onnxruntime = onnx_libraries()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".onnx.") as temporary:
        raw, folded = Path(temporary) / "raw.onnx", Path(temporary) / "folded.onnx"
        _convert(program, params, raw)
        _fold_constants(onnxruntime, raw, folded)
        model = onnx.load(str(folded))
    graph = model.graph
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in graph.node if node.domain not in ("", "ai.onnx")})
    if foreign:
        raise ExportError(f"the folded graph has operators that are not ONNX's own: {', '.join(foreign)}")
    standard = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.add(domain="", version=standard[0])
    found = {value.name: value for value in graph.input}
    if sorted(found) != sorted(tensors.name for tensors in inputs) or len(graph.output) != len(outputs):
        raise ExportError(
            f"the ONNX graph takes {', '.join(found)} and gives {len(graph.output)} outputs; expected "
            f"{'; '.join(map(str, inputs))} and {'; '.join(map(str, outputs))}"
        )
    _name_values(graph, [found[tensors.name] for tensors in inputs], inputs)
    _name_values(graph, graph.output, outputs)
    model.producer_name, graph.name, model.doc_string = "paddle-vheat", target.stem, ""
    # After ONNX Runtime has loaded it: on a pooling with strides of 0, the checker takes the whole process down.
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # its exceptions have no common base but this
        raise ExportError(f"paddle2onnx wrote a graph that is not valid: {error}") from error
    with naming(target):
        onnx.save(model, str(target))
    return int(standard[0])
