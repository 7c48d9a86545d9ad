"""Parameters and multiply-adds of a model, counted by what is computed.

Counters that look at layers alone miss what vHeat is made of: the products of the DCT, the product that makes k from
the frequency embedding, LayerNorm. Here the DCT is counted as the matrix products that it is; a LayerNorm counts
five operations a value, as the tools behind the published figures count it; activations, sums and
interpolation count nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paddle_vheat._paddle import in_evaluation, nn, paddle
from paddle_vheat.ops import HeatConduction2D
from paddle_vheat.ops.heat import FoldedHeatConduction2D

# Millions of parameters and billions of multiply-adds at 224 x 224, folded form, as published with the release.
PUBLISHED = {"vheat_tiny": (29, 4.6), "vheat_small": (50, 8.5), "vheat_base": (87, 14.9)}


@dataclass
class Cost:
    """Parameters and multiply-adds of a part of a model, for one image."""

    parameters: int = 0
    multiply_adds: int = 0


def _layer_cost(layer: Any, inputs: Any, output: Any) -> int:
    """Multiply-adds of one call of a layer, its sublayers apart."""
    if isinstance(layer, nn.Conv2D):
        _, channels_per_group, height, width = layer.weight.shape
        return output.shape[2] * output.shape[3] * output.shape[1] * channels_per_group * height * width
    if isinstance(layer, nn.Linear):
        return math.prod(output.shape[1:]) * layer.weight.shape[0]
    if isinstance(layer, nn.LayerNorm):
        return 5 * math.prod(output.shape[1:])
    if isinstance(layer, nn.BatchNorm2D):
        return 2 * math.prod(output.shape[1:])
    if isinstance(layer, (HeatConduction2D, FoldedHeatConduction2D)):
        channels, rows = layer.channels, layer.data_format.index("H")
        height, width = inputs[0].shape[rows : rows + 2]
        spectrum = layer.ablation.spectrum if hasattr(layer, "ablation") else "full"
        transforms = 2 * height * width * channels * (height + width)
        if spectrum == "fft_filter":  # 2.5 N log2(N) operations each of a real transform of N positions
            transforms = round(2.5 * height * width * math.log2(height * width)) * channels
        decay = height * width * channels
        # Made once for the whole batch, so it counts fully for one image only.
        to_k = height * width * channels**2 if isinstance(layer, HeatConduction2D) and spectrum == "full" else 0
        return transforms + decay + to_k
    return 0


def _part(name: str) -> str:
    """The part of a model that a parameter or layer belongs to."""
    words = [word for word in name.split(".") if word != "backbone"]
    if words[:1] == ["stages"]:
        stage = f"stage {int(words[1]) + 1}"
        if words[2] == "downsample":
            return f"{stage} downsample"
        if words[2] == "frequency_embedding":
            return f"{stage} frequency embedding"
        kind = words[4] if len(words) > 4 else ""
        return f"{stage} {'MLP' if kind in ('mlp', 'norm2', 'gamma2') else 'heat conduction'}"
    if words[0].startswith("outnorm"):
        return "output norms"
    return {
        "norm": "classifier",
        "head": "classifier",
        "decode_head": "decoder",
        "auxiliary_head": "auxiliary head",
    }.get(words[0], words[0])


def count(model: Any, size: int | Sequence[int], in_channels: int = 3) -> dict[str, Cost]:
    """Parameters and multiply-adds by part, for one image of ``size`` (int or (height, width)) in evaluation.

    Buffers (BatchNorm's running statistics) are not counted; a folded model's constant decay is.
    """
    height, width = (size, size) if isinstance(size, int) else size
    costs: dict[str, Cost] = {}
    statistics = {id(t) for layer in model.sublayers() if isinstance(layer, nn.BatchNorm2D)
                  for t in (layer._mean, layer._variance)}  # fmt: skip
    for name, parameter in model.named_parameters():
        if id(parameter) not in statistics:
            costs.setdefault(_part(name), Cost()).parameters += math.prod(parameter.shape)
    with contextlib.ExitStack() as stack:
        for name, layer in model.named_sublayers():

            def record(layer: Any, inputs: Any, output: Any, name: str = name) -> None:
                operations = _layer_cost(layer, inputs, output)
                if operations:
                    costs.setdefault(_part(name), Cost()).multiply_adds += operations

            stack.callback(layer.register_forward_post_hook(record).remove)
        stack.enter_context(in_evaluation(model))
        with paddle.no_grad():
            model(paddle.zeros([1, in_channels, height, width]))
    return costs


def total(costs: dict[str, Cost]) -> Cost:
    """The sum of all parts."""
    return Cost(sum(c.parameters for c in costs.values()), sum(c.multiply_adds for c in costs.values()))
