"""Mixed precision: what the forward pass runs in, and the scaling of the loss. Written from Paddle's documentation for
GPUs, which none of us has run."""

from __future__ import annotations

import contextlib
from typing import Any

from paddle_vheat._paddle import paddle

HALF = {"fp16": "float16", "bf16": "bfloat16"}


class Precision:
    """Automatic mixed precision of a run; in "fp32", and on any device but a GPU, nothing of it does anything.

    Args:
        name: "fp32", "fp16" or "bf16".
        level: "O1" (lists of operators decide) or "O2" (the weights are in half precision, the optimizer has masters).
        scale, dynamic: initial loss scaling of fp16, and whether it adapts.
    """

    def __init__(self, name: str, level: str, scale: float = 1024.0, dynamic: bool = True) -> None:
        self.on = name != "fp32" and paddle.get_device().startswith("gpu")
        self.name, self.level = name, level
        # Not enabled, it gives back what it is given, and its step is the optimizer's.
        self.scaler: Any = paddle.amp.GradScaler(
            enable=self.on and name == "fp16", init_loss_scaling=scale, use_dynamic_loss_scaling=dynamic
        )

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
