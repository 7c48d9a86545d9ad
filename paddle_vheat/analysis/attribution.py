"""Where an output comes from: the effective receptive field and Grad-CAM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from paddle_vheat._paddle import F, in_evaluation, paddle
from paddle_vheat.analysis.observe import backbone_of, outputs_of, stage_layers

Tensor = Any
THRESHOLDS = (0.2, 0.3, 0.5, 0.99)


class ReceptiveField(NamedTuple):
    """Mean contribution of every pixel, and numbers of images that it is of and that were skipped as not finite."""

    field: np.ndarray
    images: int
    skipped: int


def receptive_field(features: Callable[[Tensor], Tensor], images: Iterable[np.ndarray]) -> ReceptiveField:
    """The effective receptive field by RepLKNet's procedure.

    Of the map F, the scalar sum_c ReLU(F[H // 2, W // 2, c]) is differentiated by the image. A pixel's contribution is
    the sum over channels of the positive part of that gradient, and the field its mean over images.

    Args:
        features: image (1, C, H, W) -> map (1, h, w, D), channels last; see :func:`last_stage`.
        images: float32 (C, H, W), all of one size.

    Returns:
        The field, float64 (H, W). An image whose gradient is not finite is skipped.

    Raises:
        ValueError: if no image is left.
    """
    total, used, skipped = np.zeros(()), 0, 0
    for image in images:
        x = paddle.to_tensor(image[None])
        x.stop_gradient = False
        found = features(x)
        scalar = F.relu(found[:, found.shape[1] // 2, found.shape[2] // 2]).sum()
        gradient = paddle.grad(scalar, x)[0].numpy().astype(np.float64)
        if not np.isfinite(gradient).all():
            skipped += 1
            continue
        total, used = total + np.maximum(gradient, 0).sum(axis=(0, 1)), used + 1
    if not used:
        raise ValueError(f"receptive_field: no image with a finite gradient ({skipped} skipped)")
    return ReceptiveField(total / used, used, skipped)


def last_stage(model: Any) -> Callable[[Tensor], Tensor]:
    """The map of the backbone's last stage, before any norm, as a function of the image; in evaluation mode."""
    network = backbone_of(model)
    layer = stage_layers(network)[-1]

    def features(x: Tensor) -> Tensor:
        with in_evaluation(network), outputs_of(layer) as kept:
            network(x)
        return kept[-1]

    return features


def contribution_areas(
    field: np.ndarray, thresholds: Sequence[float] = THRESHOLDS
) -> dict[float, tuple[int, float] | None]:
    """The high-contribution area: for each t the least centred square of odd side whose share of the sum exceeds t.

    Returns:
        Side in pixels and share of the image's area; None where no such square inside the image exceeds t.
    """
    shares = contribution_shares(field)
    found: dict[float, tuple[int, float] | None] = {}
    for threshold in thresholds:
        above = np.nonzero(shares > threshold)[0]
        side = 2 * int(above[0]) + 1 if len(above) else 0
        found[threshold] = (side, side / field.shape[0] * (side / field.shape[1])) if side else None
    return found


def contribution_shares(field: np.ndarray) -> np.ndarray:
    """Share of the sum inside the centred square of side 2 i + 1, for i = 0, 1, ... up to the nearest edge."""
    y, x = field.shape[0] // 2, field.shape[1] // 2
    total = float(field.sum())
    squares = [field[y - i : y + i + 1, x - i : x + i + 1].sum() for i in range((min(field.shape) + 1) // 2)]
    return np.asarray(squares, np.float64) / total if total > 0 else np.zeros(len(squares))


def grad_cam(features: Tensor, score: Tensor) -> np.ndarray:
    """Grad-CAM (Selvaraju et al., ICCV 2017): ReLU(sum_c alpha_c A_c), alpha_c the mean over positions of d y / d A_c.

    Args:
        features: A, the map (1, h, w, C), channels last, that the score was computed from.
        score: y, a scalar.

    Returns:
        float32 (h, w), not scaled.
    """
    gradient = paddle.grad(score, features)[0]
    weights = gradient.mean(axis=[1, 2], keepdim=True)
    return F.relu((weights * features).sum(axis=-1))[0].numpy()


def score_of(output: Any, label: int | None = None) -> tuple[Tensor, int]:
    """The scalar that Grad-CAM differentiates, of a model's output, and the class that it is for.

    Args:
        output: logits of a classifier (1, K), or of a segmentor (1, K, H, W) (of a list the first).
        label: the class; None for the likeliest, of a segmentor for that of the most pixels.

    Returns:
        The class's logit, or the sum of its logits over the pixels that are predicted as it.

    Raises:
        ValueError: for other outputs, a class that does not exist, or one that no pixel is predicted as.
    """
    logits = output[0] if isinstance(output, list) and output else output
    if not hasattr(logits, "ndim") or logits.ndim not in (2, 4) or logits.shape[0] != 1:
        raise ValueError("Grad-CAM needs the class scores of a classifier or a segmentor for one image")
    if label is not None and not 0 <= label < logits.shape[1]:
        raise ValueError(f"class {label} does not exist; expected 0 to {logits.shape[1] - 1}")
    if logits.ndim == 2:
        label = int(logits.argmax(axis=1)) if label is None else label
        return logits[0, label], label
    predicted = logits[0].argmax(axis=0)
    if label is None:
        label = int(np.bincount(predicted.numpy().ravel()).argmax())
    inside = predicted == label
    if not bool(inside.any()):
        raise ValueError(f"no pixel is predicted as class {label}")
    return (logits[0, label] * inside.astype(logits.dtype)).sum(), label
