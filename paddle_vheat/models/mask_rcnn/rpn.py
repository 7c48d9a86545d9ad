"""Region proposal network: which anchors hold an object, and where it is exactly.

Paper: "Faster R-CNN", Ren et al., NeurIPS 2015, arXiv 1506.01497.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddle_vheat._paddle import F, nn, paddle
from paddle_vheat.models.layers import init_layer
from paddle_vheat.models.mask_rcnn.anchors import RATIOS, STRIDES, are_inside, grid_anchors
from paddle_vheat.models.mask_rcnn.assign import Sampler, assign, sample
from paddle_vheat.models.mask_rcnn.boxes import decode, encode, grouped_nms, iou
from paddle_vheat.ops.dct import known_size, size_of

Tensor = Any

STD = (1.0, 1.0)
NMS_THRESHOLD = 0.7
POSITIVE, NEGATIVE, TIED, POSITIVE_FRACTION = 0.7, 0.3, 0.3, 0.5


class RPNHead(nn.Layer):
    """One 3x3 convolution and two 1x1, the same for every level.

    Shapes:
        (B, C, H, W) of each level -> scores (B, 3, H, W), logits; deltas (B, 12, H, W), four for each anchor.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        normal = nn.initializer.Normal(0.0, 0.01)
        self.conv = init_layer(nn.Conv2D(channels, channels, 3, padding=1), normal)
        self.scores = init_layer(nn.Conv2D(channels, len(RATIOS), 1), normal)
        self.deltas = init_layer(nn.Conv2D(channels, 4 * len(RATIOS), 1), normal)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        hidden = [F.relu(self.conv(level)) for level in pyramid]
        return [self.scores(level) for level in hidden], [self.deltas(level) for level in hidden]


def _by_anchor(level: Tensor, values: int) -> Tensor:
    """(B, 3 * values, H, W) -> (B, H * W * 3, values) float32, in the order of the anchors."""
    batch = known_size(level, 0)
    ordered = level.transpose([0, 2, 3, 1]).astype("float32")
    return ordered.reshape([0 if batch is None else batch, -1, values])


def _best(scores: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` best of scores (n,), or of all."""
    n = size_of(scores, 0)
    most = min(n, count) if isinstance(n, int) else paddle.minimum(n, paddle.full([], count, n.dtype))
    return paddle.topk(scores, most)[1]


@paddle.no_grad()
def select_proposals(
    scores: Sequence[Tensor], deltas: Sequence[Tensor], sizes: Tensor, per_level: int, count: int
) -> list[Tensor]:
    """The boxes that the second stage looks at.

    Args:
        scores, deltas: outputs of :class:`RPNHead`, of a batch size known when a graph is traced.
        sizes: (B, 2) float32, height and width of each image without its padding.
        per_level: how many anchors of each level are considered, the best by score.
        count: how many boxes are kept after the suppression within each level.

    Returns:
        For each image boxes (n, 4), best first, with n from 1 to ``count``: if no box has a positive area (which
        untrained weights may bring about), one without area is given.
    """
    anchors = [grid_anchors(size_of(level, 2), size_of(level, 3), stride) for level, stride in zip(scores, STRIDES)]
    probabilities = [F.sigmoid(_by_anchor(level, 1).squeeze(2)) for level in scores]
    offsets = [_by_anchor(level, 4) for level in deltas]
    return [
        _proposals_of_image(anchors, [p[i] for p in probabilities], [o[i] for o in offsets], sizes[i], per_level, count)
        for i in range(scores[0].shape[0])
    ]


def _proposals_of_image(
    anchors: Sequence[Tensor], scores: Sequence[Tensor], deltas: Sequence[Tensor], size: Tensor, per_level: int, n: int
) -> Tensor:
    best = [_best(level, per_level) for level in scores]
    score = paddle.concat([paddle.gather(level, index) for level, index in zip(scores, best)])
    anchor = paddle.concat([paddle.gather(level, index) for level, index in zip(anchors, best)])
    delta = paddle.concat([paddle.gather(level, index) for level, index in zip(deltas, best)])
    level = paddle.concat([paddle.zeros_like(index) + i for i, index in enumerate(best)]).astype("float32")
    boxes = decode(anchor, delta, STD, size)
    # A box without area is not removed but put last, where it suppresses nothing: the number of boxes stays known.
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1).astype("float32")
    boxes, score = boxes * has_area.unsqueeze(1), score * has_area + (has_area - 1)
    kept = grouped_nms(boxes, score, level, NMS_THRESHOLD)[:n]
    valid = (paddle.gather(score, kept) >= 0).astype("int64").sum().clip(min=1)
    return paddle.gather(boxes, kept[:valid])


def rpn_losses(
    scores: Sequence[Tensor],
    deltas: Sequence[Tensor],
    targets: Sequence[dict[str, Any]],
    samples: int,
    sampler: Sampler,
) -> dict[str, Tensor]:
    """Cross entropy and L1 of sampled anchors, each over the number of anchors sampled in the whole batch.

    Args:
        scores, deltas: outputs of :class:`RPNHead`.
        targets: for each image ``boxes`` (n, 4) and ``image_size``.
        samples: anchors sampled in each image.
        sampler: see :data:`paddle_vheat.models.mask_rcnn.assign.Sampler`.

    Returns:
        ``loss_rpn_cls`` and ``loss_rpn_bbox``, float32 scalars.
    """
    sizes = [(level.shape[2], level.shape[3], stride) for level, stride in zip(scores, STRIDES)]
    anchors = paddle.concat([grid_anchors(*size) for size in sizes])
    logits = paddle.concat([_by_anchor(level, 1) for level in scores], axis=1).flatten()
    coded = paddle.concat([_by_anchor(level, 4) for level in deltas], axis=1).reshape([-1, 4])
    positives, negatives, wanted = [], [], []
    for i, target in enumerate(targets):
        with paddle.no_grad():
            inside = paddle.concat([are_inside(*size, target["image_size"]) for size in sizes])
            assigned = assign(iou(target["boxes"], anchors), POSITIVE, NEGATIVE, TIED, inside)
            positive, negative = sample(assigned, samples, POSITIVE_FRACTION, sampler)
            if positive.shape[0]:
                boxes = paddle.gather(target["boxes"], paddle.gather(assigned, positive))
                wanted.append(encode(paddle.gather(anchors, positive), boxes, STD))
                positives.append(positive + i * anchors.shape[0])
            negatives.append(negative + i * anchors.shape[0])
    chosen = paddle.concat([*positives, *negatives])
    count = sum(index.shape[0] for index in positives)
    labels = (paddle.arange(chosen.shape[0]) < count).astype("float32")
    total = max(chosen.shape[0], 1)
    loss = F.binary_cross_entropy_with_logits(paddle.gather(logits, chosen), labels, reduction="sum") / total
    if not count:
        return {"loss_rpn_cls": loss, "loss_rpn_bbox": coded.sum() * 0}
    distance = (paddle.gather(coded, paddle.concat(positives)) - paddle.concat(wanted)).abs().sum()
    return {"loss_rpn_cls": loss, "loss_rpn_bbox": distance / total}
