"""Models by name."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from paddle_vheat._arguments import did_you_mean
from paddle_vheat.models.classifier import VHeatClassifier
from paddle_vheat.models.vheat import VARIANTS, Variant, VHeat, size_pair

_BUILDERS: dict[str, Callable[..., Any]] = {}


def register_model(name: str, builder: Callable[..., Any]) -> None:
    """Make a model known to :func:`create_model`.

    Args:
        name: such as "mask_rcnn_vheat_tiny".
        builder: gives the model; its keyword arguments are those that ``create_model`` takes with this name.

    Raises:
        ValueError: if another builder has the name.
    """
    if _BUILDERS.setdefault(name, builder) is not builder:
        raise ValueError(f"register_model: there is a model {name!r} already")


def list_models(filter: str = "*") -> list[str]:
    """Names that :func:`create_model` knows, in the order of registration; those that match ``"*tiny*"``, say."""
    return fnmatch.filter(_BUILDERS, filter)


def unknown_name(kind: str, name: str, known: Sequence[str]) -> str:
    """Message for a misspelt name: what was asked, the nearest that exists, and all that exist."""
    return f"unknown {kind} {name!r}{did_you_mean(name, known)} (known: {', '.join(known)})"


def create_model(name: str, *, pretrained: str | Path | bool | None = None, **options: Any) -> Any:
    """Build a model by name.

    Args:
        name: one of :func:`list_models`.
        pretrained: a checkpoint, loaded strictly by :func:`paddle_vheat.weights.loading.load_pretrained`; frequency
            embeddings of another resolution are resized. None or False keeps the initial weights.

            - A file's path: ``.pdparams`` or ``.safetensors`` in this project's layout, or a published ``.pth``.
            - True: what the authors have released for this model, fetched and kept by
              :func:`paddle_vheat.weights.download.fetch`; "imagenet": their ImageNet classifier, into the backbone of
              a model that has one. With another ``num_classes`` than theirs the head is newly initialised.
            - Another release's name, or the address of a file.
        **options: of the builder. For "vheat_tiny", "vheat_small" and "vheat_base":

            - ``num_classes=1000``: classes of the head; 0 for the pooled features.
            - ``features_only=False``: the backbone without norm and head, which gives a list of feature maps.
            - ``out_indices=(0, 1, 2, 3)``: which stages' maps, with ``features_only``.
            - ``img_size=224``: int or (height, width) in pixels that the frequency embeddings are made for.
            - ``drop_path_rate=None``: stochastic depth; None takes that of the variant's ImageNet recipe.
            - ``in_channels=3``, ``recompute=False``: see :class:`paddle_vheat.models.VHeat`.
            - ``ablation=None``: a part of the operator replaced, such as "no_gate" or {"k_fixed": 5}; see
              :func:`paddle_vheat.models.ablation.read_ablation`. There are published weights of the full one only.

    Returns:
        The model in training mode: a :class:`VHeatClassifier` with its backbone in ``backbone``, or with
        ``features_only`` a :class:`VHeat`, with ``feature_info`` and without output norms. Either has ``default_cfg``:
        see :func:`default_cfg`.

    Raises:
        ValueError: for an unknown name, and a checkpoint that does not fit or cannot be fetched.
        TypeError: for an unknown option.
        FileNotFoundError: if ``pretrained`` does not exist.
    """
    if name not in _BUILDERS:
        raise ValueError(f"create_model: {unknown_name('model', name, list_models())}")
    known = list(inspect.signature(_BUILDERS[name]).parameters)
    for option in options:
        if option not in known:
            raise TypeError(f"create_model: {unknown_name('option', option, known)}")
    model = _BUILDERS[name](**options)
    if pretrained is not None and pretrained is not False:
        # Imported here because loading stands one level above the models.
        from paddle_vheat.weights.download import local_file
        from paddle_vheat.weights.loading import load_pretrained

        path = local_file(pretrained, name)
        named = pretrained is True or pretrained == "imagenet"
        part = model if pretrained != "imagenet" or name in VARIANTS else model.backbone
        load_pretrained(part, path, new_head=named)
        if hasattr(model, "default_cfg"):
            model.default_cfg["source"] = str(path)
    return model


def default_cfg(name: str, in_channels: int = 3, img_size: int | Sequence[int] = 224) -> dict[str, Any]:
    """How the ImageNet recipe prepares images for evaluation, under timm's names.

    ``input_size`` (C, H, W), ``mean`` and ``std`` (RGB, of values from 0 to 1), ``interpolation``, ``crop_pct`` (side
    of the crop over the shorter side of the image) and ``source``: the file that the weights are from, None where they
    are random. :func:`paddle_vheat.create_transform` makes a function of it.
    """
    return {
        "architecture": name,
        "num_classes": 1000,
        "input_size": (in_channels, *size_pair(img_size)),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "source": None,
    }


def _vheat(name: str, variant: Variant) -> Callable[..., Any]:
    def build(
        num_classes: int = 1000,
        features_only: bool = False,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        img_size: int | Sequence[int] = 224,
        drop_path_rate: float | None = None,
        in_channels: int = 3,
        recompute: bool = False,
        ablation: Any = None,
    ) -> Any:
        settings = {"in_channels": in_channels, "recompute": recompute, "ablation": ablation}
        options = variant.options(img_size=img_size, drop_path_rate=drop_path_rate, **settings)
        if features_only:
            model: Any = VHeat(out_norms=False, out_indices=out_indices, **options)
        else:
            model = VHeatClassifier(num_classes, **options)
        model.default_cfg = default_cfg(name, in_channels, img_size)
        return model

    return build


for _name, _variant in VARIANTS.items():
    register_model(_name, _vheat(_name, _variant))
