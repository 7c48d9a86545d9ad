"""Scores against scikit-learn and a plain float64 computation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from paddle_vheat.tasks.segmentation.evaluator import SegmentationScores, confusion_matrix
from tests.conftest import paddle  # noqa: F401  (Paddle is loaded before scikit-learn, which it cannot follow)

IGNORE = 255
# float64 sums of at most a few thousand whole numbers, then a handful of divisions.
EXACT = 1e-12


def random_maps(seed: int, num_classes: int = 6, shape: tuple[int, ...] = (37, 53), classes: list[int] | None = None):
    """Label (with 255) and prediction that agree in about half of the pixels."""
    rng = np.random.default_rng(seed)
    choices = np.array(classes if classes is not None else range(num_classes))
    label = rng.choice(choices, shape)
    prediction = np.where(rng.random(shape) < 0.5, label, rng.choice(choices, shape))
    label = np.where(rng.random(shape) < 0.1, IGNORE, label)
    return label.astype(np.uint8), prediction.astype(np.int64)


def plain_scores(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> dict:
    """The definitions, pixel set by pixel set."""
    kept = label != IGNORE
    label, prediction = label[kept], prediction[kept]
    iou, dice, precision, recall, share = [], [], [], [], []
    for c in range(num_classes):
        a, b = label == c, prediction == c
        both, either = np.float64((a & b).sum()), np.float64((a | b).sum())
        iou.append(both / either if either else np.nan)
        dice.append(2 * both / (a.sum() + b.sum()) if either else np.nan)
        precision.append(both / b.sum() if b.sum() else np.nan)
        recall.append(both / a.sum() if a.sum() else np.nan)
        share.append(a.sum() / a.size)
    return {
        "miou": np.nanmean(iou),
        "mdice": np.nanmean(dice),
        "accuracy": (label == prediction).mean(),
        "class_iou": np.array(iou),
        "class_precision": np.array(precision),
        "class_recall": np.array(recall),
        "class_share": np.array(share),
    }


@pytest.mark.parametrize("seed", range(4))
def test_confusion_matrix_equals_sklearn(seed):
    from sklearn.metrics import confusion_matrix as reference

    label, prediction = random_maps(seed)
    kept = label != IGNORE
    expected = reference(label[kept], prediction[kept], labels=range(6))
    ours = confusion_matrix(label, prediction, 6, IGNORE)
    assert ours.dtype == np.int64
    np.testing.assert_array_equal(ours, expected)


def test_rows_are_labels_and_columns_predictions():
    matrix = confusion_matrix(np.array([0, 0, 0]), np.array([2, 2, 1]), 3, IGNORE)
    np.testing.assert_array_equal(matrix, [[0, 1, 2], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_sklearn(seed):
    from sklearn import metrics

    label, prediction = random_maps(seed)
    kept = label != IGNORE
    truth, guess = label[kept], prediction[kept]
    scores = SegmentationScores.of(confusion_matrix(label, prediction, 6, IGNORE))
    assert scores.miou == pytest.approx(metrics.jaccard_score(truth, guess, average="macro"), abs=EXACT)
    assert scores.mdice == pytest.approx(metrics.f1_score(truth, guess, average="macro"), abs=EXACT)
    assert scores.accuracy == pytest.approx(metrics.accuracy_score(truth, guess), abs=EXACT)
    assert scores.kappa == pytest.approx(metrics.cohen_kappa_score(truth, guess), abs=EXACT)
    np.testing.assert_allclose(scores.class_iou, metrics.jaccard_score(truth, guess, average=None), atol=EXACT)
    np.testing.assert_allclose(scores.class_precision, metrics.precision_score(truth, guess, average=None), atol=EXACT)
    np.testing.assert_allclose(scores.class_recall, metrics.recall_score(truth, guess, average=None), atol=EXACT)


@pytest.mark.parametrize("classes", [None, [0, 2, 5], [3]])
def test_scores_equal_the_definitions(classes):
    label, prediction = random_maps(11, classes=classes)
    scores = SegmentationScores.of(confusion_matrix(label, prediction, 6, IGNORE))
    for name, expected in plain_scores(label, prediction, 6).items():
        np.testing.assert_allclose(getattr(scores, name), expected, atol=EXACT, err_msg=name)


def test_matrices_add_up_to_the_scores_of_all_pixels():
    maps = [random_maps(seed) for seed in range(3)]
    total = sum(confusion_matrix(label, prediction, 6, IGNORE) for label, prediction in maps)
    label, prediction = (np.concatenate(part) for part in zip(*maps))
    np.testing.assert_array_equal(total, confusion_matrix(label, prediction, 6, IGNORE))


def test_a_class_in_neither_label_nor_prediction_does_not_count():
    label, prediction = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0])
    scores = SegmentationScores.of(confusion_matrix(label, prediction, 4, IGNORE))
    np.testing.assert_allclose(scores.class_iou, [2 / 3, 1 / 2, np.nan, np.nan], atol=EXACT)
    assert scores.miou == pytest.approx(7 / 12, abs=EXACT)
    report = scores.as_dict(["a", "b", "c", "d"])
    assert [entry["iou"] for entry in report["classes"]] == [0.666667, 0.5, None, None]
    assert "2 of 4 classes occur in no label and no prediction" in scores.table(["a", "b", "c", "d"])


def test_a_class_that_is_only_predicted_counts_as_zero():
    scores = SegmentationScores.of(confusion_matrix(np.array([0, 0]), np.array([0, 2]), 3, IGNORE))
    np.testing.assert_allclose(scores.class_iou, [0.5, np.nan, 0.0], atol=EXACT)
    assert scores.miou == pytest.approx(0.25, abs=EXACT)
    assert np.isnan(scores.class_recall[2])
    assert scores.class_precision[2] == 0


def test_one_class_alone_has_no_kappa():
    scores = SegmentationScores.of(confusion_matrix(np.zeros(4, int), np.zeros(4, int), 2, IGNORE))
    assert scores.accuracy == 1
    assert np.isnan(scores.kappa)
    assert scores.as_dict(["a", "b"])["Kappa"] is None


def test_everything_ignored():
    label = np.full((4, 5), IGNORE, np.uint8)
    matrix = confusion_matrix(label, np.zeros((4, 5), int), 3, IGNORE)
    assert matrix.sum() == 0
    scores = SegmentationScores.of(matrix)
    for name in ("miou", "accuracy", "kappa", "mdice"):
        assert np.isnan(getattr(scores, name)), name
    report = scores.as_dict(["a", "b", "c"])
    assert report["mIoU"] is None
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert "nan" in scores.table(["a", "b", "c"])


@pytest.mark.parametrize(("value", "dtype"), [(3, np.uint8), (254, np.uint8), (-1, np.int64), (1000, np.int64)])
def test_label_out_of_range(value, dtype):
    label = np.array([[0, value], [1, IGNORE]], dtype)
    with pytest.raises(ValueError, match=rf"label value {value} is outside 0 to 2 and is not 255 \(ignored\)"):
        confusion_matrix(label, np.zeros((2, 2), int), 3, IGNORE)


@pytest.mark.parametrize("value", [-1, 3, 300])
def test_prediction_out_of_range(value):
    with pytest.raises(ValueError, match=rf"prediction {value} is outside 0 to 2"):
        confusion_matrix(np.array([0, 1]), np.array([0, value]), 3, IGNORE)


def test_another_ignored_value():
    matrix = confusion_matrix(np.array([0, 1, 2]), np.array([0, 1, 1]), 3, ignore=2)
    np.testing.assert_array_equal(matrix, [[1, 0, 0], [0, 1, 0], [0, 0, 0]])


def test_shapes_differ():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\) differ in shape"):
        confusion_matrix(np.zeros((2, 3), int), np.zeros((3, 2), int), 2, IGNORE)


def test_table_has_a_row_for_every_class():
    label, prediction = random_maps(1)
    scores = SegmentationScores.of(confusion_matrix(label, prediction, 6, IGNORE))
    names = ["road", "a very long name of a class", "c", "d", "e", "f"]
    lines = scores.table(names).splitlines()
    assert [line[:27].strip() for line in lines[1:7]] == names
    for i, line in enumerate(lines[1:7]):
        assert line[27:].split()[0] == f"{100 * scores.class_iou[i]:.2f}"
    assert lines[7].startswith(f"mIoU {100 * scores.miou:.2f}  accuracy {100 * scores.accuracy:.2f}")
