"""vHeat's layers for training on a CPU, where there are kernels for it (:mod:`paddle_vheat.ops.native`).

Each computes what its plain form does, up to rounding; see :func:`paddle_vheat.ops.training.accelerate_training`.
"""

from __future__ import annotations

from typing import Any

from paddle_vheat._paddle import nn
from paddle_vheat.models.vheat import MLP, Downsample, Stem
from paddle_vheat.ops import fused
from paddle_vheat.ops.training import fusible

Tensor = Any


def _convolved(convolution: nn.Conv2D, x: Tensor) -> Tensor:
    return fused.Convolution.apply(x, convolution.weight, convolution.bias)


class TrainedStem(Stem):
    plain_form = Stem

    def forward(self, x: Tensor) -> Tensor:
        if not fusible(x, self.conv1, self.conv2):
            return Stem.forward(self, x)
        x = fused.GELU.apply(self.norm1(_convolved(self.conv1, x.transpose([0, 2, 3, 1]))))
        return self.norm2(_convolved(self.conv2, x))


class TrainedDownsample(Downsample):
    plain_form = Downsample

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(_convolved(self.conv, x)) if fusible(x, self.conv) else Downsample.forward(self, x)


class TrainedMLP(MLP):
    plain_form = MLP

    def forward(self, x: Tensor) -> Tensor:
        if not fusible(x, self.fc1, self.fc2):
            return MLP.forward(self, x)
        return fused.MLP.apply(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
