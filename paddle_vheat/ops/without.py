"""A network without its conduction."""

from __future__ import annotations

import copy
from typing import Any

from paddle_vheat._paddle import paddle
from paddle_vheat.ops.heat import FoldedHeatConduction2D, HeatConduction2D


def without_conduction(model: Any) -> Any:
    """A copy of a network in which k is 0 everywhere, so that no heat is conducted: what is left is the convolution,
    the gate and the linear layers of each operator. For finding out what conduction contributes.

    Raises:
        ValueError: if the network holds no operator.
    """
    copied = copy.deepcopy(model)
    found = False
    for layer in copied.sublayers(include_self=True):
        if isinstance(layer, HeatConduction2D):
            for parameter in (layer.to_k.weight, layer.to_k.bias):
                parameter.set_value(paddle.zeros_like(parameter))
            layer.__dict__.pop("_kept", None)  # decays of before
        elif isinstance(layer, FoldedHeatConduction2D):
            layer.decay.set_value(paddle.ones_like(layer.decay))
        found |= isinstance(layer, (HeatConduction2D, FoldedHeatConduction2D))
    if not found:
        raise ValueError(f"without_conduction: {type(model).__name__} holds no heat conduction operator")
    return copied
