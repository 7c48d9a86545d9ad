"""The memory bank, slot by slot, beside a NumPy bank of lists."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_vheat.losses import MemoryBank, PixelContrastLoss
from tests.conftest import paddle

CLASSES, D = 3, 4
IGNORE = 255


def embedding_of(rng, images=1, height=4, width=5):
    return rng.standard_normal((images, D, height, width)).astype(np.float32)


def push(bank, embedding, labels):
    bank.enqueue(paddle.to_tensor(embedding), paddle.to_tensor(np.asarray(labels, np.int64)), IGNORE)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def pixels_of(embedding, labels, image, label):
    """Embeddings (n, D) of the pixels of a class in an image."""
    return embedding[image].transpose(1, 2, 0)[np.asarray(labels)[image] == label]


def state(bank, part):
    return [getattr(bank, f"{part}_{name}").numpy() for name in ("queue", "pointer", "count")]


def is_pixel_of(row, candidates):
    return np.isclose(unit(candidates), row, atol=1e-6).all(axis=1).any()


def test_a_new_bank_is_empty():
    bank = MemoryBank(CLASSES, D, memory_size=6)
    for part in ("segment", "pixel"):
        queue, pointer, count = state(bank, part)
        assert queue.shape == (CLASSES, 6, D)
        assert not pointer.any()
        assert not count.any()
    anything = paddle.to_tensor([0, 1, 2])
    assert bank.read(anything, paddle.ones([3], dtype="bool")) == []


def test_entries_of_one_image():
    """One mean per class in the segment queue; K pixels of the class itself in the pixel queue; length 1."""
    rng = np.random.default_rng(0)
    embedding = embedding_of(rng)
    labels = np.full((1, 4, 5), IGNORE)
    labels[0, 0] = 0  # class 0 like any other
    labels[0, 1:3] = 2  # class 1 is missing
    bank = MemoryBank(CLASSES, D, memory_size=6, pixel_update_freq=3)
    push(bank, embedding, labels)

    queue, pointer, count = state(bank, "segment")
    assert pointer.tolist() == count.tolist() == [1, 0, 1]
    for label in (0, 2):
        mean = unit(pixels_of(embedding, labels, 0, label).astype(np.float64).mean(axis=0))
        assert np.abs(queue[label, 0] - mean).max() < 1e-6
    assert not queue[1].any()
    assert not queue[:, 1:].any()

    queue, pointer, count = state(bank, "pixel")
    assert pointer.tolist() == count.tolist() == [3, 0, 3]
    for label in (0, 2):
        rows = queue[label, :3]
        assert all(is_pixel_of(row, pixels_of(embedding, labels, 0, label)) for row in rows)
        assert len(np.unique(rows.round(5), axis=0)) == 3  # different pixels
    assert not queue[1].any()
    assert not queue[:, 3:].any()


def test_fewer_pixels_than_asked():
    rng = np.random.default_rng(1)
    embedding, labels = embedding_of(rng), np.full((1, 4, 5), IGNORE)
    labels[0, 0, :2] = 1
    bank = MemoryBank(CLASSES, D, memory_size=6, pixel_update_freq=5)
    push(bank, embedding, labels)
    queue, pointer, count = state(bank, "pixel")
    assert pointer.tolist() == count.tolist() == [0, 2, 0]
    theirs = unit(pixels_of(embedding, labels, 0, 1))
    found = sorted(map(tuple, queue[1, :2].round(5).tolist()))
    assert found == sorted(map(tuple, theirs.round(5).tolist()))


def test_pixels_are_drawn_from_the_whole_class():
    """Every one of the 8 pixels comes about as often: 400 draws of 2, expected 100 each, sd about 9."""
    rng = np.random.default_rng(2)
    embedding, labels = embedding_of(rng), np.full((1, 4, 5), IGNORE)
    labels[0, :, :2] = 1
    rows = unit(pixels_of(embedding, labels, 0, 1))
    bank = MemoryBank(CLASSES, D, memory_size=800, pixel_update_freq=2)
    for _ in range(400):
        push(bank, embedding, labels)
    stored = state(bank, "pixel")[0][1]
    which = np.abs(stored[:, None] - rows[None]).max(axis=2).argmin(axis=1)
    times = np.bincount(which, minlength=8)
    assert times.sum() == 800
    assert abs(times - 100).max() < 45


class ListBank:
    """The same in lists: for each class the slots, in NumPy and one entry at a time."""

    def __init__(self, size):
        self.size = size
        self.slots = {label: [None] * size for label in range(CLASSES)}
        self.pointer = [0] * CLASSES

    def push(self, label, row):
        self.slots[label][self.pointer[label]] = row
        self.pointer[label] = (self.pointer[label] + 1) % self.size


def test_wrap_around_slot_by_slot():
    """The pointer moves on by as many as were written, and the oldest are replaced first."""
    rng = np.random.default_rng(3)
    bank, expected = MemoryBank(CLASSES, D, memory_size=5, pixel_update_freq=2), ListBank(5)
    for step in range(7):
        embedding = embedding_of(rng, images=2)
        labels = rng.integers(0, CLASSES, (2, 4, 5))
        if step % 3 == 1:
            labels[labels == 0] = IGNORE  # a class that is missing at times
        push(bank, embedding, labels)
        for image in range(2):
            for label in range(CLASSES):
                rows = pixels_of(embedding, labels, image, label)
                if len(rows):
                    expected.push(label, unit(rows.astype(np.float64).mean(axis=0)))
        queue, pointer, count = state(bank, "segment")
        assert pointer.tolist() == expected.pointer
        for label in range(CLASSES):
            written = [slot for slot in expected.slots[label] if slot is not None]
            assert count[label] == len(written)
            for slot, row in enumerate(expected.slots[label]):
                if row is not None:
                    assert np.abs(queue[label, slot] - row).max() < 1e-6, (step, label, slot)
    assert count.tolist() == [5, 5, 5]


def test_pixels_wrap_around():
    """Six images of constant class and embedding tell which entry is in which slot."""
    bank = MemoryBank(CLASSES, D, memory_size=5, pixel_update_freq=2)
    expected = ListBank(5)
    for step in range(6):
        row = unit(np.array([1.0, step, -step, 2.0]))
        push(
            bank, np.broadcast_to(3 * row[None, :, None, None], (1, D, 4, 5)).astype(np.float32), np.full((1, 4, 5), 1)
        )
        expected.push(1, row)
        expected.push(1, row)
        queue, pointer, count = state(bank, "pixel")
        assert pointer.tolist() == expected.pointer
        assert count.tolist() == [0, min(2 * step + 2, 5), 0]
        for slot, wanted in enumerate(expected.slots[1]):
            if wanted is not None:
                assert np.abs(queue[1, slot] - wanted).max() < 1e-6, (step, slot)


def test_more_entries_at_once_than_slots():
    """The last ones stay, where they would have come to lie one by one."""
    rows = [unit(np.array([1.0, i, -i, 2.0])) for i in range(7)]
    embedding = np.stack([np.broadcast_to(row[:, None, None], (D, 4, 5)) for row in rows]).astype(np.float32)
    bank, expected = MemoryBank(CLASSES, D, memory_size=3, pixel_update_freq=1), ListBank(3)
    push(bank, embedding, np.full((7, 4, 5), 2))
    for row in rows:
        expected.push(2, row)
    for part in ("segment", "pixel"):
        queue, pointer, count = state(bank, part)
        assert pointer.tolist() == expected.pointer
        assert count.tolist() == [0, 0, 3]
        assert np.abs(queue[2] - np.stack(expected.slots[2])).max() < 1e-6


def test_an_ignored_image_adds_nothing():
    bank = MemoryBank(CLASSES, D, memory_size=5)
    push(bank, embedding_of(np.random.default_rng(4)), np.full((1, 4, 5), IGNORE))
    assert not any(value.any() for part in ("segment", "pixel") for value in state(bank, part))


def test_what_is_read():
    """Only written slots, with the anchors of each class."""
    rng = np.random.default_rng(5)
    bank = MemoryBank(CLASSES, D, memory_size=6, pixel_update_freq=2)
    labels = np.full((1, 4, 5), 2)
    labels[0, 0] = 0
    push(bank, embedding_of(rng), labels)
    found = bank.read(paddle.to_tensor([2, 1, 2, 0]), paddle.to_tensor([True, True, True, False]))
    assert [(rows.label, len(rows.queue)) for rows in found] == [(0, 1), (2, 1), (0, 2), (2, 2)]
    for rows in found:
        part = "segment" if len(rows.queue) == 1 else "pixel"
        assert np.array_equal(rows.queue.numpy(), state(bank, part)[0][rows.label, : len(rows.queue)])
        assert (None if rows.anchors is None else rows.anchors.tolist()) == (None if rows.label == 0 else [0, 2])


@pytest.mark.parametrize("ignored", [0, 1, -1, 255])
def test_ignored_pixels_are_in_neither_queue(ignored):
    """Also where the ignored label is a number that a class could have."""
    rng = np.random.default_rng(9)
    labels = rng.integers(0, CLASSES, (1, 4, 5))
    labels[0, 0] = ignored
    bank = MemoryBank(CLASSES, D, memory_size=6, pixel_update_freq=2)
    bank.enqueue(paddle.to_tensor(embedding_of(rng)), paddle.to_tensor(labels), ignored)
    present = [label != ignored for label in range(CLASSES)]
    assert state(bank, "segment")[2].tolist() == [int(there) for there in present]
    assert state(bank, "pixel")[2].tolist() == [2 * there for there in present]


def test_a_class_of_one_pixel():
    rng = np.random.default_rng(10)
    embedding, labels = embedding_of(rng), np.full((1, 4, 5), IGNORE)
    labels[0, 2, 3] = 1
    bank = MemoryBank(CLASSES, D, memory_size=6, pixel_update_freq=3)
    push(bank, embedding, labels)
    for part in ("segment", "pixel"):
        queue, _, count = state(bank, part)
        assert count.tolist() == [0, 1, 0]
        assert np.abs(queue[1, 0] - unit(embedding[0, :, 2, 3])).max() < 1e-6


def test_what_is_not_finite_is_not_taken():
    rng = np.random.default_rng(11)
    embedding, labels = embedding_of(rng, images=2), np.full((2, 4, 5), 1)
    embedding[0, 0, 0, 0] = np.inf
    bank = MemoryBank(CLASSES, D, memory_size=60, pixel_update_freq=20)
    push(bank, embedding, labels)
    assert state(bank, "segment")[2].tolist() == [0, 1, 0]  # of the second image
    assert state(bank, "pixel")[2].tolist() == [0, 39, 0]
    assert all(np.isfinite(state(bank, part)[0]).all() for part in ("segment", "pixel"))


def test_saved_and_restored():
    rng = np.random.default_rng(6)
    bank = MemoryBank(CLASSES, D, memory_size=5, pixel_update_freq=2)
    push(bank, embedding_of(rng), rng.integers(0, CLASSES, (1, 4, 5)))
    saved = {name: value.numpy().copy() for name, value in bank.state_dict().items()}
    assert set(saved) == {f"{part}_{name}" for part in ("segment", "pixel") for name in ("queue", "pointer", "count")}
    other = MemoryBank(CLASSES, D, memory_size=5, pixel_update_freq=2)
    other.set_state_dict(saved)
    more, labels = embedding_of(rng), rng.integers(0, CLASSES, (1, 4, 5))
    for each in (bank, other):
        paddle.seed(3)
        push(each, more, labels)
    for name, value in bank.state_dict().items():
        assert np.array_equal(value.numpy(), other.state_dict()[name].numpy()), name


def test_another_precision():
    rng = np.random.default_rng(7)
    embedding, labels = embedding_of(rng), rng.integers(0, CLASSES, (1, 4, 5))
    bank, half = (MemoryBank(CLASSES, D, memory_size=5, pixel_update_freq=2) for _ in range(2))
    push(bank, embedding, labels)
    half.enqueue(paddle.to_tensor(embedding).astype("float16"), paddle.to_tensor(labels), IGNORE)
    assert half.segment_queue.dtype == paddle.float32
    assert np.abs(half.segment_queue.numpy() - bank.segment_queue.numpy()).max() < 2e-3


def test_labels_come_at_the_embeddings_stride():
    """Labels of the image's size are brought to the embedding's size, whatever the stride is."""
    rng = np.random.default_rng(8)
    embedding = embedding_of(rng, height=6, width=8)
    small = rng.integers(0, CLASSES, (1, 6, 8))
    for stride in (1, 4):
        loss = PixelContrastLoss(memory_size=5, num_classes=CLASSES, proj_dim=D, max_views=2)
        seg = paddle.to_tensor(rng.standard_normal((1, CLASSES, 6, 8)).astype(np.float32))
        label = small.repeat(stride, axis=1).repeat(stride, axis=2)
        loss({"seg": seg, "embed": paddle.to_tensor(embedding)}, paddle.to_tensor(label))
        for label_of in range(CLASSES):
            mean = unit(pixels_of(embedding, small, 0, label_of).astype(np.float64).mean(axis=0))
            assert np.abs(loss.bank.segment_queue.numpy()[label_of, 0] - mean).max() < 1e-6


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((1, 5, 4, 5), (1, 4, 5), "4 channels, got 5"),
        ((1, 4, 4, 5), (1, 8, 10), r"\[1, 8, 10\] are not at .*\[1, 4, 5\]"),
    ],
)
def test_wrong_sizes(shape, labels, message):
    bank = MemoryBank(CLASSES, D)
    with pytest.raises(ValueError, match=message):
        bank.enqueue(paddle.zeros(shape), paddle.zeros(labels, dtype="int64"))


@pytest.mark.parametrize("name", ["num_classes", "channels", "memory_size", "pixel_update_freq"])
def test_wrong_arguments(name):
    for value in (0, 2.5):
        with pytest.raises(ValueError, match=f"{name} must be .*of at least 1, got {value}"):
            MemoryBank(**{"num_classes": CLASSES, "channels": D, name: value})
