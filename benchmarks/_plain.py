"""The plain port of the tests as layers, so that the benchmarks can train and export it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from paddle_vheat._paddle import F, nn, paddle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.models.plain_port import PlainVHeat, published_layout


class _Port(PlainVHeat):
    """With the decay of every block a constant, once ``constants`` is filled."""

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__(state, "float32")
        self.constants: dict[str, Any] = {}
        self.folding = False

    def decay(self, name: str, embedding: Any, height: int, width: int) -> Any:
        if self.folding:
            self.constants[name] = super().decay(name, embedding, height, width).detach()
        return self.constants[name] if name in self.constants else super().decay(name, embedding, height, width)


class PlainClassifier(nn.Layer):
    """The port of a :class:`paddle_vheat.models.VHeatClassifier`: equal weights, equal logits."""

    def __init__(self, model: Any, folded_for: int | None = None) -> None:
        super().__init__()
        self.port = _Port(published_layout(model))
        _register(self)
        if folded_for is not None:
            self.port.folding = True
            self(paddle.zeros([1, 3, folded_for, folded_for]))
            self.port.folding = False
            for name, value in self.port.constants.items():
                self.register_buffer(f"decay_{name.replace('.', '_')}", value)

    def forward(self, x: Any) -> Any:
        return self.port.logits(x)


class PlainBackbone(nn.Layer):
    """The port of a :class:`paddle_vheat.models.VHeat` with output norms, as the backbone of a decoder."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.feat_channels = backbone.feat_channels
        holder = nn.Layer()
        holder.backbone = backbone
        state = published_layout(holder)
        self.norms = nn.LayerList([getattr(backbone, f"outnorm{i}") for i in range(4)])
        self.port = _Port({name: value for name, value in state.items() if "outnorm" not in name})
        _register(self)

    def forward(self, x: Any) -> list[Any]:
        maps = self.port.stages(x)
        return [norm(m.transpose([0, 2, 3, 1])).transpose([0, 3, 1, 2]) for norm, m in zip(self.norms, maps)]


class PlainUPerNet(nn.Layer):
    """The decoders of a :class:`paddle_vheat.models.UPerNet` line by line, on a plain backbone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone = PlainBackbone(model.backbone)
        self.head, self.auxiliary = model.decode_head, model.auxiliary_head

    def forward(self, x: Any) -> list[Any]:
        maps = self.backbone(x)
        head, last = self.head, maps[-1]
        pooled = [last]
        for branch in head.pyramid:
            pooled.append(_resize(branch.project(F.adaptive_avg_pool2d(last, branch.bins)), last))
        levels = [lateral(feature) for lateral, feature in zip(head.laterals, maps)]
        levels.append(head.bottleneck(paddle.concat(pooled, axis=1)))
        for i in (3, 2, 1):
            levels[i - 1] = levels[i - 1] + _resize(levels[i], levels[i - 1])
        levels = [conv(level) for conv, level in zip(head.fpn, levels)] + levels[-1:]
        fused = head.fuse(paddle.concat([levels[0]] + [_resize(level, levels[0]) for level in levels[1:]], axis=1))
        logits = [head.classifier(head.dropout(fused))]
        if self.training:
            logits.append(self.auxiliary(maps[2]))
        return [_resize(logit, x) for logit in logits]


def _resize(x: Any, like: Any) -> Any:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


def _register(layer: Any) -> None:
    """Make a port's tensors parameters of the layer."""
    for name, value in list(layer.port.p.items()):
        parameter = layer.create_parameter(value.shape, default_initializer=nn.initializer.Assign(value))
        layer.add_parameter(name.replace(".", "_"), parameter)
        layer.port.p[name] = parameter
