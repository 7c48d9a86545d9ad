"""The second stage: what is in a proposed box, where exactly, and which of its pixels belong to it.

Paper: "Mask R-CNN", He et al., ICCV 2017, arXiv 1703.06870.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddle_vheat._paddle import F, nn, paddle
from paddle_vheat.models.layers import init_layer
from paddle_vheat.models.mask_rcnn.assign import Sampler, assign, sample
from paddle_vheat.models.mask_rcnn.boxes import decode, encode, grouped_nms, iou
from paddle_vheat.models.mask_rcnn.masks import mask_targets
from paddle_vheat.models.mask_rcnn.roi_align import roi_features
from paddle_vheat.ops.dct import size_of

Tensor = Any

STD = (0.1, 0.2)
NMS_THRESHOLD = 0.5
POSITIVE = NEGATIVE = TIED = 0.5
POSITIVE_FRACTION = 0.25
BOX_SIZE, MASK_SIZE = 7, 14  # cells a side of what is cut out of the pyramid; a mask has twice that


class BoxHead(nn.Layer):
    """Two hidden linear layers, then class scores and, for every class, box deltas.

    Shapes:
        (n, C, 7, 7) -> scores (n, num_classes + 1), logits, the background last; deltas (n, 4 * num_classes).
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int) -> None:
        super().__init__()
        xavier = nn.initializer.XavierUniform()
        self.fc1 = init_layer(nn.Linear(in_channels * BOX_SIZE**2, channels), xavier)
        self.fc2 = init_layer(nn.Linear(channels, channels), xavier)
        self.scores = init_layer(nn.Linear(channels, num_classes + 1), nn.initializer.Normal(0.0, 0.01))
        self.deltas = init_layer(nn.Linear(channels, 4 * num_classes), nn.initializer.Normal(0.0, 0.001))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.fc2(F.relu(self.fc1(features.flatten(1)))))
        return self.scores(hidden), self.deltas(hidden)


class MaskHead(nn.Layer):
    """Four convolutions, a transposed one and the classifier: (n, C, 14, 14) -> logits (n, num_classes, 28, 28)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()

        def kaiming(fan_out: int) -> Any:
            return nn.initializer.Normal(0.0, (2 / fan_out) ** 0.5)

        self.convs = nn.LayerList(
            [init_layer(nn.Conv2D(channels, channels, 3, padding=1), kaiming(9 * channels)) for _ in range(4)]
        )
        self.upsample = init_layer(nn.Conv2DTranspose(channels, channels, 2, stride=2), kaiming(4 * channels))
        self.classifier = init_layer(nn.Conv2D(channels, num_classes, 1), kaiming(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.classifier(F.relu(self.upsample(x)))


class RoIHead(nn.Layer):
    """Box head and mask head on the features of boxes."""

    def __init__(self, channels: int, fc_channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.box_head = BoxHead(channels, fc_channels, num_classes)
        self.mask_head = MaskHead(channels, num_classes)

    def classify(self, pyramid: Sequence[Tensor], boxes: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores (n, num_classes + 1), logits with the background last, and deltas (n, 4 * num_classes), float32.

        Arguments as of :func:`roi_features`.
        """
        scores, deltas = self.box_head(roi_features(pyramid, boxes, counts, BOX_SIZE))
        return scores.astype("float32"), deltas.astype("float32")

    def segment(self, pyramid: Sequence[Tensor], boxes: Tensor, labels: Tensor, counts: Tensor | None = None) -> Tensor:
        """Mask logits (n, 28, 28) float32 of boxes (n, 4) for their classes (n,)."""
        logits = self.mask_head(roi_features(pyramid, boxes, counts, MASK_SIZE))
        _, classes, height, width = logits.shape
        first = paddle.arange(0, size_of(labels, 0), 1, dtype="int64") * classes
        return paddle.gather(logits.reshape([-1, height, width]), first + labels).astype("float32")

    def losses(
        self,
        pyramid: Sequence[Tensor],
        proposals: Sequence[Tensor],
        targets: Sequence[dict[str, Any]],
        samples: int,
        sampler: Sampler,
        canvas: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Losses of sampled proposals; see :meth:`paddle_vheat.models.mask_rcnn.MaskRCNN.losses`.

        The truths are proposals too. Cross entropy is the mean over all that are sampled, L1 is summed over the
        positive ones' own class and divided by the number of all, the masks' cross entropy is the mean over the
        positive ones.
        """
        with paddle.no_grad():
            chosen = [self._sample(*pair, samples, sampler) for pair in zip(proposals, targets)]
        boxes = paddle.concat([choice["boxes"] for choice in chosen])
        labels = paddle.concat([choice["labels"] for choice in chosen])
        counts = paddle.to_tensor([choice["boxes"].shape[0] for choice in chosen], "int32")
        scores, deltas = self.classify(pyramid, boxes, counts)
        losses = {"loss_cls": F.cross_entropy(scores, labels)}
        positive = paddle.nonzero(labels < self.num_classes).flatten()
        if not positive.shape[0]:
            return {**losses, "loss_bbox": deltas.sum() * 0, "loss_mask": paddle.zeros([])}
        labels, boxes = paddle.gather(labels, positive), paddle.gather(boxes, positive)
        with paddle.no_grad():
            owned = [(choice, target) for choice, target in zip(chosen, targets) if choice["owners"].shape[0]]
            truths = paddle.concat([paddle.gather(target["boxes"], choice["owners"]) for choice, target in owned])
            wanted = encode(boxes, truths, STD)
            masks = paddle.concat([self._mask_targets(choice, target, canvas) for choice, target in owned])
        said = paddle.gather(deltas.reshape([-1, 4]), positive * self.num_classes + labels)
        losses["loss_bbox"] = (said - wanted).abs().sum() / deltas.shape[0]
        counts = paddle.to_tensor([choice["owners"].shape[0] for choice in chosen], "int32")
        logits = self.segment(pyramid, boxes, labels, counts)
        return {**losses, "loss_mask": F.binary_cross_entropy_with_logits(logits, masks)}

    def _sample(self, proposals: Tensor, target: dict[str, Any], samples: int, sampler: Sampler) -> dict[str, Tensor]:
        """Boxes (k, 4) and labels (k,), the p positive ones first, and the truths (p,) that those belong to."""
        truths = target["boxes"]
        assigned = assign(iou(truths, proposals), POSITIVE, NEGATIVE, TIED)
        assigned = paddle.concat([paddle.arange(truths.shape[0], dtype="int64"), assigned])
        positive, negative = sample(assigned, samples, POSITIVE_FRACTION, sampler)
        boxes = paddle.gather(paddle.concat([truths, proposals]), paddle.concat([positive, negative]))
        owners = paddle.gather(assigned, positive)
        background = paddle.full(negative.shape, self.num_classes, "int64")
        labels = paddle.concat([paddle.gather(target["labels"], owners), background])
        return {"boxes": boxes, "labels": labels, "owners": owners}

    @staticmethod
    def _mask_targets(choice: dict[str, Tensor], target: dict[str, Any], canvas: tuple[int, int]) -> Tensor:
        positive = choice["boxes"][: choice["owners"].shape[0]]
        return mask_targets(target["masks"], positive, choice["owners"], 2 * MASK_SIZE, canvas)


@paddle.no_grad()
def select_detections(
    boxes: Tensor, scores: Tensor, deltas: Tensor, size: Tensor, threshold: float, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Detections of one image: the class-wise boxes of enough probability, suppressed within each class.

    Args:
        boxes: (n, 4), the proposals.
        scores, deltas: what :meth:`RoIHead.classify` says about them.
        size: (2,) float32, height and width of the image without its padding.
        threshold: least probability, which has to be exceeded.
        count: most detections.

    Returns:
        Boxes (m, 4) in pixels of the network's input, probabilities (m,), labels (m,) int64; best first. Where
        fewer than ``count`` are found, an empty box of probability 0 is the last, so that m is at least 1.
    """
    classes = scores.shape[1] - 1
    probabilities = F.softmax(scores, axis=1)[:, :classes].flatten()
    chosen = paddle.nonzero(probabilities > threshold).flatten()
    # One more, void, so that nothing is ever empty.
    real = paddle.concat([paddle.ones_like(chosen), paddle.zeros([1], "int64")]).astype("float32")
    chosen = paddle.concat([chosen, paddle.zeros([1], "int64")])
    proposal, label = paddle.floor_divide(chosen, paddle.full([], classes, "int64")), chosen % classes
    found = decode(paddle.gather(boxes, proposal), paddle.gather(deltas.reshape([-1, 4]), chosen), STD, size)
    found, score = found * real.unsqueeze(1), paddle.gather(probabilities, chosen) * real
    kept = grouped_nms(found, score, label.astype("float32"), NMS_THRESHOLD)[:count]
    return paddle.gather(found, kept), paddle.gather(score, kept), paddle.gather(label, kept)
