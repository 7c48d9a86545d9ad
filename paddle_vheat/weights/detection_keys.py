"""Names of the published detectors' checkpoints (mmdetection's Mask R-CNN on vHeat), in terms of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from paddle_vheat.errors import UserError
from paddle_vheat.weights.key_map import our_name


class Transform(NamedTuple):
    """How an array changes between a published checkpoint and ours."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_published: Callable[[np.ndarray], np.ndarray]


SAME = Transform(lambda array: array, lambda array: array)
# PyTorch keeps a linear layer's weight as (out, in), Paddle as (in, out).
LINEAR = Transform(lambda array: array.T, lambda array: array.T)
# The published MLPs are 1x1 convolutions, ours are linear layers.
POINTWISE = Transform(lambda array: array[:, :, 0, 0].T, lambda array: array.T[:, :, None, None])

# (pattern of the published name, our name); {0}, {1} ... are its groups.
_RULES = [
    (r"neck\.lateral_convs\.(\d)\.conv\.(weight|bias)", "neck.laterals.{0}.{1}"),
    (r"neck\.fpn_convs\.(\d)\.conv\.(weight|bias)", "neck.outputs.{0}.{1}"),
    (r"rpn_head\.rpn_conv\.(weight|bias)", "rpn_head.conv.{0}"),
    (r"rpn_head\.rpn_cls\.(weight|bias)", "rpn_head.scores.{0}"),
    (r"rpn_head\.rpn_reg\.(weight|bias)", "rpn_head.deltas.{0}"),
    (r"roi_head\.bbox_head\.shared_fcs\.0\.(weight|bias)", "roi_head.box_head.fc1.{0}"),
    (r"roi_head\.bbox_head\.shared_fcs\.1\.(weight|bias)", "roi_head.box_head.fc2.{0}"),
    (r"roi_head\.bbox_head\.fc_cls\.(weight|bias)", "roi_head.box_head.scores.{0}"),
    (r"roi_head\.bbox_head\.fc_reg\.(weight|bias)", "roi_head.box_head.deltas.{0}"),
    (r"roi_head\.mask_head\.convs\.(\d)\.conv\.(weight|bias)", "roi_head.mask_head.convs.{0}.{1}"),
    (r"roi_head\.mask_head\.upsample\.(weight|bias)", "roi_head.mask_head.upsample.{0}"),
    (r"roi_head\.mask_head\.conv_logits\.(weight|bias)", "roi_head.mask_head.classifier.{0}"),
]
_LINEAR = re.compile(
    r"backbone\..*\.op\.(linear|to_k\.0|out_linear)\.weight|roi_head\.bbox_head\.(shared_fcs\.\d|fc_cls|fc_reg)\.weight"
)
_POINTWISE = re.compile(r"backbone\..*\.mlp\.fc[12]\.weight")


def our_detection_name(published: str) -> str | None:
    """Our parameter name for a published detector's; None where there is none."""
    if published.startswith("backbone."):
        return our_name(published)
    for pattern, target in _RULES:
        match = re.fullmatch(pattern, published)
        if match:
            return target.format(*match.groups())
    return None


def detection_key_map(state_keys: Iterable[str]) -> dict[str, tuple[str, Transform]]:
    """Where each array of a published detector's checkpoint belongs.

    Args:
        state_keys: names in its ``state_dict``.

    Returns:
        For each published name, ours and the transform of its array.

    Raises:
        ValueError: naming the arrays that have no place in :class:`paddle_vheat.models.mask_rcnn.MaskRCNN`, or two
            that have the same.
    """
    found: dict[str, tuple[str, Transform]] = {}
    unexpected: list[str] = []
    taken: dict[str, str] = {}
    for name in state_keys:
        ours = our_detection_name(name)
        if ours is None:
            unexpected.append(name)
            continue
        if ours in taken:
            raise UserError(f"two published parameters stand for {ours!r}: {taken[ours]!r} and {name!r}")
        taken[ours] = name
        transform = LINEAR if _LINEAR.fullmatch(name) else POINTWISE if _POINTWISE.fullmatch(name) else SAME
        found[name] = ours, transform
    if unexpected:
        raise UserError(f"{len(unexpected)} arrays have no place in a Mask R-CNN: {', '.join(unexpected[:10])}")
    return found
