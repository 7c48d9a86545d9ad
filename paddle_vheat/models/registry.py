"""Models by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paddle_vheat.models.vheat import VARIANTS, VHeatClassifier


def list_models() -> list[str]:
    """Names that :func:`create_model` knows, smallest first."""
    return list(VARIANTS)


def unknown_name(kind: str, name: str, known: Sequence[str]) -> str:
    """Message for a misspelt name: what was asked, the nearest that exists, and all that exist."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}{hint} (known: {', '.join(known)})"


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    img_size: int | Sequence[int] = 224,
    drop_path_rate: float | None = None,
    pretrained: str | Path | None = None,
    **trunk: Any,
) -> VHeatClassifier:
    """Build a vHeat classifier by name.

    Args:
        name: one of :func:`list_models`.
        num_classes: classes of the head.
        img_size: int or (height, width) in pixels that the frequency embeddings are made for.
        drop_path_rate: stochastic depth; None takes the rate of the variant's ImageNet recipe.
        pretrained: path of a checkpoint in this project's layout (``.pdparams``), loaded strictly; frequency
            embeddings of another resolution are resized. None starts from random weights.
        **trunk: further arguments of :class:`paddle_vheat.models.VHeat` (``in_channels``, ``recompute``).

    Returns:
        The classifier, in training mode. Its trunk is ``model.backbone``.

    Raises:
        ValueError: for an unknown name, or a checkpoint that does not fit.
        FileNotFoundError: if ``pretrained`` does not exist.
    """
    if name not in VARIANTS:
        raise ValueError(f"create_model: {unknown_name('model', name, list_models())}")
    variant = VARIANTS[name]
    model = VHeatClassifier(
        num_classes=num_classes,
        embed_dim=variant.embed_dim,
        depths=variant.depths,
        post_norm=variant.post_norm,
        layer_scale=variant.layer_scale,
        drop_path_rate=variant.drop_path_rate if drop_path_rate is None else drop_path_rate,
        img_size=img_size,
        **trunk,
    )
    if pretrained is not None:
        if isinstance(pretrained, bool):
            raise ValueError(
                "create_model: pretrained takes the path of a checkpoint; there is no default one to download"
            )
        # Imported here because loading stands one floor above the models.
        from paddle_vheat.weights.loading import load_weights

        load_weights(model, pretrained)
    return model
