"""Semantic segmentation from a PaddleSeg configuration."""

from __future__ import annotations

import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat._paddle import nn
from paddle_vheat.config import ConfigError, MissingFileError
from paddle_vheat.data.street_scenes import CLASS_NAMES as CITYSCAPES_NAMES
from paddle_vheat.data.street_scenes import PALETTE as CITYSCAPES_PALETTE
from paddle_vheat.engine.data import read_sample, sample_files
from paddle_vheat.engine.tasks.segmentation_config import broken_blocks, find_problems, list_problems
from paddle_vheat.integrations import paddleseg as seg
from paddle_vheat.losses import PixelContrastLoss
from paddle_vheat.weights.loading import LoadReport, load_weights

Tensor = Any


def _parts(loss: Any) -> list[Any]:
    """What a MixedLoss is made of; any other loss is itself."""
    return list(getattr(loss, "losses", [loss]))


def _contrast_losses(types: list[Any]) -> list[PixelContrastLoss]:
    """Our contrast losses, each once: one may stand at several positions."""
    parts = [part for loss in types for part in _parts(loss)]
    return list(dict.fromkeys(part for part in parts if isinstance(part, PixelContrastLoss)))


def _takes_mapping(loss: Any) -> bool:
    """Whether a loss takes {"seg", "embed"}."""
    return any("PixelContrast" in type(part).__name__ for part in _parts(loss))


class SegmentationTask:
    """Model, data, losses and scores that a PaddleSeg configuration describes.

    Args:
        config: keys and values as from :func:`paddle_vheat.config.load_config`.
        source: what to call the configuration in an error.
        problems: where to put what is wrong with the configuration; it is raised without it. The blocks that cannot
            be used are then in ``broken``.

    Raises:
        ConfigError: naming every key that is wrong.
    """

    kind = "segmentation"
    score_name = "mIoU"
    ema_warm_up = True
    ema_decay: float | None = None  # averaging is asked for on the command line
    num_workers = 0
    precision = "fp32"
    save_interval = 1000

    def __init__(
        self, config: dict[str, Any], source: str = "configuration", problems: list[str] | None = None
    ) -> None:
        self.source = source
        self.config = config
        found = find_problems(config)
        if found and problems is None:
            raise ConfigError(source, found)
        self.broken = broken_blocks(found)
        if problems is not None:
            problems += [f"{source}: {problem}" for problem in found]
        try:
            self._fill_in()
            self._builder = self._clear(lambda: seg.make_builder(config))
        except (ConfigError, AttributeError) as error:
            if problems is None:
                raise
            if not found:  # else it may well follow from what is told already
                problems.append(str(error))
            self._builder = None
            self.broken |= {"train_dataset", "val_dataset", "optimizer", "lr_scheduler", "loss", "model"}

    @staticmethod
    def override(config: dict[str, Any], iters: int | None, batch_size: int | None, rate: float | None) -> None:
        """Put what the command line says in the configuration's place."""
        if iters is not None:
            config["iters"] = iters
        if batch_size is not None:
            config["batch_size"] = batch_size
        if rate is not None:
            config.setdefault("lr_scheduler", {})["learning_rate"] = rate

    @property
    def iters(self) -> int:
        return int(self.config["iters"])

    @property
    def batch_size(self) -> int:
        return int(self.config["batch_size"])

    @property
    def accumulation(self) -> int:
        return int(self.config.get("accumulation", 1))

    def prepare_batch(self, batch: dict[str, Any], seed: int) -> dict[str, Any]:
        """Batches are trained on as they are."""
        return batch

    def _fill_in(self) -> None:
        """Give model and losses what their dataset's class knows; PaddleSeg would do so with a warning each."""
        dataset = seg.component(str((self.config.get("train_dataset") or {}).get("type", "")))
        backbone = (self.config.get("model") or {}).get("backbone")
        channels, ignored = getattr(dataset, "IMG_CHANNELS", None), getattr(dataset, "IGNORE_INDEX", None)
        if channels is not None and isinstance(backbone, dict):
            backbone.setdefault("in_channels", channels)
        if ignored is not None:
            for loss in (self.config.get("loss") or {}).get("types", []):
                for part in loss.get("losses", [loss]):
                    part.setdefault("ignore_index", ignored)

    def _clear(self, build: Any) -> Any:
        """Run a step of PaddleSeg's builder; what it says goes under the configuration's name."""
        try:
            return build()
        except (ConfigError, OSError):
            raise
        except Exception as error:  # PaddleSeg and Paddle say it in any way: AssertionError, OverflowError ...
            text = " ".join(str(error).split("The error message is:")[-1].split())
            raise ConfigError(f"{self.source}: {text or type(error).__name__}") from error

    @cached_property
    def model(self) -> Any:
        with seg.strict_pretraining():
            return self._clear(lambda: self._builder.model)

    def _dataset(self, key: str) -> Any:
        block = self.config.get(key)
        if not block:
            raise ConfigError(f"{self.source}: no {key!r}")
        found = list_problems(self.config, key)
        if found:
            raise (MissingFileError if "no such" in found[0] else ConfigError)(self.source, found)
        root = block["dataset_root"]
        if block.get("type") == "Cityscapes":
            self._check_cityscapes(Path(root), str(block.get("mode", "train")), key)
        dataset = self._clear(lambda: getattr(self._builder, key))
        if len(dataset) == 0:
            raise ConfigError(f"{self.source}: {key!r} finds no images in {root}")
        if hasattr(dataset, "file_list"):
            dataset.file_list.sort()  # ADE20K lists its folder in the file system's order
            absent = [path for pair in dataset.file_list for path in pair if path and not Path(path).is_file()]
            if absent:
                raise FileNotFoundError(
                    f"{self.source}: '{key}': {len(absent)} files are missing, the first is {absent[0]}"
                )
        return dataset

    def _check_cityscapes(self, root: Path, mode: str, key: str) -> None:
        """PaddleSeg pairs sorted images with sorted labels: one missing label would shift all that follow."""
        images, labels = root / "leftImg8bit" / mode, root / "gtFine" / mode
        for folder in (images, labels):
            if not folder.is_dir():
                raise FileNotFoundError(f"{self.source}: '{key}': no such folder: {folder}")
        endings = "_leftImg8bit.png", "_gtFine_labelTrainIds.png"
        stems = [
            {str(path.relative_to(folder))[: -len(ending)] for path in folder.glob(f"*/*{ending}")}
            for folder, ending in zip((images, labels), endings)
        ]
        every = stems[0] | stems[1]
        for found, folder, ending in zip(stems, (images, labels), endings):
            absent = sorted(every - found)
            if absent:
                raise FileNotFoundError(
                    f"{self.source}: '{key}': {len(absent)} of {len(every)} pairs are incomplete, the first: "
                    f"no {folder / absent[0]}{ending}"
                )

    @cached_property
    def train_dataset(self) -> Any:
        return self._dataset("train_dataset")

    @cached_property
    def val_dataset(self) -> Any:
        return self._dataset("val_dataset")

    @cached_property
    def lr_scheduler(self) -> Any:
        return self._clear(lambda: self._builder.lr_scheduler)

    @cached_property
    def optimizer(self) -> Any:
        return self._clear(lambda: self._builder.optimizer)

    @cached_property
    def losses(self) -> dict[str, Any]:
        losses = self._clear(lambda: self._builder.loss)
        for contrast in _contrast_losses(losses["types"]):
            contrast.calls_per_iteration = self.accumulation
        return losses

    @cached_property
    def loss_layers(self) -> Any:
        """The losses that remember, such as a memory bank, in one layer: its state belongs into checkpoints."""
        return nn.LayerList(_contrast_losses(self.losses["types"]))

    @property
    def clip_norm(self) -> float | None:
        """Global gradient norm to clip to. Paddle's optimizers would clip each parameter group by itself."""
        clip = self.config.get("optimizer", {}).get("grad_clip_cfg") or {}
        return float(clip["clip_norm"]) if clip.get("name") == "ClipGradByGlobalNorm" else None

    @property
    def num_classes(self) -> int:
        model = self.config.get("model") or {}
        if "num_classes" in model:
            return int(model["num_classes"])
        for key in ("val_dataset", "train_dataset"):
            block = self.config.get(key) or {}
            if "num_classes" in block:
                return int(block["num_classes"])
            found = getattr(seg.component(str(block.get("type", ""))), "NUM_CLASSES", None)
            if found:
                return int(found)
        raise ConfigError(f"{self.source}: 'model.num_classes' is not given")

    @property
    def class_names(self) -> list[str]:
        names = self.config.get("class_names")
        if names is not None:
            if len(names) != self.num_classes:
                raise ConfigError(f"{self.source}: 'class_names' has {len(names)} names for {self.num_classes} classes")
            return [str(name) for name in names]
        if (self.config.get("val_dataset") or {}).get("type") == "Cityscapes":
            return list(CITYSCAPES_NAMES)
        return [str(i) for i in range(self.num_classes)]

    @property
    def palette(self) -> np.ndarray:
        """RGB of each class, uint8 (num_classes, 3): Cityscapes' own, else PaddleSeg's general one."""
        if (self.config.get("val_dataset") or {}).get("type") == "Cityscapes":
            return np.array(CITYSCAPES_PALETTE, np.uint8)
        return np.array(seg.get_color_map_list(self.num_classes), np.uint8).reshape(-1, 3)[: self.num_classes]

    @property
    def val_transforms(self) -> Any:
        """Transforms of evaluation: dict with "img" (path or BGR array) -> dict with "img" (3, H, W)."""
        channels = (self.config.get("val_dataset") or {}).get("img_channels", 3)
        return self._clear(lambda: seg.Compose(self._builder.val_transforms, img_channels=channels))

    def check_sample(self, index: int, item: dict[str, Any]) -> None:
        """Raise on a training sample with labels that are no classes, naming the file."""
        self._check_label(self.train_dataset, index, item)

    def _check_label(self, dataset: Any, index: int, item: dict[str, Any]) -> None:
        label, image = np.asarray(item["label"]), item["img"]
        path = (sample_files(dataset, index) or [f"sample {index}"])[-1]
        if label.dtype.kind not in "iu":
            raise ValueError(f"{path}: the label holds {label.dtype} numbers; expected whole ones")
        if label.shape[-2:] != image.shape[-2:] or label.size != label.shape[-2] * label.shape[-1]:
            raise ValueError(f"{path}: the label is {label.shape[-2:]}, its image {image.shape[-2:]} (H, W)")
        wrong = label[(label != dataset.ignore_index) & ((label >= dataset.num_classes) | (label < 0))]
        if wrong.size:
            raise ValueError(
                f"{path}: label value {int(wrong.flat[0])} is outside 0 to {dataset.num_classes - 1} "
                f"and is not {dataset.ignore_index} (ignored)"
            )

    def check_stored(self, dataset: Any, index: int) -> None:
        """Raise on a sample that cannot be read, or has labels that are no classes, as it is before any transform."""
        plain = copy.copy(dataset)
        plain.transforms = seg.Compose([], img_channels=dataset.transforms.img_channels)
        self._check_label(dataset, index, read_sample(plain, index))

    @staticmethod
    def storage_rules(dataset: Any) -> str:
        """What the verdict of :meth:`check_stored` depends on beside the files; a new version of it, a new text."""
        channels = dataset.transforms.img_channels
        return f"1 {type(dataset).__name__} {dataset.num_classes} {dataset.ignore_index} {channels}"

    def forward_loss(self, model: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss of a batch, and its parts."""
        logits = model(batch["img"])
        label = batch["label"].astype("int64")
        network = getattr(model, "_layers", model)  # inside DataParallel
        if hasattr(network, "loss_computation"):
            parts = network.loss_computation(logits, self.losses, batch)
        else:
            parts = self._positional_losses(logits, label, batch)
        parts = [part.sum() for part in parts]  # scalars, whatever shape the loss gives
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        names = [f"loss_{i}" for i in range(len(parts))] if len(parts) > 1 else []
        return total, dict(zip(names, parts))

    def check_settings(self) -> None:
        """Raise a ConfigError for what would otherwise be read in the first step or evaluation."""
        from paddle_vheat.engine.evaluate import check_options

        _ = self.losses
        self._clear(lambda: check_options(self.test_options))

    def check_outputs(self, outputs: Any) -> None:
        """Raise a ConfigError if the model's outputs in training are not what the losses take, by position."""
        given, losses = len(outputs), len(self.losses["types"])
        if given != losses:
            raise ConfigError(
                f"{self.source}: the model gives {given} outputs in training, but 'loss' has {losses} "
                "types and coefficients; they go by position"
            )
        for i, (output, loss) in enumerate(zip(outputs, self.losses["types"])):
            if isinstance(output, dict) and not _takes_mapping(loss):
                raise ConfigError(
                    f"{self.source}: 'loss.types.{i}' is {type(loss).__name__}, and the model's output at that "
                    f"position is {{{', '.join(output)}}}, which PixelContrastLoss takes"
                )

    def _positional_losses(self, logits: Any, label: Tensor, batch: dict[str, Any]) -> list[Tensor]:
        types, coefficients = self.losses["types"], self.losses["coef"]
        self.check_outputs(logits)
        parts: list[Tensor] = []
        for output, loss, coefficient in zip(logits, types, coefficients):
            if getattr(loss, "edge_label", False):
                value = loss(output, batch["edge"].astype("int64"))
            elif type(loss).__name__ == "KLLoss":
                value = loss(logits[0], logits[1].detach())
            else:
                value = loss(output, label)
            parts.extend(coefficient * item for item in (value if isinstance(value, list) else [value]))
        return parts

    def load(self, path: str | Path) -> LoadReport:
        """Fill the model from a checkpoint file, strictly."""
        return load_weights(self.model, path)

    def evaluate(self, model: Any, **options: Any) -> dict[str, Any]:
        """Scores of a model on the validation set; see :func:`paddle_vheat.engine.evaluate.evaluate`."""
        from paddle_vheat.engine.evaluate import check_options, evaluate

        check_options({**self.test_options, **options})
        return evaluate(model, self.val_dataset, self.class_names, **{**self.test_options, **options})

    @property
    def test_options(self) -> dict[str, Any]:
        return dict(self.config.get("test_config") or {})

    @property
    def export_transforms(self) -> Any:
        return (self.config.get("val_dataset") or {}).get("transforms") or [{"type": "Normalize"}]

    def predict(self, images: list[tuple[Path, Path]], save_dir: str | Path, **options: Any) -> str:
        """Write pictures of the predictions; see :func:`paddle_vheat.engine.predict.predict_folder`."""
        from paddle_vheat.engine.evaluate import check_options
        from paddle_vheat.engine.predict import predict_folder

        check_options({**self.test_options, **options})
        folder = predict_folder(self, self.model, images, save_dir, **options)
        return f"{folder}/pseudo_color_prediction and {folder}/added_prediction"

    def preview(self, model: Any, count: int = 4) -> list[np.ndarray]:
        """Pictures (image | truth | prediction) of the first validation images, uint8 (H, W, 3)."""
        from paddle_vheat.engine.predict import triptych

        return [triptych(self, model, i) for i in range(min(count, len(self.val_dataset)))]
