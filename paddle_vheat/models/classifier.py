"""The classifier of the paper: vHeat and a head."""

from __future__ import annotations

from typing import Any

from paddle_vheat._arguments import check_integer
from paddle_vheat._paddle import nn
from paddle_vheat.models.layers import init_layer
from paddle_vheat.models.vheat import VHeat
from paddle_vheat.ops import fold
from paddle_vheat.ops.heat import published_normal

Tensor = Any


class VHeatClassifier(nn.Layer):
    """vHeat with the classification head: LayerNorm, global average pool, Linear.

    ``forward`` maps images (B, C, H, W) to logits (B, num_classes), or with ``num_classes`` 0 to the pooled features
    (B, 8D); ``forward_features`` to the four raw maps.

    Args:
        num_classes: classes of the head; 0 for none.
        **backbone_options: see :class:`VHeat`.
    """

    def __init__(self, num_classes: int = 1000, **backbone_options: Any) -> None:
        super().__init__()
        self.backbone = VHeat(out_norms=False, **backbone_options)
        self.norm = nn.LayerNorm(self.backbone.feat_channels[-1], epsilon=1e-5)
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a newly initialised one for ``num_classes`` classes, or by none (0)."""
        check_integer("VHeatClassifier: num_classes", num_classes, 0)
        self.num_classes = num_classes
        self.head = nn.Identity()
        if num_classes:
            self.head = init_layer(nn.Linear(self.norm.weight.shape[0], num_classes), published_normal())

    def forward_features(self, x: Tensor) -> list[Tensor]:
        return self.backbone.forward_features(x)

    no_weight_decay = VHeat.no_weight_decay

    def forward(self, x: Tensor) -> Tensor:
        last = self.backbone.forward_stages(x)[-1]
        return self.head(self.norm(last).mean(axis=[1, 2]))

    fold = fold
