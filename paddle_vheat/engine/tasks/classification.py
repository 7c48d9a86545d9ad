"""Image classification from a configuration in PaddleClas' schema."""

from __future__ import annotations

import inspect
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from paddle_vheat._paddle import F, paddle
from paddle_vheat.config import ConfigError, building
from paddle_vheat.data.batch_ops import BatchTransform, build_batch_ops
from paddle_vheat.data.image_ops import Pipeline, build_ops, pipeline
from paddle_vheat.engine.data import load_batches
from paddle_vheat.engine.pictures import write_top_classes
from paddle_vheat.engine.schedules import WarmupCosine
from paddle_vheat.engine.tasks.classification_config import (
    ARCHITECTURES,
    DATASETS,
    find_problems,
    unknown,
    unknown_blocks,
    value_at,
    wrong_kinds,
)
from paddle_vheat.models import VHeatClassifier, create_model
from paddle_vheat.weights.loading import LoadReport, load_classifier, load_weights

Tensor = Any


class ClassificationTask:
    """Model, data, loss and score that a configuration in PaddleClas' schema describes.

    Args:
        config: keys and values as from :func:`paddle_vheat.config.load_config`.
        source: what to call the configuration in an error.
    """

    kind = "classification"
    score_name = "top-1"
    ema_warm_up = False  # the recipe's average keeps the same share of itself from the first step

    def __init__(
        self, config: dict[str, Any], source: str = "configuration", problems: list[str] | None = None
    ) -> None:
        self.config = config
        self.source = source
        self.broken: set[str] = set()
        found = wrong_kinds(config)
        if found:
            self.broken = {"model", "train_dataset", "val_dataset", "class_names"}
        else:
            found = find_problems(config)
            named = {"train_dataset": "DataLoader.Train", "val_dataset": "DataLoader.Eval"}
            self.broken = {key for key, part in named.items() if any(part in problem for problem in found)}
        found = unknown_blocks(config) + found
        self.broken |= {"model"} if found else set()
        if found and problems is None:
            raise ConfigError(source, found)
        if problems is not None:
            problems += [f"{source}: {problem}" for problem in found]

    @staticmethod
    def override(config: dict[str, Any], iters: int | None, batch_size: int | None, rate: float | None) -> None:
        """Put what the command line says in the configuration's place."""
        if iters is not None:
            config.setdefault("Global", {})["iters"] = iters
        if batch_size is not None:
            config["DataLoader"]["Train"]["sampler"]["batch_size"] = batch_size
        if rate is not None:
            config["Optimizer"]["lr"]["learning_rate"] = rate

    def _get(self, path: str, default: Any = None) -> Any:
        return value_at(self.config, path, default)

    # --- model ------------------------------------------------------------------------------------

    @cached_property
    def model(self) -> VHeatClassifier:
        arch = dict(self.config["Arch"])
        name, classes = arch.pop("name"), int(arch.pop("class_num", 1000))
        pretrained = arch.pop("pretrained", None)
        with building(self.source, "Arch"):
            if name in ARCHITECTURES:
                model = create_model(ARCHITECTURES[name], num_classes=classes, **arch)
            else:
                model = VHeatClassifier(num_classes=classes, **arch)
        if pretrained:
            print(f"{pretrained}: {load_classifier(model, pretrained)}", flush=True)
        return model

    @property
    def num_classes(self) -> int:
        return int(self._get("Arch.class_num", 1000))

    def load(self, path: str | Path) -> LoadReport:
        """Fill the model from a checkpoint file, strictly."""
        return load_weights(self.model, path)

    # --- data -------------------------------------------------------------------------------------

    def _dataset(self, part: str) -> Any:
        block = dict(self._get(f"DataLoader.{part}.dataset"))
        block.pop("batch_transform_ops", None)  # of whole batches: see prepare_batch
        name, source = block.pop("name"), f"{self.source}: DataLoader.{part}.dataset.transform_ops"
        factory = DATASETS[name]
        problems = unknown(block, set(inspect.signature(factory).parameters), f"DataLoader.{part}.dataset")
        if problems:
            raise ConfigError(self.source, problems)
        if name == "ImageNetDataset":
            block.setdefault("num_classes", self.num_classes)
        try:
            with building(self.source, f"DataLoader.{part}.dataset"):
                return factory(**block, source=source)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.source}: {error}; put the data there, or give --opts DataLoader.{part}.dataset.image_root=DIR"
            ) from error

    @cached_property
    def train_dataset(self) -> Any:
        return self._dataset("Train")

    @cached_property
    def val_dataset(self) -> Any:
        return self._dataset("Eval")

    @property
    def class_names(self) -> list[str]:
        path = self._get("Global.class_names")
        if path is not None:
            with building(self.source, "Global.class_names"):
                names = Path(path).read_text(encoding="utf-8").splitlines()
            if len(names) != self.num_classes:
                raise ConfigError(f"{path}: {len(names)} names for {self.num_classes} classes ('Global.class_names')")
            return names
        try:
            found = self.val_dataset.class_names
        except FileNotFoundError:  # a prediction or an export needs no data
            found = None
        return list(found) if found else [str(i) for i in range(self.num_classes)]

    check_sample = None

    def check_stored(self, dataset: Any, index: int) -> None:
        """Raise on an image that cannot be decoded to its end."""
        dataset.check_file(index)

    @staticmethod
    def storage_rules(dataset: Any) -> str | None:
        """What the verdict of :meth:`check_stored` depends on beside the files; None if there are no files (digits)."""
        if not hasattr(dataset, "check_file"):
            return None
        return f"1 {type(dataset).__name__}"

    @cached_property
    def _batch_transform(self) -> BatchTransform:
        ops = self._get("DataLoader.Train.dataset.batch_transform_ops")
        losses = self._get("Loss.Train") or []
        if len(losses) != 1 or set(losses[0]) != {"CELoss"}:
            raise ConfigError(f"{self.source}: 'Loss.Train' must be one CELoss, got {losses}")
        with building(self.source, "Loss.Train"):
            smoothing = float((losses[0]["CELoss"] or {}).get("epsilon") or 0.0)
            if not 0 <= smoothing < 1:
                raise ValueError(f"epsilon must be at least 0 and less than 1, got {smoothing}")
        with building(self.source, "DataLoader.Train.dataset.batch_transform_ops"):
            return build_batch_ops(ops, self.num_classes, smoothing, f"{self.source}: batch_transform_ops")

    def check_settings(self) -> None:
        """Raise a ConfigError for what would otherwise be read in the first step or evaluation."""
        _ = self._batch_transform, self._topk

    def prepare_batch(self, batch: dict[str, Any], seed: int) -> dict[str, Any]:
        """Mixup or CutMix and soft targets, decided by ``seed``."""
        images, targets = self._batch_transform(
            batch["img"].numpy(), batch["label"].numpy(), np.random.default_rng(seed)
        )
        return {**batch, "img": paddle.to_tensor(images), "target": paddle.to_tensor(targets)}

    # --- optimization -----------------------------------------------------------------------------

    @property
    def batch_size(self) -> int:
        return int(self._get("DataLoader.Train.sampler.batch_size"))

    @property
    def accumulation(self) -> int:
        return int(self._get("Global.update_freq", 1))

    @cached_property
    def steps_per_epoch(self) -> int:
        total = self.batch_size * self.accumulation * paddle.distributed.get_world_size()
        return max(len(self.train_dataset) // total, 1)

    @property
    def iters(self) -> int:
        given = self._get("Global.iters")
        return int(given) if given is not None else int(self._get("Global.epochs", 300)) * self.steps_per_epoch

    @property
    def num_workers(self) -> int:
        return int(self._get("DataLoader.Train.loader.num_workers", 0))

    @property
    def precision(self) -> str:
        return "fp16" if self._get("AMP.use_amp", False) else "fp32"

    @property
    def save_interval(self) -> int:
        return int(self._get("Global.save_interval", 1)) * self.steps_per_epoch

    @property
    def ema_decay(self) -> float | None:
        """Decay of the average of the weights if the configuration asks for one."""
        block = self._get("EMA")
        return None if block is None else float(block.get("decay", 0.9999))

    @property
    def clip_norm(self) -> float | None:
        """GLOBAL gradient norm to clip to. (PaddleClas' own ``clip_norm`` is per tensor.)"""
        value = self._get("Optimizer.clip_norm")
        return None if value is None else float(value)

    @cached_property
    def lr_scheduler(self) -> WarmupCosine:
        rate = self._get("Optimizer.lr")
        warmup = round(float(rate.get("warmup_epoch", 0)) * self.steps_per_epoch)
        try:
            return WarmupCosine(
                float(rate["learning_rate"]),
                self.iters,
                warmup=min(warmup, self.iters - 1),
                start=float(rate.get("warmup_start_lr", 0.0)),
                end=float(rate.get("eta_min", 0.0)),
            )
        except KeyError as error:
            raise ConfigError(f"{self.source}: no 'Optimizer.lr.{error.args[0]}'") from error

    def decayed_parameters(self) -> set[str]:
        """Names of the parameters under weight decay: those of more than one axis, frequency embeddings included."""
        everything = not self._get("Optimizer.one_dim_param_no_weight_decay", False)
        return {name for name, p in self.model.named_parameters() if everything or p.ndim > 1}

    @cached_property
    def optimizer(self) -> Any:
        options = self.config["Optimizer"]
        decayed = {p.name for name, p in self.model.named_parameters() if name in self.decayed_parameters()}
        with building(self.source, "Optimizer"):
            return paddle.optimizer.AdamW(
                learning_rate=self.lr_scheduler,
                beta1=float(options.get("beta1", 0.9)),
                beta2=float(options.get("beta2", 0.999)),
                epsilon=float(options.get("epsilon", 1e-8)),
                weight_decay=float(options.get("weight_decay", 0.01)),
                apply_decay_param_fun=lambda name: name in decayed,
                parameters=self.model.parameters(),
            )

    def forward_loss(self, model: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy with the batch's soft targets."""
        return F.cross_entropy(model(batch["img"]), batch["target"], soft_label=True), {}

    # --- evaluation and prediction ----------------------------------------------------------------

    @property
    def _topk(self) -> tuple[int, ...]:
        with building(self.source, "Metric.Eval"):
            for metric in self._get("Metric.Eval") or []:
                if "TopkAcc" in metric:
                    topk = tuple(int(k) for k in metric["TopkAcc"]["topk"])
                    if min(topk) < 1:
                        raise ValueError(f"topk must be whole numbers of at least 1, got {topk}")
                    return topk
        return 1, 5

    def evaluate(
        self, model: Any, *, num_workers: int = 0, autocast: Any = None, progress: bool = True, **options: Any
    ) -> dict[str, Any]:
        """Top-k accuracy on the validation set, shared out between the processes.

        ``options`` are those of segmentation (sliding windows, ...) and must not be given.

        Returns:
            "score" (top-1), "report" (for JSON), "table" (for people), "images". Equal on every process.
        """
        if options:
            raise ValueError(f"options of segmentation, given with a classification model: {', '.join(options)}")
        rank, ranks = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
        share = range(rank, len(self.val_dataset), ranks)
        size = int(self._get("DataLoader.Eval.sampler.batch_size"))
        batches = [share[i : i + size] for i in range(0, len(share), size)]
        loader = load_batches(self.val_dataset, batches, num_workers)
        topk = [min(k, self.num_classes) for k in self._topk]
        counts = np.zeros(len(topk) + 2)  # right answers per k, sum of losses, images
        was_training = model.training
        model.eval()
        try:
            show = None if progress and rank == 0 else True
            with paddle.no_grad():
                for batch in tqdm(
                    loader, total=len(batches), desc="evaluating", unit="batch", leave=False, disable=show
                ):
                    if autocast is None:
                        logits = model(batch["img"])
                    else:
                        with autocast():
                            logits = model(batch["img"])
                    logits, labels = logits.astype("float32"), batch["label"]
                    order = np.argsort(-logits.numpy(), axis=1, kind="stable")
                    found = order == labels.numpy()[:, None]
                    counts[:-2] += [found[:, :k].any(axis=1).sum() for k in topk]
                    counts[-2] += float(F.cross_entropy(logits, labels, reduction="sum"))
                    counts[-1] += len(found)
        finally:
            if was_training:
                model.train()
        if ranks > 1:
            total = paddle.to_tensor(counts)
            paddle.distributed.all_reduce(total)
            counts = total.numpy()
        images = int(counts[-1])
        scores = {f"top{k}": float(right / images) for k, right in zip(self._topk, counts)}
        report = {"images": images, **scores, "loss": float(counts[-2] / images)}
        table = "  ".join(f"top-{k} {100 * scores[f'top{k}']:.2f}" for k in self._topk)
        table += f"  cross entropy {report['loss']:.4f}"
        return {"score": scores[f"top{self._topk[0]}"], "report": report, "table": table, "images": images}

    @cached_property
    def val_transforms(self) -> Pipeline:
        """Transforms of evaluation, from an image file's bytes to float32 (3, H, W)."""
        with building(self.source, "DataLoader.Eval.dataset.transform_ops"):
            ops = build_ops(self._get("DataLoader.Eval.dataset.transform_ops") or [], f"{self.source}: Eval")
            if not any(type(op).__name__ == "DecodeImage" for op in ops):
                ops = build_ops([{"DecodeImage": {"to_rgb": True}}]) + ops
            return pipeline(ops)

    @property
    def export_transforms(self) -> Any:
        return self._get("DataLoader.Eval.dataset.transform_ops") or []

    def predict(self, images: list[tuple[Path, Path]], save_dir: str | Path, **options: Any) -> str:
        """Print the five likeliest classes of each image and write ``predictions.json``."""
        if options:
            raise ValueError(f"options of segmentation, given with a classification model: {', '.join(options)}")
        names, model = self.class_names, self.model
        model.eval()

        def classify(path: Path) -> list[dict[str, Any]]:
            try:
                array = self.val_transforms(path.read_bytes())
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            with paddle.no_grad():
                chances = F.softmax(model(paddle.to_tensor(array[None]))[0]).numpy()
            best = np.argsort(-chances, kind="stable")[:5]
            return [{"class": int(i), "name": names[i], "score": float(chances[i])} for i in best]

        return str(write_top_classes(images, save_dir, classify))
