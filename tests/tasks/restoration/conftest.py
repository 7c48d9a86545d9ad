"""Pictures that the tests only read, written once."""

from __future__ import annotations

import pytest

from tests.tasks.restoration.small import write_pictures


@pytest.fixture(scope="session")
def gray(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures") / "gray")


@pytest.fixture(scope="session")
def colour(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures") / "colour", colour=True)
