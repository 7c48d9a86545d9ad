"""The forms for a CPU beside the layers that they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_vheat._paddle import PADDLE_2, F, nn, paddle
from paddle_vheat.ops import eager

# Sums of up to 100 float64 terms of order 1, taken in another order: 100 roundings of 1e-16 each.
TOLERANCE = 1e-13


@pytest.fixture(autouse=True)
def double_precision():
    paddle.set_default_dtype("float64")
    yield
    paddle.set_default_dtype("float32")


def evaluated(*layers):
    for layer in layers:
        layer.eval()
    return layers


def the_fast_form(*_args, **_options):
    raise AssertionError("the fast form was used")


@pytest.fixture
def forbid(monkeypatch):
    """Makes the fast forms fail: each has an operation that no layer uses."""

    def forbid_now():
        monkeypatch.setattr(paddle, "addmm", the_fast_form)
        monkeypatch.setattr(F, "unfold", the_fast_form)

    return forbid_now


def three_layers(**options):
    """Depthwise, linear and strided, evaluated."""
    return evaluated(
        nn.Conv2D(4, 4, 3, padding=1, groups=4, **options),
        nn.Linear(4, 8),
        nn.Conv2D(4, 6, 3, stride=2, padding=1, **options),
    )


def applications(depthwise, linear, strided, x):
    """Each form, and what it stands for, for x (B, 4, H, W)."""
    last = x.transpose([0, 2, 3, 1])
    return [
        (lambda: eager.apply_linear(linear, last), lambda: linear(last)),
        (lambda: eager.convolve_channels_last(strided, x), lambda: strided(x).transpose([0, 2, 3, 1])),
        (
            lambda: eager.depthwise_then_linear(depthwise, linear, x),
            lambda: linear(depthwise(x).transpose([0, 2, 3, 1])),
        ),
    ]


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (1, 4, 7, 10), (3, 4, 1, 2)])
def test_evaluation_uses_forms_that_equal_the_layers(forbid, shape):
    pairs = applications(*three_layers(), paddle.randn(shape))
    with paddle.no_grad():
        for form, layers in pairs:
            found, expected = form(), layers()
            assert found.shape == expected.shape
            np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=TOLERANCE)
    forbid()
    for form, _ in pairs:
        with paddle.no_grad(), pytest.raises(AssertionError, match="the fast form was used"):
            form()


def test_linear_is_the_product():
    (layer,) = evaluated(nn.Linear(5, 7))
    x = paddle.randn([2, 3, 5])
    with paddle.no_grad():
        out = eager.apply_linear(layer, x)
    expected = x.numpy() @ layer.weight.numpy() + layer.bias.numpy()
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=TOLERANCE)


class Doubled(nn.Conv2D):
    """A layer put in the place of another, as quantisation does."""

    def forward(self, x):
        return super().forward(x) * 2


class DoubledLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def replaced():
    return evaluated(
        Doubled(4, 4, 3, padding=1, groups=4),
        DoubledLinear(4, 8),
        Doubled(4, 6, 3, stride=2, padding=1),
    )


@pytest.mark.parametrize(
    "make",
    [
        replaced,
        lambda: three_layers(padding_mode="reflect"),
        lambda: three_layers(dilation=2),
        lambda: evaluated(
            nn.Conv2D(4, 4, 3, padding=1, groups=4, bias_attr=False),
            nn.Linear(4, 8, bias_attr=False),
            nn.Conv2D(4, 6, 3, padding=1, groups=2),
        ),
    ],
    ids=["class", "padding", "dilation", "bias and groups"],
)
def test_other_layers_are_called_as_they_are(make):
    """Where the form would be wrong or does not apply."""
    with paddle.no_grad():
        for form, layers in applications(*make(), paddle.randn([2, 4, 8, 8])):
            np.testing.assert_allclose(form().numpy(), layers().numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("reason", ["gradient", "training", "hook"])
def test_layers_are_called_as_they_are(forbid, reason):
    layers = three_layers()
    calls = []
    for layer in layers:
        if reason == "training":
            layer.train()
        if reason == "hook":
            layer.register_forward_post_hook(lambda layer, *_: calls.append(layer))
    forbid()
    with paddle.set_grad_enabled(reason == "gradient"):
        for form, _ in applications(*layers, paddle.randn([2, 4, 6, 6])):
            form()
    if reason == "hook":
        depthwise, linear, strided = layers
        assert calls == [linear, strided, depthwise, linear]


@pytest.mark.skipif(PADDLE_2, reason="Paddle 2.6's linear layer refuses an empty batch")
def test_an_empty_batch(forbid):
    (linear,) = evaluated(nn.Linear(4, 8))
    forbid()
    with paddle.no_grad():
        assert eager.apply_linear(linear, paddle.randn([0, 6, 4])).shape == [0, 6, 8]


def test_convolution_of_concatenated_maps_and_its_gradients(monkeypatch):
    layer = nn.Conv2D(9, 4, 3, padding=1, bias_attr=False)
    maps = [paddle.randn([2, channels, 5, 6]) for channels in (2, 3, 4)]
    for part in maps:
        part.stop_gradient = False
    gradient = paddle.randn([2, 4, 5, 6])
    outputs = [layer(paddle.concat(maps, axis=1))]
    monkeypatch.setattr(paddle, "concat", the_fast_form)  # map by map, so that all at once are nowhere
    outputs.append(eager.convolve_concatenated(layer, maps))
    results = [[out, *paddle.grad([out], [layer.weight, *maps], [gradient])] for out in outputs]
    for expected, found in zip(*results):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: Doubled(5, 4, 3, padding=1, bias_attr=False),
        lambda: nn.Conv2D(5, 4, 3, padding=1),
        lambda: nn.Conv2D(5, 4, 3, padding=1, bias_attr=False, padding_mode="reflect"),
        lambda: nn.Conv2D(5, 5, 3, padding=1, bias_attr=False, groups=5),
    ],
    ids=["class", "bias", "padding", "groups"],
)
def test_other_convolutions_get_the_concatenated_maps(layer):
    layer, maps = layer(), [paddle.randn([1, 2, 4, 4]), paddle.randn([1, 3, 4, 4])]
    expected = layer(paddle.concat(maps, axis=1))
    np.testing.assert_array_equal(eager.convolve_concatenated(layer, maps).numpy(), expected.numpy())


def test_a_watched_convolution_sees_the_concatenated_maps():
    layer = nn.Conv2D(5, 4, 3, padding=1, bias_attr=False)
    seen = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    eager.convolve_concatenated(layer, [paddle.randn([1, 2, 4, 4]), paddle.randn([1, 3, 4, 4])])
    assert seen == [[1, 5, 4, 4]]
