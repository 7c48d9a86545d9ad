"""Every heat conduction operator of a network, watched while it works on an image."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddle_vheat._paddle import F, in_evaluation, nn, paddle
from paddle_vheat.analysis.conduction import diffusivity_of
from paddle_vheat.models.vheat import VHeat
from paddle_vheat.ops.heat import FoldedHeatConduction2D, HeatConduction2D, conduct_heat

Tensor = Any


@dataclass(frozen=True)
class Observation:
    """One operator, on a map of H x W patches.

    Attributes:
        name: of the layer in its network.
        stage, block: its place, from 0.
        stride: pixels per patch.
        k: thermal diffusivity (H, W, C) in patches^2; NaN where a folded decay does not tell it.
        decay: (H, W, C).
        heat_before, heat_after: root mean square over channels of the heat, (H, W).
        gate: SiLU(z), mean over channels, (H, W); None without a gate.
        energy_kept: sum of E^2 A^2 over sum of A^2, A the heat's modes.
    """

    name: str
    stage: int
    block: int
    stride: float
    k: np.ndarray
    decay: np.ndarray
    heat_before: np.ndarray
    heat_after: np.ndarray
    gate: np.ndarray | None
    energy_kept: float

    @property
    def size(self) -> tuple[int, int]:
        return self.decay.shape[0], self.decay.shape[1]


@dataclass(frozen=True)
class Place:
    """Where an operator is in a network."""

    name: str
    layer: Any
    stage: int
    block: int


def backbone_of(model: Any) -> Any:
    """The vHeat backbone in a model; the model itself if it is another network (vHeatIR)."""
    return next((layer for layer in model.sublayers(include_self=True) if isinstance(layer, VHeat)), model)


def input_shape(model: Any) -> tuple[int, int, int]:
    """Channels, height and width of the image that a model is made for; 128 x 128 where it does not say."""
    network = backbone_of(model)
    first = next(layer for layer in network.sublayers(include_self=True) if isinstance(layer, nn.Conv2D))
    height, width = getattr(network, "img_size", (128, 128))
    return first._in_channels, height, width


def places(network: Any) -> list[Place]:
    """The operators in the order of their names. A stage is a list of blocks: ``stages.0.blocks.1.hco`` is block 1."""
    found: list[Place] = []
    stages: list[str] = []
    for name, layer in network.named_sublayers():
        if isinstance(layer, (HeatConduction2D, FoldedHeatConduction2D)):
            stages += [owner] if (owner := _list_of(name)) not in stages else []
            stage = stages.index(owner)
            found.append(Place(name, layer, stage, sum(place.stage == stage for place in found)))
    if not found:
        raise ValueError(f"{type(network).__name__} holds no heat conduction operator")
    return found


def _list_of(name: str) -> str:
    """The list of blocks that an operator of this name is in: what is before the last number."""
    match = re.fullmatch(r"(.*?)\.?\d+(?:\.[^\d.]+)*", name)
    return match[1] if match else name


def stage_layers(network: Any) -> list[Any]:
    """The layer of every stage, whose output is the stage's map: what holds the list of its blocks."""
    layers = dict(network.named_sublayers())
    owners = dict.fromkeys(_list_of(place.name) for place in places(network))
    found = []
    for owner in owners:
        layer = layers.get(owner)
        if isinstance(layer, nn.LayerList):
            layer = layers.get(owner.rpartition(".")[0])
        if layer is None:
            raise ValueError(f"{type(network).__name__}: no layer's output is that of the blocks {owner!r}")
        found.append(layer)
    return found


@contextlib.contextmanager
def outputs_of(layer: Any) -> Iterator[list[Any]]:
    """Inside, the outputs of a layer are kept in a list."""
    kept: list[Any] = []
    handle = layer.register_forward_post_hook(lambda layer, inputs, output: kept.append(output))
    try:
        yield kept
    finally:
        handle.remove()


def observe(model: Any, image: Tensor) -> list[Observation]:
    """Run a network's backbone on one image (1, C, H, W) in evaluation mode and look at every operator.

    ``k`` and ``decay`` do not depend on the image but on its size. An operator without a decay (a filter of Fourier
    modes) is left out.

    Raises:
        ValueError: for a batch, and a network without heat conduction.
    """
    if image.ndim != 4 or image.shape[0] != 1:
        raise ValueError(f"observe: expected one image (1, C, H, W), got {list(image.shape)}")
    network, found = backbone_of(model), list[Observation]()
    with contextlib.ExitStack() as stack:
        for place in places(network):

            def look(layer: Any, inputs: Any, place: Place = place) -> None:
                seen = _look(place, inputs, image.shape[2])
                if seen is not None:
                    found.append(seen)

            stack.callback(place.layer.register_forward_pre_hook(look).remove)
        stack.enter_context(in_evaluation(network))
        with paddle.no_grad():
            network(image)
    return sorted(found, key=lambda seen: (seen.stage, seen.block))


def _look(place: Place, inputs: Any, image_height: int) -> Observation | None:
    layer, x = place.layer, inputs[0]
    embedding = inputs[1] if len(inputs) > 1 else None
    decay = layer.decay_for(x, embedding)
    if decay is None:
        return None
    k = layer.diffusivity_for(x, embedding) if hasattr(layer, "diffusivity_for") else None
    values = decay.astype("float32").numpy()
    both = layer._project(x if layer.data_format == "NCHW" else x.transpose([0, 3, 1, 2]))
    heat, gate = both[..., : layer.channels], both[..., layer.channels :]
    after = conduct_heat(heat, decay.astype(heat.dtype))
    before_energy = float((heat.astype("float64") ** 2).sum())
    return Observation(
        place.name,
        place.stage,
        place.block,
        image_height / values.shape[0],
        diffusivity_of(values) if k is None else k.astype("float32").numpy(),
        values,
        _root_mean_square(heat),
        _root_mean_square(after),
        F.silu(gate).mean(axis=-1)[0].numpy() if gate.shape[-1] else None,
        # The transform is orthonormal: energies of modes and of maps are equal.
        float((after.astype("float64") ** 2).sum()) / before_energy if before_energy else 1.0,
    )


def _root_mean_square(x: Tensor) -> np.ndarray:
    return (x.astype("float32") ** 2).mean(axis=-1).sqrt()[0].numpy()


def stage_maps(model: Any, image: Tensor) -> list[np.ndarray]:
    """L2 norm over channels of every stage's output for one image (1, C, H, W): float32 (h, w) each."""
    network = backbone_of(model)
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(outputs_of(layer)) for layer in stage_layers(network)]
        stack.enter_context(in_evaluation(network))
        with paddle.no_grad():
            network(image)
    return [paddle.linalg.norm(outputs[-1].astype("float32"), axis=-1)[0].numpy() for outputs in kept]
