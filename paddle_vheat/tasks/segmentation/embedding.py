"""How well the classes are apart in a segmentor's features: cosine similarities, and a picture.

The figure is that of arXiv 2101.11939 (figure 1): embeddings of pixels, coloured by class.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from paddle_vheat._paddle import F, paddle
from paddle_vheat.engine.evaluate import evaluating
from paddle_vheat.engine.loader import load_batches
from paddle_vheat.losses.sampling import draw_per_class, gather_pixels, resize_labels


class Embeddings(NamedTuple):
    """Features of sampled pixels.

    Attributes:
        rows: float32 (M, D), each of length 1.
        labels: int64 (M,).
    """

    rows: np.ndarray
    labels: np.ndarray


class Similarities(NamedTuple):
    """Mean cosine similarities, each class and each pair of classes counting the same.

    Attributes:
        intra: of two different pixels of a class.
        inter: of pixels of two classes.
        per_class: (C,) similarity within each class, NaN where it has fewer than two pixels.
        nearest: (C,) similarity to the class that is most similar on average, NaN for an absent class.
    """

    intra: float
    inter: float
    per_class: np.ndarray
    nearest: np.ndarray


def cosine_similarities(embeddings: Embeddings, num_classes: int) -> Similarities:
    """Exact means over all pairs of the samples, from each class' sum of vectors.

    Raises:
        ValueError: if fewer than two classes have two samples.
    """
    member = embeddings.labels[:, None] == np.arange(num_classes)
    counts = member.sum(axis=0).astype(np.float64)
    sums = member.T.astype(np.float64) @ embeddings.rows.astype(np.float64)
    lengths = member.T @ np.square(embeddings.rows.astype(np.float64)).sum(axis=1)
    if (counts > 1).sum() < 2:
        raise ValueError("similarities need at least two classes with two samples")
    with np.errstate(invalid="ignore", divide="ignore"):
        within = (np.square(sums).sum(axis=1) - lengths) / (counts * (counts - 1))
        between = (sums @ sums.T) / np.outer(counts, counts)
    within[counts < 2] = np.nan
    np.fill_diagonal(between, np.nan)
    present = counts > 0
    nearest = np.full(num_classes, np.nan)
    nearest[present] = np.nanmax(between[present][:, present], axis=1)
    return Similarities(float(np.nanmean(within)), float(np.nanmean(between)), within, nearest)


def collect(model: Any, dataset: Any, num_classes: int, pixels: int = 20, seed: int = 0) -> dict[str, Embeddings]:
    """Features of up to ``pixels`` random pixels of every class and image of a validation set.

    Args:
        model: has ``forward_features`` (the map that its pixel classifier reads) and perhaps ``proj_head``.
        dataset: the task's validation set.
        seed: of the pixels that are drawn.

    Returns:
        "decoder features" and, where there is a projection head, "projection".

    Raises:
        ValueError: for a model without ``forward_features``, or images that are padded.
    """
    if not hasattr(model, "forward_features"):
        raise ValueError(
            f"{type(model).__name__} does not say which of its features to look at; UPerNetMMSeg, UPerNetContrast and "
            "PixelContrastSegmentor do (forward_features)"
        )
    kinds = ["decoder features"] + (["projection"] if hasattr(model, "proj_head") else [])
    rows: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
    labels: list[np.ndarray] = []
    loader = load_batches(dataset, [[i] for i in range(len(dataset))])
    paddle.seed(seed)
    with evaluating(model):
        for batch in tqdm(loader, total=len(dataset), desc="embedding", unit="img", disable=None):
            image, label = batch["img"], batch["label"]
            if any(step[0] == "padding" for step in batch["meta"][0]["undo"]):
                raise ValueError("the validation transforms pad the images, and the report would take that for pixels")
            features = model.forward_features(image)
            small = resize_labels(label, *features.shape[2:]).flatten(1)
            drawn = draw_per_class(small, num_classes, pixels, dataset.dataset.ignore_index)
            index, present = (found.numpy() for found in drawn)
            labels.append(np.nonzero(present)[0])
            chosen = paddle.to_tensor(index[present])
            for kind in kinds:
                found = model.proj_head(features) if kind == "projection" else features
                rows[kind].append(F.normalize(gather_pixels(found, chosen), axis=1).numpy())
    found_labels = np.concatenate(labels)
    return {kind: Embeddings(np.concatenate(parts), found_labels) for kind, parts in rows.items()}


def project(embeddings: Embeddings, method: str = "pca", limit: int = 3000, seed: int = 0) -> Embeddings:
    """The samples in the plane (M, 2), at most ``limit`` of them: by "pca", or by "tsne" (scikit-learn)."""
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(embeddings.rows))[:limit])
    rows, labels = embeddings.rows[chosen], embeddings.labels[chosen]
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(rows) - 1) / 3)
        flat = TSNE(2, perplexity=perplexity, metric="cosine", init="random", random_state=seed).fit_transform(rows)
        return Embeddings(flat.astype(np.float32), labels)
    centred = rows - rows.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    return Embeddings(centred @ directions[:2].T, labels)


def draw_picture(
    path: str | Path, panels: dict[str, Embeddings], class_names: Sequence[str], palette: np.ndarray
) -> None:
    """Scatter plots of projected samples side by side, coloured by class, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(6 * len(panels) + 1.8, 6), squeeze=False)
    present = sorted(set(np.concatenate([panel.labels for panel in panels.values()]).tolist()))
    for axis, (title, panel) in zip(axes[0], panels.items()):
        for label in present:
            points = panel.rows[panel.labels == label]
            axis.scatter(points[:, 0], points[:, 1], s=7, color=palette[label] / 255, label=class_names[label])
        axis.set_title(title)
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2.5, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110, format="png")
    pyplot.close(figure)
