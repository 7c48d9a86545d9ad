"""Image classification from a configuration in PaddleClas' schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat._paddle import F, paddle
from paddle_vheat.config import ConfigError, build, building
from paddle_vheat.engine.evaluate import evaluating
from paddle_vheat.engine.loader import stack
from paddle_vheat.engine.optim import Factors
from paddle_vheat.engine.task import ExportSpec, Metric
from paddle_vheat.errors import DataError, MissingFileError
from paddle_vheat.models import VHeatClassifier, create_model
from paddle_vheat.tasks.classification import config as schema
from paddle_vheat.tasks.classification.evaluator import ClassificationEvaluator
from paddle_vheat.tasks.classification.mixing import BatchTransform, build_batch_ops
from paddle_vheat.tasks.classification.visualize import ClassificationPrediction, top_classes
from paddle_vheat.weights.loading import LoadReport, load_classifier, load_weights


class ClassificationTask:
    """Model, data, loss and score that a configuration in PaddleClas' schema describes; arguments as of
    :class:`paddle_vheat.tasks.segmentation.task.SegmentationTask`."""

    name = "classification"

    def __init__(
        self, config: Mapping[str, Any], source: str = "configuration", flags: Any = None, problems: Any = None
    ) -> None:
        self.config, self.source = config, source
        settings, recipe, found = schema.read(config)
        if found and problems is None:
            raise ConfigError(source, found)
        self.broken = {"model", "train", "val"} if found else set()
        if problems is not None:
            problems += [f"{source}: {problem}" for problem in found]
        if settings is not None and recipe is not None:
            self.settings, self.recipe = settings, recipe
            self.metric = Metric(f"top{settings.topk[0]}", scale=100.0, unit="%")

    # --- model -----------------------------------------------------------------------------------------

    def build_model(self, pretrained: bool = True) -> VHeatClassifier:
        settings = self.settings
        with building(f"{self.source}: Arch"):
            if settings.arch in schema.ARCHITECTURES:
                name = schema.ARCHITECTURES[settings.arch]
                model = create_model(name, num_classes=settings.num_classes, **settings.arguments)
            else:
                model = VHeatClassifier(num_classes=settings.num_classes, **settings.arguments)
            if pretrained and settings.pretrained:
                print(f"{settings.pretrained}: {load_classifier(model, settings.pretrained)}", flush=True)
        return model

    def parameter_factors(self, model: Any) -> Mapping[str, Factors]:
        return schema.parameter_factors(model, self.config["Optimizer"].get("one_dim_param_no_weight_decay", False))

    def loss_layers(self) -> None:
        return None

    def losses(self, model: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """Cross entropy with the batch's soft targets."""
        loss = F.cross_entropy(model(batch["img"]), batch["target"], soft_label=True)
        return {"loss": loss if self.settings.loss_weight == 1 else loss * self.settings.loss_weight}

    def trial_batch(self) -> None:
        return None

    def load(self, model: Any, path: str) -> LoadReport:
        return load_weights(model, path)

    # --- data ------------------------------------------------------------------------------------------

    @lru_cache(maxsize=2)  # noqa: B019  (a task lives as long as its program)
    def dataset(self, split: str) -> Any:
        where = f"{self.source}: DataLoader.{ {'train': 'Train', 'val': 'Eval'}[split] }.dataset"
        arguments = dict(self.settings.datasets[split])
        given: dict[str, Any] = {"source": f"{where}.transform_ops"}
        name = arguments.pop("name")
        if name == "ImageNetDataset":
            given["num_classes"] = arguments.pop("num_classes", self.settings.num_classes)
        try:
            return build(name, arguments, schema.DATASETS, where, **given)
        except FileNotFoundError as error:
            hint = f"put the data there, or give --opts {where.split(': ')[-1]}.image_root=DIR"
            raise MissingFileError(f"{self.source}: {error}; {hint}") from error

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return stack(samples)

    @cached_property
    def _batch_transform(self) -> BatchTransform:
        settings, where = self.settings, f"{self.source}: DataLoader.Train.dataset.batch_transform_ops"
        return build_batch_ops(settings.batch_ops, settings.num_classes, settings.smoothing, where)

    def prepare(self, batch: dict[str, Any], seed: int) -> dict[str, Any]:
        """Mixup or CutMix and soft targets, on the device."""
        images, targets = self._batch_transform(batch["img"], batch["label"], np.random.default_rng(seed))
        return {**batch, "img": images, "target": targets}

    @property
    def num_classes(self) -> int:
        return self.settings.num_classes

    @property
    def class_names(self) -> list[str]:
        path = self.settings.class_names
        if path is not None:
            with building(f"{self.source}: Global.class_names"):
                names = Path(path).read_text(encoding="utf-8").splitlines()
            if len(names) != self.num_classes:
                raise ConfigError(f"{path}: {len(names)} names for {self.num_classes} classes ('Global.class_names')")
            return names
        try:
            found = self.dataset("val").class_names
        except FileNotFoundError:  # a prediction or an export needs no data
            found = None
        return list(found) if found else [str(i) for i in range(self.num_classes)]

    # --- evaluation and prediction ---------------------------------------------------------------------

    def eval_batches(self, dataset: Any, indices: Sequence[int]) -> list[list[int]]:
        size = self.settings.eval_batch_size
        return [list(indices[i : i + size]) for i in range(0, len(indices), size)]

    def infer(self, model: Any, batch: dict[str, Any]) -> Any:
        """Logits (N, K)."""
        return model(batch["img"])

    def evaluator(self) -> ClassificationEvaluator:
        return ClassificationEvaluator(self.settings.topk, self.num_classes)

    def preview(self, model: Any, count: int) -> list[np.ndarray]:
        return []

    @cached_property
    def _input(self) -> Any:
        from paddle_vheat.tasks.classification.deploy import ClassificationInput

        ops = self.settings.datasets["val"].get("transform_ops") or []
        return ClassificationInput(ops, 3, f"{self.source}: DataLoader.Eval.dataset.transform_ops")

    @cached_property
    def _names(self) -> list[str]:
        return self.class_names

    def predict(self, model: Any, path: str) -> ClassificationPrediction:
        """The five likeliest classes."""
        try:
            array, _ = self._input(str(path))
        except ValueError as error:
            raise DataError(str(error)) from error
        with evaluating(model):
            chances = F.softmax(model(paddle.to_tensor(array[None]))[0]).numpy()
        return ClassificationPrediction(top_classes(chances, self._names))

    # --- export ----------------------------------------------------------------------------------------

    def export_spec(self, model: Any, input_shape: Sequence[int | None], flags: Any) -> ExportSpec:
        return classification_export(self, model, input_shape, getattr(flags, "output_op", None) or "softmax")
