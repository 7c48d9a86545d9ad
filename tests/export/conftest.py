"""Small trained networks and their exports, made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.export import networks
from tests.tasks.conftest import cityscapes  # noqa: F401


@pytest.fixture(scope="session")
def segmentor() -> Any:
    return networks.segmentor()


@pytest.fixture
def picture(tmp_path) -> Path:
    """A file of 64 x 128 pixels, outside the folder that exports are written to."""
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    Image.fromarray(networks.noise(64, 128, seed=5)).save(tmp_path / "pictures" / "a.png")
    return tmp_path / "pictures" / "a.png"
