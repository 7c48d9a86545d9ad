"""Semantic segmentation from a configuration in PaddleSeg's schema."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from paddle_vheat._paddle import nn, paddle
from paddle_vheat.config import ConfigError
from paddle_vheat.config.options import check_fields
from paddle_vheat.engine.evaluate import evaluating
from paddle_vheat.engine.optim import Factors
from paddle_vheat.engine.task import ExportSpec, Metric, Task
from paddle_vheat.errors import UserError
from paddle_vheat.export import scores_spec
from paddle_vheat.integrations import paddleseg as seg
from paddle_vheat.losses import PixelContrastLoss
from paddle_vheat.models.vheat import MIN_SIZE, VHeat
from paddle_vheat.tasks.segmentation import config as schema
from paddle_vheat.tasks.segmentation.agreement import agreed
from paddle_vheat.tasks.segmentation.cityscapes import CITYSCAPES_NAMES, CITYSCAPES_PALETTE
from paddle_vheat.tasks.segmentation.data import SegmentationData, build_dataset
from paddle_vheat.tasks.segmentation.evaluator import SegmentationEvaluator
from paddle_vheat.tasks.segmentation.visualize import SegmentationPrediction, compose_triptych

Tensor = Any
MIOU = Metric("mIoU", scale=100.0, unit="%")


class SegmentationTask(Task):
    """Model, data, losses and scores that a PaddleSeg configuration describes.

    Args:
        config: keys and values as from :func:`paddle_vheat.config.load_config`; it is not changed.
        source: what to call the configuration in an error.
        flags: what the command line says of evaluation and export, by name; None for nothing.
        problems: where to put what is wrong with the configuration; it is raised without it. The parts that cannot
            be built are then in ``broken``.

    Raises:
        ConfigError: naming every key that is wrong.
    """

    name, metric = "segmentation", MIOU

    def __init__(
        self, config: Mapping[str, Any], source: str = "configuration", flags: Any = None, problems: Any = None
    ) -> None:
        self.source, self.config, self.flags = source, config, flags
        self.registry = seg.registry()
        self.options, found = schema.read(config, self.registry)
        if found and problems is None:
            raise ConfigError(source, found)
        blocks = schema.broken_blocks(found)
        parts = {"train_dataset": {"train"}, "val_dataset": {"val"}, "class_names": {"val"}}
        self.broken: set[str] = set().union(*(parts.get(block, {"model"}) for block in blocks))
        if blocks & {"train_dataset", "batch_size", "iters"}:
            self.broken |= {"model"}
        if problems is not None:
            problems += [f"{source}: {problem}" for problem in found]
        if not self.broken & {"model"}:
            self.recipe = schema.make_recipe(self.options)
            self.test_options = self._test_options()

    def _test_options(self) -> schema.TestOptions:
        """``test_config``, and the command line in its place."""
        options, flags = self.options.test_config or schema.TestOptions(), self.flags
        if getattr(flags, "aug_eval", False):
            flips = {"flip_horizontal": flags.flip_horizontal, "flip_vertical": flags.flip_vertical}
            options = replace(options, aug_eval=True, scales=flags.scales or [1.0], **flips)
        elif any(getattr(flags, name, None) for name in ("scales", "flip_horizontal", "flip_vertical")):
            raise UserError("--scales and --flip_* are for --aug_eval, which is not given")
        given = {name: getattr(flags, name, None) for name in ("is_slide", "crop_size", "stride")}
        options = replace(options, **{name: value for name, value in given.items() if value})
        check_fields(options)
        problems = options.problems("test_config")
        if problems:
            raise ConfigError(f"{self.source}: {problems[0]}")
        return options

    # --- model and losses ------------------------------------------------------------------------------

    def build_model(self, pretrained: bool = True) -> Any:
        """The model; what its block leaves out and its data set's class knows is filled in."""
        block: Any = copy.deepcopy(self.options.model)
        classes, channels = self._agreed("num_classes"), self._agreed("img_channels")
        if classes is not None:
            block.setdefault("num_classes", classes)
        if channels is not None and isinstance(block.get("backbone"), dict):
            block["backbone"].setdefault("in_channels", channels)
        if not pretrained:
            for part in (block, block.get("backbone") or {}):
                if isinstance(part, dict) and part.get("pretrained") is not None:
                    part["pretrained"] = None
        with seg.strict_pretraining():
            return seg.assemble(block, self.registry, f"{self.source}: model")

    def parameter_factors(self, model: Any) -> Mapping[str, Factors]:
        """Factors of ``optimizer.custom_cfg``: the first entry whose ``name`` is part of the parameter's.

        Raises:
            ConfigError: for an entry that is of no parameter.
        """
        entries = self.options.optimizer.get("custom_cfg") or []
        names = [name for name, _ in model.named_parameters()]
        factors: dict[str, Factors] = {}
        for i, entry in enumerate(entries):
            matching = [name for name in names if entry["name"] in name]
            if not matching:
                raise ConfigError(
                    f"'optimizer.custom_cfg.{i}.name' is {entry['name']!r}, and no parameter's name has it"
                )
            for name in matching:
                factors.setdefault(name, Factors(entry.get("lr_mult", 1.0), entry.get("weight_decay_mult")))
        return factors

    @cached_property
    def criteria(self) -> tuple[list[Any], list[float]]:
        """The losses, and the coefficient of each."""
        coefficients, blocks = list(self.options.loss["coef"]), self.options.loss["types"]
        # A single type stands for as many as there are coefficients.
        types: Any = [copy.deepcopy(block) for block in (blocks * len(coefficients) if len(blocks) == 1 else blocks)]
        ignored = self._agreed("ignore_index")
        if ignored is not None:
            for loss in types:
                for part in loss.get("losses", [loss]):
                    part.setdefault("ignore_index", ignored)
        built = seg.assemble(types, self.registry, f"{self.source}: loss.types")
        for contrast in _contrast_losses(built):
            contrast.calls_per_iteration = self.recipe.accumulation
        return built, coefficients

    def loss_layers(self) -> Any:
        contrast = _contrast_losses(self.criteria[0])
        return nn.LayerList(contrast) if contrast else None

    def losses(self, model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        outputs, label = model(batch["img"]), batch["label"].astype("int64")
        types, coefficients = self.criteria
        network = getattr(model, "_layers", model)  # inside DataParallel
        if hasattr(network, "loss_computation"):
            parts = network.loss_computation(outputs, {"types": types, "coef": coefficients}, batch)
        else:
            self._check_outputs(outputs)
            parts = []
            for output, loss, coefficient in zip(outputs, types, coefficients):
                if getattr(loss, "edge_label", False):
                    value = loss(output, batch["edge"].astype("int64"))
                elif type(loss).__name__ == "KLLoss":
                    value = loss(outputs[0], outputs[1].detach())
                else:
                    value = loss(output, label)
                parts.extend(coefficient * item for item in (value if isinstance(value, list) else [value]))
        return {f"loss_{i}": part.sum() for i, part in enumerate(parts)}  # scalars, whatever shape the loss gives

    def _check_outputs(self, outputs: Any) -> None:
        """Raise a ConfigError if the model's outputs in training are not what the losses take, by position."""
        types, _ = self.criteria
        if len(outputs) != len(types):
            raise ConfigError(
                f"{self.source}: the model gives {len(outputs)} outputs in training, but 'loss' has {len(types)} "
                "types and coefficients; they go by position"
            )
        for i, (output, loss) in enumerate(zip(outputs, types)):
            if isinstance(output, dict) and not any("PixelContrast" in type(part).__name__ for part in _parts(loss)):
                raise ConfigError(
                    f"{self.source}: 'loss.types.{i}' is {type(loss).__name__}, and the model's output at that "
                    f"position is {{{', '.join(output)}}}, which PixelContrastLoss takes"
                )

    def trial_batch(self) -> dict[str, Any] | None:
        """Zeros of 64 pixels a side; a real batch where the model cannot take that is not worth the time it costs."""
        channels = int(self.options.train_dataset.get("img_channels", 3))
        zeros = np.zeros((2, 64, 64), np.int64)
        return {"img": np.zeros((2, channels, 64, 64), np.float32), "label": zeros, "edge": zeros, "meta": [{}, {}]}

    # --- data ------------------------------------------------------------------------------------------

    @lru_cache(maxsize=2)  # noqa: B019  (a task lives as long as its program)
    def dataset(self, split: str) -> SegmentationData:
        key = f"{split}_dataset"
        return build_dataset(getattr(self.options, key), key, self.source, self.registry)

    def _agreed(self, key: str) -> Any:
        """What the blocks say of "num_classes", "img_channels" or "ignore_index"; None if nothing does."""
        return next(iter(agreed(self.options, self.registry, key).values()), None)

    @property
    def num_classes(self) -> int:
        count = self._agreed("num_classes")
        if count is None:
            raise ConfigError(f"{self.source}: 'model.num_classes' is not given")
        return int(count)

    @property
    def _is_cityscapes(self) -> bool:
        return (self.options.val_dataset or {}).get("type") == "Cityscapes"

    @property
    def class_names(self) -> list[str]:
        if self.options.class_names is not None:
            return list(self.options.class_names)
        return list(CITYSCAPES_NAMES) if self._is_cityscapes else [str(i) for i in range(self.num_classes)]

    @property
    def palette(self) -> np.ndarray:
        """RGB of each class, uint8 (num_classes, 3): Cityscapes' own, else PaddleSeg's general one."""
        if self._is_cityscapes:
            return np.array(CITYSCAPES_PALETTE, np.uint8)
        return np.array(seg.get_color_map_list(self.num_classes), np.uint8).reshape(-1, 3)[: self.num_classes]

    # --- evaluation and prediction ---------------------------------------------------------------------

    def infer(self, model: Any, batch: dict[str, Any]) -> np.ndarray:
        """Class of every pixel of one image at its original size, int64 (H, W)."""
        logits = predict_logits(model, batch["img"], batch["meta"][0]["undo"], self.test_options)
        return paddle.argmax(logits, axis=1).numpy()[0]

    def infer_exported(self, predictor: Any, batch: dict[str, Any]) -> np.ndarray:
        image = self.dataset("val").files(batch["meta"][0]["index"])[0]
        return predictor.predictions([image])[0].value

    def evaluator(self) -> SegmentationEvaluator:
        return SegmentationEvaluator(self.class_names, self.dataset("val").dataset.ignore_index)

    @cached_property
    def _val_transforms(self) -> Any:
        block = self.options.val_dataset or {}
        transforms = seg.assemble(
            block.get("transforms") or [], self.registry, f"{self.source}: val_dataset.transforms"
        )
        return seg.reading_transforms(transforms, block.get("img_channels", 3))

    def predict(self, model: Any, path: str) -> SegmentationPrediction:
        data = self._val_transforms({"img": str(path), "gt_fields": [], "trans_info": []})
        batch = {"img": paddle.to_tensor(data["img"][None]), "meta": [{"undo": data["trans_info"]}]}
        with evaluating(model):
            classes = self.infer(model, batch)
        return SegmentationPrediction(classes.astype(np.int32), self.palette, self.class_names)

    def preview(self, model: Any, count: int) -> list[np.ndarray]:
        """Image | truth | prediction of the first validation images."""
        dataset, pictures = self.dataset("val"), []
        for i in range(min(count, len(dataset))):
            classes = self.predict(model, dataset.files(i)[0]).value
            pictures.append(compose_triptych(*dataset.stored(i), classes, self.palette))
        return pictures

    # --- export ----------------------------------------------------------------------------------------

    def export_spec(self, model: Any, input_shape: Sequence[int | None], flags: Any) -> ExportSpec:
        backbones = [layer for layer in model.sublayers(include_self=True) if isinstance(layer, VHeat)]
        block = self.options.val_dataset or {}
        transforms = (self.options.export or {}).get("transforms") or block.get("transforms") or [{"type": "Normalize"}]
        images: list[str] = []
        with contextlib.suppress(FileNotFoundError, ConfigError):  # an export does not need the data
            images = self.dataset("val").files(0)[:1]
        return scores_spec(
            model,
            tuple(input_shape),
            getattr(flags, "output_op", None) or "argmax",
            self.num_classes,
            per_pixel=True,
            transforms=transforms,
            images=images,
            channels=backbones[0].in_channels if backbones else block.get("img_channels", 3),
            min_size=MIN_SIZE if backbones else 1,
            class_names=self.class_names,
            palette=self.palette.tolist(),
        )


def _parts(loss: Any) -> list[Any]:
    """What a MixedLoss is made of; any other loss is itself."""
    return list(getattr(loss, "losses", [loss]))


def _contrast_losses(types: list[Any]) -> list[PixelContrastLoss]:
    """Our contrast losses, each once: one may stand at several positions."""
    parts = [part for loss in types for part in _parts(loss)]
    return list(dict.fromkeys(part for part in parts if isinstance(part, PixelContrastLoss)))


def predict_logits(model: Any, image: Any, undo: list[tuple[str, tuple[int, int]]], options: schema.TestOptions) -> Any:
    """Logits (1, C, H, W) at the size of the original image, by PaddleSeg's inference.

    Args:
        model: gives a list whose first entry are logits at the size of its input.
        image: tensor (1, C, h, w), transformed.
        undo: the transforms' ``trans_info``.
    """
    given = asdict(options)
    if not given.pop("aug_eval"):
        slide = {name: given[name] for name in ("is_slide", "crop_size", "stride")}
        return seg.infer.inference(model, image, trans_info=undo, **slide)[1]
    smallest = min(options.scales) * min(image.shape[2:])
    if round(smallest) < 1:
        raise UserError(f"--scales: the image would become {smallest:.2g} pixels wide or high")
    return seg.infer.aug_inference(model, image, trans_info=undo, **given)[1]
