"""The one place that imports Paddle first, so that the import is quiet.

On import, Paddle 3 warns that the compiler cache ``ccache`` is missing, which matters only to people who
compile custom operators, and advises against more than one OMP thread, which is about its OpenBLAS builds (the
wheels use MKL). They would be the first two things that every user of this package sees.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from typing import Any

_KNOWN = ("WARNING: OMP_NUM_THREADS set to", "PLEASE USE OMP_NUM_THREADS WISELY")

_said = io.StringIO()
try:
    with warnings.catch_warnings(), contextlib.redirect_stderr(_said):
        warnings.filterwarnings("ignore", message="No ccache found")
        import paddle
        import paddle.nn as nn
        import paddle.nn.functional as F
finally:
    for _line in _said.getvalue().splitlines(keepends=True):
        if not _line.startswith(_KNOWN):
            sys.stderr.write(_line)

__all__ = ["PADDLE_2", "F", "in_evaluation", "nn", "no_autocast", "paddle"]

PADDLE_2 = paddle.__version__.startswith("2.")


def no_autocast() -> Any:
    """A context without automatic mixed precision. Paddle 2.6 has none in a static graph, and refuses there."""
    if PADDLE_2 and not paddle.in_dynamic_mode():
        return contextlib.nullcontext()
    return paddle.amp.auto_cast(enable=False)


@contextlib.contextmanager
def in_evaluation(model: Any) -> Iterator[None]:
    """Inside, a model is in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()
