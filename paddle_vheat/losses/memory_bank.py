"""Embeddings of earlier images, by class.

Paper: "Exploring Cross-Image Pixel Contrast for Semantic Segmentation", ICCV 2021, arXiv 2101.11939, section 3.3
("pixel-region memory").
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from paddle_vheat._arguments import check_integer
from paddle_vheat._paddle import F, nn, paddle
from paddle_vheat.losses.sampling import draw_per_class, gather_pixels

Tensor = Any

_PARTS = ("segment", "pixel")


class ClassRows(NamedTuple):
    """What one queue of a bank holds of a class.

    Attributes:
        label: the class.
        queue: float32 (rows, D).
        anchors: int64, which anchors are of this class; None if none is.
    """

    label: int
    queue: Tensor
    anchors: Tensor | None


class MemoryBank(nn.Layer):
    """Two queues of L2-normalised embeddings per class, the oldest replaced first.

    The segment queue gets one entry for every class that an image has: the mean embedding of its pixels. The
    pixel queue gets up to ``pixel_update_freq`` random pixels of the class. Slots that were never written take no
    part, and entries that are not finite are not taken. Everything is a buffer, so ``state_dict`` saves and restores
    it; in a distributed run the processes exchange their entries and all hold the same bank. It works in the
    dynamic graph only.

    Args:
        num_classes: classes.
        channels: D, width of the embeddings.
        memory_size: slots of each queue and class.
        pixel_update_freq: pixels of a class that an image puts into the pixel queue (the authors' name for it).

    Buffers (``segment_*`` and ``pixel_*``):
        ``queue`` float32 (num_classes, memory_size, D), ``pointer`` int64 (num_classes,) the slot to be written
        next, ``count`` int64 (num_classes,) the slots written so far.
    """

    def __init__(self, num_classes: int, channels: int, memory_size: int = 5000, pixel_update_freq: int = 10) -> None:
        super().__init__()
        sizes = {"num_classes": num_classes, "channels": channels, "memory_size": memory_size}
        for name, value in {**sizes, "pixel_update_freq": pixel_update_freq}.items():
            check_integer(f"MemoryBank: {name}", value, 1)
        self.num_classes = num_classes
        self.channels = channels
        self.memory_size = memory_size
        self.pixel_update_freq = pixel_update_freq
        for part in _PARTS:
            self.register_buffer(f"{part}_queue", paddle.zeros([num_classes, memory_size, channels], "float32"))
            self.register_buffer(f"{part}_pointer", paddle.zeros([num_classes], dtype="int64"))
            self.register_buffer(f"{part}_count", paddle.zeros([num_classes], dtype="int64"))

    def read(self, labels: Tensor, valid: Tensor) -> list[ClassRows]:
        """The entries of every class and queue that has any, beside the anchors (S,) of that class."""
        classes = np.where(valid.numpy(), labels.numpy(), -1)
        anchors = {int(label): paddle.to_tensor(np.flatnonzero(classes == label)) for label in np.unique(classes)}
        found = []
        for part in _PARTS:
            queue, counts = getattr(self, f"{part}_queue"), getattr(self, f"{part}_count").numpy()
            for label in np.flatnonzero(counts).tolist():
                found.append(ClassRows(label, queue[label, : int(counts[label])], anchors.get(label)))
        return found

    def enqueue(self, embedding: Tensor, labels: Tensor, ignore_index: int = 255) -> None:
        """Take entries from a batch: image after image, and in a distributed run process after process.

        Args:
            embedding: (N, D, H, W), any floating dtype.
            labels: int64 (N, H, W), at the embedding's size.

        Raises:
            ValueError: for another width or size.
        """
        images, channels, *size = embedding.shape
        if channels != self.channels:
            raise ValueError(f"MemoryBank: made for embeddings of {self.channels} channels, got {channels}")
        if list(labels.shape) != [images, *size]:
            raise ValueError(f"MemoryBank: labels {list(labels.shape)} are not at the embedding's {[images, *size]}")
        labels = labels.reshape([images, -1])
        labels = paddle.where(labels == ignore_index, paddle.full_like(labels, -1), labels)
        with paddle.no_grad(), paddle.amp.auto_cast(enable=False):
            embedding = embedding.detach()
            self._push("segment", *self._segments(embedding, labels))
            self._push("pixel", *self._pixels(embedding, labels))

    def _segments(self, embedding: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean embedding of each class in each image (N, classes, 1, D), and whether the class is there."""
        member = (labels.unsqueeze(2) == paddle.arange(self.num_classes)).astype("float32")
        summed = paddle.matmul(member, embedding.astype("float32").flatten(2), transpose_x=True, transpose_y=True)
        count = member.sum(axis=1).unsqueeze(2)
        entries = F.normalize(summed / paddle.clip(count, min=1.0), axis=2)
        return entries.unsqueeze(2), (count > 0)

    def _pixels(self, embedding: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Random pixels of each class in each image (N, classes, K, D), and which of the K there are."""
        index, present = draw_per_class(labels, self.num_classes, self.pixel_update_freq, ignore_index=-1)
        entries = F.normalize(gather_pixels(embedding, index.flatten()), axis=1)
        shape = [labels.shape[0], self.num_classes, self.pixel_update_freq]
        return entries.reshape([*shape, self.channels]), present.reshape(shape)

    def _push(self, part: str, entries: Tensor, present: Tensor) -> None:
        """Write entries (images, classes, K, D) where ``present``, oldest first, after the newest of each class."""
        # What is not finite, as a step of mixed precision that is skipped may give, would stay and spoil every loss.
        present = paddle.logical_and(present, paddle.isfinite(entries).all(axis=-1))
        entries, present = _from_all_processes(entries), _from_all_processes(present.astype("int32"))
        there = present.numpy().astype(bool)
        pointer, count = (getattr(self, f"{part}_{name}").numpy() for name in ("pointer", "count"))
        source, classes, slots = [], [], []
        numbers = np.arange(there.size).reshape(there.shape)
        for label in range(self.num_classes):
            new = numbers[:, label][there[:, label]]
            # More than fit: the first of them would be overwritten by the last.
            kept = new[-self.memory_size :]
            source.append(kept)
            classes.append(np.full(kept.size, label))
            slots.append((pointer[label] + np.arange(new.size)[new.size - kept.size :]) % self.memory_size)
            pointer[label] = (pointer[label] + new.size) % self.memory_size
            count[label] = min(count[label] + new.size, self.memory_size)
        source, classes, slots = (np.concatenate(part) for part in (source, classes, slots))
        if source.size == 0:
            return
        rows = paddle.gather(entries.reshape([-1, self.channels]), paddle.to_tensor(source))
        queue = getattr(self, f"{part}_queue")
        paddle.index_put_(queue, (paddle.to_tensor(classes), paddle.to_tensor(slots)), rows)
        getattr(self, f"{part}_pointer").set_value(pointer)
        getattr(self, f"{part}_count").set_value(count)


def _from_all_processes(value: Tensor) -> Tensor:
    """The values of every process, one after the other along the first axis."""
    if paddle.distributed.get_world_size() == 1:
        return value
    parts: list[Tensor] = []
    paddle.distributed.all_gather(parts, value)
    return paddle.concat(parts)
