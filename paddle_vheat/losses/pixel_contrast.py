"""The pixel contrast loss.

Paper: "Exploring Cross-Image Pixel Contrast for Semantic Segmentation", Wang et al., ICCV 2021, arXiv 2101.11939.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from paddle_vheat._arguments import check_integer
from paddle_vheat._paddle import nn, paddle
from paddle_vheat.losses.info_nce import info_nce
from paddle_vheat.losses.memory_bank import MemoryBank
from paddle_vheat.losses.sampling import check_labels, gather_pixels, group_pixels, resize_labels, sample_anchors

Tensor = Any


class PixelContrastLoss(nn.Layer):
    """Contrast between the pixel embeddings of the classes of a batch and, with a memory bank, of earlier ones.

    It is the contrast term alone: cross entropy is a loss of its own beside it, as PaddleSeg's positional losses
    have it (``types: [CrossEntropyLoss, PixelContrastLoss]``, ``coef: [1.0, 0.1]``).

    Args:
        temperature: T of the similarities; 0.1 without a bank, 0.07 with one in the paper's runs.
        base_temperature: the loss is scaled by ``temperature / base_temperature``.
        max_samples: samples of a batch, all classes and images together (exceeded only if there are more pairs of
            image and class than that: each has at least one).
        max_views: samples of a class and image; a class takes part where more pixels than this are labelled so.
        ignore_index: label of pixels that take no part.
        warmup_iters: iterations in which the loss is 0 (the bank is filled in them as well).
        memory_size: slots of the bank per class and queue; 0 for no bank.
        pixel_update_freq: see :class:`paddle_vheat.losses.MemoryBank`.
        num_classes, proj_dim: what the bank is made for; needed with ``memory_size``.

    Shapes of ``forward(preds, label)``:
        ``preds["seg"]`` logits (N, classes, H, W), of which only the largest counts, and ``preds["embed"]``
        (N, D, H, W), used as given (the projection heads of this package give pixels of length 1), any floating
        dtype; ``label`` integers (N, H', W') or (N, 1, H', W') of any size -> float32 scalar, computed in float32.

    Where no class has enough pixels, the loss is a 0 with a gradient, so that data-parallel training goes on.
    Draws are Paddle's, so ``paddle.seed`` decides them.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        base_temperature: float = 0.07,
        max_samples: int = 1024,
        max_views: int = 100,
        ignore_index: int = 255,
        warmup_iters: int = 0,
        memory_size: int = 0,
        pixel_update_freq: int = 10,
        num_classes: int | None = None,
        proj_dim: int | None = None,
    ) -> None:
        super().__init__()
        for name, value, minimum in (
            ("max_samples", max_samples, 1),
            ("max_views", max_views, 1),
            ("warmup_iters", warmup_iters, 0),
            ("memory_size", memory_size, 0),
            ("pixel_update_freq", pixel_update_freq, 1),
            ("ignore_index", ignore_index, -(2**31)),
        ):
            check_integer(f"PixelContrastLoss: {name}", value, minimum)
        for name, number in (("temperature", temperature), ("base_temperature", base_temperature)):
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number < math.inf:
                raise ValueError(f"PixelContrastLoss: {name} must be a number of more than 0, got {number!r}")
        self.temperature = temperature
        self.base_temperature = base_temperature
        self.max_samples = max_samples
        self.max_views = max_views
        self.ignore_index = ignore_index
        self.warmup_iters = warmup_iters
        self.calls_per_iteration = 1  # a trainer that accumulates gradients calls more than once
        self.bank: MemoryBank | None = None
        if memory_size:
            if num_classes is None or proj_dim is None:
                raise ValueError("PixelContrastLoss: a bank (memory_size) needs num_classes and proj_dim")
            self.bank = MemoryBank(num_classes, proj_dim, memory_size, pixel_update_freq)
        # A buffer, so that warm-up goes on where a run was stopped.
        self.register_buffer("calls", paddle.zeros([1], dtype="int64"))
        self._warm = False

    def forward(self, preds: Mapping[str, Tensor], label: Tensor) -> Tensor:
        for name in ("seg", "embed"):
            if not isinstance(preds, Mapping) or name not in preds:
                raise ValueError(
                    f"PixelContrastLoss: expected a mapping with 'seg' and 'embed', found no {name!r}; is the loss at "
                    "the position of the model's second output?"
                )
        logits, embedding = preds["seg"], preds["embed"]
        height, width = embedding.shape[2:]
        if list(logits.shape[2:]) != [height, width] or not logits.shape[0] == embedding.shape[0] == label.shape[0]:
            raise ValueError(
                f"PixelContrastLoss: 'seg' {list(logits.shape)}, 'embed' {list(embedding.shape)} and label "
                f"{list(label.shape)} differ in size or number"
            )
        classes = logits.shape[1]
        if self.bank is not None and self.bank.num_classes != classes:
            raise ValueError(f"PixelContrastLoss: num_classes is {self.bank.num_classes}, the model gives {classes}")
        with paddle.amp.auto_cast(enable=False):
            with paddle.no_grad():
                labels = resize_labels(label, height, width)
                check_labels(labels, classes, self.ignore_index)
            if self.training and self._warming_up():
                loss = 0.0 * embedding.astype("float32").sum()
            else:
                loss = self._contrast(logits, embedding, labels)
            if self.bank is not None and self.training:
                self.bank.enqueue(embedding, labels, self.ignore_index)
        return loss

    def _contrast(self, logits: Tensor, embedding: Tensor, labels: Tensor) -> Tensor:
        classes = logits.shape[1]
        with paddle.no_grad():
            predictions = paddle.argmax(logits.astype("float32"), axis=1)
            pixels = group_pixels(labels.flatten(1), predictions.flatten(1), classes, self.ignore_index)
            samples = sample_anchors(pixels, classes, self.max_samples, self.max_views)
        features = gather_pixels(embedding, samples.index)
        return info_nce(features, samples.label, samples.valid, self.temperature, self.base_temperature, self.bank)

    def _warming_up(self) -> bool:
        """Count this call; whether it is one of the first."""
        self.calls.set_value(self.calls + 1)
        # Reading the count waits for the device: not without a warm-up, and not when it is safely over (a trainer
        # may take back the last step).
        if self.warmup_iters == 0 or self._warm:
            return False
        over = int(self.calls) - self.warmup_iters * self.calls_per_iteration
        self._warm = over > self.calls_per_iteration
        return over <= 0
