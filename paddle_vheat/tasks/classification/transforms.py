"""The transforms of the published ImageNet recipe, under PaddleClas' names and arguments. Needs no Paddle.

Names, arguments and their defaults are those of PaddleClas' ``transform_ops``, so that one YAML file serves both.
How a value is drawn or rounded follows the published recipe (timm and torchvision) where PaddleClas differs: the
aspect ratio of a random crop is drawn on a logarithmic scale, and the evaluation's resized and cropped sizes are
rounded as torchvision rounds them. Everything random is drawn from Python's ``random``, so that seeding it decides
the result; what a seed gives must never change, or a run could not be resumed.

Between the operations an image is an RGB :class:`PIL.Image.Image`; from NormalizeImage on, it is float32
(H, W, 3). :func:`pipeline` puts operations together and gives float32 (3, H, W). What evaluation needs is here, what
only training does in ``augment``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from paddle_vheat.config import ConfigError, build_list, by_name, option
from paddle_vheat.data.image_file import open_image
from paddle_vheat.deploy.images import check_size
from paddle_vheat.tasks.classification.augment import (
    INTERPOLATIONS,
    RandCropImage,
    RandFlipImage,
    RandomErasing,
    TimmAutoAugment,
    draw_interpolation,
)
from paddle_vheat.tasks.classification.operation import IMAGENET_MEAN, IMAGENET_STD, MAX_SIDE, Operation


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey at 255, which leaves white.
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


@dataclass(eq=False)
class DecodeImage(Operation):
    """A file's bytes -> RGB image; an image passes.

    Colours only: the alpha channel is dropped, and an orientation in the EXIF data is not followed, as in the
    published recipe.

    Args:
        to_rgb: False gives blue, green, red.
        to_np: taken for PaddleClas' sake, where it changes what is passed on, not the result.
        channel_first: must be False; ToCHWImage moves the channels to the front at the end.
        backend: "pil", which the recipe was published with.

    Raises:
        ValueError: when called with bytes that are no image, or a damaged one.
    """

    to_rgb: bool = option(bool, True)
    to_np: bool = option(bool, False)
    channel_first: bool = option(bool, False, choices=(False,))
    backend: str = option(str, "pil", choices=("pil",))

    def stages(self) -> tuple[tuple[str, ...], str]:
        return ("file", "image"), "image"

    def finish(self, image: Image.Image) -> Image.Image:
        """Decode an opened image."""
        try:
            image = _to_rgb(image)
        except Exception as error:  # a damaged file can fail in any way: OSError, SyntaxError, struct.error ...
            raise ValueError(f"the image is damaged: {error}") from error
        return image if self.to_rgb else Image.merge("RGB", image.split()[::-1])

    def __call__(self, data: bytes | Image.Image) -> Image.Image:
        return self.finish(open_image(data)) if isinstance(data, bytes) else data


@dataclass(eq=False)
class ResizeImage(Operation):
    """Resize so that the shorter side is ``resize_short``, or to ``size``, a number or (width, height).

    The longer side is rounded down, as in the published evaluation.
    """

    size: tuple[int, int] | None = option(list, None, items=int, length=2, min=1, max=MAX_SIDE)
    resize_short: int | None = option(int, None, min=1, max=MAX_SIDE)
    interpolation: str = option(str, "bicubic", choices=(*INTERPOLATIONS, "random"))
    backend: str = option(str, "pil", choices=("pil",))

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.size is None) == (self.resize_short is None):
            raise ValueError("expected either 'size' or 'resize_short'")

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        shorter, target = min(image.size), self.resize_short or 0
        size = self.size or (target * width // shorter, target * height // shorter)
        check_size(size[1], size[0])
        return image if size == image.size else image.resize(size, draw_interpolation(self.interpolation))


@dataclass(eq=False)
class CropImage(Operation):
    """The middle of the image, of ``size``: a number or (width, height).

    Raises:
        ValueError: when called with a smaller image.
    """

    size: tuple[int, int] = option(list, items=int, length=2, min=1, max=MAX_SIDE)

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = self.size
        if image.width < width or image.height < height:
            raise ValueError(
                f"CropImage: the image is {image.width} x {image.height} (width x height), smaller than the "
                f"{width} x {height} to cut out; put a ResizeImage before it"
            )
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))


@dataclass(eq=False)
class NormalizeImage(Operation):
    """(value * scale - mean) / std by channel, float32.

    Args:
        scale: a number or a fraction such as "1.0/255.0".
        mean, std: three numbers; ImageNet's by default.
        order: '' or 'hwc' for images and (H, W, 3); 'chw' (PaddleClas' default) after ToCHWImage.
    """

    scale: float = option(float, 1 / 255, min=-(10**6), max=10**6)
    mean: tuple[float, float, float] = option(list, IMAGENET_MEAN, items=float, length=3, min=-(10**6), max=10**6)
    std: tuple[float, float, float] = option(list, IMAGENET_STD, items=float, length=3, min=1e-6, max=10**6)
    order: str = option(str, "chw", choices=("", "hwc", "chw"))

    def stages(self) -> tuple[tuple[str, ...], str]:
        return (("chw",), "chw") if self.order == "chw" else (("image", "hwc"), "hwc")

    def __call__(self, image: Image.Image | np.ndarray) -> np.ndarray:
        array = np.asarray(image)
        planes = array if self.order == "chw" else np.moveaxis(array, -1, 0)
        # Written plane by plane: three times as fast as broadcasting along an axis of three, and the
        # transposition at the end of a pipeline is then only a change of view.
        result = np.empty(planes.shape, np.float32)
        for plane, out, mean, std in zip(planes, result, self.mean, self.std):
            np.multiply(plane, np.float32(self.scale), out=out, dtype=np.float32, casting="same_kind")
            out -= np.float32(mean)
            out /= np.float32(std)
        return result if self.order == "chw" else np.moveaxis(result, 0, -1)


@dataclass(eq=False)
class ToCHWImage(Operation):
    """(H, W, 3) -> (3, H, W). A pipeline ends with this in any case."""

    def stages(self) -> tuple[tuple[str, ...], str]:
        return ("image", "hwc"), "chw"

    def __call__(self, image: Image.Image | np.ndarray) -> np.ndarray:
        return np.moveaxis(np.asarray(image), -1, 0)


OPS: dict[str, Callable[..., Any]] = {
    op.__name__: op
    for op in (
        DecodeImage, RandCropImage, RandFlipImage, TimmAutoAugment, ResizeImage, CropImage, NormalizeImage,
        RandomErasing, ToCHWImage,
    )
}  # fmt: skip


def build_ops(config: Any, source: str = "transform_ops") -> list[Any]:
    """Operations from a list of {name: arguments}, as in PaddleClas' ``transform_ops``.

    Args:
        config: the list; arguments may be None.
        source: what to call it in an error: the file and the key.

    Raises:
        ConfigError: for unknown names and arguments, with the nearest and the known ones, and for values that an
            operation does not take; all of them at once.
    """
    return build_list(config, OPS, source, by_name)


_STAGES = {
    "file": "the bytes of a file (put DecodeImage first)",
    "image": "an image",
    "hwc": "a normalised image (H, W, 3)",
    "chw": "channels first (3, H, W)",
}


def pipeline(
    ops: Sequence[Any], takes: str = "file", source: str = "transform_ops"
) -> Callable[[bytes | Image.Image | np.ndarray], np.ndarray]:
    """One function from operations as :func:`build_ops` gives them.

    Args:
        ops: in the order of application.
        takes: "file" if it is called with the bytes of a file, "image" if with an RGB image.
        source: what to call the operations in an error.

    Returns:
        A function of a file's bytes or an image (Pillow's, or uint8 (H, W, 3)) to float32 (3, H, W), contiguous. It
        raises a ValueError for bytes that are no image, a damaged one, or one too small for the operations.

    Raises:
        ConfigError: if an operation cannot work on what the one before it gives.
    """
    stage = takes
    for i, op in enumerate(ops):
        accepted, gives = op.stages()
        if stage not in accepted:
            wanted = " or ".join(_STAGES[name] for name in accepted)
            hint = "; set its order to ''" if isinstance(op, NormalizeImage) and stage == "image" else ""
            raise ConfigError(
                f"'{source}.{i}': {type(op).__name__} works on {wanted}, but here it gets {_STAGES[stage]}{hint}"
            )
        stage = gives
    if stage == "file":
        raise ConfigError(f"'{source}': the list is empty; it needs DecodeImage at least")
    fused = len(ops) > 1 and isinstance(ops[0], DecodeImage) and isinstance(ops[1], RandCropImage)

    def run(data: bytes | Image.Image | np.ndarray) -> np.ndarray:
        result: Any = Image.fromarray(data) if isinstance(data, np.ndarray) else data
        left = ops
        if fused and isinstance(data, bytes):
            result, left = ops[1].from_file(data, ops[0]), ops[2:]
        for op in left:
            result = op(result)
        array = np.asarray(result)
        return np.ascontiguousarray(array if stage == "chw" else np.moveaxis(array, -1, 0), np.float32)

    return run


def create_transform(cfg: Mapping[str, Any]) -> Callable[[Any], np.ndarray]:
    """The evaluation's preparation of images for a model.

    Args:
        cfg: a model's ``default_cfg`` (:func:`paddle_vheat.models.registry.default_cfg`).

    Returns:
        A function of an image (a file's path or bytes, Pillow's, or uint8 RGB (H, W, 3)) to float32 (3, h, w). It
        raises a ValueError for what is no image.
    """
    _, height, width = cfg["input_size"]
    ops = [
        DecodeImage(),
        ResizeImage(resize_short=int(min(height, width) / cfg["crop_pct"]), interpolation=cfg["interpolation"]),
        CropImage(size=(width, height)),
        NormalizeImage(mean=cfg["mean"], std=cfg["std"], order=""),
    ]
    run = pipeline(ops)

    def transform(image: Any) -> np.ndarray:
        return run(Path(image).read_bytes() if isinstance(image, (str, os.PathLike)) else image)

    return transform
