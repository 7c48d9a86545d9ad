"""A tiny trained model, its task, and its exports, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paddle_vheat.engine.export import export_model
from tests.engine import tiny


def quiet(text: str) -> None:
    """For ``say``."""


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    return tiny.write_cityscapes(tmp_path_factory.mktemp("data") / "cityscapes")


@pytest.fixture(scope="session")
def make_task(scenes) -> Any:
    """A function from transforms of evaluation to a task; the model is the same each time."""
    state: dict[str, Any] = {}

    def make(*transforms: dict[str, Any]) -> Any:
        config = tiny.cityscapes_config(scenes)
        config["val_dataset"]["transforms"] = [*transforms, tiny.NORMALIZE]
        task = tiny.make_task(config)
        if state:
            task.model.set_state_dict(state)
        else:
            state.update(tiny.lively(task.model).state_dict())
        task.model.eval()
        return task

    return make


@pytest.fixture(scope="session")
def exported(make_task, tmp_path_factory) -> Path:
    """64 x 128, any batch, logits, for Paddle Inference."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_model(make_task(), folder, [-1, 3, 64, 128], "none", quiet)
    return folder


@pytest.fixture(scope="session")
def exported_onnx(make_task, tmp_path_factory) -> Path:
    """64 x 128, two images at a time, classes, for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("exported_onnx") / "model"
    export_model(make_task(), folder, [2, 3, 64, 128], "argmax", quiet, "onnx")
    return folder
