"""Restoration with an exported model; needs no Paddle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddle_vheat.config import option
from paddle_vheat.data.image_file import read_bgr
from paddle_vheat.deploy.description import Description, Shape, Signature, Tensors
from paddle_vheat.deploy.processor import Outputs, Run
from paddle_vheat.tasks.restoration.data import as_channels, check_picture, to_image, to_planes
from paddle_vheat.tasks.restoration.degrade import as_float
from paddle_vheat.tasks.restoration.metrics import to_uint8
from paddle_vheat.tasks.restoration.tiles import OVERLAP, check_tile, restore_tiled
from paddle_vheat.tasks.restoration.visualize import RestorationPrediction

OUTPUT = "restored"


@dataclass(frozen=True)
class Options:
    """What ``deploy.yaml`` holds for restoration. An export of a fixed size restores in tiles of that size."""

    channels: int = option(int, choices=(1, 3))
    to_gray: str | None = option(str, None, choices=("opencv", "luma"))
    tile: int | None = option(int, None, min=1, max=2**16)
    overlap: int = option(int, OVERLAP, min=0, max=2**16)

    def tiles(self, size: tuple[int, int] | None) -> tuple[tuple[int, int] | None, int]:
        """(height, width) of the tiles or None, and their overlap, for an export of a size (None: any)."""
        tile = size if size is not None else None if self.tile is None else (self.tile, self.tile)
        return tile, self.overlap if tile is None else min(self.overlap, min(tile) - 1)


def signature(shape: Shape) -> Signature:
    """Images (N, C, H, W) of values in [0, 1] to the same, which may leave [0, 1]."""
    axes = ("batch", "channels", "height", "width")
    return Signature((Tensors("x", tuple(shape), axes),), (Tensors(OUTPUT, tuple(shape), axes),))


class Processor:
    """See :class:`paddle_vheat.deploy.processor.Processor`."""

    def __init__(self, description: Description) -> None:
        self.options = options = description.read(Options)
        where, problems = description.options_at, []
        if options.channels != description.input_shape[1]:
            channels = description.input_shape[1]
            problems.append(f"'{where}.channels' is {options.channels}, and 'Deploy.input_shape' has {channels}")
        problems += [f"'{where}.tile': {text}" for text in check_tile(options.tile, options.overlap)]
        if problems:
            raise description.error(*problems)
        self.tile, self.overlap = options.tiles(description.size)
        self.programs = {"model": signature(description.input_shape)}

    def prepare(self, image: Any) -> tuple[np.ndarray, np.ndarray]:
        name = str(image) if isinstance(image, (str, os.PathLike)) else "the image"
        array = read_bgr(image) if isinstance(image, (str, os.PathLike)) else check_picture(image, name)
        before = as_channels(array, self.options.channels, self.options.to_gray, name)
        return to_planes(as_float(before)), before

    def fit(self, array: np.ndarray, size: tuple[int, int], context: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mirrored to at least the size; what is larger stays so, and is restored in tiles."""
        missing = [max(side - have, 0) for side, have in zip(size, array.shape[1:])]
        return np.pad(array, ((0, 0), (0, missing[0]), (0, missing[1])), mode="symmetric"), context

    def run(self, programs: Mapping[str, Run], batch: np.ndarray) -> Outputs:
        return {OUTPUT: restore_tiled(lambda part: programs["model"](part)[OUTPUT], batch, self.tile, self.overlap)}

    def finish(self, outputs: Outputs, context: np.ndarray) -> RestorationPrediction:
        height, width = context.shape[:2]
        return RestorationPrediction(to_uint8(to_image(outputs[OUTPUT][:, :height, :width])), context)
