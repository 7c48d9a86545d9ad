"""Which pixels take part in the pixel contrast: class by class, half of them hard.

Paper: "Exploring Cross-Image Pixel Contrast for Semantic Segmentation", Wang et al., ICCV 2021,
arXiv 2101.11939, section 3.3 ("semi-hard" sampling of anchors).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from paddle_vheat._paddle import paddle

Tensor = Any


def resize_labels(labels: Tensor, height: int, width: int) -> Tensor:
    """Labels at the size of an embedding, by nearest neighbour: int64 (N, height, width).

    Args:
        labels: integers (N, H, W) or (N, 1, H, W), of any integer dtype.

    Raises:
        ValueError: for another shape or a dtype that is no integer.
    """
    if labels.ndim == 4 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    if labels.ndim != 3:
        raise ValueError(f"labels must be (N, H, W) or (N, 1, H, W), got {list(labels.shape)}")
    if labels.dtype not in (paddle.uint8, paddle.int8, paddle.int16, paddle.int32, paddle.int64):
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    labels = labels.astype("int64")
    for axis, size in ((1, height), (2, width)):
        full = labels.shape[axis]
        if full != size:
            labels = paddle.index_select(labels, paddle.arange(size) * full // size, axis=axis)
    return labels


def check_labels(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    """Raise a ValueError for labels that are neither a class nor ``ignore_index``.

    On the CPU only: elsewhere it would wait for all that is queued. There such labels take no part, and cross
    entropy's own check stops at them.
    """
    if not paddle.in_dynamic_mode() or not labels.place.is_cpu_place():
        return
    wrong = paddle.logical_and(labels != ignore_index, paddle.logical_or(labels < 0, labels >= num_classes))
    if bool(wrong.any()):
        value = int(paddle.masked_select(labels, wrong)[0])
        raise ValueError(f"label {value} is outside 0 to {num_classes - 1} and is not {ignore_index} (ignored)")


class GroupedPixels(NamedTuple):
    """The pixels of a batch in groups, each in random order.

    There is a group for every image, class and kind: group ``2 * (image * num_classes + class)`` holds the hard
    pixels (wrongly predicted), the one after it the easy ones. Pixels that are ignored, or whose label is
    invalid, come last and are in no group.

    Attributes:
        order: int64 (N * P,), positions in the flattened batch, group after group.
        starts: int64 (2 * N * num_classes + 1,), where in ``order`` each group begins, and the last one's end.
    """

    order: Tensor
    starts: Tensor


def group_pixels(labels: Tensor, predictions: Tensor, num_classes: int, ignore_index: int) -> GroupedPixels:
    """Sort the pixels of a batch by image, class and kind, in random order within a group.

    One sort for the whole batch, whatever the number of images and classes, and nothing is read on the host.

    Args:
        labels, predictions: int64 (N, P).
    """
    images, pixels = labels.shape
    total = images * pixels
    image = paddle.arange(images).unsqueeze(1)
    easy = (labels == predictions).astype("int64")
    group = 2 * (image * num_classes + labels) + easy
    groups = 2 * images * num_classes
    outside = paddle.logical_or(labels < 0, labels >= num_classes)
    outside = paddle.logical_or(outside, labels == ignore_index)
    group = paddle.where(outside, paddle.full_like(group, groups), group).flatten()
    # A random number of its own makes every key unique, so the order is uniform in each group without relying on
    # a stable sort.
    keys = group * total + paddle.randperm(total)
    order = paddle.argsort(keys)
    starts = paddle.searchsorted(paddle.gather(keys, order), paddle.arange(groups + 1) * total)
    return GroupedPixels(order, starts)


def draw_per_class(labels: Tensor, num_classes: int, count: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Up to ``count`` random pixels of every class of every image.

    Args:
        labels: int64 (N, P).

    Returns:
        int64 (N * num_classes, count), positions in the flattened batch, and bool of the same shape: which are there.
    """
    # With all of them rightly predicted, a class is one group in random order.
    grouped = group_pixels(labels, labels, num_classes, ignore_index)
    starts = grouped.starts[:-1].reshape([-1, 2])[:, :1]
    ends = paddle.concat([starts[1:], grouped.starts[-1:].unsqueeze(1)])
    place = starts + paddle.arange(count).unsqueeze(0)
    last = grouped.order.shape[0] - 1
    index = paddle.gather(grouped.order, paddle.clip(place.flatten(), max=last))
    return index.reshape(place.shape), place < ends


class Samples(NamedTuple):
    """Sampled pixels. The number of slots depends on shapes only; those that are not filled are not valid.

    Attributes:
        index: int64 (S,), position in the flattened batch (N * P).
        label: int64 (S,), class.
        valid: bool (S,).
    """

    index: Tensor
    label: Tensor
    valid: Tensor


def sample_anchors(pixels: GroupedPixels, num_classes: int, max_samples: int, max_views: int) -> Samples:
    """Sample the same number of pixels of every class that an image has enough of.

    A class of an image takes part if more than ``max_views`` pixels are labelled so. With T such pairs, each
    gives ``min(max_samples // T, max_views)`` pixels, but at least one: half hard, half easy (an odd one is
    easy), and where one kind is short the other fills up. Draws are uniform, without replacement.
    """
    starts = pixels.starts
    counts = (starts[1:] - starts[:-1]).reshape([-1, 2])
    hard, easy = counts[:, 0], counts[:, 1]
    takes_part = (hard + easy > max_views).astype("int64")
    passed = paddle.cumsum(takes_part)  # how many pairs take part up to here
    pairs = passed[-1:]
    # Paddle 2.6 does not divide a number by a tensor without remainder.
    affordable = paddle.full_like(pairs, max_samples) // paddle.clip(pairs, min=1)
    views = paddle.clip(affordable, min=1, max=max_views)
    kept_hard = paddle.minimum(paddle.maximum(views // 2, views - easy), hard)

    # As many as could be filled: a pair gives max_views at most, and one at least.
    slot = paddle.arange(max(min(max_samples, counts.shape[0] * max_views), counts.shape[0]))
    number, view = slot // views, slot % views
    valid = number < pairs
    # The pair of a slot: the first at which so many have passed.
    pair = paddle.clip(paddle.searchsorted(passed, number + 1), max=counts.shape[0] - 1)
    own_hard, from_hard = paddle.gather(hard, pair), paddle.gather(kept_hard, pair)
    place = paddle.where(view < from_hard, view, own_hard + view - from_hard)
    place = paddle.gather(starts, 2 * pair) + place
    index = paddle.gather(pixels.order, paddle.clip(place, max=pixels.order.shape[0] - 1))
    return Samples(index, pair % num_classes, valid)


def gather_pixels(embedding: Tensor, index: Tensor) -> Tensor:
    """Columns of an embedding (N, D, H, W) at positions in N * H * W, float32 (S, D).

    Reads and, going back, writes the sampled values only; an embedding of a Cityscapes batch is 190 MB, which a
    transposition to channels-last would copy.
    """
    if embedding.dtype != paddle.float32 and embedding.place.is_cpu_place():
        embedding = embedding.astype("float32")  # Paddle's CPU gathers no half precision
    _, channels, height, width = embedding.shape
    size = height * width
    first = index // size * (channels * size) + index % size
    flat = first.unsqueeze(1) + paddle.arange(channels).unsqueeze(0) * size
    # Of Paddle's four ways to gather, the one with the fastest way back.
    values = paddle.take_along_axis(embedding.reshape([-1]), flat.flatten(), 0)
    return values.reshape([-1, channels]).astype("float32")
