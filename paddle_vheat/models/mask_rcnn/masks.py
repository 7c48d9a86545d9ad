"""Targets of the mask head. (Masks are pasted into images in :mod:`paddle_vheat.deploy.detection_ops`.)"""

from __future__ import annotations

from typing import Any

from paddle_vheat._paddle import F, paddle

Tensor = Any


def mask_targets(masks: Tensor, boxes: Tensor, owners: Tensor, size: int, canvas: tuple[int, int]) -> Tensor:
    """The part of a truth's mask that lies in a box, at the resolution of the mask head.

    Args:
        masks: (n, h, w) uint8 or bool, masks of the truths, of the image without or with its padding.
        boxes: (p, 4), p at least 1.
        owners: (p,) int64, the truth of each box.
        size: side of the result.
        canvas: (H, W) of the padded batch: a sample at the image's own edge still sees the zeros beyond.

    Returns:
        (p, size, size) float32 of zeros and ones.
    """
    used, owners = paddle.unique(owners, return_inverse=True)  # only these become floating-point numbers
    masks = paddle.gather(masks.astype("uint8"), used).astype("float32").unsqueeze(1)
    masks = F.pad(masks, [0, canvas[1] - masks.shape[3], 0, canvas[0] - masks.shape[2]])
    order = paddle.argsort(owners)  # roi_align takes the boxes image by image
    counts = paddle.bincount(owners, minlength=used.shape[0]).astype("int32")
    inside = paddle.vision.ops.roi_align(masks, paddle.gather(boxes, order), counts, size)
    targets = (inside.squeeze(1) >= 0.5).astype("float32")
    return paddle.gather(targets, paddle.argsort(order))
