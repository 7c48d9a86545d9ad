"""The whole loss: the published values, every case in which the published code fails, warm-up, the bank."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from paddle_vheat.losses import PixelContrastLoss, info_nce
from tests.conftest import golden, paddle, relative_error


def one_hot(predictions, classes):
    return paddle.to_tensor(np.eye(classes, dtype=np.float32)[predictions].transpose(0, 3, 1, 2))


def blocks(images=2, size=16, classes=3, channels=8, seed=0):
    """A batch in which every class has many hard and easy pixels; the embedding wants a gradient."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (images, size, size))
    predictions = np.where(rng.random(labels.shape) < 0.5, labels, rng.integers(0, classes, labels.shape))
    rows = rng.standard_normal((images, channels, size, size)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    embedding = paddle.to_tensor(rows, stop_gradient=False)
    return {"seg": one_hot(predictions, classes), "embed": embedding}, labels


def gradient_of(loss, preds, labels):
    preds["embed"].clear_grad()
    value = loss(preds, paddle.to_tensor(labels))
    assert value.shape == []
    assert value.dtype == paddle.float32
    value.backward()
    return float(value), preds["embed"].grad.astype("float32").numpy()


@pytest.mark.parametrize("name", ["ignore255", "mixed", "nohard"])
def test_mean_over_seeds_is_the_published_codes(name):
    """Two means of 400 draws each, within three standard errors of their difference; the spread as well.

    The standard deviation of 400 values has a relative error of about 1 / sqrt(800) = 3.5 %.
    """
    data = golden(f"full_{name}")
    loss = PixelContrastLoss(
        float(data["temperature"]), float(data["base_temperature"]), int(data["max_samples"]),
        int(data["max_views"]), int(data["ignore_label"]),
    )  # fmt: skip
    preds = {"seg": one_hot(data["predict"], 5), "embed": paddle.to_tensor(data["feats"])}
    labels = paddle.to_tensor(data["labels"])
    values = []
    for seed in range(400):
        paddle.seed(seed)
        values.append(float(loss(preds, labels)))
    values = np.array(values)
    error = np.hypot(values.std(ddof=1) / 20, float(data["se"]))
    assert abs(values.mean() - float(data["mean"])) < 3 * error
    assert values.std() / data["values"].std() == pytest.approx(1.0, abs=0.15)


def test_value_and_gradient_beside_a_plain_version():
    """The same draw, followed in NumPy: gather, InfoNCE, scatter."""
    from paddle_vheat.losses.sampling import group_pixels, sample_anchors

    preds, labels = blocks()
    loss = PixelContrastLoss(max_samples=60, max_views=10)
    paddle.seed(3)
    value, gradient = gradient_of(loss, preds, labels)
    paddle.seed(3)
    predictions = preds["seg"].numpy().argmax(axis=1).reshape(2, -1)
    grouped = group_pixels(paddle.to_tensor(labels.reshape(2, -1)), paddle.to_tensor(predictions), 3, 255)
    samples = sample_anchors(grouped, 3, 60, 10)
    index = samples.index.numpy()[samples.valid.numpy()]
    flat = preds["embed"].numpy().transpose(0, 2, 3, 1).reshape(-1, 8)
    rows = paddle.to_tensor(flat[index], stop_gradient=False)
    plain = info_nce(rows, paddle.to_tensor(labels.reshape(-1)[index]))
    plain.backward()
    expected = np.zeros_like(flat)
    np.add.at(expected, index, rows.grad.numpy())
    assert value == pytest.approx(float(plain), rel=1e-6)
    found = gradient.transpose(0, 2, 3, 1).reshape(-1, 8)
    assert relative_error(found, expected) < 1e-6
    assert (np.abs(found).max(axis=1) > 0).sum() == 60  # the gradient reaches the sampled pixels and no others


# --- where the published code fails -----------------------------------------------------------------


@pytest.mark.parametrize("case", ["ignored", "too few pixels", "one image ignored"])
def test_nothing_to_contrast_is_a_zero_with_a_gradient(case):
    preds, labels = blocks()
    loss = PixelContrastLoss(max_views=10 if case != "too few pixels" else 200)
    if case == "ignored":
        labels[:] = 255
    if case == "one image ignored":
        labels[0] = 255
        labels[1, :, :] = 1  # one class alone: positives, but no negatives
    value, gradient = gradient_of(loss, preds, labels)
    assert value == 0.0
    assert gradient.shape == (2, 8, 16, 16)
    assert not gradient.any()
    # Connected: what is before the embedding gets a gradient too, as data-parallel training demands.
    layer = paddle.nn.Conv2D(3, 8, 1)
    preds["embed"] = layer(paddle.randn([2, 3, 16, 16]))
    loss(preds, paddle.to_tensor(labels)).backward()
    assert layer.weight.grad is not None
    assert not layer.weight.grad.numpy().any()


def test_fewer_samples_than_pairs():
    preds, labels = blocks()
    value, gradient = gradient_of(PixelContrastLoss(max_samples=2, max_views=10), preds, labels)
    assert value > 0
    assert (np.abs(gradient).max(axis=1) > 0).sum() == 6  # two images, three classes, one view each


def test_an_anchor_without_a_positive():
    """A class of one image with one view has no positive; the others' mean is what counts."""
    preds, labels = blocks(images=1, classes=3)
    value, gradient = gradient_of(PixelContrastLoss(max_samples=3, max_views=10), preds, labels)
    assert value == 0.0
    assert not gradient.any()
    preds, labels = blocks(images=2, classes=3)
    labels[1][labels[1] == 2] = 255  # class 2 only in the first image
    value, gradient = gradient_of(PixelContrastLoss(max_samples=5, max_views=10), preds, labels)
    assert np.isfinite(value)
    assert value > 0
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("temperature", [1e-2, 1e-4])
def test_small_temperatures(temperature):
    preds, labels = blocks()
    value, gradient = gradient_of(PixelContrastLoss(temperature=temperature, max_views=10), preds, labels)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert gradient.any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("bank", [0, 20])
def test_half_precision_is_computed_in_float32(dtype, bank):
    """Beside float32 numbers of the same (rounded) values: equal, but for the gradient's own rounding."""
    preds, labels = blocks()
    rounded = preds["embed"].detach().astype(dtype)
    values = []
    for kind in (dtype, "float32"):
        loss = PixelContrastLoss(max_views=10, memory_size=bank, num_classes=3, proj_dim=8, temperature=1e-2)
        embedding = rounded.astype(kind).detach()
        embedding.stop_gradient = False
        for seed in (1, 2):
            paddle.seed(seed)
            found = gradient_of(loss, {"seg": preds["seg"].astype(kind), "embed": embedding}, labels)
        values.append(found)
    assert values[0][0] == pytest.approx(values[1][0], rel=1e-5)
    assert relative_error(values[0][1], values[1][1]) < {"float16": 1e-3, "bfloat16": 8e-3}[dtype]


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
@pytest.mark.parametrize("axis", [None, 1])
def test_labels_of_any_integer_type_and_either_shape(dtype, axis):
    preds, labels = blocks()
    labels[0, 0] = 255
    loss = PixelContrastLoss(max_views=10)
    paddle.seed(1)
    expected = gradient_of(loss, preds, labels)
    full = labels.repeat(4, axis=1).repeat(4, axis=2).astype(dtype)
    paddle.seed(1)
    found = gradient_of(loss, preds, full if axis is None else np.expand_dims(full, axis))
    assert found[0] == expected[0]
    assert np.array_equal(found[1], expected[1])


def test_deterministic_under_the_seed():
    preds, labels = blocks()
    loss = PixelContrastLoss(max_samples=30, max_views=10)
    values = []
    for seed in (1, 1, 2):
        paddle.seed(seed)
        values.append(gradient_of(loss, preds, labels))
    assert values[0][0] == values[1][0]
    assert np.array_equal(values[0][1], values[1][1])
    assert values[2][0] != values[0][0]


# --- warm-up and the bank ---------------------------------------------------------------------------


def test_warm_up_counts_iterations():
    preds, labels = blocks()
    loss = PixelContrastLoss(max_views=10, warmup_iters=3)
    values = [gradient_of(loss, preds, labels)[0] for _ in range(5)]
    assert values[:3] == [0.0, 0.0, 0.0]
    assert min(values[3:]) > 0
    # As a checkpoint has it: a run that is continued does not warm up again.
    again = PixelContrastLoss(max_views=10, warmup_iters=3)
    again.set_state_dict({"calls": np.array([2])})
    assert [gradient_of(again, preds, labels)[0] > 0 for _ in range(2)] == [False, True]
    accumulating = PixelContrastLoss(max_views=10, warmup_iters=2)
    accumulating.calls_per_iteration = 2
    assert [gradient_of(accumulating, preds, labels)[0] > 0 for _ in range(5)] == [False] * 4 + [True]


def test_no_warm_up_in_evaluation():
    preds, labels = blocks()
    loss = PixelContrastLoss(max_views=10, warmup_iters=3, memory_size=5, num_classes=3, proj_dim=8)
    loss.eval()
    assert gradient_of(loss, preds, labels)[0] > 0
    assert int(loss.calls) == 0
    assert not loss.bank.segment_count.numpy().any()


def test_the_bank_is_filled_in_warm_up_and_used_after():
    preds, labels = blocks()
    loss = PixelContrastLoss(max_views=10, warmup_iters=1, memory_size=50, num_classes=3, proj_dim=8)
    assert gradient_of(loss, preds, labels)[0] == 0.0
    assert loss.bank.segment_count.tolist() == [2, 2, 2]
    assert loss.bank.pixel_count.tolist() == [20, 20, 20]
    plain = PixelContrastLoss(max_views=10)
    paddle.seed(4)
    banked, banked_gradient = gradient_of(loss, preds, labels)
    paddle.seed(4)
    without, gradient = gradient_of(plain, preds, labels)
    assert banked != pytest.approx(without, rel=1e-3)  # more negatives
    assert relative_error(banked_gradient, gradient) > 1e-2
    assert loss.bank.segment_count.tolist() == [4, 4, 4]


def test_a_batch_does_not_meet_itself_in_the_bank():
    """Value and gradient are those for the bank as it was before the batch's own entries were queued."""
    from paddle_vheat.losses.sampling import gather_pixels, group_pixels, sample_anchors

    preds, labels = blocks()
    loss = PixelContrastLoss(max_views=10, memory_size=50, num_classes=3, proj_dim=8)
    loss(preds, paddle.to_tensor(labels))
    before = copy.deepcopy(loss.bank)
    paddle.seed(5)
    value, gradient = gradient_of(loss, preds, labels)
    assert loss.bank.segment_count.tolist() != before.segment_count.tolist()

    paddle.seed(5)
    predictions = paddle.argmax(preds["seg"], axis=1).flatten(1)
    grouped = group_pixels(paddle.to_tensor(labels).flatten(1), predictions, 3, 255)
    samples = sample_anchors(grouped, 3, 1024, 10)
    preds["embed"].clear_grad()
    expected = info_nce(gather_pixels(preds["embed"], samples.index), samples.label, samples.valid, bank=before)
    expected.backward()
    assert value == float(expected)
    assert np.array_equal(gradient, preds["embed"].grad.numpy())


def test_a_second_backward_pass():
    preds, labels = blocks()
    value = PixelContrastLoss(max_views=10)(preds, paddle.to_tensor(labels))
    value.backward(retain_graph=True)
    once = preds["embed"].grad.numpy().copy()
    value.backward()
    assert np.array_equal(preds["embed"].grad.numpy(), 2 * once)


def test_no_more_slots_than_samples():
    """Few views of few pairs need few slots, however large max_samples is."""
    preds, labels = blocks()
    value, _ = gradient_of(PixelContrastLoss(max_samples=10**9, max_views=10), preds, labels)
    paddle.seed(0)
    assert value > 0


def test_the_default_dtype_does_not_matter():
    preds, labels = blocks()
    paddle.set_default_dtype("float64")
    try:
        loss = PixelContrastLoss(max_views=10, memory_size=5, num_classes=3, proj_dim=8)
    finally:
        paddle.set_default_dtype("float32")
    assert loss.bank.segment_queue.dtype == paddle.float32
    assert gradient_of(loss, preds, labels)[0] > 0


def test_the_gradient_does_not_see_later_batches():
    """The entries of a step are queued before its backward pass, and may replace what it was computed with."""
    preds, labels = blocks()
    gradients = []
    for late in (False, True):
        loss = PixelContrastLoss(max_views=10, memory_size=2, num_classes=3, proj_dim=8)
        paddle.seed(1)
        loss(preds, paddle.to_tensor(labels))
        paddle.seed(2)
        preds["embed"].clear_grad()
        value = loss(preds, paddle.to_tensor(labels))
        if late:
            for _ in range(3):  # replaces everything
                loss(preds, paddle.to_tensor(labels))
        value.backward()
        gradients.append(preds["embed"].grad.numpy().copy())
    assert np.array_equal(*gradients)


# --- mistakes ---------------------------------------------------------------------------------------


BANK = {"memory_size": 5, "num_classes": 3, "proj_dim": 8}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_samples": 0}, "max_samples must be .*of at least 1, got 0"),
        ({"max_views": 1.5}, "max_views must be .*of at least 1, got 1.5"),
        ({"warmup_iters": -1}, "warmup_iters must be .*of at least 0, got -1"),
        ({"temperature": 0.0}, "temperature must be a number of more than 0"),
        ({"base_temperature": -1}, "base_temperature must be a number of more than 0"),
        ({"temperature": float("inf")}, "temperature must be a number of more than 0, got inf"),
        ({"temperature": "0.1"}, "temperature must be a number of more than 0, got '0.1'"),
        ({"ignore_index": "255"}, "ignore_index must be"),
        ({"memory_size": 5}, "needs num_classes and proj_dim"),
        ({"pixel_update_freq": -3}, "pixel_update_freq must be .*of at least 1, got -3"),
        ({**BANK, "pixel_update_freq": -3}, "pixel_update_freq must be .*of at least 1, got -3"),
        ({**BANK, "memory_size": -1}, "memory_size must be .*of at least 0, got -1"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        PixelContrastLoss(**options)


def test_wrong_inputs():
    preds, labels = blocks()
    labels = paddle.to_tensor(labels)
    loss = PixelContrastLoss(max_views=10)
    with pytest.raises(ValueError, match=r"found no 'seg'.*position of the model's second output"):
        loss(preds["seg"], labels)
    with pytest.raises(ValueError, match="found no 'embed'"):
        loss({"seg": preds["seg"]}, labels)
    for wrong in (preds["seg"][:, :, :8], preds["seg"][:1]):
        with pytest.raises(ValueError, match="differ in size or number"):
            loss({"seg": wrong, "embed": preds["embed"]}, labels)
    with pytest.raises(ValueError, match="differ in size or number"):
        loss(preds, labels[:1])
    for value in (3, -7):
        wrong = labels.clone()
        wrong[0, 0, 0] = value
        with pytest.raises(ValueError, match=f"label {value} is outside 0 to 2 and is not 255"):
            loss(preds, wrong)
    with pytest.raises(ValueError, match="num_classes is 4, the model gives 3"):
        PixelContrastLoss(memory_size=5, num_classes=4, proj_dim=8)(preds, labels)
    with pytest.raises(ValueError, match="embeddings of 9 channels, got 8"):
        PixelContrastLoss(memory_size=5, num_classes=3, proj_dim=9)(preds, labels)
