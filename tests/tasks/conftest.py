"""Tiny data sets that the tests only read, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine import tiny


@pytest.fixture(scope="session")
def cityscapes(tmp_path_factory) -> Path:
    return tiny.write_cityscapes(tmp_path_factory.mktemp("data") / "cityscapes")


@pytest.fixture(scope="session")
def ade20k(tmp_path_factory) -> Path:
    return tiny.write_ade20k(tmp_path_factory.mktemp("data") / "ade20k")


@pytest.fixture(scope="session")
def lists(tmp_path_factory) -> Path:
    return tiny.write_lists(tmp_path_factory.mktemp("data") / "lists")
