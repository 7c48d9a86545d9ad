"""A segmentor and its exports, made once. Which network it is does not matter here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paddle_vheat.export import export_model
from tests.export import networks


@pytest.fixture(scope="session")
def segmentor() -> Any:
    return networks.pixelwise()


def export(
    network: Any, folder: Path, shape: Any, output_op: str, *transforms: Any, model_format: str = "paddle"
) -> Path:
    spec, task, shape = networks.segmentation(network, shape, output_op, *transforms)
    export_model(spec, task, folder, shape, networks.quiet, model_format)
    return folder


@pytest.fixture(scope="session")
def exported(segmentor, tmp_path_factory) -> Path:
    """64 x 128, any batch, logits, for Paddle Inference."""
    return export(segmentor, tmp_path_factory.mktemp("exported") / "model", [-1, 3, 64, 128], "none")


@pytest.fixture(scope="session")
def exported_onnx(segmentor, tmp_path_factory) -> Path:
    """64 x 128, two images at a time, classes, for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("exported_onnx") / "model"
    return export(segmentor, folder, [2, 3, 64, 128], "argmax", model_format="onnx")


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> list[Path]:
    """Three pictures of 64 x 128."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("[pictures]")
    for i in range(3):
        Image.fromarray(networks.noise(64, 128, seed=i)).save(folder / f"{i}.png")
    return sorted(folder.iterdir())
