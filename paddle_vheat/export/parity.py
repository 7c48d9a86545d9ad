"""Running an export as ``Predictor`` does, and comparing its outputs with the trained model's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddle_vheat.deploy import runtimes
from paddle_vheat.deploy.description import Description
from paddle_vheat.deploy.predictor import fitted
from paddle_vheat.deploy.processor import Processor, Run
from paddle_vheat.engine.task import ExportSpec
from paddle_vheat.errors import ExportError

PADDLE, REDUCED, ONEDNN, ONNX, OPENVINO = runtimes.NAMES.values()
# Passes of some Paddle versions are wrong or crash on sound graphs, and OpenVINO may lack an operator: not used then.
MAY_FAIL = (ONEDNN, REDUCED, OPENVINO)
USUAL_SIZES = [(128, 160), (97, 203)]


@dataclass(frozen=True)
class Difference:
    """How far an output of a runtime is from the trained model's, at one input."""

    runtime: str
    output: str
    size: tuple[int, int]
    value: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.value <= self.tolerance  # False for NaN

    def __str__(self) -> str:
        verdict = "ok" if self.ok else f"WRONG (bound {self.tolerance:g})"
        return f"{self.runtime:<31} {self.output:<13} {self.size[0]:>5} x {self.size[1]:<5} {self.value:.2e}  {verdict}"


def load_runtime(description: Description, processor: Processor, runtime: str) -> dict[str, Run]:
    """The programs of an export in one of the runtimes above, on the CPU."""
    kind, onednn = next(key for key, name in runtimes.NAMES.items() if name == runtime)
    return runtimes.load_programs(description, processor.programs, kind, runtimes.Options(onednn=onednn))


def check_inputs(spec: ExportSpec, description: Description, processor: Processor) -> list[np.ndarray]:
    """What an export is tried on: random arrays, and the task's images as ``Predictor`` prepares them."""
    rng = np.random.default_rng(0)
    batch, channels, height, width = description.input_shape
    # Where the batch is free, two: a graph that has the batch of its making built in would fail.
    sizes = list(spec.sizes or USUAL_SIZES) if height is None else [(height, width)]
    inputs = [rng.standard_normal((batch or 2, channels, *size)).astype(np.float32) for size in sizes]
    for image in spec.images:
        array, _ = fitted(*processor.prepare(image), description, processor)
        inputs.append(np.repeat(array[None], batch or 1, axis=0))
    return inputs


def right_onednn(differences: Sequence[Difference]) -> str:
    """How much of oneDNN is right for the model: "full", "reduced" or "off"."""
    for onednn in ("full", "reduced"):
        found = [d.ok for d in differences if d.runtime == runtimes.NAMES["paddle", onednn]]
        if found and all(found):
            return onednn
    return "off"


def _compare(
    spec: ExportSpec, runtime: str, outputs: Mapping[str, Any], reference: Mapping[str, Any], array: np.ndarray
) -> list[Difference]:
    if set(outputs) != set(spec.checks):
        raise ExportError(
            f"the export gives {', '.join(outputs)}, and the task has checks for {', '.join(spec.checks)}"
        )
    size = array.shape[2], array.shape[3]
    return [
        Difference(runtime, name, size, check.difference(outputs[name], reference[name]), check.tolerance)
        for name, check in spec.checks.items()
    ]


def check_runtimes(
    description: Description,
    processor: Processor,
    spec: ExportSpec,
    names: Sequence[str],
    say: Callable[[str], Any],
) -> list[Difference]:
    """Run an export by each of the runtimes and compare every output with the trained model's.

    Args:
        names: of the runtimes; the reduced oneDNN is run only if the full one, which is before it, is not right.

    Returns:
        The differences; for oneDNN, full or reduced, and OpenVINO, NaN where it does not run the model.

    Raises:
        ExportError: if a runtime other than these does not run the model, or an output is off by more than its
            tolerance.
    """
    say("largest difference from the trained model, on random images and, if the data is there, on a real one:")
    for name, check in spec.checks.items():
        say(f"  {name}: {check.what}")
    pairs = [(array, spec.reference(array)) for array in check_inputs(spec, description, processor)]
    differences: list[Difference] = []
    for runtime in names:
        if runtime == REDUCED and right_onednn(differences) == "full":
            continue
        try:
            programs = load_runtime(description, processor, runtime)
            found = [
                one
                for array, reference in pairs
                for one in _compare(spec, runtime, processor.run(programs, array), reference, array)
            ]
        except ExportError:
            raise
        except Exception as error:
            if runtime not in MAY_FAIL:
                raise ExportError(f"{runtime} does not run the exported model: {error}") from error
            say(f"  {runtime:<31} does not run this model: {str(error).strip().splitlines()[-1][:160]}")
            differences += [Difference(runtime, name, (0, 0), float("nan"), 0) for name in spec.checks]
            continue
        for one in found:
            say(f"  {one}")
        differences += found
    wrong = [d for d in differences if d.runtime not in MAY_FAIL and not d.ok]
    if wrong:
        what, where = (" and ".join(sorted({getattr(d, key) for d in wrong})) for key in ("output", "runtime"))
        raise ExportError(f"{what} by {where} differ from the trained model's; nothing was written")
    return differences
