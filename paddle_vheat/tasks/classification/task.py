"""Image classification from a configuration in PaddleClas' schema."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat._paddle import F, paddle
from paddle_vheat.config import ConfigError, build, building
from paddle_vheat.data.image_file import check_header
from paddle_vheat.engine.evaluate import evaluating
from paddle_vheat.engine.loader import sample_files
from paddle_vheat.engine.optim import Factors
from paddle_vheat.engine.task import ExportSpec, Metric, Task
from paddle_vheat.errors import MissingFileError, UserError
from paddle_vheat.export import scores_spec
from paddle_vheat.models import VHeatClassifier, create_model
from paddle_vheat.models.vheat import MIN_SIZE
from paddle_vheat.tasks.classification import config as schema
from paddle_vheat.tasks.classification.data import read_file
from paddle_vheat.tasks.classification.deploy import evaluation_ops
from paddle_vheat.tasks.classification.evaluator import ClassificationEvaluator
from paddle_vheat.tasks.classification.mixing import BatchTransform, build_batch_ops
from paddle_vheat.tasks.classification.shift_scores import ShiftEvaluator
from paddle_vheat.tasks.classification.shifts import ShiftedData, read_flags
from paddle_vheat.tasks.classification.transforms import pipeline
from paddle_vheat.tasks.classification.visualize import ClassificationPrediction
from paddle_vheat.tasks.classification.wnids import same_classes
from paddle_vheat.weights.download import local_file
from paddle_vheat.weights.loading import load_classifier


class ClassificationTask(Task):
    """Model, data, loss and score that a configuration in PaddleClas' schema describes; arguments as of
    :class:`paddle_vheat.tasks.segmentation.task.SegmentationTask`."""

    name = "classification"

    def __init__(
        self, config: Mapping[str, Any], source: str = "configuration", flags: Any = None, problems: Any = None
    ) -> None:
        self.config, self.source = config, source
        self._shift, self._real = getattr(flags, "shift", None), getattr(flags, "real", None)
        self._built: dict[str, Any] = {}
        options, found = schema.read(config)
        if found and problems is None:
            raise ConfigError(source, found)
        self.broken = {"model", "train", "val"} if found else set()
        if problems is not None:
            problems += [f"{source}: {problem}" for problem in found]
        if options is not None:
            self.options, self.recipe = options, schema.make_recipe(options)
            self.metric = Metric(f"top{options.topk[0]}", scale=100.0, unit="%")

    # --- model -----------------------------------------------------------------------------------------

    def build_model(self, pretrained: bool = True) -> VHeatClassifier:
        arguments = {key: value for key, value in self.options.Arch.items() if key != "class_num"}
        name, weights = schema.ARCHITECTURES[arguments.pop("name")], arguments.pop("pretrained", None)
        with building(f"{self.source}: Arch"):
            if name == schema.CUSTOM:
                model = VHeatClassifier(num_classes=self.num_classes, **arguments)
            else:
                model = create_model(name, num_classes=self.num_classes, **arguments)
            if pretrained and weights:
                path = local_file(weights, name)
                print(f"{path}: {load_classifier(model, path)}", flush=True)
        return model

    def parameter_factors(self, model: Any) -> Mapping[str, Factors]:
        """No weight decay on parameters of one axis; frequency embeddings have three, and are decayed."""
        left_out = model.no_weight_decay() if self.options.Optimizer.one_dim_param_no_weight_decay else ()
        return {name: Factors(decay=0.0) for name in left_out}

    def losses(self, model: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """Cross entropy with the batch's soft targets."""
        loss = F.cross_entropy(model(batch["img"]), batch["target"], soft_label=True)
        weight = self.options.loss.weight
        return {"loss": loss if weight == 1 else loss * weight}

    # --- data ------------------------------------------------------------------------------------------

    @lru_cache(maxsize=2)  # noqa: B019  (a task lives as long as its program)
    def dataset(self, split: str) -> Any:
        return self._shifted() if split == "val" and (self._shift or self._real) else self._plain(split)

    def _shifted(self) -> ShiftedData:
        if self.num_classes != 1000:
            raise ConfigError(f"{self.source}: --shift and --real need a model of 1000 classes, not {self.num_classes}")
        where = f"{self.source}: DataLoader.Eval.dataset.transform_ops"
        validation = partial(self._plain, "val")
        data = ShiftedData(read_flags(self._shift or []), validation, self._transform_ops, self._real, where)
        if paddle.distributed.get_rank() == 0:
            for note in data.notes:
                print(f"note: {note}", flush=True)
        return data

    def _plain(self, split: str) -> Any:
        part = {"train": "Train", "val": "Eval"}[split]
        where = f"{self.source}: DataLoader.{part}.dataset"
        arguments = {"num_classes": self.num_classes, **getattr(self.options.DataLoader, part).dataset}
        name = arguments.pop("name")
        if split == "train":
            arguments.pop("batch_transform_ops", None)
        try:
            dataset = build(name, arguments, schema.DATASETS, where, source=f"{where}.transform_ops")
        except FileNotFoundError as error:
            hint = f"put the data there, or give --opts {where.split(': ')[-1]}.image_root=DIR"
            raise MissingFileError(f"{self.source}: {error}; {hint}") from error
        for other in self._built.values():
            same_classes(other, dataset)
        self._built[split] = dataset
        return dataset

    @cached_property
    def _batch_transform(self) -> BatchTransform:
        where, dataset = "DataLoader.Train.dataset.batch_transform_ops", self.options.DataLoader.Train.dataset
        operations, smoothing = dataset.get("batch_transform_ops"), self.options.loss.epsilon or 0.0
        return build_batch_ops(operations, self.num_classes, smoothing, f"{self.source}: {where}")

    def prepare(self, batch: dict[str, Any], seed: int) -> dict[str, Any]:
        """Mixup or CutMix and soft targets, on the device."""
        images, targets = self._batch_transform(batch["img"], batch["label"], np.random.default_rng(seed))
        return {**batch, "img": images, "target": targets}

    @property
    def num_classes(self) -> int:
        return self.options.Arch.get("class_num", 1000)

    @cached_property
    def class_names(self) -> list[str] | None:
        """Names of the classes; None if nothing names them."""
        path = self.options.Global.class_names
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
        return list(found) if found else None

    # --- evaluation and prediction ---------------------------------------------------------------------

    def eval_batches(self, dataset: Any, indices: Sequence[int]) -> list[list[int]]:
        size = self.options.DataLoader.Eval.sampler.batch_size
        return [list(indices[i : i + size]) for i in range(0, len(indices), size)]

    def infer(self, model: Any, batch: dict[str, Any]) -> Any:
        """Logits (N, K)."""
        return model(batch["img"])

    def infer_exported(self, predictor: Any, batch: dict[str, Any]) -> Any:
        dataset = self.dataset("val")
        images: list[Any] = []
        for index in (meta["index"] for meta in batch["meta"]):
            files = sample_files(dataset, index)
            images.append(files[0] if files else np.asarray(dataset.image(index))[..., ::-1])
        outputs = predictor.outputs(images)
        if "classes" in outputs[0]:
            raise UserError(
                f"{predictor.description.path.parent}: gives the best class alone, which leaves nothing to score "
                "further ones by; export with --output_op softmax or none"
            )
        if "logits" in outputs[0]:
            return paddle.to_tensor(np.stack([output["logits"] for output in outputs]))
        chances = np.stack([output["probabilities"] for output in outputs])
        return paddle.to_tensor(np.log(np.maximum(chances, np.finfo(np.float32).tiny)))

    def evaluator(self) -> Any:
        if self._shift or self._real:
            return ShiftEvaluator(self.dataset("val"))
        return ClassificationEvaluator(self.options.topk, self.num_classes)

    @property
    def _transform_ops(self) -> list[Any]:
        return self.options.DataLoader.Eval.dataset.get("transform_ops") or []

    @cached_property
    def _from_file(self) -> Any:
        return pipeline(evaluation_ops(self._transform_ops, f"{self.source}: DataLoader.Eval.dataset.transform_ops"))

    def predict(self, model: Any, path: str) -> ClassificationPrediction:
        """The five likeliest classes."""
        check_header(path)  # names the file
        array = read_file(path, self._from_file)
        with evaluating(model):
            chances = F.softmax(model(paddle.to_tensor(array[None]))[0]).numpy()
        return ClassificationPrediction.of(chances, self.class_names)

    # --- export ----------------------------------------------------------------------------------------

    def export_spec(self, model: Any, input_shape: Sequence[int | None], flags: Any) -> ExportSpec:
        images: list[str] = []
        with contextlib.suppress(FileNotFoundError, ConfigError, ImportError):  # an export does not need the data
            images = [name for name in sample_files(self.dataset("val"), 0)[:1] if Path(name).is_file()]
        return scores_spec(
            model,
            tuple(input_shape),
            getattr(flags, "output_op", None) or "softmax",
            self.num_classes,
            per_pixel=False,
            transforms=self._transform_ops,
            images=images,
            channels=model.backbone.in_channels,
            min_size=MIN_SIZE,
            class_names=self.class_names,
        )
