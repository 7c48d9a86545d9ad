"""InfoNCE beside the published code's values, a float64 NumPy version written from the equation, and numeric gradients.

Tolerances: float32 products of D numbers err by some 1e-7 relative, divided by the temperature (0.07) some 1e-6
absolute in the similarities; sums over a few hundred samples keep that. 1e-5 leaves a factor of ten.
"""

from __future__ import annotations

import numpy as np
import pytest

from paddle_vheat.losses import MemoryBank, info_nce
from tests.conftest import golden, paddle, relative_error

TOLERANCE = 1e-5


def run(features, labels, valid=None, **options):
    x = paddle.to_tensor(np.asarray(features, np.float32), stop_gradient=False)
    valid = None if valid is None else paddle.to_tensor(valid)
    loss = info_nce(x, paddle.to_tensor(np.asarray(labels, np.int64)), valid, **options)
    loss.backward()
    return float(loss), x.grad.numpy()


def reference(features, labels, valid, temperature, base, bank=()):
    """The equation, sample by sample, in float64; ``bank`` is (label, row) pairs."""
    features = np.asarray(features, np.float64)
    terms = []
    for i in np.flatnonzero(valid):
        others = [(labels[j], features[j]) for j in np.flatnonzero(valid) if j != i] + list(bank)
        positives = [features[i] @ row / temperature for label, row in others if label == labels[i]]
        negatives = [features[i] @ row / temperature for label, row in others if label != labels[i]]
        if positives:
            top = max(positives + negatives)
            mass = sum(np.exp(n - top) for n in negatives)
            terms.append(-np.mean([p - top - np.log(np.exp(p - top) + mass) for p in positives]))
    return temperature / base * np.mean(terms) if terms else 0.0


def numeric_gradient(function, x, step=1e-5):
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        moved = [x.copy(), x.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        gradient[index] = (function(moved[0]) - function(moved[1])) / (2 * step)
    return gradient


def unit(rng, *shape):
    rows = rng.standard_normal(shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.mark.parametrize("number", [0, 1, 2, 4, 5, 6])
def test_value_and_gradient_of_the_published_code(number):
    data = golden(f"contrastive_{number}")
    views = data["feats"].shape[1]
    options = {"temperature": float(data["temperature"]), "base_temperature": float(data["base_temperature"])}
    loss, gradient = run(
        data["feats"].reshape(-1, data["feats"].shape[-1]), np.repeat(data["labels"], views), **options
    )
    assert loss == pytest.approx(float(data["loss"]), rel=TOLERANCE, abs=1e-7)
    theirs = data["grad"].reshape(gradient.shape)
    # In 5 there is one class: the true gradient is 0 and theirs is rounding (2e-8).
    assert np.abs(gradient - theirs).max() <= TOLERANCE * np.abs(theirs).max() + 1e-7


def test_where_the_published_code_gives_nan_the_loss_is_zero():
    data = golden("contrastive_7")
    assert np.isnan(data["loss"])
    loss, gradient = run(data["feats"].reshape(-1, 8), data["labels"], temperature=float(data["temperature"]))
    assert loss == 0.0
    assert gradient.shape == (4, 8)
    assert not gradient.any()


@pytest.mark.parametrize("name", ["ignore255", "mixed", "nohard"])
def test_anchors_of_a_published_draw(name):
    data = golden(f"full_{name}")
    anchors = data["anchors"].reshape(-1, data["anchors"].shape[-1])
    labels = np.repeat(data["anchor_labels"], data["anchors"].shape[1])
    loss, _ = run(anchors, labels, temperature=0.1, base_temperature=0.07)
    assert loss == pytest.approx(float(data["loss"]), rel=TOLERANCE)


def test_an_anchor_without_a_positive_is_left_out_of_the_mean():
    rng = np.random.default_rng(0)
    features, labels = unit(rng, 6, 5), np.array([0, 0, 1, 1, 1, 2])
    loss, _ = run(features, labels)
    expected = reference(features, labels, np.ones(6, bool), 0.1, 0.07)
    assert loss == pytest.approx(expected, rel=TOLERANCE)
    # It still is a negative of the others.
    without, _ = run(features[:5], labels[:5])
    assert abs(loss - without) > 1e-3


def test_samples_that_are_not_valid_take_no_part():
    rng = np.random.default_rng(1)
    features, labels = unit(rng, 8, 5), np.array([0, 0, 1, 1, 0, 1, 2, 0])
    valid = np.array([1, 1, 1, 1, 0, 1, 0, 0], bool)
    loss, gradient = run(features, labels, valid)
    alone, alone_gradient = run(features[valid], labels[valid])
    assert loss == pytest.approx(alone, rel=1e-6)
    assert relative_error(gradient[valid], alone_gradient) < 1e-6
    assert not gradient[~valid].any()
    nothing, gradient = run(features, labels, np.zeros(8, bool))
    assert nothing == 0.0
    assert not gradient.any()


def filled_bank(rng, counts=((3, 0, 2), (1, 4, 0))):
    """A bank of three classes whose queues hold as many entries as given, for segments and pixels."""
    bank = MemoryBank(3, 5, memory_size=4, pixel_update_freq=2)
    entries = []
    for part, filled in zip(("segment", "pixel"), counts):
        rows = unit(rng, 3, 4, 5).astype(np.float32)  # what lies in empty slots must not be read
        getattr(bank, f"{part}_queue").set_value(rows)
        getattr(bank, f"{part}_count").set_value(np.array(filled))
        entries += [(label, row.astype(float)) for label in range(3) for row in rows[label, : filled[label]]]
    return bank, entries


@pytest.mark.parametrize("case", ["plain", "bank", "bank and slots", "no positive in the batch"])
def test_value_and_gradient_of_the_equation(case):
    rng = np.random.default_rng(3)
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 2])
    valid = np.ones(8, bool)
    bank, entries = (None, []) if case == "plain" else filled_bank(rng)
    if case == "bank and slots":
        valid[[1, 4, 6]] = False
    if case == "no positive in the batch":
        labels = np.array([0, 1, 2, 2, 2, 2, 2, 2])
        valid[3:] = False
    features = unit(rng, 8, 5) * 1.3  # of any length

    def loss_of(x):
        return reference(x, labels, valid, 0.2, 0.07, entries)

    loss, gradient = run(features, labels, valid, temperature=0.2, bank=bank)
    assert loss == pytest.approx(loss_of(features), rel=TOLERANCE)
    assert relative_error(gradient, numeric_gradient(loss_of, features)) < TOLERANCE
    assert np.abs(gradient[valid]).max() > 1e-3
    assert not gradient[~valid].any()


def test_an_empty_bank_changes_nothing():
    rng = np.random.default_rng(4)
    features, labels = unit(rng, 6, 5), np.array([0, 0, 1, 1, 2, 2])
    plain = run(features, labels)
    with_bank = run(features, labels, bank=filled_bank(rng, ((0, 0, 0), (0, 0, 0)))[0])
    assert plain[0] == with_bank[0]
    assert np.array_equal(plain[1], with_bank[1])


@pytest.mark.parametrize("temperature", [1e-3, 1e-6])
@pytest.mark.parametrize("banked", [False, True])
def test_finite_at_extreme_similarities(temperature, banked):
    """Similarities of 1e3 and 1e6, where exp of them, or of their differences, is no float32."""
    rng = np.random.default_rng(5)
    bank, entries = filled_bank(rng) if banked else (None, [])
    features, labels = unit(rng, 6, 5), np.array([0, 0, 1, 1, 2, 2])
    loss, gradient = run(features, labels, temperature=temperature, base_temperature=temperature, bank=bank)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0
    # At these temperatures the term is max(0, largest negative - positive), to within log(negatives).
    terms = []
    for i in range(6):
        others = [(labels[j], features[j]) for j in range(6) if j != i] + entries
        positives = [features[i] @ row for label, row in others if label == labels[i]]
        worst = max(features[i] @ row for label, row in others if label != labels[i])
        terms.append(np.mean([max(0.0, worst - p) for p in positives]) / temperature)
    assert loss == pytest.approx(np.mean(terms), rel=1e-3, abs=np.log(20))


def test_the_upstream_gradient_scales_it():
    rng = np.random.default_rng(6)
    features, labels = unit(rng, 6, 5).astype(np.float32), paddle.to_tensor([0, 0, 1, 1, 2, 2])
    gradients = []
    for factor in (1.0, 0.1):
        x = paddle.to_tensor(features, stop_gradient=False)
        (factor * info_nce(x, labels)).backward()
        gradients.append(x.grad.numpy())
    assert relative_error(gradients[1], 0.1 * gradients[0]) < 1e-6
