"""Segmentation with an exported model; needs no Paddle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddle_vheat.config.options import option
from paddle_vheat.deploy.description import Description
from paddle_vheat.deploy.images import read_image, resize_planes
from paddle_vheat.deploy.processor import Outputs, Run
from paddle_vheat.deploy.scores import ScoreOptions, check_class, signature
from paddle_vheat.errors import ConfigError
from paddle_vheat.tasks.segmentation.transforms import Undo, build_transforms, restore
from paddle_vheat.tasks.segmentation.visualize import SegmentationPrediction, default_palette


@dataclass(frozen=True)
class Options(ScoreOptions):
    """What ``deploy.yaml`` holds for segmentation."""

    palette: Sequence[Sequence[int]] | None = option(list, None, items=list)


class Processor:
    """See :class:`paddle_vheat.deploy.processor.Processor`."""

    def __init__(self, description: Description) -> None:
        self.description = description
        self.options = options = description.read(Options)
        problems = options.wrong_lengths(description.options_at)
        if not all(_is_colour(colour) for colour in options.palette or []):
            problems.append(f"'{description.options_at}.palette' must be a list of [red, green, blue], 0 to 255")
        self.channels = description.input_shape[1]
        try:
            self.transforms = build_transforms(description.transforms, "Deploy.transforms", self.channels)
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise description.error(*problems)
        self.palette = np.array(options.palette or default_palette(options.num_classes), np.uint8)
        self.programs = {
            "model": signature(options.output_op, options.num_classes, description.input_shape, per_pixel=True)
        }

    def prepare(self, image: Any) -> tuple[np.ndarray, Undo]:
        return self.transforms(read_image(image, self.channels))

    def fit(self, array: np.ndarray, size: tuple[int, int], context: Undo) -> tuple[np.ndarray, Undo]:
        return resize_planes(array, size), [*context, ("resize", (array.shape[1], array.shape[2]))]

    def run(self, programs: Mapping[str, Run], batch: np.ndarray) -> Outputs:
        return programs["model"](batch)

    def finish(self, outputs: Outputs, context: Undo) -> SegmentationPrediction:
        (output,) = outputs.values()
        classes = restore(output.astype(np.int32), context, "NEAREST") if output.ndim == 2 else best(output, context)
        for extreme in (classes.min(), classes.max()):
            check_class(int(extreme), self.options, self.description)
        return SegmentationPrediction(classes, self.palette, self.options.class_names)


def _is_colour(colour: Any) -> bool:
    return len(colour) == 3 and all(type(value) is int and 0 <= value <= 255 for value in colour)


def best(scores: np.ndarray, undo: Undo) -> np.ndarray:
    """Class of every pixel of the original image, int32, from scores (classes, h, w)."""
    # Class by class, so that the scores of all classes at the size of a large image need not be held at once.
    highest = restore(scores[0], undo, "LINEAR").copy()
    classes = np.zeros(highest.shape, np.int32)
    for i, plane in enumerate(scores[1:], start=1):
        restored = restore(plane, undo, "LINEAR")
        classes[restored > highest] = i
        np.maximum(highest, restored, out=highest)
    return classes
