"""Object detection and instance segmentation from a configuration of ours."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat._files import check_output, write_output
from paddle_vheat._paddle import paddle
from paddle_vheat.config import ConfigError, building
from paddle_vheat.data.image_file import read_bgr
from paddle_vheat.engine.evaluate import evaluating
from paddle_vheat.engine.loader import to_tensors
from paddle_vheat.engine.optim import Factors
from paddle_vheat.engine.task import ExportSpec, Metric, Task
from paddle_vheat.errors import MissingFileError, UserError
from paddle_vheat.models.mask_rcnn import random_sampler
from paddle_vheat.tasks.detection import config as schema
from paddle_vheat.tasks.detection.coco import CocoDataset, read_annotations
from paddle_vheat.tasks.detection.deploy import Context, Options, detections_of, make_prediction
from paddle_vheat.tasks.detection.evaluator import CocoEvaluator
from paddle_vheat.tasks.detection.export import detection_spec
from paddle_vheat.tasks.detection.transforms import EvalTransform, TrainTransform, pad, padded_size
from paddle_vheat.tasks.detection.visualize import DetectionPrediction
from paddle_vheat.weights.download import local_file
from paddle_vheat.weights.loading import load_detector

BOX_AP = Metric("bbox_AP", scale=100.0, unit="%")


class DetectionTask(Task):
    """Model, data, losses and scores that a configuration describes; arguments as of
    :class:`paddle_vheat.tasks.segmentation.task.SegmentationTask`."""

    name, metric = "detection", BOX_AP

    def __init__(
        self, config: Mapping[str, Any], source: str = "configuration", flags: Any = None, problems: Any = None
    ) -> None:
        self.config, self.source = config, source
        options, found = schema.read(config)
        if found and problems is None:
            raise ConfigError(source, found)
        self.broken = {"model", "train", "val"} if found else set()
        if problems is not None:
            problems += [f"{source}: {problem}" for problem in found]
        if options is not None:
            self.options, self.recipe = options, schema.make_recipe(options)
            given = getattr(flags, "threshold", None)
            self.threshold = options.threshold if given is None else given
        if not 0 <= getattr(self, "threshold", 0) <= 1:
            raise UserError(f"--threshold must be from 0 to 1, got {self.threshold:g}")
        self.save_json = getattr(flags, "save_json", None)
        if self.save_json:
            check_output(self.save_json, "--save_json")

    # --- model ------------------------------------------------------------------------------------------

    def build_model(self, pretrained: bool = True) -> Any:
        options = self.options.model
        with building(f"{self.source}: model"):
            model = schema.build(options)
            if pretrained and options.pretrained:
                path = local_file(options.pretrained, options.name)
                print(f"{path}: {load_detector(model, path)}", flush=True)
        return model

    def parameter_factors(self, model: Any) -> Mapping[str, Factors]:
        """No decay where the published names hold "norm"."""
        return {name: Factors(decay=0.0) for name in model.no_weight_decay()}

    def losses(self, model: Any, batch: dict[str, Any]) -> dict[str, Any]:
        sampler = random_sampler(np.random.default_rng(batch["seed"]))
        targets = [meta["target"] for meta in batch["meta"]]
        return dict(model(batch["img"], targets=targets, sampler=sampler))

    def trial_batch(self) -> dict[str, Any]:
        """Two small images, one without objects: data are checked by themselves."""
        image = np.random.default_rng(0).standard_normal((3, 64, 96)).astype(np.float32)
        boxes, label = np.asarray([[8, 8, 72, 56]], np.float32), np.asarray([self.options.model.num_classes - 1])
        masks = np.ones((1, 64, 96), np.uint8)
        target = {"boxes": boxes, "labels": label, "masks": masks}
        none = {name: array[:0] for name, array in target.items()}
        return self.collate([{"img": image, **objects} for objects in (target, none)])

    # --- data -------------------------------------------------------------------------------------------

    @lru_cache(maxsize=2)  # noqa: B019  (a task lives as long as its program)
    def dataset(self, split: str) -> CocoDataset:
        block, transforms = getattr(self.options.data, split), self.options.transforms
        training = split == "train"
        transform: Any = TrainTransform(transforms) if training else EvalTransform(transforms)
        classes = self.options.model.num_classes
        try:
            return CocoDataset(block.image_dir, block.annotations, transform, classes, training, block.skip_empty)
        except FileNotFoundError as error:
            hint = f"put the data there, or give --opts data.{split}.image_dir=FOLDER data.{split}.annotations=FILE"
            raise MissingFileError(f"{self.source}: {error}; {hint}") from error

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Images padded to the largest, to a multiple of 32 pixels; objects, of any number, in "meta" as "target"."""
        shapes = [sample["img"].shape[1:] for sample in samples]
        size = padded_size(*zip(*shapes))
        batch = {"img": np.stack([pad(sample["img"], *size) for sample in samples])}
        metas = [dict(sample.get("meta", {})) for sample in samples]
        for sample, shape, meta in zip(samples, shapes, metas):
            if "boxes" in sample:
                target = {name: sample[name] for name in ("boxes", "labels", "masks")}
                meta["target"] = {**target, "image_size": shape}
        return {**batch, "meta": metas}

    def prepare(self, batch: dict[str, Any], seed: int) -> dict[str, Any]:
        return {**batch, "seed": seed}  # of the sampling of anchors and proposals

    @cached_property
    def class_names(self) -> list[str] | None:
        """From the validation set's annotations; None if there are none: a prediction or an export needs no data."""
        with contextlib.suppress(FileNotFoundError):
            categories = read_annotations(self.options.data.val.annotations)["categories"]
            names = [str(one["name"]) for one in sorted(categories, key=lambda one: one["id"])]
            return names if len(names) == self.options.model.num_classes else None
        return None

    # --- evaluation and prediction ----------------------------------------------------------------------

    def eval_batches(self, dataset: Any, indices: Sequence[int]) -> list[list[int]]:
        size = self.options.eval_batch_size
        return [list(indices[i : i + size]) for i in range(0, len(indices), size)]

    def infer(self, model: Any, batch: dict[str, Any]) -> list[dict[str, np.ndarray]]:
        """For each image what ``MaskRCNN.predict`` gives, as arrays."""
        sizes = paddle.to_tensor([list(meta["shape"]) for meta in batch["meta"]], "float32")
        return [{name: value.numpy() for name, value in one.items()} for one in model.predict(batch["img"], sizes)]

    def infer_exported(self, predictor: Any, batch: dict[str, Any]) -> list[dict[str, np.ndarray]]:
        files = [self.dataset("val").files(meta["index"])[0] for meta in batch["meta"]]
        return [detections_of(predictor.outputs([file])[0]["detections"]) for file in files]

    def evaluator(self) -> CocoEvaluator:
        path = self.save_json if paddle.distributed.get_rank() == 0 else None
        return CocoEvaluator(self.dataset("val"), functools.partial(write_output, path) if path else None)

    def preview(self, model: Any, count: int) -> list[np.ndarray]:
        dataset = self.dataset("val")
        files = [dataset.files(i)[0] for i in range(min(count, len(dataset)))]
        return [self.predict(model, path).draw(path)["detections"] for path in files]

    def predict(self, model: Any, path: str) -> DetectionPrediction:
        image = read_bgr(path)
        sample = EvalTransform(self.options.transforms)(image, {})
        with evaluating(model):
            (found,) = self.infer(model, to_tensors(self.collate([sample])))
        context = Context((image.shape[0], image.shape[1]), sample["meta"]["shape"])
        return make_prediction(found, context, self.class_names, self.threshold)

    # --- export -----------------------------------------------------------------------------------------

    def export_spec(self, model: Any, input_shape: Sequence[int | None], flags: Any) -> ExportSpec:
        images: list[str] = []
        with contextlib.suppress(FileNotFoundError, UserError):  # an export does not need the data
            images = [name for name in self.dataset("val").files(0) if Path(name).is_file()]
        selection, transforms = self.options.model.selection, self.options.transforms
        options = Options(
            num_classes=self.options.model.num_classes,
            channels=self.options.model.channels,
            scale=transforms.scale,
            mean=transforms.mean,
            std=transforms.std,
            per_level=selection.test_per_level,
            proposals=selection.proposals,
            score_threshold=selection.score_threshold,
            detections=selection.detections,
            threshold=self.threshold,
            class_names=self.class_names,
        )
        return detection_spec(model, tuple(input_shape), options, images)
