"""Classification with an exported model; needs no Paddle."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from paddle_vheat.config import build_list, by_name
from paddle_vheat.data.image_file import check_header
from paddle_vheat.deploy.description import Description
from paddle_vheat.deploy.images import read_image, resize_planes
from paddle_vheat.deploy.processor import Outputs, Run
from paddle_vheat.deploy.scores import ScoreOptions, check_class, signature
from paddle_vheat.errors import ConfigError
from paddle_vheat.tasks.classification.data import read_file
from paddle_vheat.tasks.classification.transforms import OPS, DecodeImage, pipeline
from paddle_vheat.tasks.classification.visualize import ClassificationPrediction, class_name

EVALUATION_OPS = {
    name: OPS[name] for name in ("DecodeImage", "ResizeImage", "CropImage", "NormalizeImage", "ToCHWImage")
}


class Processor:
    """See :class:`paddle_vheat.deploy.processor.Processor`."""

    def __init__(self, description: Description) -> None:
        self.description = description
        self.options = options = description.read(ScoreOptions)
        problems = options.wrong_lengths(description.options_at)
        if description.input_shape[1] != 3:
            problems.append(f"'Deploy.input_shape' must have 3 channels, got {description.input_shape[1]}")
        try:
            ops = evaluation_ops(description.transforms, where := "Deploy.transforms")
            self.transform = pipeline(ops, source=where)
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise description.error(*problems)
        self._decode = ops[0]
        self.programs = {
            "model": signature(options.output_op, options.num_classes, description.input_shape, per_pixel=False)
        }

    def prepare(self, image: Any) -> tuple[np.ndarray, None]:
        if isinstance(image, (str, os.PathLike)):
            check_header(image)  # names the file
            return read_file(image, self.transform), None
        array = read_image(image)
        if array.dtype != np.uint8:
            raise ValueError(
                f"expected an image of uint8, which classification's transforms work on, got {array.dtype}"
            )
        return self.transform(self._decode.finish(Image.fromarray(np.ascontiguousarray(array[..., ::-1])))), None

    def fit(self, array: np.ndarray, size: tuple[int, int], context: None) -> tuple[np.ndarray, None]:
        return resize_planes(array, size), None

    def run(self, programs: Mapping[str, Run], batch: np.ndarray) -> Outputs:
        return programs["model"](batch)

    def finish(self, outputs: Outputs, context: None) -> ClassificationPrediction:
        (output,) = outputs.values()
        names = self.options.class_names
        if output.ndim == 0:
            index = int(output)
            check_class(index, self.options, self.description)
            return ClassificationPrediction([{"class": index, "name": class_name(index, names), "score": None}])
        if self.options.output_op == "none":
            shifted = np.exp(output - output.max())
            output = shifted / shifted.sum()
        return ClassificationPrediction.of(output, names)


def evaluation_ops(config: Sequence[Any], where: str) -> list[Any]:
    """Operations of evaluation from PaddleClas' list of {name: arguments}, with DecodeImage before them.

    Raises:
        ConfigError: for what is no operation of evaluation, and for arguments that cannot be.
    """
    ops = build_list(config, EVALUATION_OPS, where, by_name)
    return ops if any(isinstance(op, DecodeImage) for op in ops) else [DecodeImage(), *ops]
