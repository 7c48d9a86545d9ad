"""Replacements for PaddleSeg's losses that mix integer or boolean tensors with floating-point ones.

Each takes the place of a method, so it reads that loss's own attributes; ``_paddleseg_mends`` says when.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from paddle_vheat._paddle import F, paddle


def _average(self: Any, loss: Any, label: Any, semantic_weights: Any, counted: Any) -> Any:
    """Mean of the pixels' losses over the mean of their class weights, of all or of the worst pixels."""
    loss = loss * counted
    if semantic_weights is not None:
        loss = loss * semantic_weights.astype(loss.dtype)
    coef = paddle.ones_like(loss)
    if self.weight is not None:
        # Unlabelled pixels take the weight of class 0, as upstream has it; it shows only where they
        # count at all: avg_non_ignore=False, or among the worst pixels of a scarcely labelled batch.
        index = paddle.where(label != self.ignore_index, label, paddle.zeros_like(label))
        index = index.flatten().astype("int64")
        coef = paddle.gather(self.weight, index).reshape(label.shape).astype(loss.dtype)
    if self.top_k_percent_pixels == 1.0:
        return loss.mean() / ((counted * coef).mean() + self.EPS)
    pixels = max(1, int(self.top_k_percent_pixels * int(loss.numel())))
    loss, worst = paddle.topk(loss.flatten(), pixels)
    return loss.mean() / (paddle.gather(coef.flatten(), worst).mean() + self.EPS)


def _cross_entropy(self: Any, logit: Any, label: Any, semantic_weights: Any, loss: Any) -> Any:
    if loss.ndim > label.ndim:
        loss = loss.squeeze(-1)
    counted = (label != self.ignore_index).astype(loss.dtype)
    if not self.avg_non_ignore:
        counted = paddle.ones_like(counted)
    return _average(self, loss, label, semantic_weights, counted)


def _point_cross_entropy(self: Any, logits: Any, label: Any, semantic_weights: Any = None) -> Any:
    from paddleseg.models.losses.point_cross_entropy_loss import point_sample

    logit, points = logits  # [N, C, points] and [N, points, 2]
    maps = label.unsqueeze(1).astype("float32")
    label = point_sample(maps, points, mode="nearest", align_corners=self.align_corners)
    label = label.squeeze(1).astype("int64")
    options = {"ignore_index": self.ignore_index, "reduction": "none"}
    # Upstream multiplied by the number of the class where its weight was meant.
    loss = F.cross_entropy(logit.transpose([0, 2, 1]), label, weight=self.weight, **options)
    counted = (label != self.ignore_index).astype(loss.dtype)
    return _average(self, loss, label, semantic_weights, counted)


def _ohem(self: Any, logit: Any, label: Any) -> Any:
    """Cross entropy over the pixels whose own class got a probability below the threshold."""
    n, c, h, w = logit.shape
    label = label.astype("int64").flatten()
    kept = label != self.ignore_index
    # Upstream keeps every pixel when min_kept is 0, and so does this.
    if 0 < self.min_kept < int(kept.sum()):
        prob = F.softmax(logit.detach(), axis=1).transpose([0, 2, 3, 1]).reshape([-1, c])
        own_class = paddle.where(kept, label, paddle.zeros_like(label)).unsqueeze(1)
        prob = paddle.take_along_axis(prob, own_class, 1).squeeze(1)
        prob = paddle.where(kept, prob, paddle.full_like(prob, 2.0))  # unlabelled pixels sort last
        kth = paddle.kthvalue(prob, self.min_kept)[0]
        kept = paddle.logical_and(kept, prob < paddle.clip(kth, min=self.thresh))
    label = paddle.where(kept, label, paddle.full_like(label, self.ignore_index)).reshape([n, 1, h, w])
    loss = F.cross_entropy(logit, label, ignore_index=self.ignore_index, axis=1, reduction="none")
    weight = kept.reshape([n, 1, h, w]).astype(loss.dtype)
    return (loss * weight).mean() / (weight.mean() + self.EPS)


def _ohem_edge(self: Any, logits: Any, label: Any) -> Any:
    logit, edge = logits[0], logits[1]
    if label.ndim != logit.ndim:
        label = label.unsqueeze(1)
    if list(edge.shape) != list(label.shape):
        raise ValueError(f"edge logits {list(edge.shape)} and label {list(label.shape)} differ in shape")
    unlabelled = paddle.full_like(label, self.ignore_index)
    return _ohem(self, logit, paddle.where(edge > self.edge_threshold, label, unlabelled))


def _known_one_hot(label: Any, ignore_index: int, classes: int) -> tuple[Any, Any]:
    """Which pixels are labelled [N, 1, H, W], and their classes one-hot [N, C, H, W], as floats."""
    known = label != ignore_index
    one_hot = F.one_hot(paddle.where(known, label, paddle.zeros_like(label)).astype("int64"), classes)
    return known.unsqueeze(1).astype("float32"), one_hot.astype("float32").transpose([0, 3, 1, 2])


def _rmi(self: Any, logits_4D: Any, labels_4D: Any, do_rmi: bool = False) -> Any:
    known, one_hot = _known_one_hot(labels_4D, self.ignore_index, self.num_classes)
    # The floor under the probabilities is upstream's.
    return self.rmi_lower_bound(one_hot * known, F.sigmoid(logits_4D) * known + 1e-6)


def _dual_task(self: Any, logit: Any, labels: Any) -> Any:
    n, c, h, w = logit.shape
    known, one_hot = _known_one_hot(labels.reshape([n, h, w]), self.ignore_index, c)
    edges = self.compute_grad_mag(self._gumbel_softmax_sample(logit * known, tau=self.tau))
    true_edges = self.compute_grad_mag(one_hot)
    difference = F.l1_loss(edges, true_edges, reduction="none") * known
    masks = [(x > 1e-8).astype("float32").detach() for x in (edges, true_edges)]
    return sum(0.5 * (difference * mask).sum() / paddle.clip(mask.sum(), min=1.0) for mask in masks)


def _relax_boundary(original: Any) -> Callable[..., Any]:
    # Only the one-hot labels have the wrong type; everything made from them follows.
    return lambda self, label, num_classes: original(self, label, num_classes).astype("float32")


def _try_loss(logits: Callable[[], Any], *options: dict[str, Any]) -> Callable[[Any], object]:
    """A probe that calls the loss with each of the options, on a partly labelled batch."""

    def probe(loss_class: Any) -> None:
        for option in options:
            label = paddle.zeros([1, 12, 12], dtype="int64")
            label[:, :1] = 255
            loss_class(**option)(logits(), label)

    return probe


def _logit() -> Any:
    return paddle.zeros([1, 2, 12, 12])


def _logit_and_edge() -> list[Any]:
    return [_logit(), paddle.ones([1, 1, 12, 12])]


def _logit_and_points() -> list[Any]:
    points = paddle.full([1, 3, 2], 0.5)
    points[:, 0] = 0.01  # not labelled
    return [paddle.zeros([1, 2, 3]), points]


def _try_relax_boundary(loss_class: Any) -> None:
    label = paddle.zeros([1, 12, 12], dtype="int64")
    label[:, :1] = 255
    loss = float(loss_class()(_logit(), label))
    if (
        abs(loss - math.log(2) * 144 / 145) > 1e-4
    ):  # all 144 are known, the first row by its neighbours; upstream adds 1
        raise ValueError(f"different data types give a wrong loss, {loss}")
