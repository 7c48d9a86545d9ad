"""What a task is to the engine, to the export and to the command lines: these protocols, and nothing else.

A sample is a dict of NumPy arrays by name; under "meta" it may hold anything else, which travels beside the tensors. A
batch is a dict of tensors (or lists of tensors, where samples differ in size) and "meta", the list of the samples' own.
The smallest legal task is in ``tests/engine/toy.py``.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from paddle_vheat.deploy.description import Tensors
from paddle_vheat.deploy.processor import Prediction

if TYPE_CHECKING:
    import argparse

    import numpy as np

    from paddle_vheat.deploy.predictor import Predictor
    from paddle_vheat.engine.optim import Factors, Recipe

Sample = dict[str, Any]
Batch = dict[str, Any]
Tensor = Any
Layer = Any


@dataclass(frozen=True)
class Metric:
    """A figure of merit: its name, which way is better, and how it is written."""

    name: str
    higher_is_better: bool = True
    scale: float = 1.0
    unit: str = ""
    decimals: int = 2

    def format(self, value: float) -> str:
        """Such as "47.02 %" or "33.41 dB"; "-" for what is not defined."""
        if value != value:
            return "-"
        return f"{self.scale * value:.{self.decimals}f}{' ' if self.unit else ''}{self.unit}"

    def better(self, value: float, than: float | None) -> bool:
        """Whether ``value`` beats ``than``; a value that is not a number never does, any other beats None."""
        if value != value:
            return False
        return than is None or (value > than if self.higher_is_better else value < than)


@dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    Attributes:
        values: by the metric's name.
        table: for people.
        report: for JSON; holds ``values`` too.
        samples: number of samples that were scored.
    """

    values: dict[str, float]
    table: str
    report: dict[str, Any]
    samples: int


class Evaluator(Protocol):
    """Collects a validation set's scores, batch by batch."""

    def update(self, outputs: Any, batch: Batch) -> None:
        """Take in what :meth:`Task.infer` gave for a batch."""

    def state(self) -> Any:
        """What :meth:`merge` takes: NumPy arrays, numbers, lists and dicts."""

    def merge(self, states: Sequence[Any]) -> None:
        """Replace the own state by that of all processes, in the order of their ranks."""

    def summarize(self) -> Scores:
        """The scores of everything taken in."""


class Dataset(Protocol):
    """Samples by index. The three methods beside the items are optional: see ``engine/data_check.py``.

    So is an attribute ``groups``, an integer of each sample: a training batch is then of one group.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def files(self, index: int) -> list[str]:
        """The files that a sample is read from, for messages."""

    def check(self, index: int) -> Any:
        """Raise a DataError for a sample that cannot be used as it is stored, before any transform."""

    def check_all(self, values: list[Any]) -> list[str]:
        """Problems that only the whole set shows, from what :meth:`check` returned for every sample."""


class Task(Protocol):
    """Model, data, losses and scores that a configuration describes.

    A task reads its configuration once, into frozen options, and reports everything that is wrong with it; nothing
    is built before one of these methods is called. A class that inherits this one has what most tasks do where nothing
    is asked for.
    """

    name: str  # of its package in ``paddle_vheat.tasks``, or as it was registered
    source: str  # the configuration's file, for messages
    config: Mapping[str, Any]  # as it was read; kept in checkpoints
    metric: Metric  # chooses the best checkpoint
    recipe: Recipe
    broken: set[str]  # "model", "train", "val": what cannot be built, as its problems have been reported

    @abc.abstractmethod
    def build_model(self, pretrained: bool = True) -> Layer:
        """A new model; called once, after seeding. ``pretrained`` False leaves out the weights it would start from."""

    def parameter_factors(self, model: Layer) -> Mapping[str, Factors]:
        """Factors of the learning rate and the weight decay, by the parameter's name; the default where absent."""
        return {}

    @abc.abstractmethod
    def dataset(self, split: str) -> Dataset:
        """The "train" or "val" set."""

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples to a batch of arrays; as it is here, they have one size."""
        from paddle_vheat.engine.loader import stack

        return stack(samples)

    def prepare(self, batch: Batch, seed: int) -> Batch:
        """What is done to a training batch on the device (mixup); everything random is decided by ``seed``."""
        return batch

    @abc.abstractmethod
    def losses(self, model: Layer, batch: Batch) -> dict[str, Tensor]:
        """Weighted scalar losses by name; the loop adds them up. ``model`` may be inside DataParallel."""

    def loss_layers(self) -> Layer | None:
        """Losses that have a state (a memory bank), as one layer, whose state belongs into checkpoints."""
        return None

    def trial_batch(self) -> Batch | None:
        """A small batch to try model and losses on before the first step; None takes a real one."""
        return None

    def eval_batches(self, dataset: Dataset, indices: Sequence[int]) -> list[list[int]]:
        """The given samples in batches for evaluation: one by one where every image has its own size."""
        return [[index] for index in indices]

    @abc.abstractmethod
    def infer(self, model: Layer, batch: Batch) -> Any:
        """The model's outputs for an evaluation batch, as the evaluator takes them."""

    if TYPE_CHECKING:  # optional: a class that inherits this one has no such method unless it defines it

        def infer_exported(self, predictor: Predictor, batch: Batch) -> Any:
            """The same by an exported model, which prepares the images itself; for ``val.py --exported``.

            ``predictor.predictions(images)`` gives what is deployed, ``predictor.outputs(images)`` what the programs
            give, with ``prepared=True`` of inputs that the data set has prepared, where these are no files (a degraded
            image). ``batch["meta"][i]["index"]`` is the sample's index in the validation set.
            """

    @abc.abstractmethod
    def evaluator(self) -> Evaluator:
        """A new one."""

    def preview(self, model: Layer, count: int) -> list[np.ndarray]:
        """Pictures of a few validation samples for VisualDL, uint8 RGB (H, W, 3); [] for none."""
        return []

    @abc.abstractmethod
    def predict(self, model: Layer, path: str) -> Prediction:
        """The prediction for an image file."""

    def load(self, model: Layer, path: str) -> Any:
        """Fill a model from a checkpoint file, strictly; returns a report that can be printed."""
        from paddle_vheat.weights.loading import load_weights

        return load_weights(model, path)

    @abc.abstractmethod
    def export_spec(self, model: Layer, input_shape: Sequence[int | None], flags: argparse.Namespace) -> ExportSpec:
        """How the model is exported."""


# --- export -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """A network that is saved: ``layer(*inputs)`` gives its outputs in order, one tensor or a tuple of them.

    The layer is the export's own, a copy of the model or of a part of it (``export.inference_copy``): Paddle 2.6 leaves
    the code that it converts in the layers.
    """

    layer: Layer
    inputs: tuple[Tensors, ...]
    outputs: tuple[Tensors, ...]


def largest_difference(output: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference, relative to the reference's largest magnitude; infinite for another shape."""
    import numpy as np

    if output.shape != reference.shape:
        return float("inf")
    if not reference.size:
        return 0.0
    wide = reference.astype(np.float64)
    return float(np.abs(output - wide).max()) / max(float(np.abs(wide).max()), 1e-12)


@dataclass(frozen=True)
class Check:
    """How one named output of an export is compared with the trained model's.

    Args:
        difference: (output, reference) -> how far apart, as a share; the reference may be anything that
            ``ExportSpec.reference`` gives under the output's name, such as logits for an output of classes.
        tolerance: the largest difference that passes; from the error budget of the task.
        what: what is measured, for people.
    """

    tolerance: float
    difference: Callable[[Any, Any], float] = largest_difference
    what: str = "any value, relative to the largest"


@dataclass(frozen=True)
class ExportSpec:
    """How a task's model is exported and proven equal to the trained one.

    Attributes:
        model: the trained model. The export puts it into evaluation mode and, meanwhile, onto the CPU.
        programs: a function of the format ("paddle", "onnx") to the programs by name, most often one called "model".
            The task's processor (``deploy/processor.py``) puts several together. Called when the arguments are known
            to be right; equal for both formats, they are saved once.
        checks: by the name of the output, all that the processor's ``run`` gives.
        reference: the trained model's own results for an input (N, C, H, W), by the name of the output.
        channels, min_size: of the images that the model takes.
        images: files or arrays (H, W, C), as the processor takes them, to compare on beside random inputs, such as the
            first validation image.
        sizes: (height, width) of the random inputs where the size is free; () for two that are usual.
        transforms: of evaluation, for ``deploy.yaml``, as the configuration has them.
        options: what else the task's processor needs to know, for ``deploy.yaml``: plain values.
    """

    model: Layer
    programs: Callable[[str], Mapping[str, Program]]
    checks: Mapping[str, Check]
    reference: Callable[[np.ndarray], Mapping[str, Any]]
    channels: int = 3
    min_size: int = 1
    images: Sequence[Any] = ()
    sizes: Sequence[tuple[int, int]] = ()
    transforms: Sequence[Mapping[str, Any]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
