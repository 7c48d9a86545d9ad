"""The same data as for the tasks."""

from tests.tasks.conftest import *  # noqa: F403
