"""Mixed precision: what the forward pass runs in, and the scaling of the loss. Written from Paddle's documentation for
GPUs, which none of us has run."""

from __future__ import annotations

import contextlib
from typing import Any

from paddle_vheat._paddle import paddle

HALF = {"fp16": "float16", "bf16": "bfloat16"}


class Precision:
    """Automatic mixed precision of a run; in "fp32", and on any device but a GPU, every method does nothing.

    Args:
        name: "fp32", "fp16" or "bf16".
        level: "O1" (lists of operators decide) or "O2" (the weights are in half precision, the optimizer has masters).
        scale, dynamic: initial loss scaling of fp16, and whether it adapts.
    """

    def __init__(self, name: str, level: str, scale: float = 1024.0, dynamic: bool = True) -> None:
        self.on = name != "fp32" and paddle.get_device().startswith("gpu")
        self.name, self.level = name, level
        self.scaler: Any = None
        if self.on and name == "fp16":
            self.scaler = paddle.amp.GradScaler(init_loss_scaling=scale, use_dynamic_loss_scaling=dynamic)

    def decorate(self, model: Any, optimizer: Any) -> tuple[Any, Any]:
        """Model and optimizer for level O2; checkpoints stay in float32 (``save_dtype``)."""
        if not self.on or self.level != "O2":
            return model, optimizer
        return paddle.amp.decorate(model, optimizer, level="O2", dtype=HALF[self.name], save_dtype="float32")

    def autocast(self) -> Any:
        """A context for every forward pass: training, evaluation, the trial before the start, previews."""
        if not self.on:
            return contextlib.nullcontext()
        return paddle.amp.auto_cast(level=self.level, dtype=HALF[self.name])

    def backward(self, loss: Any) -> None:
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def unscale(self, optimizer: Any) -> None:
        if self.scaler:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: Any) -> None:
        """Update the weights; with a scaler, unless gradients overflowed."""
        if self.scaler:
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            optimizer.step()
