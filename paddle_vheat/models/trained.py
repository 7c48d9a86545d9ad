"""The models' layers for training on a CPU, where there are kernels for it (:mod:`paddle_vheat.ops.native`).

Each computes what its plain form does, up to rounding; see :func:`paddle_vheat.ops.training.accelerate_training`.
"""

from __future__ import annotations

from typing import Any

from paddle_vheat._paddle import nn
from paddle_vheat.models.layers import ChannelsLastConv2D
from paddle_vheat.models.vheat import MLP, Block, Downsample, Stem
from paddle_vheat.ops import fused
from paddle_vheat.ops.training import fusible, trained_form

Tensor = Any


def _convolved(convolution: nn.Conv2D, x: Tensor) -> Tensor:
    return fused.Convolution.apply(x, convolution.weight, convolution.bias, convolution._stride[0])


@trained_form
class TrainedChannelsLastConv2D(ChannelsLastConv2D):
    plain_form = ChannelsLastConv2D

    def forward(self, x: Tensor) -> Tensor:
        return _convolved(self, x) if fusible(x, self) else ChannelsLastConv2D.forward(self, x)


@trained_form
class TrainedStem(Stem):
    plain_form = Stem

    def forward(self, x: Tensor) -> Tensor:
        if not fusible(x, self.conv1, self.conv2):
            return Stem.forward(self, x)
        x = fused.GELU.apply(self.norm1(_convolved(self.conv1, x.transpose([0, 2, 3, 1]))))
        return self.norm2(_convolved(self.conv2, x))


@trained_form
class TrainedDownsample(Downsample):
    plain_form = Downsample

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(_convolved(self.conv, x)) if fusible(x, self.conv) else Downsample.forward(self, x)


@trained_form
class TrainedMLP(MLP):
    plain_form = MLP

    def forward(self, x: Tensor) -> Tensor:
        if not fusible(x, self.fc1, self.fc2):
            return MLP.forward(self, x)
        return fused.MLP.apply(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)


@trained_form
class TrainedBlock(Block):
    plain_form = Block

    def forward(self, x: Tensor, frequency_embedding: Tensor | None) -> Tensor:
        if not fusible(x, self.norm1, self.norm2) or self.drop_path._forward_post_hooks:
            return Block.forward(self, x, frequency_embedding)
        conducted = self.hco(x if self.post_norm else self.norm1(x), frequency_embedding)
        x = self._joined(x, conducted, self.norm1, "gamma1")
        mixed = self.mlp(x if self.post_norm else self.norm2(x))
        return self._joined(x, mixed, self.norm2, "gamma2")

    def _joined(self, x: Tensor, branch: Tensor, norm: nn.LayerNorm, scale: str) -> Tensor:
        if self.post_norm and self.has_layer_scale:  # of the norm's parameters rather than of the map
            scales = getattr(self, scale)
            branch = fused.LayerNorm.apply(branch, norm.weight * scales, norm.bias * scales, norm._epsilon)
        else:
            branch = self._after(branch, norm, scale)
        return fused.Residual.apply(x, branch, self.drop_path.factors(x))
