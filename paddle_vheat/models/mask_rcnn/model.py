"""Mask R-CNN on a vHeat backbone, in the layout and with the behaviour of the published detectors.

Paper: "Mask R-CNN", He et al., ICCV 2017, arXiv 1703.06870. The published weights were trained with
mmdetection 3.3.0, whose results this one equals (``tests/models/mask_rcnn``); the code is our own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddle_vheat._paddle import nn, paddle
from paddle_vheat.models.mask_rcnn.assign import Sampler
from paddle_vheat.models.mask_rcnn.fpn import FPN
from paddle_vheat.models.mask_rcnn.roi_heads import MASK_SIZE, RoIHead, select_detections
from paddle_vheat.models.mask_rcnn.rpn import RPNHead, rpn_losses, select_proposals
from paddle_vheat.models.registry import unknown_name
from paddle_vheat.models.vheat import VARIANTS, VHeat, check_parameter_count
from paddle_vheat.ops import fold
from paddle_vheat.ops.dct import size_of

Tensor = Any


@dataclass(frozen=True)
class Selection:
    """How many boxes each step keeps; the defaults are the published ones."""

    train_per_level: int = 2000  # anchors of each level that become proposals, before suppression
    test_per_level: int = 1000
    proposals: int = 1000  # after suppression
    rpn_samples: int = 256  # anchors of an image in the losses
    roi_samples: int = 512  # proposals of an image in the losses
    score_threshold: float = 0.05
    detections: int = 100


class MaskRCNN(nn.Layer):
    """Backbone, feature pyramid, region proposals, box head and mask head.

    The caller normalises the images and then pads each batch with zeros, right and below, to a multiple of 32
    pixels: vHeat conducts heat over the padding too, so an image's features depend on its batch.

    Args:
        num_classes: classes without the background.
        backbone: gives four NCHW feature maps at strides 4 to 32 and names their widths in ``feat_channels``.
        channels: width of the pyramid and of the convolutional heads.
        fc_channels: width of the box head.
        selection: numbers of boxes.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Any,
        channels: int = 256,
        fc_channels: int = 1024,
        selection: Selection | None = None,
    ) -> None:
        super().__init__()
        if min(num_classes, channels, fc_channels) < 1:
            raise ValueError(
                "MaskRCNN: expected num_classes, channels and fc_channels of at least 1, got "
                f"{num_classes}, {channels} and {fc_channels}"
            )
        count = 85 * channels**2 + fc_channels * (49 * channels + fc_channels + 5 * num_classes)
        check_parameter_count(count, f"MaskRCNN of channels {channels}, fc_channels {fc_channels}")
        self.num_classes = num_classes
        self.selection = selection or Selection()
        self.backbone = backbone
        self.neck = FPN(backbone.feat_channels, channels)
        self.rpn_head = RPNHead(channels)
        self.roi_head = RoIHead(channels, fc_channels, num_classes)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the published recipe does not decay: those with "norm" in their published
        name, which the LayerNorms of the downsampling steps have not."""
        return {name for name, _ in self.named_parameters() if "norm" in name and ".downsample." not in name}

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) -> the pyramid: five maps (B, channels, ., .) at strides 4 to 64."""
        return self.neck(self.backbone(images))

    def proposals(self, scores: Sequence[Tensor], deltas: Sequence[Tensor], sizes: Tensor) -> list[Tensor]:
        """For each image boxes (n, 4), best first; ``sizes`` (B, 2) are the heights and widths before padding."""
        options = self.selection
        per_level = options.train_per_level if self.training else options.test_per_level
        return select_proposals(scores, deltas, sizes.astype("float32"), per_level, options.proposals)

    def losses(self, images: Tensor, targets: Sequence[Mapping[str, Any]], sampler: Sampler) -> dict[str, Tensor]:
        """The five losses of training, all of weight 1.

        Args:
            images: (B, 3, H, W) float32, normalised and padded.
            targets: for each image, as arrays or tensors, ``boxes`` (n, 4) in pixels of the network's input, all
                of positive area, ``labels`` (n,), ``masks`` (n, h, w) of zeros and ones at the image's size, and
                ``image_size`` (h, w) before padding. n may be 0.
            sampler: chooses anchors and proposals; :func:`~paddle_vheat.models.mask_rcnn.assign.random_sampler`.

        Returns:
            ``loss_rpn_cls``, ``loss_rpn_bbox``, ``loss_cls``, ``loss_bbox``, ``loss_mask``: float32 scalars. In a
            batch without objects the last is a constant.
        """
        truths = [_as_tensors(target) for target in targets]
        pyramid = self.forward_features(images)
        scores, deltas = self.rpn_head(pyramid)
        losses = rpn_losses(scores, deltas, truths, self.selection.rpn_samples, sampler)
        sizes = paddle.to_tensor(np.asarray([truth["image_size"] for truth in truths], np.float32))
        proposals = self.proposals(scores, deltas, sizes)
        canvas = images.shape[2], images.shape[3]
        samples = self.selection.roi_samples
        return {**losses, **self.roi_head.losses(pyramid, proposals, truths, samples, sampler, canvas)}

    def detect(self, pyramid: Sequence[Tensor], sizes: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each image boxes (m, 4), probabilities (m,) and labels (m,); see :func:`select_detections`."""
        scores, deltas = self.rpn_head(pyramid)
        proposals = self.proposals(scores, deltas, sizes)
        counts = paddle.concat([paddle.shape(boxes)[:1].astype("int32") for boxes in proposals])
        scores, deltas = self.roi_head.classify(pyramid, paddle.concat(proposals), counts)
        detections, end, sizes, options = [], 0, sizes.astype("float32"), self.selection
        for i, boxes in enumerate(proposals):
            start, end = end, end + size_of(boxes, 0)
            said = boxes, scores[start:end], deltas[start:end], sizes[i]
            detections.append(select_detections(*said, options.score_threshold, options.detections))
        return detections

    @paddle.no_grad()
    def predict(self, images: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """Detections of each image.

        Args:
            images: (B, 3, H, W) float32, normalised and padded.
            sizes: (B, 2), heights and widths before padding.

        Returns:
            For each image ``boxes`` (n, 4) in pixels of the network's input, ``scores`` (n,), ``labels`` (n,) int64
            and ``mask_logits`` (n, 28, 28) of the labels' classes; best first. n may be 0.
        """
        pyramid = self.forward_features(images)
        found = []
        for boxes, scores, labels in self.detect(pyramid, sizes):
            n = int((scores > self.selection.score_threshold).sum())
            found.append({"boxes": boxes[:n], "scores": scores[:n], "labels": labels[:n]})
        numbers = [image["scores"].shape[0] for image in found]
        logits = paddle.zeros([0, 2 * MASK_SIZE, 2 * MASK_SIZE])
        if sum(numbers):
            boxes, labels = (paddle.concat([image[key] for image in found]) for key in ("boxes", "labels"))
            logits = self.roi_head.segment(pyramid, boxes, labels, paddle.to_tensor(numbers, "int32"))
        for i, image in enumerate(found):
            image["mask_logits"] = logits[sum(numbers[:i]) : sum(numbers[: i + 1])]
        return found

    def forward(self, images: Tensor, sizes: Tensor | None = None, targets: Any = None, sampler: Any = None) -> Any:
        """:meth:`losses` if there are targets (``sizes`` is not read then); else detections of one image, for export.

        Returns of the latter:
            boxes (m, 4), probabilities (m,), labels (m,) and mask logits (m, 28, 28), with m at least 1: a row
            whose probability does not exceed the threshold means nothing.
        """
        if targets is not None:
            return self.losses(images, targets, sampler)
        pyramid = self.forward_features(images)
        boxes, scores, labels = self.detect(pyramid, sizes)[0]
        return boxes, scores, labels, self.roi_head.segment(pyramid, boxes, labels)

    fold = fold


def _as_tensors(target: Mapping[str, Any]) -> dict[str, Any]:
    """A target with tensors of the dtypes that the losses need, its size as two ints."""
    height, width = (int(side) for side in target["image_size"])
    return {
        "boxes": paddle.to_tensor(target["boxes"], dtype="float32").reshape([-1, 4]),
        "labels": paddle.to_tensor(target["labels"], dtype="int64").reshape([-1]),
        "masks": paddle.to_tensor(target["masks"]),
        "image_size": (height, width),
    }


MODELS = {f"mask_rcnn_{name}": name for name in VARIANTS}


def build_mask_rcnn(
    variant: str,
    num_classes: int = 80,
    img_size: int | Sequence[int] = 512,
    drop_path_rate: float | None = None,
    recompute: bool = False,
    channels: int = 256,
    fc_channels: int = 1024,
    selection: Selection | None = None,
) -> MaskRCNN:
    """Build a Mask R-CNN by name.

    Args:
        variant: one of ``MODELS``, such as ``mask_rcnn_vheat_tiny``.
        num_classes, channels, fc_channels, selection: see :class:`MaskRCNN`.
        img_size, drop_path_rate, recompute: see :class:`paddle_vheat.models.VHeat`; None takes the variant's rate,
            which is also that of the published 1x schedule (the 3x ones of tiny and small have 0.2 and 0.4).

    Raises:
        ValueError: for an unknown name.
    """
    if variant not in MODELS:
        raise ValueError(f"build_mask_rcnn: {unknown_name('model', variant, list(MODELS))}")
    options = VARIANTS[MODELS[variant]].options(drop_path_rate=drop_path_rate, img_size=img_size, recompute=recompute)
    backbone = VHeat(**options, out_norms=True)
    return MaskRCNN(num_classes, backbone, channels, fc_channels, selection)
