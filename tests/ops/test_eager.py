"""The forms for a CPU beside the layers that they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_vheat._paddle import F, nn, paddle
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


def no_products(*_args, **_options):
    raise AssertionError("the form for evaluation on a CPU was used")


@pytest.fixture
def forbid(monkeypatch):
    """Makes the fast forms fail that evaluation uses."""

    def forbid_now():
        monkeypatch.setattr(paddle, "addmm", no_products)
        monkeypatch.setattr(F, "unfold", no_products)

    return forbid_now


def test_linear_is_the_layers_product():
    (layer,) = evaluated(eager.Linear(5, 7))
    x = paddle.randn([2, 3, 4, 5])
    with paddle.no_grad():
        out = layer(x)
    expected = x.numpy() @ layer.weight.numpy() + layer.bias.numpy()
    assert out.shape == [2, 3, 4, 7]
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 2)])
def test_convolution_channels_last(size, bias):
    (layer,) = evaluated(nn.Conv2D(4, 6, 3, stride=2, padding=1, bias_attr=None if bias else False))
    x = paddle.randn([2, 4, *size])
    expected = layer(x).transpose([0, 2, 3, 1])
    with paddle.no_grad():
        out = eager.convolve_channels_last(layer, x)
    assert out.shape == expected.shape
    np.testing.assert_allclose(out.numpy(), expected.numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("batch", [1, 3])
def test_depthwise_then_linear(batch):
    depthwise, linear = evaluated(nn.Conv2D(4, 4, 3, padding=1, groups=4), eager.Linear(4, 8))
    x = paddle.randn([batch, 4, 5, 6])
    expected = linear(depthwise(x).transpose([0, 2, 3, 1]))
    with paddle.no_grad():
        out = eager.depthwise_then_linear(depthwise, linear, x)
    assert out.shape == [batch, 5, 6, 8]
    np.testing.assert_allclose(out.numpy(), expected.numpy(), rtol=0, atol=TOLERANCE)


def test_convolution_of_concatenated_maps_and_its_gradients():
    layer = nn.Conv2D(9, 4, 3, padding=1, bias_attr=False)
    maps = [paddle.randn([2, channels, 5, 6]) for channels in (2, 3, 4)]
    for part in maps:
        part.stop_gradient = False
    gradient = paddle.randn([2, 4, 5, 6])
    results = []
    for out in (layer(paddle.concat(maps, axis=1)), eager.convolve_concatenated(layer, maps)):
        results.append([out, *paddle.grad([out], [layer.weight, *maps], [gradient])])
    for expected, found in zip(*results):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=TOLERANCE)


class Watched(nn.Conv2D):
    """As quantisation replaces a layer by its own."""

    def forward(self, x):
        return super().forward(x) * 2


def test_a_layer_of_another_class_is_called(forbid):
    depthwise, linear = evaluated(Watched(4, 4, 3, padding=1, groups=4), eager.Linear(4, 8))
    (strided,) = evaluated(Watched(4, 6, 3, stride=2, padding=1))
    x = paddle.randn([2, 4, 6, 6])
    expected = F.linear(depthwise(x).transpose([0, 2, 3, 1]), linear.weight, linear.bias)
    with paddle.no_grad():
        np.testing.assert_allclose(
            eager.depthwise_then_linear(depthwise, linear, x).numpy(), expected.numpy(), rtol=0, atol=TOLERANCE
        )
        forbid()
        out = eager.convolve_channels_last(strided, x)
    np.testing.assert_array_equal(out.numpy(), strided(x).transpose([0, 2, 3, 1]).numpy())
    whole = Watched(4, 6, 3, bias_attr=False)
    maps = [x[:, :1], x[:, 1:]]
    np.testing.assert_array_equal(eager.convolve_concatenated(whole, maps).numpy(), whole(x).numpy())


def test_linear_without_bias():
    (layer,) = evaluated(eager.Linear(5, 7, bias_attr=False))
    x = paddle.randn([2, 5])
    with paddle.no_grad():
        np.testing.assert_allclose(layer(x).numpy(), x.numpy() @ layer.weight.numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("reason", ["gradient", "training", "hook", "empty"])
def test_layers_are_called_as_they_are(forbid, reason):
    depthwise, linear = evaluated(nn.Conv2D(4, 4, 3, padding=1, groups=4), eager.Linear(4, 8))
    strided = evaluated(nn.Conv2D(4, 6, 3, stride=2, padding=1))[0]
    layers = (depthwise, linear, strided)
    calls = []
    if reason == "training":
        for layer in layers:
            layer.train()
    if reason == "hook":
        for layer in layers:
            layer.register_forward_post_hook(lambda layer, *_: calls.append(layer))
    x = paddle.randn([0 if reason == "empty" else 2, 4, 6, 6])
    forbid()
    if reason == "empty":  # Paddle convolves no empty batch, but multiplies it
        with paddle.no_grad():
            assert linear(x.transpose([0, 2, 3, 1])).shape == [0, 6, 6, 8]
        return
    with paddle.set_grad_enabled(reason == "gradient"):
        eager.depthwise_then_linear(depthwise, linear, x)
        eager.convolve_channels_last(strided, x)
        linear(x.transpose([0, 2, 3, 1]))
    if reason == "hook":
        assert calls == [depthwise, linear, strided, linear]


def test_they_are_used_in_evaluation(forbid):
    (linear,) = evaluated(eager.Linear(4, 8))
    forbid()
    with paddle.no_grad(), pytest.raises(AssertionError, match="the form for evaluation"):
        linear(paddle.randn([2, 4]))


def test_a_watched_convolution_sees_the_concatenated_maps():
    layer = nn.Conv2D(5, 4, 3, padding=1, bias_attr=False)
    seen = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    eager.convolve_concatenated(layer, [paddle.randn([1, 2, 4, 4]), paddle.randn([1, 3, 4, 4])])
    assert seen == [[1, 5, 4, 4]]
