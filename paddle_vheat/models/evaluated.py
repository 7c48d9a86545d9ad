"""The models' layers in the forms in which :func:`paddle_vheat.ops.fold` evaluates them.

On a CPU by kernels where there are some (:mod:`paddle_vheat.ops.evaluated`), otherwise by layers in faster forms, or as
they are (:mod:`paddle_vheat.ops.fold`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddle_vheat._paddle import F, nn, paddle
from paddle_vheat.models.layers import ChannelsLastConv2D, ConvBNReLU
from paddle_vheat.models.vheat import MLP, Block, Downsample, Stem
from paddle_vheat.ops import evaluated
from paddle_vheat.ops.evaluated import Branch
from paddle_vheat.ops.fold import apply_linear, become, convolve_channels_last, unwatched
from paddle_vheat.ops.heat import FastHeatConduction2D, FoldedHeatConduction2D

Tensor = Any


def evaluated_form(form: Any) -> Any:
    """Class decorator: have ``fold`` evaluate layers of the form's base class in this form."""
    (plain,) = form.__bases__
    plain.fast_form = lambda layer: become(layer, form)
    return form


# In each `forward`, one expression that asks for the mode first: see ops/fold.py.


@evaluated_form
class FastChannelsLastConv2D(ChannelsLastConv2D):
    was_plain = True  # by its constructor

    def forward(self, x: Tensor) -> Tensor:
        return (
            evaluated.convolve(x, self)
            if paddle.in_dynamic_mode() and evaluated.takes_convolution(x, self)
            else ChannelsLastConv2D.forward(self, x)
        )


@evaluated_form
class FastConvBNReLU(ConvBNReLU):
    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        return (
            evaluated.convolve_planes(_maps(x), self.conv, self.bn)
            if paddle.in_dynamic_mode() and evaluated.takes_planes(_maps(x), self.conv, self.bn)
            else ConvBNReLU.forward(self, x)
        )


def _maps(x: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return list(x) if isinstance(x, (list, tuple)) else [x]


@evaluated_form
class FastStem(Stem):
    def forward(self, x: Tensor) -> Tensor:
        return self._by_kernels(x.transpose([0, 2, 3, 1])) if paddle.in_dynamic_mode() else self._by_forms(x)

    def _by_kernels(self, x: Tensor) -> Tensor:
        if not evaluated.takes_convolution(x, self.conv1, self.norm1):
            return self._by_forms(x.transpose([0, 3, 1, 2]))
        x = evaluated.convolve(x, self.conv1, self.norm1, activated=True)
        return _downsampled(x, self.conv2, self.norm2)

    def _by_forms(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(convolve_channels_last(self.conv1, x)))
        return self.norm2(convolve_channels_last(self.conv2, x.transpose([0, 3, 1, 2])))


def _downsampled(x: Tensor, convolution: nn.Conv2D, norm: nn.LayerNorm) -> Tensor:
    return (
        evaluated.convolve(x, convolution, norm)
        if paddle.in_dynamic_mode() and evaluated.takes_convolution(x, convolution, norm)
        else norm(convolve_channels_last(convolution, x.transpose([0, 3, 1, 2])))
    )


@evaluated_form
class FastDownsample(Downsample):
    def forward(self, x: Tensor) -> Tensor:
        return _downsampled(x, self.conv, self.norm)


@evaluated_form
class FastMLP(MLP):
    def forward(self, x: Tensor) -> Tensor:
        return (
            evaluated.mlp(x, self.fc1, self.fc2)
            if paddle.in_dynamic_mode() and evaluated.takes(x, self.fc1, self.fc2)
            else apply_linear(self.fc2, F.gelu(apply_linear(self.fc1, x)))
        )


@evaluated_form
class FastBlock(Block):
    def forward(self, x: Tensor, frequency_embedding: Tensor | None) -> Tensor:
        return (
            self._by_kernels(x, frequency_embedding)
            if paddle.in_dynamic_mode() and not paddle.is_grad_enabled() and self._is_plain()
            else Block.forward(self, x, frequency_embedding)
        )

    def _is_plain(self) -> bool:
        """Whether nobody watches a part of the block, and none has been replaced."""
        return (
            type(self.hco) in (FastHeatConduction2D, FoldedHeatConduction2D)
            and type(self.mlp) is FastMLP
            and unwatched(self.hco, self.mlp, self.drop_path)
        )

    def _by_kernels(self, x: Tensor, frequency_embedding: Tensor | None) -> Tensor:
        hco, fc1, fc2, norms = self.hco, self.mlp.fc1, self.mlp.fc2, (self.norm1, self.norm2)
        decay = hco.kept_decay(x, frequency_embedding)
        if not evaluated.takes_operator(hco, x, decay, fc1, fc2, *norms):
            return Block.forward(self, x, frequency_embedding)
        scales = (self.gamma1, self.gamma2) if self.has_layer_scale else (None, None)
        where = "last" if self.post_norm else "first"
        around = [Branch(**{where: norm}, scale=scale) for norm, scale in zip(norms, scales)]
        return evaluated.mlp(evaluated.heat_conduction(hco, x, decay, around[0]), fc1, fc2, around[1])
