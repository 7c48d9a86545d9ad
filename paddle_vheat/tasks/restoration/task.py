"""Image restoration from a configuration of our own schema (``config.py``)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from paddle_vheat._paddle import no_autocast, paddle
from paddle_vheat.config import ConfigError, building
from paddle_vheat.data.image_file import read_bgr
from paddle_vheat.engine.evaluate import evaluating
from paddle_vheat.engine.task import Check, ExportSpec, Metric, Program, Task
from paddle_vheat.errors import UserError
from paddle_vheat.export import inference_copy
from paddle_vheat.models.restoration import MODELS, RestorationNet
from paddle_vheat.ops.without import without_conduction
from paddle_vheat.tasks.restoration import config as schema
from paddle_vheat.tasks.restoration.data import RestorationData, as_channels, to_image, to_planes
from paddle_vheat.tasks.restoration.degrade import as_float
from paddle_vheat.tasks.restoration.deploy import OUTPUT, Options, signature
from paddle_vheat.tasks.restoration.evaluator import (
    INPUT,
    NO_CONDUCTION,
    RESTORED,
    SMALLEST,
    RestorationEvaluator,
)
from paddle_vheat.tasks.restoration.metrics import to_uint8
from paddle_vheat.tasks.restoration.tiles import check_tile, restore_tiled
from paddle_vheat.tasks.restoration.visualize import RestorationPrediction, as_rgb
from paddle_vheat.weights.loading import load_weights
from paddle_vheat.weights.swinir_keys import load_swinir

Tensor = Any

# Float32 results whose operations are reordered differ by some 1e-6 a block; a step of gray is 4e-3 of the range.
TOLERANCE = 1e-4
EXPORT_SIZES = [(40, 48), (33, 57)]
MIN_EXPORT_SIZE = 8


def charbonnier(output: Tensor, target: Tensor, eps: float) -> Tensor:
    """Mean of sqrt(d^2 + eps), in float32: a smooth absolute difference."""
    with no_autocast():
        return paddle.sqrt((output.astype("float32") - target.astype("float32")) ** 2 + eps).mean()


def restore(model: Any, images: np.ndarray, tile: tuple[int, int] | None = None, overlap: int = 0) -> np.ndarray:
    """Restore images (N, C, H, W) of values in [0, 1]; the result is not clamped.

    Images for a model of windows are continued by mirroring, the edge repeated, to the next multiple of the window, by
    a whole window where they fit already: the published scores of SwinIR are those of such images.
    """
    height, width = images.shape[2:]
    multiple = getattr(model, "multiple", 1)
    if multiple > 1:
        more = [(0, 0), (0, 0), *((0, multiple - side % multiple) for side in (height, width))]
        images = np.pad(images, more, mode="symmetric")
    return restore_tiled(lambda part: _run(model, part), images, tile, overlap)[:, :, :height, :width]


def _run(model: Any, images: np.ndarray) -> np.ndarray:
    half = next(iter(model.parameters())).dtype != paddle.float32  # decorated for AMP O2
    # Denoising lives on a thousandth of the range: under AMP O1 an image is restored in float32.
    with evaluating(model), contextlib.nullcontext() if half else no_autocast():
        return model(paddle.to_tensor(images)).astype("float32").numpy()


class RestorationTask(Task):
    """Model, data, loss and scores that a configuration describes; arguments as of
    :class:`paddle_vheat.tasks.segmentation.task.SegmentationTask`."""

    name, metric = "restoration", Metric("PSNR", unit="dB")

    def __init__(
        self, config: Mapping[str, Any], source: str = "configuration", flags: Any = None, problems: Any = None
    ) -> None:
        self.config, self.source = config, source
        options, found = schema.read(config)
        self.save_images = getattr(flags, "save_images", None)
        self.ablate = getattr(flags, "ablate", None) is not None
        if options is not None and not found:
            val, given = options.val, {name: getattr(flags, name, None) for name in ("tile", "overlap")}
            val = replace(val, **{name: value for name, value in given.items() if value is not None})
            if any(value is not None for value in given.values()):
                found += [f"--tile, --overlap: {text}" for text in check_tile(val.tile, val.overlap)]
            if self.ablate and not str(options.model["name"]).startswith("vheat"):
                found.append(f"--ablate k=0: 'model.name' is {options.model['name']}, which conducts no heat")
            self.options, self.recipe = replace(options, val=val), schema.make_recipe(options)
        if found and problems is None:
            raise ConfigError(source, found)
        self.broken = {"model", "train", "val"} if found else set()
        if problems is not None:
            problems += [f"{source}: {problem}" for problem in found]

    @property
    def in_channels(self) -> int:
        return self.options.channels

    # --- model -----------------------------------------------------------------------------------------

    def build_model(self, pretrained: bool = True) -> RestorationNet:
        arguments, path = dict(self.options.model), self.options.pretrained
        with building(f"{self.source}: model"):
            model = MODELS[arguments.pop("name")](**arguments)
        if pretrained and path:
            report = load_swinir(model, path) if path.endswith(".pth") else load_weights(model, path)
            print(f"{path}: {report}", flush=True)
        return model

    def losses(self, model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"loss": charbonnier(model(batch["input"]), batch["target"], self.options.loss.eps)}

    def trial_batch(self) -> dict[str, Any]:
        zeros = np.zeros((2, self.in_channels, 16, 16), np.float32)
        return {"input": zeros, "target": zeros, "meta": [{}, {}]}

    # --- data ------------------------------------------------------------------------------------------

    @lru_cache(maxsize=2)  # noqa: B019  (a task lives as long as its program)
    def dataset(self, split: str) -> Any:  # RestorationData, which has nothing for the whole set to check
        options = self.options
        train, val, how = options.train, options.val, options.degradation
        try:
            if split == "train":
                given: dict[str, Any] = {"crop": train.crop, "smallest": train.pixels(how), "cache": train.cache}
                folders, to_gray = train.folders, train.to_gray
            else:
                folders, to_gray, given = val.folders, val.to_gray, {"smallest": SMALLEST[how.type]}
            return RestorationData(folders, f"{split}.folders", how, options.channels, to_gray, **given)
        except UserError as error:
            raise type(error)(f"{self.source}: {error}") from error

    # --- evaluation and prediction ---------------------------------------------------------------------

    @property
    def _tiles(self) -> tuple[tuple[int, int] | None, int]:
        tile = self.options.val.tile
        return (None if tile is None else (tile, tile)), self.options.val.overlap

    def infer(self, model: Any, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """The input, the restored image and, if asked for, that without conduction: clamped and rounded, uint8."""
        images = batch["input"].numpy()
        results = {INPUT: images, RESTORED: restore(model, images, *self._tiles)}
        if self.ablate:
            results[NO_CONDUCTION] = restore(self._without_conduction(model), images, *self._tiles)
        return {kind: to_uint8(to_image(result[0])) for kind, result in results.items()}

    def infer_exported(self, predictor: Any, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        image = batch["input"].numpy()[0]
        (output,) = predictor.outputs([image], prepared=True)
        restored = output[OUTPUT][:, : image.shape[1], : image.shape[2]]
        return {INPUT: to_uint8(to_image(image)), RESTORED: to_uint8(to_image(restored))}

    @lru_cache(maxsize=1)  # noqa: B019
    def _without_conduction(self, model: Any) -> Any:
        return without_conduction(model)

    def evaluator(self) -> RestorationEvaluator:
        return RestorationEvaluator(self.options.degradation.type == "jpeg", self.save_images)

    def preview(self, model: Any, count: int) -> list[np.ndarray]:
        """Input | restored | clean of the first validation images."""
        dataset, pictures = self.dataset("val"), []
        for i in range(min(count, len(dataset))):
            sample = dataset[i]
            outputs = self.infer(model, {"input": paddle.to_tensor(sample["input"][None])})
            parts = outputs[INPUT], outputs[RESTORED], sample["meta"]["target"]
            pictures.append(np.concatenate([as_rgb(part) for part in parts], axis=1))
        return pictures

    def predict(self, model: Any, path: str) -> RestorationPrediction:
        before = as_channels(read_bgr(path), self.in_channels, self.options.val.to_gray, path)
        after = restore(model, to_planes(as_float(before))[None], *self._tiles)[0]
        return RestorationPrediction(to_uint8(to_image(after)), before)

    # --- export ----------------------------------------------------------------------------------------

    def export_spec(self, model: Any, input_shape: Sequence[int | None], flags: Any) -> ExportSpec:
        shape, val = tuple(input_shape), self.options.val
        size = None if shape[2] is None or shape[3] is None else (shape[2], shape[3])
        if size is None and model.multiple > 1:
            raise UserError(
                f"--input_shape: {self.options.model['name']} has windows, which need a fixed size; give N C H W, such "
                f"as 1 {self.in_channels} 128 128 (larger images are then restored in tiles of it)"
            )
        options = Options(self.in_channels, val.to_gray, val.tile, val.overlap)
        tiles = options.tiles(size)

        def reference(array: np.ndarray) -> dict[str, np.ndarray]:
            return {OUTPUT: restore_tiled(lambda part: _run(model, part), array, *tiles)}

        @lru_cache(None)
        def programs() -> dict[str, Program]:
            return {"model": Program(inference_copy(model, size), *signature(shape))}

        images: list[str] = []
        with contextlib.suppress(UserError, OSError):  # an export does not need the data
            images = self.dataset("val").files(0)
        return ExportSpec(
            model=model,
            programs=lambda model_format: programs(),
            checks={OUTPUT: Check(TOLERANCE)},
            reference=reference,
            channels=self.in_channels,
            min_size=MIN_EXPORT_SIZE,
            images=images,
            sizes=EXPORT_SIZES,
            options=vars(options),
        )
