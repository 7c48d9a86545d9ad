"""Names of the published PyTorch checkpoints, in terms of ours.

PyTorch keeps a Linear's weight as (out, in), Paddle as (in, out); the published MLPs are 1x1 convolutions,
ours are linear layers; ``num_batches_tracked`` has no counterpart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
_BN = r"(conv|bn)\.(weight|bias|running_mean|running_var)"
_PAIR = r"(weight|bias)"
_HEAD_RULES: list[tuple[str, str]] = [
    (rf"classifier\.0\.{_PAIR}", "norm.{0}"),
    (rf"classifier\.3\.{_PAIR}", "head.{0}"),
    (rf"decode_head\.psp_modules\.(\d)\.1\.{_BN}", "decode_head.pyramid.{0}.project.{1}.{2}"),
    (rf"decode_head\.bottleneck\.{_BN}", "decode_head.bottleneck.{0}.{1}"),
    (rf"decode_head\.lateral_convs\.(\d)\.{_BN}", "decode_head.laterals.{0}.{1}.{2}"),
    (rf"decode_head\.fpn_convs\.(\d)\.{_BN}", "decode_head.fpn.{0}.{1}.{2}"),
    (rf"decode_head\.fpn_bottleneck\.{_BN}", "decode_head.fuse.{0}.{1}"),
    (rf"auxiliary_head\.convs\.0\.{_BN}", "auxiliary_head.conv.{0}.{1}"),
    (rf"(decode_head|auxiliary_head)\.conv_seg\.{_PAIR}", "{0}.classifier.{1}"),
    # The detectors are mmdetection's Mask R-CNN.
    (rf"neck\.lateral_convs\.(\d)\.conv\.{_PAIR}", "neck.laterals.{0}.{1}"),
    (rf"neck\.fpn_convs\.(\d)\.conv\.{_PAIR}", "neck.outputs.{0}.{1}"),
    (rf"rpn_head\.rpn_conv\.{_PAIR}", "rpn_head.conv.{0}"),
    (rf"rpn_head\.rpn_cls\.{_PAIR}", "rpn_head.scores.{0}"),
    (rf"rpn_head\.rpn_reg\.{_PAIR}", "rpn_head.deltas.{0}"),
    (rf"roi_head\.bbox_head\.shared_fcs\.0\.{_PAIR}", "roi_head.box_head.fc1.{0}"),
    (rf"roi_head\.bbox_head\.shared_fcs\.1\.{_PAIR}", "roi_head.box_head.fc2.{0}"),
    (rf"roi_head\.bbox_head\.fc_cls\.{_PAIR}", "roi_head.box_head.scores.{0}"),
    (rf"roi_head\.bbox_head\.fc_reg\.{_PAIR}", "roi_head.box_head.deltas.{0}"),
    (rf"roi_head\.mask_head\.convs\.(\d)\.conv\.{_PAIR}", "roi_head.mask_head.convs.{0}.{1}"),
    (rf"roi_head\.mask_head\.upsample\.{_PAIR}", "roi_head.mask_head.upsample.{0}"),
    (rf"roi_head\.mask_head\.conv_logits\.{_PAIR}", "roi_head.mask_head.classifier.{0}"),
]


def renamed(name: str, rules: Sequence[tuple[str, str]]) -> str | None:
    """What the first rule that matches a name makes of it; None where none does."""
    for pattern, target in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return target.format(*(_BN_NAMES.get(group, group) for group in match.groups()))
    return None


def our_name(published: str) -> str | None:
    """Our parameter name for a published one; None where there is none."""
    # A classification checkpoint has no prefix; our classifier keeps its backbone in ``backbone``.
    target = renamed(published.removeprefix("backbone."), _BACKBONE_RULES)
    return f"backbone.{target}" if target else renamed(published, _HEAD_RULES)


_LINEAR = re.compile(
    r".*\.(linear|to_k|out_linear|fc1|fc2)\.weight|head\.weight|roi_head\.box_head\.(scores|deltas)\.weight"
)


def is_state(value: Any) -> bool:
    """Whether this is a state dict: named arrays and nothing else."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, np.ndarray) for k, v in value.items())
    )


def convert_state(
    state: Mapping[str, np.ndarray],
    source: str = "the checkpoint",
    name_of: Callable[[str], str | None] = our_name,
    linear: re.Pattern[str] = _LINEAR,
) -> dict[str, np.ndarray]:
    """Our names and arrays (views of the given ones) for published ones, ``num_batches_tracked`` dropped.

    Args:
        state: published names and arrays.
        source: what to call them in an error.
        name_of: published name -> ours.
        linear: our names of the weights of linear layers.

    Raises:
        UserError: naming ``source`` and the published names that have no counterpart, or two that stand for one of
            ours.
    """
    converted: dict[str, np.ndarray] = {}
    unexpected = []
    for name, array in state.items():
        if name.endswith(".num_batches_tracked"):
            continue
        target = name_of(name)
        if target is None:
            unexpected.append(name)
            continue
        if target in converted:
            raise UserError(f"{source}: two published parameters stand for {target!r}; the second is {name!r}")
        if linear.fullmatch(target) and array.ndim in (2, 4):
            array = array.reshape(array.shape[:2]).T
        converted[target] = array
    if unexpected:
        raise UserError(f"{source}: unexpected keys ({len(unexpected)}): {', '.join(unexpected[:10])}")
    return converted
