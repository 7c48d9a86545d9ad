"""Semantic segmentation from a PaddleSeg configuration."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat._paddle import nn
from paddle_vheat.config import ConfigError, did_you_mean
from paddle_vheat.data.street_scenes import CLASS_NAMES as CITYSCAPES_NAMES
from paddle_vheat.data.street_scenes import PALETTE as CITYSCAPES_PALETTE
from paddle_vheat.integrations import paddleseg as seg
from paddle_vheat.weights.loading import LoadReport, load_weights

Tensor = Any

# PaddleSeg's keys, and two of ours that it passes over: accumulation and class_names.
KNOWN_KEYS = (
    "batch_size", "iters", "train_dataset", "val_dataset", "optimizer", "lr_scheduler", "loss", "model",
    "test_config", "export", "to_static_training", "distill_loss", "accumulation", "class_names",
)  # fmt: skip
_BLOCKS = ("train_dataset", "val_dataset", "optimizer", "lr_scheduler", "loss", "model", "test_config")
_OPTIONAL = ("val_dataset", "test_config")
_NUMBERS = ("iters", "batch_size", "accumulation")
TEST_KEYS = ("aug_eval", "scales", "flip_horizontal", "flip_vertical", "is_slide", "crop_size", "stride")


def check_keys(config: dict[str, Any], source: str) -> None:
    """Raise a ConfigError for keys that nothing would read, and names and arguments that do not exist."""
    problems = [f"unknown key {key!r}{did_you_mean(key, KNOWN_KEYS)}" for key in config if key not in KNOWN_KEYS]
    problems += _wrong_kinds(config)
    if problems:
        raise ConfigError(f"{source}:\n  " + "\n  ".join(problems))
    for key in config.get("test_config") or {}:
        if key not in TEST_KEYS:
            problems.append(f"unknown key 'test_config.{key}'{did_you_mean(key, TEST_KEYS)}")
    for key in ("train_dataset", "val_dataset", "optimizer", "loss", "model"):
        _check_component(config.get(key), key, problems)
    if problems:
        raise ConfigError(f"{source}:\n  " + "\n  ".join(problems))


def _wrong_kinds(config: dict[str, Any]) -> list[str]:
    """What is no block of keys, no list or no number where the code below takes it to be one."""

    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    model, loss = config.get("model"), config.get("loss")
    backbone = model.get("backbone", {}) if isinstance(model, dict) else {}
    loss = loss if isinstance(loss, dict) else {}
    types, coefficients = loss.get("types", []), loss.get("coef", [])
    roots = {f"{key}.dataset_root": config.get(key) for key in ("train_dataset", "val_dataset")}
    wanted: list[tuple[str, Any, bool, str]] = [
        *((key, config[key], isinstance(config[key], dict), "a block of keys") for key in _BLOCKS
          if key in config and not (config[key] is None and key in _OPTIONAL)),
        *((key, config[key], whole(config[key]), "a whole number") for key in _NUMBERS if key in config),
        ("class_names", config.get("class_names"), isinstance(config.get("class_names", []), list), "a list"),
        ("model.backbone", backbone, isinstance(backbone, dict), "a block of keys"),
        ("loss.types", types, _list_of(types, dict), "a list of blocks"),
        ("loss.coef", coefficients, _list_of(coefficients, (int, float)), "a list of numbers"),
        *((k, b["dataset_root"], isinstance(b["dataset_root"], str), "a folder") for k, b in roots.items()
          if isinstance(b, dict) and b.get("dataset_root") is not None),
    ]  # fmt: skip
    return [f"'{key}' must be {what}, got {value!r}" for key, value, right, what in wanted if not right]


def _list_of(value: Any, kind: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _check_component(block: Any, path: str, problems: list[str]) -> None:
    """Check ``type`` and the arguments of every component in a block, wherever it is nested."""
    if isinstance(block, list):
        for i, item in enumerate(block):
            _check_component(item, f"{path}.{i}", problems)
    if not isinstance(block, dict):
        return
    if "type" in block:
        name = str(block["type"])
        alias = {"sgd": "SGD", "adam": "Adam"}.get(name, name)
        if seg.component(alias) is None:
            near = did_you_mean(name, seg.component_names())
            problems.append(f"'{path}.type': no such component {name!r}{near}")
        else:
            if alias == "SGD" and "momentum" in block:
                alias = "Momentum"  # as PaddleSeg takes it
            known = seg.component_arguments(alias)
            if known is not None:
                for key in block:
                    if key != "type" and key not in known:
                        problems.append(f"'{path}.{key}': {name} has no such argument{did_you_mean(key, known)}")
    for key, value in block.items():
        _check_component(value, f"{path}.{key}", problems)


class SegmentationTask:
    """Model, data, losses and scores that a PaddleSeg configuration describes.

    Args:
        config: keys and values as from :func:`paddle_vheat.config.load_config`.
        source: what to call the configuration in an error.
    """

    kind = "segmentation"
    score_name = "mIoU"
    ema_warm_up = True
    ema_decay: float | None = None  # averaging is asked for on the command line
    num_workers = 0
    precision = "fp32"
    save_interval = 1000

    def __init__(self, config: dict[str, Any], source: str = "configuration") -> None:
        check_keys(config, source)
        self.source = source
        self.config = config
        self._fill_in()
        self._builder = self._clear(lambda: seg.make_builder(config))

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
        dataset = seg.component((self.config.get("train_dataset") or {}).get("type", ""))
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
        except (RuntimeError, AssertionError, ValueError, TypeError, KeyError) as error:
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
        root = block.get("dataset_root")
        # Before PaddleSeg looks: where the folder is missing, its ADE20K starts a download.
        if root is None or not Path(root).is_dir():
            raise FileNotFoundError(
                f"{self.source}: '{key}.dataset_root' is {root!r}, and there is no such folder; put the data there, "
                f"or give --opts {key}.dataset_root=FOLDER"
            )
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
        for loss in losses["types"]:
            for part in getattr(loss, "losses", [loss]):
                if hasattr(part, "calls_per_iteration"):
                    part.calls_per_iteration = self.accumulation
        return losses

    @cached_property
    def loss_layers(self) -> Any:
        """The losses in one layer: its state, such as a memory bank, belongs into checkpoints."""
        found: list[Any] = []
        for loss in self.losses["types"]:
            found += [part for part in getattr(loss, "losses", [loss]) if not any(part is other for other in found)]
        return nn.LayerList(found)

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
            found = getattr(seg.component(block.get("type", "")), "NUM_CLASSES", None)
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
        channels = int((self.config.get("val_dataset") or {}).get("img_channels", 3))
        return seg.Compose(self._clear(lambda: self._builder.val_transforms), img_channels=channels)

    def check_sample(self, index: int, item: dict[str, Any]) -> None:
        """Raise on a training sample with labels that are no classes, naming the file."""
        dataset = self.train_dataset
        label, image = item["label"], item["img"]
        path = dataset.file_list[index][1] if hasattr(dataset, "file_list") else f"sample {index}"
        if label.shape[-2:] != image.shape[-2:]:
            raise ValueError(f"{path}: the label is {label.shape[-2:]}, its image {image.shape[-2:]} (H, W)")
        wrong = label[(label != dataset.ignore_index) & ((label >= dataset.num_classes) | (label < 0))]
        if wrong.size:
            raise ValueError(
                f"{path}: label value {int(wrong.flat[0])} is outside 0 to {dataset.num_classes - 1} "
                f"and is not {dataset.ignore_index} (ignored)"
            )

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

    def _positional_losses(self, logits: Any, label: Tensor, batch: dict[str, Any]) -> list[Tensor]:
        types, coefficients = self.losses["types"], self.losses["coef"]
        if len(logits) != len(types):
            raise ConfigError(
                f"{self.source}: the model gives {len(logits)} outputs in training, but 'loss' has {len(types)} "
                "types and coefficients; they go by position"
            )
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
