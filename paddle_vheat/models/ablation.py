"""vHeat with a part of its operator replaced: what the published ablations, and the questions about them, vary.

Papers: "Building Vision Models upon Heat Conduction", Wang et al., CVPR 2025, section 4.3 and supplement; the filter of
Fourier modes is that of "Global Filter Networks", Rao et al., NeurIPS 2021, arXiv 2107.00645. The published weights are
of the full operator alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddle_vheat._paddle import F, nn, no_autocast, paddle
from paddle_vheat.models.registry import unknown_name
from paddle_vheat.models.vheat import VHeat, stage_sizes
from paddle_vheat.ops import HeatConduction2D, conduct_heat, heat_decay, resize_bicubic
from paddle_vheat.ops.dct import size_of
from paddle_vheat.ops.fold import apply_linear
from paddle_vheat.ops.heat import FoldedHeatConduction2D, published_normal

Tensor = Any

SPECTRA = ("full", "k_fixed", "k_scalar", "k_channel", "k_mode", "k_content", "dct_filter", "fft_filter")
"""What damps the modes; "full" is the published k = ReLU(to_k(FVE)). See :class:`AblatedHeat`."""

ALIGNMENTS = ("bicubic", "zero_pad", "k_bicubic", "k_zero_pad")
"""How a frequency embedding (or k, made at the embedding's own size) is brought to another size."""


@dataclass(frozen=True)
class Ablation:
    """What is changed in every block.

    Attributes:
        spectrum: one of ``SPECTRA``.
        value: k of "k_fixed", in patches^2.
        gate: whether the conducted heat is multiplied by SiLU(z).
        dwconv: whether a depthwise convolution comes first.
        alignment: one of ``ALIGNMENTS``, for "full" only.
    """

    spectrum: str = "full"
    value: float = 0.0
    gate: bool = True
    dwconv: bool = True
    alignment: str = "bicubic"


def read_ablation(given: Any) -> Ablation:
    """An ablation from a name such as "no_gate", or from names with values such as {"k_fixed": 5, "no_gate": True}.

    Names are those of ``SPECTRA``, of which one may be chosen, "no_gate", "no_dwconv" and "alignment".

    Raises:
        ValueError: for an unknown name, a value of another kind, and what excludes each other.
    """
    if not isinstance(given, (str, Mapping)):
        raise ValueError(f"ablation: expected a name or names with values, got {given!r}")
    entries: dict[Any, Any] = {given: True} if isinstance(given, str) else dict(given)
    known = [*SPECTRA, "no_gate", "no_dwconv", "alignment"]
    for name, value in entries.items():
        if name not in known:
            raise ValueError(f"ablation: {unknown_name('name', name, known)}")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name == "k_fixed" and not (number and 0 <= value < math.inf):
            raise ValueError(f"ablation: k_fixed must be a number of at least 0, got {value!r}")
        if name == "alignment" and value not in ALIGNMENTS:
            raise ValueError(f"ablation: alignment must be one of {', '.join(ALIGNMENTS)}, got {value!r}")
        if name not in ("k_fixed", "alignment") and not isinstance(value, bool):
            raise ValueError(f"ablation: {name} must be True or False, got {value!r}")
    chosen = [name for name in SPECTRA if entries.get(name, False) is not False]
    if len(chosen) > 1:
        raise ValueError(f"ablation: {' and '.join(chosen)} exclude each other")
    spectrum = chosen[0] if chosen else "full"
    alignment = entries.get("alignment", "bicubic")
    if alignment != "bicubic" and spectrum != "full":
        raise ValueError(f"ablation: alignment {alignment!r} is of the full operator, not of {spectrum}")
    return Ablation(
        spectrum,
        float(entries.get("k_fixed", 0.0)),
        not entries.get("no_gate", False),
        not entries.get("no_dwconv", False),
        alignment,
    )


def ablate(backbone: VHeat, given: Any) -> None:
    """Replace the operators of a new backbone, in place; arguments as of :func:`read_ablation`."""
    ablation = read_ablation(given)
    if ablation == Ablation():
        return
    for stage, size in zip(backbone.stages, stage_sizes(backbone.img_size)):
        stage.aligned_by_operators = True
        if ablation.spectrum != "full":
            stage.frequency_embedding = None
        for block in stage.blocks:
            block.hco = AblatedHeat(block.hco.channels, size, ablation)


class AblatedHeat(HeatConduction2D):
    """The operator with another spectrum, or without its gate or depthwise convolution, on maps (B, H, W, C).

    ======================= ==================================================================================
    spectrum                what damps mode (n, m) of channel c
    ======================= ==================================================================================
    full                    exp(-k |w|^2), k = ReLU(to_k(FVE)), the FVE one per stage; alignment as chosen
    k_fixed                 k a constant, equal in all blocks and channels; 0 is no conduction
    k_scalar, k_channel     k = softplus(p), p one number, or one for each channel; begins at 1.6, or 0.5 to 5
    k_mode                  k = ReLU(p), p (H, W, C); begins as a frequency embedding does
    k_content               k = ReLU(to_k(mean of the heat over the map)): one for each image and channel
    dct_filter              a free real factor (H, W, C) in place of exp(-k |w|^2); begins at 1
    fft_filter              a free complex factor (H, W // 2 + 1, C) of Fourier modes, whose edges are periodic
    ======================= ==================================================================================

    Parameters of the size of the map are resized bicubically for a map of another size.
    """

    def __init__(self, channels: int, size: tuple[int, int], ablation: Ablation) -> None:
        super().__init__(channels)
        self.ablation, self.size = ablation, size
        spectrum = ablation.spectrum
        if spectrum not in ("full", "k_content"):
            del self.to_k
        if not ablation.gate:
            self.linear = nn.Linear(channels, channels)
        if not ablation.dwconv:
            self.dwconv = nn.Identity()
        height, width = size
        rising = np.log(np.expm1(np.geomspace(0.5, 5, channels)))
        shapes: dict[str, tuple[list[int], Any]] = {
            "k_scalar": ([1], nn.initializer.Constant(math.log(math.expm1(1.58)))),
            "k_channel": ([channels], nn.initializer.Assign(np.float32(rising))),
            "k_mode": ([height, width, channels], published_normal()),
            "dct_filter": ([height, width, channels], nn.initializer.Constant(1.0)),
            "fft_filter": ([height, width // 2 + 1, 2 * channels], nn.initializer.Normal(std=0.02)),
        }
        if spectrum in shapes:
            shape, initializer = shapes[spectrum]
            self.add_parameter(spectrum, self.create_parameter(shape, default_initializer=initializer))
        if spectrum == "k_fixed":  # kept in checkpoints, so that one of another k is not taken for this one
            self.register_buffer(spectrum, paddle.full([1], ablation.value, "float32"))

    def _checked(self, x: Tensor, embedding: Tensor | None) -> Tensor | None:
        return embedding if self.ablation.spectrum != "full" else HeatConduction2D._checked(self, x, embedding)

    def diffusivity_for(self, x: Tensor, frequency_embedding: Tensor | None = None) -> Tensor | None:
        return self._diffusivity(self._checked(x, frequency_embedding), (size_of(x, 1), size_of(x, 2)))

    def decay_for(self, x: Tensor, frequency_embedding: Tensor | None = None) -> Tensor | None:
        """The decay for the map ``x``; None where it is of another kind (Fourier modes) or differs between images."""
        return self._decay_of(self._checked(x, frequency_embedding), (size_of(x, 1), size_of(x, 2)))

    def _decay_of(self, embedding: Tensor | None, size: tuple[Any, Any]) -> Tensor | None:
        if self.ablation.spectrum == "dct_filter":
            with no_autocast():
                return resize_bicubic(self.dct_filter, *size)
        k = self._diffusivity(embedding, size)
        return None if k is None else heat_decay(k)

    def _diffusivity(self, embedding: Tensor | None, size: tuple[Any, Any]) -> Tensor | None:
        """k (H, W, C) in float32; None where there is none of that form."""
        spectrum = self.ablation.spectrum
        with no_autocast():
            if spectrum == "full":
                return self._aligned(embedding, size)
            if spectrum == "k_mode":
                return F.relu(resize_bicubic(self.k_mode, *size))
            if spectrum in ("k_fixed", "k_scalar", "k_channel"):
                value = self.k_fixed if spectrum == "k_fixed" else F.softplus(getattr(self, spectrum))
                return value.reshape([1, 1, -1]).expand([*size, self.channels])
            return None

    def _aligned(self, embedding: Tensor, size: tuple[int, int]) -> Tensor:
        bring = _zero_pad if self.ablation.alignment.endswith("zero_pad") else resize_bicubic
        if self.ablation.alignment.startswith("k_"):
            # Resizing overshoots below 0, where there is no conduction either.
            return F.relu(bring(self.thermal_diffusivity(embedding), *size))
        return self.thermal_diffusivity(bring(embedding, *size))

    def conduct(self, x: Tensor, decay: Tensor | None) -> Tensor:
        """The operator on (B, H, W, C) for a decay (H, W, C), or None."""
        both = self._project(x.transpose([0, 3, 1, 2]))
        heat = self.out_norm(self._propagate(both[..., : self.channels], decay))
        return apply_linear(self.out_linear, heat * F.silu(both[..., self.channels :]) if self.ablation.gate else heat)

    def _propagate(self, heat: Tensor, decay: Tensor | None) -> Tensor:
        if decay is not None:
            return conduct_heat(heat, decay)
        if self.ablation.spectrum == "fft_filter":
            return self._filter(heat)
        k = F.relu(self.to_k(heat.mean(axis=[1, 2])))  # (B, C)
        batch, height, width, channels = heat.shape
        decay = heat_decay(k.astype("float32").reshape([1, 1, -1]).expand([height, width, batch * channels]))
        # Every image has a decay of its own: as if all were channels of one.
        side = conduct_heat(heat.transpose([1, 2, 0, 3]).reshape([1, height, width, -1]), decay)
        return side.reshape([height, width, batch, channels]).transpose([2, 0, 1, 3])

    def _filter(self, heat: Tensor) -> Tensor:
        height, width = heat.shape[1:3]
        with no_autocast():
            parts = resize_bicubic(self.fft_filter, height, width // 2 + 1)
            factor = paddle.complex(parts[..., : self.channels], parts[..., self.channels :])
            modes = paddle.fft.rfft2(heat.astype("float32"), axes=(1, 2), norm="ortho") * factor
            return paddle.fft.irfft2(modes, s=[height, width], axes=(1, 2), norm="ortho").astype(heat.dtype)

    def folded(self, frequency_embedding: Tensor | None, size: tuple[int, int]) -> nn.Layer:
        """The operator for maps of one size, with a constant decay.

        Raises:
            ValueError: for a spectrum that is no constant decay.
        """
        decay = self._decay_of(frequency_embedding, size)
        if decay is None:
            why = (
                "k changes with the image" if self.ablation.spectrum == "k_content" else "it has no decay of DCT modes"
            )
            raise ValueError(f"fold: {self.ablation.spectrum} cannot be folded: {why}")
        return FoldedAblation(self, decay)


class FoldedAblation(FoldedHeatConduction2D):
    """An ablated operator for maps of one size."""

    conduct, _propagate = AblatedHeat.conduct, AblatedHeat._propagate
    _conduct_evaluated = AblatedHeat.conduct  # not by kernels

    def __init__(self, hco: AblatedHeat, decay: Tensor) -> None:
        super().__init__(hco, decay)
        self.ablation = hco.ablation


def _zero_pad(values: Tensor, height: int, width: int) -> Tensor:
    """(H, W, C) with zeros for the high frequencies that are new, without those that are gone."""
    values = values[:height, :width]
    missing = [0, height - values.shape[0], 0, width - values.shape[1], 0, 0]
    return F.pad(values, missing) if any(missing) else values
