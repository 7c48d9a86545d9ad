"""Folding of networks that are not ours, and the forms for a CPU beside the layers that they stand for."""

from __future__ import annotations

import copy
import importlib

import numpy as np
import pytest

from paddle_vheat._paddle import PADDLE_2, F, nn, paddle
from paddle_vheat.ops import HeatConduction2D, fold

forms = importlib.import_module("paddle_vheat.ops.fold")
heat_module = importlib.import_module("paddle_vheat.ops.heat")

# Sums of up to 100 float64 terms of order 1, taken in another order: 100 roundings of 1e-16 each.
TOLERANCE = 1e-13


@pytest.fixture(autouse=True)
def double_precision():
    paddle.set_default_dtype("float64")
    yield
    paddle.set_default_dtype("float32")


def evaluated(*layers):
    return tuple(fold(layer) for layer in layers)


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
        (lambda: forms.apply_linear(linear, last), lambda: linear(last)),
        (lambda: forms.convolve_channels_last(strided, x), lambda: strided(x).transpose([0, 2, 3, 1])),
        (
            lambda: forms.depthwise_then_linear(depthwise, linear, x),
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
        out = forms.apply_linear(layer, x)
    expected = x.numpy() @ layer.weight.numpy() + layer.bias.numpy()
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=TOLERANCE)


class Doubled(nn.Conv2D):
    """A layer put in the place of another, as quantisation does."""

    def forward(self, x):
        return super().forward(x) * 2


class DoubledLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def odd(kind):
    """Layers that the forms do not know, or for which they would be wrong."""
    if kind == "class":
        return Doubled(4, 4, 3, padding=1, groups=4), DoubledLinear(4, 8)
    if kind == "bias":
        return nn.Conv2D(4, 4, 3, padding=1, groups=4, bias_attr=False), nn.Linear(4, 8, bias_attr=False)
    options = {"padding": {"padding": 1, "padding_mode": "reflect"}, "dilation": {"padding": 2, "dilation": 2}}[kind]
    return nn.Conv2D(4, 4, 3, groups=4, **options), nn.Linear(4, 8)


@pytest.mark.parametrize("size", [None, 6])
@pytest.mark.parametrize("kind", ["class", "bias", "padding", "dilation"])
def test_layers_that_the_forms_do_not_know(kind, size):
    layer = HeatConduction2D(4, size=6)
    layer.dwconv, layer.linear = odd(kind)
    x = paddle.randn([2, 4, 6, 6])
    with paddle.no_grad():
        np.testing.assert_allclose(fold(layer, size)(x).numpy(), layer(x).numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("reason", ["gradient", "training", "hook", "replaced"])
def test_layers_are_called_as_they_are(forbid, reason):
    layers = three_layers()
    calls = []
    for layer in layers:
        if reason == "training":
            layer.train()
        if reason == "hook":
            layer.register_forward_post_hook(lambda layer, *_: calls.append(layer))
        if reason == "replaced":
            del layer.was_plain
    forbid()
    with paddle.set_grad_enabled(reason == "gradient"):
        for form, plain in applications(*layers, paddle.randn([2, 4, 6, 6])):
            assert np.array_equal(form().numpy(), plain().numpy())
    if reason == "hook":
        depthwise, linear, strided = layers
        assert calls == [linear, linear, strided, strided, depthwise, linear, depthwise, linear]


@pytest.mark.skipif(PADDLE_2, reason="Paddle 2.6's linear layer refuses an empty batch")
def test_an_empty_batch(forbid):
    (linear,) = evaluated(nn.Linear(4, 8))
    forbid()
    with paddle.no_grad():
        assert forms.apply_linear(linear, paddle.randn([0, 6, 4])).shape == [0, 6, 8]


class UNet(nn.Layer):
    """Somebody's network: operators that own their embeddings at two depths, one of them used twice."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2D(2, 4, 3, padding=1)
        self.outer = HeatConduction2D(4, size=(8, 6))
        self.down = nn.Conv2D(4, 4, 2, stride=2)
        self.inner = HeatConduction2D(4, 5)
        self.leave = nn.Conv2DTranspose(4, 4, 2, stride=2)

    def forward(self, x):
        x = self.outer(self.enter(x))
        return self.outer(x + self.leave(self.inner(self.down(x))))


class Shared(nn.Layer):
    """One embedding for several operators, which is given to them as it is."""

    def __init__(self):
        super().__init__()
        self.embedding = self.create_parameter([5, 7, 4])
        self.operators = nn.LayerList([HeatConduction2D(4), HeatConduction2D(4)])

    def forward(self, x):
        x = x.transpose([0, 2, 3, 1])
        for operator in self.operators:
            x = x + operator(x, self.embedding)
        return x


class Own(HeatConduction2D):
    """A class of somebody's, whose forward must stay."""

    def forward(self, x):
        return super().forward(x) * 2


def randomised(model):
    for parameter in model.parameters():
        parameter.set_value(parameter + 0.3 * paddle.randn(parameter.shape))
    return model


@pytest.mark.parametrize("make", [UNet, Shared, lambda: HeatConduction2D(4, 6)], ids=["U-Net", "shared", "operator"])
def test_any_network_with_the_operator_in_it(make):
    model = randomised(make())
    before = {name: value.numpy() for name, value in model.state_dict().items()}
    x = paddle.randn([2, 2 if isinstance(model, UNet) else 4, 10, 12])
    with paddle.no_grad():
        fixed, dynamic = fold(model, (10, 12)), fold(model)
        for size in [(10, 12), (6, 4), (10, 12)]:
            y = F.interpolate(x, size)
            np.testing.assert_allclose(dynamic(y).numpy(), model(y).numpy(), rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(fixed(x).numpy(), model(x).numpy(), rtol=0, atol=TOLERANCE)
        assert not fixed.training
        assert not any("to_k" in name for name in fixed.state_dict())
        with pytest.raises(ValueError, match="is not that of decay"):
            fixed(y[:, :, :4])
    for again in (8, (10, 12)):
        with pytest.raises(ValueError, match=r"fold: the model is already folded for 10 x 12, and a folded decay"):
            fold(fixed, again)
    assert all(np.array_equal(before[name], value.numpy()) for name, value in model.state_dict().items())
    np.testing.assert_allclose(fold(dynamic, (10, 12))(x).numpy(), model(x).numpy(), rtol=0, atol=TOLERANCE)


def test_what_takes_no_part():
    own = Own(4, size=6)
    assert [type(fold(own)), type(fold(nn.Linear(2, 3)))] == [Own, nn.Linear]
    x = paddle.randn([1, 4, 6, 6])
    assert np.array_equal(fold(own)(x).numpy(), own(x).numpy())
    with pytest.raises(ValueError, match="Linear holds no heat conduction operator"):
        fold(nn.Linear(2, 3), 6)
    for size in (0, 2.5, (3, 4, 5), "6"):
        with pytest.raises(ValueError, match=r"fold: expected a positive int or \(height, width\), got"):
            fold(own, size)


@pytest.fixture
def computed(monkeypatch):
    """Sizes of the decays as they are computed."""
    sizes, decay = [], heat_module._decay
    monkeypatch.setattr(heat_module, "_decay", lambda k: sizes.append(tuple(k.shape[:2])) or decay(k))
    return sizes


def test_a_decay_is_computed_once_for_a_size(computed):
    model = fold(UNet())
    with paddle.no_grad():
        for side in (8, 8, 6, 8, 6):
            model(paddle.randn([1, 2, side, 8]))
    assert sorted(computed) == [(3, 4), (4, 4), (6, 8), (8, 8)]
    model(paddle.randn([1, 2, 6, 8]))  # with gradients: those of to_k and the embedding too
    assert len(computed) == 4 + 3
    twin = copy.deepcopy(model)
    with paddle.no_grad():
        twin(paddle.randn([1, 2, 6, 8]))
    assert len(computed) == 4 + 3 + 2


def test_what_is_kept_is_bounded(computed, monkeypatch):
    monkeypatch.setattr(heat_module, "KEPT_VALUES", 4 * (6 * 6 + 7 * 7))
    layer = fold(HeatConduction2D(4, 6))
    with paddle.no_grad():
        for side in (6, 7, 6, 7, 8, 7, 20, 7):
            layer(paddle.randn([1, 4, side, side]))
    # 8 x 8 takes the place of both, 20 x 20 is alone
    assert [side for side, _ in computed] == [6, 7, 8, 7, 20, 7]


def test_embeddings_are_told_apart():
    """Two parameters of one size, and one that is computed anew for each call."""
    plain = HeatConduction2D(4)
    layer, x = fold(plain), paddle.randn([2, 6, 5, 4])
    parameters = [layer.create_parameter([6, 5, 4], default_initializer=nn.initializer.Normal()) for _ in range(2)]
    with paddle.no_grad():
        for _ in range(2):
            for embedding in (*parameters, parameters[0] * 2, parameters[0] * 3):
                np.testing.assert_allclose(
                    layer(x, embedding).numpy(), plain(x, embedding).numpy(), rtol=0, atol=TOLERANCE
                )
    assert len(layer._decays.items) == 2


def operations(layer, shape):
    static = paddle.jit.to_static(layer, input_spec=[paddle.static.InputSpec(shape, "float64")], full_graph=True)
    program = static.forward.concrete_program.main_program
    return [op.type if PADDLE_2 else op.name() for op in program.global_block().ops]


@pytest.mark.parametrize("size", [None, (8, 6)])
def test_a_static_graph_is_that_of_the_plain_layers(size):
    model, shape = UNet(), [None, 2, *(size or (None, None))]
    plain = fold(model, size)
    for operator in (plain.outer, plain.inner):
        if size is None:
            operator.__class__ = HeatConduction2D
        for layer in operator.sublayers():
            vars(layer).pop("was_plain", None)
    assert operations(fold(model, size), shape) == operations(plain, shape)
