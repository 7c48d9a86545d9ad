"""A second ONNX program whose products are in int8: calibrated on validation images, and measured beside the first.

The quantisation is ONNX Runtime's own (static, weights by channel, "QDQ": int8 tensors and ``DequantizeLinear`` around
the operators of ONNX), which OpenVINO reads too.
"""

from __future__ import annotations

import importlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat.deploy import Predictor, runtimes
from paddle_vheat.deploy.description import Description
from paddle_vheat.engine.evaluate import check_exported, evaluate_exported
from paddle_vheat.engine.loader import IndexedDataset, load_batches
from paddle_vheat.engine.task import ExportSpec, Task
from paddle_vheat.errors import ExportError
from paddle_vheat.export.onnx import onnx_libraries

CALIBRATION_IMAGES = 64
SCORED_IMAGES = 500  # at most: `val.py --exported --precision int8` scores all
SEED = 0  # of the choice of these images
ROUNDS = 7
_KINDS = ("Conv", "Gemm", "MatMul")
# ONNX Runtime, which folds constants, gives weights that it has multiplied a normalisation or a factor into new names.
_MERGED = ("ConvBnFusion_W_", "ConvMulFusion_W_")

Call = tuple[str, tuple[np.ndarray, ...]]  # a program's name, what it was given


@dataclass(frozen=True)
class Quantization:
    """What an export is calibrated on and scored with: the task, and how many of its validation images calibrate."""

    task: Task
    images: int = CALIBRATION_IMAGES


def quantizer() -> Any:
    """The module ``onnxruntime.quantization``.

    Raises:
        ExportError: if it or something that it needs is missing.
    """
    onnx_libraries()
    try:
        return importlib.import_module("onnxruntime.quantization")
    except ImportError as error:
        raise ExportError(
            f"--quantize needs ONNX Runtime's quantisation, which does not load ({error}); requirements.txt has the "
            "versions that were tested"
        ) from error


# --- the program --------------------------------------------------------------------------------------


def learned_weights(layer: Any) -> set[str]:
    """Names of the parameters that may become int8: all but those of layers that their owner names in ``in_float``."""
    in_float = {
        parameter.name
        for owner in layer.sublayers(include_self=True)
        for name in getattr(owner, "in_float", ())
        for parameter in getattr(owner, name).parameters()
    }
    return {parameter.name for parameter in layer.parameters()} - in_float


def learned_products(model: Any, weights: set[str]) -> list[str]:
    """Names of the nodes of an ONNX model that multiply what comes in by one of these weights.

    Everything else stays in float: the cosine transforms, pooling and resizing are products with constants that were
    not learned, and the decay is no product of what comes in. So do depthwise convolutions, whose nine products a value
    are no faster in int8.
    """
    stored = {value.name: value for value in model.graph.initializer}

    def is_learned(name: str) -> bool:
        origin = next((name[len(prefix) :] for prefix in _MERGED if name.startswith(prefix)), name)
        return name in stored and origin in weights

    def is_depthwise(node: Any) -> bool:
        return node.op_type == "Conv" and stored[node.input[1]].dims[1] == 1

    found = [node for node in model.graph.node if node.op_type in _KINDS and is_learned(node.input[1])]
    return [node.name for node in found if not is_depthwise(node)]


def quantize_file(source: Path, target: Path, weights: set[str], feeds: Iterator[dict[str, np.ndarray]]) -> int:
    """Write the int8 form of an ONNX file.

    Args:
        source, target: the files.
        weights: as of :func:`learned_weights`.
        feeds: the inputs by name that the ranges of the activations are taken from, smallest to largest value.

    Returns:
        How many products are in int8; if there is none, the file is the same.

    Raises:
        ExportError: if the library fails.
    """
    quantization, onnx = quantizer(), onnx_libraries()[0]
    nodes = learned_products(onnx.load(str(source)), weights)
    if not nodes:
        shutil.copyfile(source, target)
        return 0

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(feeds, None)

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the library's advice, which is for graphs that were not folded
    try:
        quantization.quantize_static(
            str(source),
            str(target),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(_KINDS),
            nodes_to_quantize=nodes,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            # What follows is in float: rounding the sum as well would cost accuracy and a step.
            extra_options={"OpTypesToExcludeOutputQuantization": list(_KINDS)},
        )
    except (ExportError, OSError):
        raise
    except Exception as error:  # the library has no exceptions of its own
        raise ExportError(f"{source.name}: ONNX Runtime cannot quantise it: {error}") from error
    finally:
        logging.disable(before)
    return len(nodes)


# --- calibration and comparison -----------------------------------------------------------------------


def choose_images(task: Task, count: int) -> list[int]:
    """Indices of that many validation images, or of all, in the order of a shuffle of fixed seed."""
    return np.random.default_rng(SEED).permutation(len(task.dataset("val")))[:count].tolist()


def recorded_calls(task: Task, predictor: Predictor, indices: list[int]) -> Iterator[list[Call]]:
    """What the programs are given, batch by batch, when the task predicts these validation images."""
    calls: list[Call] = []

    def recording(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def record(*arrays: np.ndarray) -> Any:
            calls.append((name, arrays))
            return run(*arrays)

        return record

    predictor.programs = {name: recording(name, run) for name, run in predictor.programs.items()}
    dataset = task.dataset("val")
    for batch in load_batches(IndexedDataset(dataset), task.eval_batches(dataset, indices), 0, task.collate):
        task.infer_exported(predictor, batch)
        yield calls
        calls = []


def quantize(
    folder: Path, description: Description, signatures: Any, weights: Mapping[str, set[str]], how: Quantization
) -> tuple[dict[str, str], int]:
    """Write ``NAME.int8.onnx`` beside every ``NAME.onnx``; the files by program, and the number of int8 products."""
    indices = choose_images(how.task, how.images)
    files, count = {}, 0
    for name, source in description.onnx.items():

        def feeds(name: str = name) -> Iterator[dict[str, np.ndarray]]:
            for calls in recorded_calls(how.task, Predictor(folder, "onnx"), indices):
                for called, arrays in calls:
                    if called == name:
                        yield {tensors.name: array for tensors, array in zip(signatures[name].inputs, arrays)}

        files[name] = f"{name}.int8.onnx"
        count += quantize_file(folder / source, folder / files[name], weights[name], feeds())
    return files, count


def compare(folder: Path, spec: ExportSpec, how: Quantization, say: Callable[[str], Any]) -> None:
    """Say what int8 costs and what it brings: scores, differences and time, each beside those of float32."""
    task = how.task
    order = choose_images(task, how.images + SCORED_IMAGES)
    # Not those of the calibration, if there are enough others.
    scored = order[how.images :] if len(order) >= 2 * how.images else order
    both = {precision: Predictor(folder, "onnx", precision=precision) for precision in ("fp32", "int8")}
    scores = {name: evaluate_exported(task, one, indices=scored) for name, one in both.items()}
    say(f"  {'':<28} {'fp32':>12} {'int8':>12}")
    values = [task.metric.format(one.values[task.metric.name]) if one else "-" for one in scores.values()]
    say(f"  {task.metric.name:<28} {values[0]:>12} {values[1]:>12}  on {len(scored)} validation images")
    calls = next(recorded_calls(task, both["fp32"], order[:1]))
    batch = calls[0][1][0]
    reference = spec.reference(batch)
    outputs = [one.run(batch) for one in both.values()]
    for name, check in spec.checks.items():
        found = [f"{check.difference(output[name], reference[name]):.1e}" for output in outputs]
        say(f"  {name + ' off by':<28} {found[0]:>12} {found[1]:>12}  {check.what}; one image")
    checked = both["fp32"].description.checked_on
    for runtime in ("onnx", "openvino") if "openvino" in checked else ("onnx",):
        programs = [Predictor(folder, runtime, precision=precision).programs for precision in both]
        times = [f"{1e3 * seconds:.2f} ms" for seconds in _seconds(programs, calls)]
        shape = " x ".join(map(str, batch.shape))
        say(f"  {runtimes.NAMES[runtime, 'off']:<28} {times[0]:>12} {times[1]:>12}  {shape}, best of {ROUNDS} in turns")


def _seconds(programs: list[Any], calls: list[Call]) -> list[float]:
    """The least time that each takes for these calls; they take turns."""
    times: list[list[float]] = [[] for _ in programs]
    for _ in range(ROUNDS + 1):  # the first prepares memory, and is the slowest
        for one, found in zip(programs, times):
            start = time.perf_counter()
            for name, arrays in calls:
                one[name](*arrays)
            found.append(time.perf_counter() - start)
    return [min(found) for found in times]


def check(how: Quantization) -> None:
    """Raise a UserError for what cannot be quantised, before minutes are spent."""
    quantizer()
    check_exported(how.task, how.task.source)
    how.task.dataset("val")
