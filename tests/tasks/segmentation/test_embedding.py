"""The report on pixel features: similarities against all pairs one by one, and what the command writes."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from paddle_vheat.tasks.segmentation.embedding import Embeddings, collect, cosine_similarities, draw_picture, project
from paddle_vheat.weights.loading import save_weights
from tests.conftest import paddle
from tests.engine import tiny


def unit(rng, *shape):
    rows = rng.standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_similarities_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    rows, labels = unit(rng, 30, 6), rng.integers(0, 4, 30)
    labels[labels == 2] = 3  # class 2 is absent
    labels[0] = 4  # and class 4 has one pixel
    labels[1:][labels[1:] == 4] = 0
    found = cosine_similarities(Embeddings(rows, labels), 5)
    pairs: dict[tuple[int, int], list[float]] = {}
    for i, j in itertools.combinations(range(30), 2):
        pairs.setdefault(tuple(sorted((labels[i], labels[j]))), []).append(float(rows[i] @ rows[j]))
    means = {pair: np.mean(values) for pair, values in pairs.items()}
    for label in range(5):
        if (label, label) in means:
            assert found.per_class[label] == pytest.approx(means[label, label], abs=1e-6)
        else:
            assert np.isnan(found.per_class[label])
    others = {label: [m for pair, m in means.items() if label in pair and pair[0] != pair[1]] for label in range(5)}
    for label in (0, 1, 3, 4):
        assert found.nearest[label] == pytest.approx(max(others[label]), abs=1e-6)
    assert np.isnan(found.nearest[2])
    assert found.intra == pytest.approx(np.mean([m for (a, b), m in means.items() if a == b]), abs=1e-6)
    assert found.inter == pytest.approx(np.mean([m for (a, b), m in means.items() if a != b]), abs=1e-6)


def test_classes_that_are_apart():
    """Two classes at a right angle: 1 within, 0 between."""
    rows = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0)
    found = cosine_similarities(Embeddings(rows, np.repeat([0, 1], 5)), 2)
    assert (found.intra, found.inter) == (1.0, 0.0)


def test_too_few_samples():
    with pytest.raises(ValueError, match="two classes with two samples"):
        cosine_similarities(Embeddings(np.eye(3, dtype=np.float32), np.array([0, 0, 1])), 2)


class Painter(paddle.nn.Layer):
    """Features that are known: the image itself, at a quarter of the size; the projection turns the channels round."""

    class Head(paddle.nn.Layer):
        def forward(self, x):
            return x.flip(1)

    def __init__(self, projection=True):
        super().__init__()
        if projection:
            self.proj_head = self.Head()

    def forward_features(self, x):
        return x[:, :, ::4, ::4]


@pytest.mark.parametrize("projection", [False, True])
def test_what_is_collected(cityscapes, projection):
    """Up to five pixels of each class and image, with the label and the feature of that place."""
    dataset = tiny.make_task(tiny.cityscapes_config(cityscapes)).dataset("val")
    found = collect(Painter(projection), dataset, 19, pixels=5, seed=1)
    assert list(found) == ["decoder features", "projection"][: 1 + projection]
    expected: set[tuple] = set()
    total = 0
    for i in range(len(dataset)):
        item = dataset[i]
        features = item["img"][:, ::4, ::4].reshape(3, -1).T
        features = features / np.linalg.norm(features, axis=1, keepdims=True)
        label = np.asarray(item["label"]).reshape(item["img"].shape[1:])[::4, ::4].reshape(-1)
        total += sum(min(5, (label == c).sum()) for c in range(19))
        expected |= {(int(c), *np.round(f, 4).tolist()) for c, f in zip(label, features)}
    samples = found["decoder features"]
    assert len(samples.rows) == total
    rows = {(int(c), *np.round(f, 4).tolist()) for c, f in zip(samples.labels, samples.rows)}
    # Rounding may fall the other way for a few.
    assert len(rows - expected) <= 0.02 * len(rows)
    if projection:
        assert np.abs(found["projection"].rows - samples.rows[:, ::-1]).max() < 1e-6


def test_the_seed_decides_which(cityscapes):
    dataset = tiny.make_task(tiny.cityscapes_config(cityscapes)).dataset("val")
    rows = [collect(Painter(False), dataset, 19, pixels=2, seed=s)["decoder features"].rows for s in (1, 1, 2)]
    assert np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])


def test_a_model_of_another_kind(cityscapes):
    dataset = tiny.make_task(tiny.cityscapes_config(cityscapes)).dataset("val")
    with pytest.raises(ValueError, match="Conv2D does not say which"):
        collect(paddle.nn.Conv2D(3, 3, 1), dataset, 19)


def test_pca_keeps_the_two_widest_directions():
    rng = np.random.default_rng(2)
    rows = (rng.standard_normal((200, 5)) * [3.0, 0.1, 2.0, 0.1, 0.1]).astype(np.float32)
    flat = project(Embeddings(rows, np.zeros(200, int)), "pca").rows
    centred = rows - rows.mean(axis=0)
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(centred.T)))[::-1]
    assert np.var(flat, axis=0, ddof=1) == pytest.approx(eigenvalues[:2], rel=1e-4)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_projection_keeps_clusters_apart(method):
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1, 2], 40)
    rows = np.eye(6, dtype=np.float32)[labels] + 0.05 * rng.standard_normal((120, 6)).astype(np.float32)
    flat = project(Embeddings(rows, labels), method, limit=90)
    assert flat.rows.shape == (90, 2)
    centres = np.stack([flat.rows[flat.labels == c].mean(axis=0) for c in range(3)])
    nearest = np.linalg.norm(flat.rows[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == flat.labels).all()


def test_the_picture_has_the_colours_of_the_classes(tmp_path):
    palette = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
    points = Embeddings(np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([0, 1]))
    draw_picture(tmp_path / "picture.png", {"left": points, "right": points}, ["a", "b"], palette)
    pixels = np.array(Image.open(tmp_path / "picture.png").convert("RGB")).reshape(-1, 3)
    for colour in palette:
        assert (pixels == colour).all(axis=1).sum() > 10


def test_the_command(cityscapes, tmp_path):
    config = tiny.contrast_config(cityscapes)
    save_weights(tiny.make_task(config).model, tmp_path / "model.pdparams")
    path = tiny.write_config(tmp_path / "contrast.yml", config)
    command = ["tools/embedding_report.py", "--config", path, "--model_path", tmp_path, "--save_dir", tmp_path / "out"]
    result = tiny.run([*command, "--method", "pca", "--pixels", 4])
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "similarity.json").read_text(encoding="utf-8"))
    for kind in ("decoder features", "projection"):
        assert -1 <= report[kind]["inter_class"] <= report[kind]["intra_class"] <= 1
        assert f"{kind}: {report[kind]['pixels']} pixels" in result.stdout
    assert Image.open(tmp_path / "out" / "embedding.png").width > 1000
    wrong = tiny.run([*command, "--pixels", 1])
    assert (wrong.returncode, wrong.stderr.strip()) == (2, "error: --pixels must be at least 2, got 1")
