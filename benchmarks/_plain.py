"""The plain port of the tests as layers, so that the benchmarks can train and export it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from paddle_vheat._paddle import nn, paddle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.models.plain_port import PlainVHeat, published_layout


class _Port(PlainVHeat):
    """With the decay of every block computed once, where it is a constant (``folded``)."""

    def __init__(self, state: dict[str, Any], folded: bool) -> None:
        super().__init__(state, "float32")
        self.folded = folded
        self.constants: dict[str, Any] = {}

    def decay(self, name: str, embedding: Any, height: int, width: int) -> Any:
        if not self.folded:
            return super().decay(name, embedding, height, width)
        if name not in self.constants:
            with paddle.no_grad():
                self.constants[name] = super().decay(name, embedding, height, width).detach()
        return self.constants[name]


class PlainClassifier(nn.Layer):
    """The port of a :class:`paddle_vheat.models.VHeatClassifier`: equal weights, equal logits."""

    def __init__(self, model: Any, folded: bool = False) -> None:
        super().__init__()
        self.port = _Port(published_layout(model), folded)
        _register(self)

    def forward(self, x: Any) -> Any:
        return self.port.logits(x)


class PlainTrunk(nn.Layer):
    """The port of a :class:`paddle_vheat.models.VHeat` with output norms, as the backbone of a decoder."""

    def __init__(self, trunk: Any, folded: bool = False) -> None:
        super().__init__()
        self.feat_channels = trunk.feat_channels
        holder = nn.Layer()
        holder.backbone = trunk
        state = published_layout(holder)
        self.norms = nn.LayerList([getattr(trunk, f"outnorm{i}") for i in range(4)])
        self.port = _Port({name: value for name, value in state.items() if "outnorm" not in name}, folded)
        _register(self)

    def forward(self, x: Any) -> list[Any]:
        maps = self.port.stages(x)
        return [norm(m.transpose([0, 2, 3, 1])).transpose([0, 3, 1, 2]) for norm, m in zip(self.norms, maps)]


def _register(layer: Any) -> None:
    """Make a port's tensors parameters of the layer."""
    for name, value in list(layer.port.p.items()):
        parameter = layer.create_parameter(value.shape, default_initializer=nn.initializer.Assign(value))
        layer.add_parameter(name.replace(".", "_"), parameter)
        layer.port.p[name] = parameter
