"""What `fold` evaluates by kernels: beside Paddle's own layers in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from paddle_vheat._paddle import nn, paddle
from paddle_vheat.models import VHeatClassifier
from paddle_vheat.models.layers import ChannelsLastConv2D, ConvBNReLU
from paddle_vheat.models.vheat import MLP, Block, Downsample, Stem
from paddle_vheat.ops import HeatConduction2D, fold, native
from tests.conftest import relative_error

needs_kernels = pytest.mark.skipif(bool(native.missing()), reason=f"no kernels in C: {native.missing()}")


class WithEmbedding(nn.Layer):
    """Something that is called with a frequency embedding."""

    def __init__(self, inner, size, channels):
        super().__init__()
        self.inner, self.embedding = inner, self.create_parameter([*size, channels])

    def forward(self, x):
        return self.inner(x, self.embedding)


class OfTwo(nn.Layer):
    """A convolution of two maps, of 3 channels and of the others."""

    def __init__(self, channels, filters):
        super().__init__()
        self.inner = ConvBNReLU(channels, filters, 3)

    def forward(self, x):
        return self.inner([x[:, :3], x[:, 3:]])


def block(post_norm, scale, size=(9, 7)):
    return WithEmbedding(Block(10, 0.5, post_norm, scale), size, 10)


# Maps in one piece and in several, with sides that are no multiple of a vector or of the stride.
PARTS = {
    "stem": (lambda: Stem(3, 20), [3, 3, 21, 18], {"convolution"}),
    "stem, pieces": (lambda: Stem(3, 20), [2, 3, 150, 163], {"convolution"}),
    "downsample": (lambda: Downsample(10), [3, 9, 14, 10], {"convolution"}),
    "downsample, pieces": (lambda: Downsample(40), [2, 43, 50, 40], {"convolution"}),
    "convolution": (lambda: ChannelsLastConv2D(10, 12), [3, 9, 7, 10], {"convolution"}),
    "convolution, pieces": (lambda: ChannelsLastConv2D(1, 30), [2, 143, 150, 1], {"convolution"}),
    "planes": (lambda: ConvBNReLU(10, 12, 3), [3, 10, 9, 7], {"convolution_planes"}),
    "planes, pieces": (lambda: ConvBNReLU(40, 5, 3), [2, 40, 51, 73], {"convolution_planes"}),
    "planes, a column": (lambda: ConvBNReLU(4, 5, 3), [2, 4, 5, 1], {"convolution_planes"}),
    "planes of two": (lambda: OfTwo(10, 12), [3, 10, 9, 7], {"convolution_planes"}),
    "MLP": (lambda: MLP(10), [3, 9, 7, 10], {"mlp"}),
    "MLP, pieces": (lambda: MLP(20), [2, 51, 37, 20], {"mlp"}),
    "operator": (lambda: HeatConduction2D(10, [9, 7], data_format="NHWC"), [3, 9, 7, 10], {"heat_conduction"}),
    "operator, pieces": (
        lambda: HeatConduction2D(30, [40, 51], data_format="NHWC"), [2, 43, 50, 30], {"heat_conduction"},
    ),
    "operator, a line": (lambda: HeatConduction2D(10, [1, 7], data_format="NHWC"), [1, 1, 7, 10], {"heat_conduction"}),
    "block": (lambda: block(False, None), [3, 9, 7, 10], {"heat_conduction", "mlp"}),
    "block, scaled": (lambda: block(False, 0.5), [3, 9, 7, 10], {"heat_conduction", "mlp"}),
    "block, post-norm": (lambda: block(True, None), [3, 9, 7, 10], {"heat_conduction", "mlp"}),
    "block, pieces": (lambda: block(True, 0.5, (40, 51)), [2, 43, 50, 10], {"heat_conduction", "mlp"}),
}  # fmt: skip


def made(name):
    make, shape, _ = PARTS[name]
    layer = make()
    for name, parameter in layer.named_parameters():
        positive = paddle.rand(parameter.shape) + 0.5
        plain = paddle.randn(parameter.shape) + (parameter.ndim == 1)
        parameter.set_value(positive if name.endswith("_variance") else plain)
    layer.eval()
    return layer, paddle.randn(shape)


@pytest.fixture
def ran(monkeypatch):
    """Names of the kernels as they are run."""
    names, run = [], native.run
    monkeypatch.setattr(native, "run", lambda name, *arguments: names.append(name) or run(name, *arguments))
    return names


@needs_kernels
@pytest.mark.parametrize("name", PARTS)
def test_kernels(name, ran):
    layer, x = made(name)
    with paddle.no_grad():
        theirs, ours = layer(x), fold(layer)(x)
        assert set(ran) == PARTS[name][2]
        assert ours.dtype == paddle.float32
        layer.to(dtype="float64")
        right = layer(x.astype("float64"))
    # No further from float64 than Paddle's own float32, where that is not right by chance.
    assert relative_error(ours.numpy(), right.numpy()) < 3 * relative_error(theirs.numpy(), right.numpy()) + 1e-6


@needs_kernels
@pytest.mark.parametrize("name", [name for name in PARTS if "pieces" in name])
def test_results_are_reproducible(name):
    """Whichever thread takes which piece."""
    layer, x = made(name)
    folded, kept = fold(layer), []
    with paddle.no_grad():
        expected = folded(x)
        for i in range(10):
            kept.append(paddle.empty([1000 + 7 * i]))  # that arrays lie elsewhere
            assert (folded(x.clone()) == expected).all()


@needs_kernels
@pytest.mark.parametrize("name", PARTS)
def test_what_is_not_finite_stays(name):
    layer, x = made(name)
    x[-1, 0, 2, 2 % x.shape[3]] = float("nan")
    with paddle.no_grad():
        out = fold(layer)(x)
    assert out[-1].isnan().any()
    assert np.isfinite(out.numpy()[:-1]).all()


@pytest.mark.parametrize(
    "norm",
    [nn.GroupNorm(2, 6), nn.Identity(), nn.BatchNorm2D(6, weight_attr=False, bias_attr=False)],
    ids=lambda norm: type(norm).__name__,
)
def test_another_norm_in_its_place(norm, ran):
    layer = ConvBNReLU(4, 6, 3)
    layer.bn = norm
    layer.eval()
    x = paddle.randn([2, 4, 5, 7])
    with paddle.no_grad():
        assert relative_error(fold(layer)(x).numpy(), layer(x).numpy()) < 1e-6
    assert ran == []


@needs_kernels
def test_a_decay_that_damps_the_mean(ran):
    layer, x = made("operator")
    folded = fold(HeatConduction2D(10, [9, 7]), (9, 7))
    decay = paddle.rand(folded.decay.shape)
    folded = type(folded)(layer, decay)
    with paddle.no_grad():
        right = layer.conduct(x, decay)
        for part in folded.sublayers():
            part.was_plain = True
        ours = folded(x)
        assert ran == ["heat_conduction"]
        # float32 on both sides
        assert relative_error(ours.numpy(), right.numpy()) < 1e-5
        with pytest.raises(ValueError, match="is not that of decay"):
            folded(x[:, :8])


@needs_kernels
def test_weights_of_the_moment_are_used():
    """Nothing made of the weights is kept."""
    layer, x = made("block, scaled")
    folded = fold(layer)
    with paddle.no_grad():
        folded(x)
        names = [name for name, _ in layer.named_parameters() if "to_k" not in name and name != "embedding"]
        for model in (layer, folded):
            paddle.seed(1)
            state = model.state_dict()
            for name in names:
                state[name].set_value(paddle.randn(state[name].shape))
        # float32 on both sides
        assert relative_error(folded(x).numpy(), layer(x).numpy()) < 1e-5


@needs_kernels
@pytest.mark.parametrize(
    "watched", ["hco", "mlp", "drop_path", "norm1", "norm2", "mlp.fc2", "hco.out_norm", "hco.linear"]
)
def test_a_watched_part_is_called(watched):
    layer, x = made("block, scaled")
    folded, seen = fold(layer), []
    part = folded.inner
    for name in watched.split("."):
        part = getattr(part, name)
    part.register_forward_post_hook(lambda *_: seen.append(watched))
    with paddle.no_grad():
        out = folded(x)
        assert set(seen) == {watched}
        # float32 on both sides
        assert relative_error(out.numpy(), layer(x).numpy()) < 1e-5


def classifier():
    return VHeatClassifier(num_classes=10, embed_dim=8, depths=(1, 1, 2, 1), img_size=64)


@needs_kernels
@pytest.mark.parametrize("reason", ["gradient", "float64", "training", "graph", "switched off"])
def test_without_kernels(reason, ran, monkeypatch):
    model = classifier()
    model.eval()
    x = paddle.randn([2, 3, 64, 64])
    if reason == "float64":
        model.to(dtype="float64")
        x = x.astype("float64")
    folded = fold(model, 64)
    with paddle.no_grad():
        expected = model(x)
    if reason == "training":
        folded.train()
    if reason == "graph":
        spec = [paddle.static.InputSpec([None, 3, 64, 64], "float32")]
        folded = paddle.jit.to_static(folded, input_spec=spec, full_graph=True)
    if reason == "switched off":
        monkeypatch.setenv("PADDLE_VHEAT_NATIVE", "off")
        native._load.cache_clear()
    try:
        with paddle.set_grad_enabled(reason == "gradient"):
            out = folded(x)
    finally:
        native._load.cache_clear()
    assert not ran
    if reason != "training":  # which drops paths
        # float32 through 5 blocks
        assert relative_error(out.numpy(), expected.numpy()) < 1e-5


@needs_kernels
def test_a_model(ran):
    model = classifier()
    model.eval()
    with paddle.no_grad():
        for size, folded in ((64, fold(model, 64)), (64, fold(model)), (50, fold(model))):
            x = paddle.randn([2, 3, size, size])
            # float32 through 5 blocks
            assert relative_error(folded(x).numpy(), model(x).numpy()) < 1e-5
            assert sorted(ran) == ["convolution"] * 5 + ["heat_conduction"] * 5 + ["mlp"] * 5
            ran.clear()
        twin = copy.deepcopy(folded)
        assert (twin(x) == folded(x)).all()
