"""The models' layers for training on a CPU, where there are kernels for it (:mod:`paddle_vheat.ops.native`).

Each computes what its plain form does, up to rounding; see :func:`paddle_vheat.ops.training.accelerate_training`.
"""

from __future__ import annotations

from typing import Any

from paddle_vheat._paddle import nn
from paddle_vheat.models.layers import ChannelsLastConv2D
from paddle_vheat.models.vheat import MLP, Block, Downsample, Stem
from paddle_vheat.ops import fused
from paddle_vheat.ops.fold import unwatched
from paddle_vheat.ops.training import TrainedHeatConduction2D, fusible, trained_form

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
        return self.by_kernels(x, *fused.ALONE) if self.is_fusible(x) else MLP.forward(self, x)

    def is_fusible(self, x: Tensor) -> bool:
        return fusible(x, self.fc1, self.fc2)

    def by_kernels(self, x: Tensor, *branch: Any) -> Tensor:
        """The MLP, or a residual branch with it: see :mod:`paddle_vheat.ops.fused`."""
        return fused.MLP.apply(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, *branch)


@trained_form
class TrainedBlock(Block):
    plain_form = Block

    def forward(self, x: Tensor, frequency_embedding: Tensor | None) -> Tensor:
        if not self._is_fusible(x):
            return Block.forward(self, x, frequency_embedding)
        if self.post_norm:
            x = self._joined(x, self.hco(x, frequency_embedding), self.norm1, "gamma1")
            return self._joined(x, self.mlp(x), self.norm2, "gamma2")
        x = self.hco.by_kernels(x, frequency_embedding, *self._branch(x, self.norm1))
        return self.mlp.by_kernels(x, *self._branch(x, self.norm2))

    def _is_fusible(self, x: Tensor) -> bool:
        if not fusible(x, self.norm1, self.norm2) or not unwatched(self.drop_path):
            return False
        operators = self.hco, self.mlp
        return self.post_norm or (
            not self.has_layer_scale
            and [type(operator) for operator in operators] == [TrainedHeatConduction2D, TrainedMLP]
            and unwatched(*operators)
            and all(operator.is_fusible(x) for operator in operators)
        )

    def _branch(self, x: Tensor, norm: nn.LayerNorm) -> tuple[Any, ...]:
        return norm.weight, norm.bias, norm._epsilon, self.drop_path.factors(x)

    def _joined(self, x: Tensor, branch: Tensor, norm: nn.LayerNorm, scale: str) -> Tensor:
        weight, bias = norm.weight, norm.bias
        if self.has_layer_scale:  # of the norm's parameters rather than of the map
            weight, bias = (parameter * getattr(self, scale) for parameter in (weight, bias))
        return fused.NormedResidual.apply(x, branch, weight, bias, self.drop_path.factors(x), norm._epsilon)
