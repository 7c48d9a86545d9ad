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
from paddle_vheat.engine.loader import sample_files, stack
from paddle_vheat.engine.optim import Factors
from paddle_vheat.engine.task import ExportSpec, Metric
from paddle_vheat.errors import MissingFileError, UserError
from paddle_vheat.export import scores_spec
from paddle_vheat.models import VHeatClassifier, create_model
from paddle_vheat.models.vheat import MIN_SIZE
from paddle_vheat.tasks.classification import config as schema
from paddle_vheat.tasks.classification.deploy import evaluation_ops
from paddle_vheat.tasks.classification.evaluator import ClassificationEvaluator
from paddle_vheat.tasks.classification.mixing import BatchTransform, build_batch_ops
from paddle_vheat.tasks.classification.shift_scores import ShiftEvaluator
from paddle_vheat.tasks.classification.shifts import ShiftedData, read_flags
from paddle_vheat.tasks.classification.transforms import pipeline
from paddle_vheat.tasks.classification.visualize import ClassificationPrediction
from paddle_vheat.weights.download import local_file
from paddle_vheat.weights.loading import LoadReport, load_classifier, load_weights


class ClassificationTask:
    """Model, data, loss and score that a configuration in PaddleClas' schema describes; arguments as of
    :class:`paddle_vheat.tasks.segmentation.task.SegmentationTask`."""

    name = "classification"

    def __init__(
        self, config: Mapping[str, Any], source: str = "configuration", flags: Any = None, problems: Any = None
    ) -> None:
        self.config, self.source = config, source
        self._shift, self._real = getattr(flags, "shift", None), getattr(flags, "real", None)
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
                path = local_file(settings.pretrained, schema.ARCHITECTURES.get(settings.arch, settings.arch))
                print(f"{path}: {load_classifier(model, path)}", flush=True)
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
        where = f"{self.source}: DataLoader.{ {'train': 'Train', 'val': 'Eval'}[split] }.dataset"
        arguments = dict(self.settings.datasets[split])
        given: dict[str, Any] = {"source": f"{where}.transform_ops"}
        name = arguments.pop("name")
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
    def class_names(self) -> list[str] | None:
        """Names of the classes; None if nothing names them."""
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
        return list(found) if found else None

    # --- evaluation and prediction ---------------------------------------------------------------------

    def eval_batches(self, dataset: Any, indices: Sequence[int]) -> list[list[int]]:
        size = self.settings.eval_batch_size
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
        return ClassificationEvaluator(self.settings.topk, self.num_classes)

    def preview(self, model: Any, count: int) -> list[np.ndarray]:
        return []

    @property
    def _transform_ops(self) -> list[Any]:
        return self.settings.datasets["val"].get("transform_ops") or []

    @cached_property
    def _from_file(self) -> Any:
        return pipeline(evaluation_ops(self._transform_ops, f"{self.source}: DataLoader.Eval.dataset.transform_ops"))

    @cached_property
    def _names(self) -> list[str] | None:
        return self.class_names

    def predict(self, model: Any, path: str) -> ClassificationPrediction:
        """The five likeliest classes."""
        check_header(path)  # names the file
        array = self._from_file(Path(path).read_bytes())
        with evaluating(model):
            chances = F.softmax(model(paddle.to_tensor(array[None]))[0]).numpy()
        return ClassificationPrediction.of(chances, self._names)

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
