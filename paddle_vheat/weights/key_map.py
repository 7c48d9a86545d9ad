"""Names of the published PyTorch checkpoints, in terms of ours.

PyTorch keeps a Linear's weight as (out, in), Paddle as (in, out); the published MLPs are 1x1 convolutions,
ours are linear layers; ``num_batches_tracked`` has no counterpart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from paddle_vheat.errors import UserError

_BN_NAMES = {"running_mean": "_mean", "running_var": "_variance"}

# (pattern of the published name, our name); the first that matches counts. {0}, {1} ... are its groups.
_BACKBONE_RULES: list[tuple[str, str]] = [
    (r"patch_embed\.(conv[12])\.(weight|bias)", "stem.{0}.{1}"),
    (r"patch_embed\.(norm[12])\.1\.(weight|bias)", "stem.{0}.{1}"),
    (r"freq_embed\.(\d+)", "stages.{0}.frequency_embedding"),
    (r"layers\.(\d+)\.(\d+)\.op\.to_k\.0\.(weight|bias)", "stages.{0}.blocks.{1}.hco.to_k.{2}"),
    (r"layers\.(\d+)\.(\d+)\.op\.k_exp", "stages.{0}.blocks.{1}.hco.decay"),
    (r"layers\.(\d+)\.(\d+)\.op\.(\w+)\.(weight|bias)", "stages.{0}.blocks.{1}.hco.{2}.{3}"),
    (r"layers\.(\d+)\.(\d+)\.(mlp\.fc[12]|norm[12])\.(weight|bias)", "stages.{0}.blocks.{1}.{2}.{3}"),
    (r"layers\.(\d+)\.(\d+)\.(gamma[12])", "stages.{0}.blocks.{1}.{2}"),
    (r"layers\.(\d+)\.\d+\.0\.weight", "stages.{0}.downsample.conv.weight"),
    (r"layers\.(\d+)\.\d+\.1\.(weight|bias)", "stages.{0}.downsample.norm.{1}"),
    (r"(outnorm[0-3])\.(weight|bias)", "{0}.{1}"),
]
_CLASSIFIER_RULES: list[tuple[str, str]] = [
    (r"classifier\.0\.(weight|bias)", "norm.{0}"),
    (r"classifier\.3\.(weight|bias)", "head.{0}"),
]
_BN = r"(conv|bn)\.(weight|bias|running_mean|running_var)"
_SEGMENTOR_RULES: list[tuple[str, str]] = [
    (rf"decode_head\.psp_modules\.(\d)\.1\.{_BN}", "decode_head.pyramid.{0}.project.{1}.{2}"),
    (rf"decode_head\.bottleneck\.{_BN}", "decode_head.bottleneck.{0}.{1}"),
    (rf"decode_head\.lateral_convs\.(\d)\.{_BN}", "decode_head.laterals.{0}.{1}.{2}"),
    (rf"decode_head\.fpn_convs\.(\d)\.{_BN}", "decode_head.fpn.{0}.{1}.{2}"),
    (rf"decode_head\.fpn_bottleneck\.{_BN}", "decode_head.fuse.{0}.{1}"),
    (rf"auxiliary_head\.convs\.0\.{_BN}", "auxiliary_head.conv.{0}.{1}"),
    (r"(decode_head|auxiliary_head)\.conv_seg\.(weight|bias)", "{0}.classifier.{1}"),
]


def _apply(rules: Iterable[tuple[str, str]], name: str) -> str | None:
    for pattern, target in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return target.format(*(_BN_NAMES.get(group, group) for group in match.groups()))
    return None


def our_name(published: str) -> str | None:
    """Our parameter name for a published one; None where there is none."""
    if published.startswith("backbone."):
        target = _apply(_BACKBONE_RULES, published[len("backbone.") :])
        return f"backbone.{target}" if target else None
    target = _apply(_BACKBONE_RULES, published)
    if target:  # a classification checkpoint has no prefix; our classifier keeps its backbone in ``backbone``
        return f"backbone.{target}"
    return _apply([*_CLASSIFIER_RULES, *_SEGMENTOR_RULES], published)


_LINEAR = re.compile(r".*\.(linear|to_k|out_linear|fc1|fc2)\.weight|head\.weight")


def convert_state(state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Convert a published state dict.

    Args:
        state: published names and arrays.

    Returns:
        Our names and arrays (views of the given ones), and the published names that have no counterpart
        (``num_batches_tracked`` apart, which is dropped).

    Raises:
        ValueError: if two published names stand for one of ours.
    """
    converted: dict[str, np.ndarray] = {}
    unexpected = []
    for name, array in state.items():
        if name.endswith(".num_batches_tracked"):
            continue
        target = our_name(name)
        if target is None:
            unexpected.append(name)
            continue
        if target in converted:
            raise UserError(f"two published parameters stand for {target!r}; the second is {name!r}")
        if _LINEAR.fullmatch(target) and array.ndim in (2, 4):
            array = array.reshape(array.shape[:2]).T
        converted[target] = array
    return converted, unexpected
