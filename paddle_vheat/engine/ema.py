"""Exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from paddle_vheat._paddle import paddle


class ExponentialMovingAverage:
    """Average of parameters and buffers over the iterations.

    In iteration i (from 1) the average keeps ``min(1 - 1 / (i + 1), decay)`` of itself, so that it forgets the
    initial weights; without ``warm_up``, always ``decay``. Whole numbers (counters) are copied.
    """

    def __init__(self, model: Any, decay: float = 0.999, warm_up: bool = True) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"EMA: the decay must be in [0, 1), got {decay}")
        self.model = model
        self.decay = decay
        self.warm_up = warm_up
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def update(self, iteration: int) -> None:
        """Take in the model's weights as they are after ``iteration`` (from 1)."""
        decay = min(1 - 1 / (iteration + 1), self.decay) if self.warm_up else self.decay
        with paddle.no_grad():
            for name, value in self.model.state_dict().items():
                mean = self.average[name]
                if paddle.is_floating_point(value):
                    mean.scale_(decay)
                    mean.add_(value.astype(mean.dtype) * (1 - decay))
                else:
                    mean.set_value(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        target = self.model.state_dict()
        own = {name: value.detach().clone() for name, value in target.items()}
        try:
            for name, value in target.items():
                value.set_value(self.average[name])
            yield
        finally:
            for name, value in target.items():
                value.set_value(own[name])

    def state_dict(self) -> dict[str, Any]:
        return self.average
