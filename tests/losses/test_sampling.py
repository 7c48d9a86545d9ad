"""What the sampler promises: who takes part, how many hard and easy pixels, no repeats, uniform draws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from paddle_vheat.losses.sampling import gather_pixels, group_pixels, resize_labels, sample_anchors
from tests.conftest import golden, paddle

CLASSES = 4


def draw(labels, predictions, max_samples=64, max_views=6, ignore_index=255, classes=CLASSES):
    """Sampled pixels as [(image, class, [positions])], in the order of their slots."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    grouped = group_pixels(paddle.to_tensor(labels), paddle.to_tensor(predictions), classes, ignore_index)
    samples = sample_anchors(grouped, classes, max_samples, max_views)
    index, label, valid = (getattr(samples, name).numpy() for name in ("index", "label", "valid"))
    assert index.min() >= 0
    assert index.max() < labels.size
    found: dict[tuple[int, int], list[int]] = {}
    for i, c in zip(index[valid], label[valid]):
        image, position = divmod(int(i), labels.shape[1])
        assert labels[image, position] == c
        found.setdefault((image, int(c)), []).append(position)
    return found


def batch(counts, rng, pixels=200):
    """Labels and predictions with, per image, {class: (hard, easy)} pixels in random places; the rest is ignored."""
    labels = np.full((len(counts), pixels), 255, np.int64)
    predictions = rng.integers(0, CLASSES, labels.shape)
    for image, classes in enumerate(counts):
        places = iter(rng.permutation(pixels))
        for c, (hard, easy) in classes.items():
            for kind, number in (("hard", hard), ("easy", easy)):
                for _ in range(number):
                    place = next(places)
                    labels[image, place] = c
                    predictions[image, place] = c if kind == "easy" else (c + 1) % CLASSES
    return labels, predictions


@pytest.mark.parametrize(
    ("hard", "easy", "views", "expected"),
    [
        (20, 20, 6, (3, 3)),  # half each
        (20, 20, 5, (2, 3)),  # an odd one is easy
        (1, 20, 6, (1, 5)),  # easy ones fill up
        (20, 2, 6, (4, 2)),  # hard ones fill up
        (0, 20, 6, (0, 6)),
        (20, 0, 6, (6, 0)),
        (3, 4, 6, (3, 3)),  # just enough of both
        (2, 5, 6, (2, 4)),
        (5, 2, 5, (3, 2)),
        (20, 20, 1, (0, 1)),
    ],
)
def test_hard_and_easy(hard, easy, views, expected):
    labels, predictions = batch([{1: (hard, easy)}], np.random.default_rng(0))
    (places,) = draw(labels, predictions, max_views=views).values()
    is_hard = [predictions[0, place] != 1 for place in places]
    assert (sum(is_hard), len(places) - sum(is_hard)) == expected
    assert len(set(places)) == len(places)


def test_the_rule_at_every_count():
    """Against the rule in words: half each, and where one kind is short the other fills up."""
    rng = np.random.default_rng(1)
    for hard in range(9):
        for easy in range(max(0, 6 - hard), 9):  # more than max_views pixels
            labels, predictions = batch([{0: (hard, easy)}], rng)
            for views in (4, 5):
                (places,) = draw(labels, predictions, max_samples=views, max_views=5).values()
                found = sum(predictions[0, place] != 0 for place in places)
                wanted = views // 2
                if easy < views - wanted:
                    wanted = views - easy
                wanted = min(wanted, hard)
                assert (len(places), found) == (views, wanted), (hard, easy, views)


def test_which_classes_take_part():
    """More than max_views pixels of the class in the image, not just as many; class 0 like any other."""
    counts = [{0: (3, 4), 1: (3, 3), 3: (0, 7)}, {2: (10, 10), 0: (0, 6)}]
    labels, predictions = batch(counts, np.random.default_rng(2))
    found = draw(labels, predictions, max_views=6)
    assert set(found) == {(0, 0), (0, 3), (1, 2)}
    assert {len(places) for places in found.values()} == {6}


def test_ignored_pixels_never_take_part():
    labels, predictions = batch([{1: (0, 50)}], np.random.default_rng(3))
    labels[labels == 255] = -1
    predictions[:] = 1
    for seed in range(20):
        paddle.seed(seed)
        found = draw(labels, predictions, ignore_index=-1)
        assert set(found) == {(0, 1)}


def test_samples_are_shared_out():
    labels, predictions = batch([{0: (9, 9), 1: (9, 9), 2: (9, 9)}] * 2, np.random.default_rng(4))
    assert {len(places) for places in draw(labels, predictions, max_samples=20).values()} == {3}  # 20 // 6
    found = draw(labels, predictions, max_samples=600)
    assert {len(places) for places in found.values()} == {6}  # max_views


def test_more_pairs_than_samples_gives_each_one_view():
    """The published code computes 0 views here and fails."""
    labels, predictions = batch([{0: (9, 9), 1: (9, 9), 2: (9, 9)}] * 3, np.random.default_rng(5))
    found = draw(labels, predictions, max_samples=4)
    assert len(found) == 9
    assert {len(places) for places in found.values()} == {1}


def test_nothing_to_sample():
    nothing = np.full((2, 50), 255)
    assert draw(nothing, nothing) == {}
    few, predictions = batch([{0: (2, 2)}, {1: (3, 3)}], np.random.default_rng(6))
    assert draw(few, predictions, max_views=6) == {}


def test_draws_follow_the_seed():
    labels, predictions = batch([{0: (30, 30), 1: (40, 40)}], np.random.default_rng(7))
    paddle.seed(5)
    first = draw(labels, predictions)
    paddle.seed(5)
    assert draw(labels, predictions) == first
    paddle.seed(6)
    assert draw(labels, predictions) != first


def test_draws_are_uniform():
    """Chi-square of how often each pixel is drawn, for hard and easy ones, at a level of 1e-4.

    Draws without replacement vary less between pixels than the statistic assumes (by 1 - views/pixels), which is
    put right below.
    """
    labels, predictions = batch([{2: (15, 25)}, {1: (12, 8)}], np.random.default_rng(8))
    repeats, views = 1500, 6
    times = np.zeros(labels.shape)
    for seed in range(repeats):
        paddle.seed(seed)
        for (image, _), places in draw(labels, predictions, max_views=views).items():
            times[image, places] += 1
    for image, label in ((0, 2), (1, 1)):
        for kind in (True, False):
            pixels = (labels[image] == label) & ((predictions[image] != label) == kind)
            n, drawn = pixels.sum(), views // 2
            assert times[image, pixels].sum() == repeats * drawn
            statistic = ((times[image, pixels] - repeats * drawn / n) ** 2).sum() / (repeats * drawn / n)
            statistic *= (n - 1) / (n - drawn)
            assert 1e-4 < stats.chi2.sf(statistic, n - 1) < 1 - 1e-4


# --- labels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ignore255", "mixed", "nohard"])
def test_labels_at_the_embeddings_size(name):
    data = golden(f"full_{name}")
    resized = resize_labels(paddle.to_tensor(data["labels"]), 24, 32)
    assert resized.dtype == paddle.int64
    assert np.array_equal(resized.numpy(), data["labels_small"])


@pytest.mark.parametrize("size", [(24, 32), (25, 31), (96, 128), (7, 128)])
def test_nearest_neighbour(size):
    labels = np.random.default_rng(0).integers(0, 19, (2, 96, 128))
    rows, columns = (np.floor(np.arange(new) * old / new).astype(int) for new, old in zip(size, (96, 128)))
    expected = labels[:, rows][:, :, columns]
    for dtype in ("uint8", "int32", "int64"):
        for shape in ((2, 96, 128), (2, 1, 96, 128)):
            given = paddle.to_tensor(labels.astype(dtype).reshape(shape))
            assert np.array_equal(resize_labels(given, *size).numpy(), expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [(np.zeros((2, 3, 4, 4), int), r"\[2, 3, 4, 4\]"), (np.zeros((4, 4), int), r"\[4, 4\]"),
     (np.zeros((2, 4, 4), np.float32), "float32")],
)  # fmt: skip
def test_labels_of_another_kind(labels, message):
    with pytest.raises(ValueError, match=message):
        resize_labels(paddle.to_tensor(labels), 2, 2)


# --- gathering --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_gathered_pixels_and_their_gradient(dtype):
    rng = np.random.default_rng(9)
    embedding = paddle.to_tensor(rng.standard_normal((2, 3, 4, 5)).astype(np.float32)).astype(dtype)
    embedding.stop_gradient = False
    index = paddle.to_tensor([0, 39, 20, 7, 7])
    rows = gather_pixels(embedding, index)
    assert rows.dtype == paddle.float32
    flat = embedding.astype("float32").numpy().transpose(0, 2, 3, 1).reshape(-1, 3)
    assert np.array_equal(rows.numpy(), flat[index.numpy()])
    weights = rng.standard_normal((5, 3)).astype(np.float32)
    (rows * paddle.to_tensor(weights)).sum().backward()
    expected = np.zeros_like(flat)
    np.add.at(expected, index.numpy(), weights)
    found = embedding.grad.astype("float32").numpy().transpose(0, 2, 3, 1).reshape(-1, 3)
    assert np.abs(found - expected).max() <= {"float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
