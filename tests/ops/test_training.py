"""The layers that train faster on a CPU: Paddle's own results and gradients."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from paddle_vheat._paddle import F, nn, paddle
from paddle_vheat.engine.optim import TrainOptions
from paddle_vheat.engine.trainer import Trainer
from paddle_vheat.models import VHeatClassifier
from paddle_vheat.models.layers import ChannelsLastConv2D
from paddle_vheat.models.trained import (
    TrainedBlock,
    TrainedChannelsLastConv2D,
    TrainedDownsample,
    TrainedMLP,
    TrainedStem,
)
from paddle_vheat.models.vheat import MLP, Block, Downsample, Stem
from paddle_vheat.ops import HeatConduction2D, fold, fused, native
from paddle_vheat.ops.training import (
    TrainedDepthwise,
    TrainedHeatConduction2D,
    TrainedLayerNorm,
    TrainedLinear,
    accelerate_training,
)
from tests.conftest import relative_error
from tests.engine.toy import ToyTask

LAYERS = {  # the epsilon is a number of float32, to which Paddle rounds it
    "linear": (lambda: nn.Linear(6, 10), [3, 4, 5, 6], TrainedLinear),
    "norm": (lambda: nn.LayerNorm(6, epsilon=2.0**-10), [3, 4, 5, 6], TrainedLayerNorm),
    "depthwise": (lambda: nn.Conv2D(6, 6, 3, padding=1, groups=6), [3, 6, 4, 5], TrainedDepthwise),
    "depthwise 5": (lambda: nn.Conv2D(6, 6, 5, padding=2, groups=6), [2, 6, 9, 4], TrainedDepthwise),
}


def gradients(layer, x, weight):
    """Output, and gradients of the input and of the parameters that have one."""
    x = x.detach()
    x.stop_gradient = False
    layer.clear_gradients()
    out = layer(x)
    (out * weight).sum().backward()
    return [out, x.grad, *(p.grad.clone() for p in layer.parameters() if not p.stop_gradient)]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("chunk", [2**21, 1])
def test_results_and_gradients(name, dtype, frozen, chunk, monkeypatch):
    monkeypatch.setattr("paddle_vheat.ops.training.CHUNK_VALUES", chunk)
    make, shape, form = LAYERS[name]
    layer = make()
    layer.to(dtype=dtype)
    for parameter in layer.parameters():
        parameter.set_value(paddle.randn(parameter.shape, dtype))
    x, weight = paddle.randn(shape, dtype), paddle.randn(layer(paddle.zeros(shape, dtype)).shape, dtype)
    out, of_input, *of_parameters = gradients(layer, x, weight)
    # Compared with the gradients of a layer that is not frozen: with a frozen scale, Paddle's LayerNorm is wrong there.
    for i in frozen:
        layer.parameters()[i].stop_gradient = True
    expected = [out, of_input, *(one for i, one in enumerate(of_parameters) if i not in frozen)]
    assert accelerate_training(layer) is layer
    assert type(layer) is form
    found = gradients(layer, x, weight)
    # Sums of at most 180 terms in another order.
    tolerance = 1e-13 if dtype == "float64" else 2e-6
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours.numpy(), theirs.numpy()) < tolerance


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 6, bias_attr=False),
        nn.LayerNorm(6, weight_attr=False, bias_attr=False),
        nn.LayerNorm([4, 6]),
        nn.Conv2D(6, 12, 3, padding=1, groups=6),
        nn.Conv2D(6, 6, 3, groups=6),
        nn.Conv2D(6, 6, 3, stride=2, padding=1, groups=6),
        nn.Conv2D(6, 6, 3, padding=1, groups=6, padding_mode="reflect"),
        nn.Conv2D(6, 6, 3, padding=1),
        type("Linear", (nn.Linear,), {})(6, 6),
    ],
)
def test_other_layers_are_left_alone(layer):
    kind = type(layer)
    assert type(accelerate_training(layer)) is kind


needs_kernels = pytest.mark.skipif(bool(native.missing()), reason=f"no kernels in C: {native.missing()}")
PARTS = {  # sizes that are no multiple of a vector, of a tile of rows or of the stride
    "stem": (lambda: Stem(3, 20), [3, 3, 21, 18], TrainedStem),
    "downsample": (lambda: Downsample(10), [3, 9, 14, 10], TrainedDownsample),
    "convolution": (lambda: ChannelsLastConv2D(10, 12), [3, 9, 7, 10], TrainedChannelsLastConv2D),
    "convolution of one channel": (lambda: ChannelsLastConv2D(1, 3), [3, 9, 7, 1], TrainedChannelsLastConv2D),
    "mlp": (lambda: MLP(10), [3, 9, 7, 10], TrainedMLP),
    "operator": (lambda: HeatConduction2D(10, [9, 7], data_format="NHWC"), [3, 9, 7, 10], TrainedHeatConduction2D),
    "operator, resized": (
        lambda: HeatConduction2D(10, [6, 8], data_format="NHWC"), [3, 9, 7, 10], TrainedHeatConduction2D,
    ),
    "LayerNorm": (lambda: nn.LayerNorm(10), [3, 9, 7, 10], TrainedLayerNorm),
}  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("at_a_time", [fused.PATCH_VALUES, 1])
def test_kernels(name, frozen, at_a_time, monkeypatch):
    monkeypatch.setattr(fused, "PATCH_VALUES", at_a_time)
    make, shape, form = PARTS[name]
    layer = make()
    for parameter in layer.parameters():
        parameter.set_value(paddle.randn(parameter.shape) + (parameter.ndim == 1))
    x = paddle.randn(shape)
    weight = paddle.randn(layer(x).shape)
    trained = accelerate_training(copy.deepcopy(layer))
    assert type(trained) is form
    plain = gradients(layer, x, weight)
    layer.to(dtype="float64")
    expected = gradients(layer, x.astype("float64"), weight.astype("float64"))
    pairs = list(zip(plain, expected, strict=True))
    if frozen:  # every other parameter
        for parameter in trained.parameters()[::2]:
            parameter.stop_gradient = True
        pairs = pairs[:2] + pairs[3::2]
    for ours, (theirs, right) in zip(gradients(trained, x, weight), pairs, strict=True):
        assert ours.dtype == paddle.float32
        # No further from float64 than Paddle's own float32, where that is not right by chance.
        assert relative_error(ours.numpy(), right.numpy()) < 3 * relative_error(theirs.numpy(), right.numpy()) + 1e-6


@needs_kernels
def test_gelu_of_every_magnitude():
    x = np.concatenate([-np.geomspace(1e-30, 14, 999), [0.0], np.geomspace(1e-30, 1e30, 999)])
    wide = paddle.to_tensor(x.astype(np.float32)).astype("float64")
    wide.stop_gradient = False
    expected = F.gelu(wide)
    (slope,) = paddle.grad(expected.sum(), wide)
    narrow = paddle.to_tensor(x.astype(np.float32)).reshape([-1, 1])
    narrow.stop_gradient = False
    found = fused.GELU.apply(narrow)
    found.sum().backward()
    # A few roundings in x and in the distribution function, which lies between 0 and 1.
    assert (abs(found.numpy().ravel() - expected.numpy()) <= 3e-7 * abs(x)).all()
    assert (abs(narrow.grad.numpy().ravel() - slope.numpy()) <= 1e-6).all()


@needs_kernels
@pytest.mark.parametrize("name", PARTS)
def test_kernels_keep_what_is_not_finite(name):
    make, shape, _ = PARTS[name]
    layer, x = accelerate_training(make()), paddle.randn(shape)
    x[1, 1, 1, 0] = float("nan")
    out, of_input, of_weight, *_ = gradients(layer, x, paddle.ones([1]))
    assert out[1].isnan().any()
    # A linear layer's gradient of the input does not depend on the input.
    assert (of_weight if isinstance(layer, ChannelsLastConv2D) else of_input[1]).isnan().any()
    assert out[0].isfinite().all()


@needs_kernels
@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize("frozen", [slice(0), slice(0, None, 2), slice(1, None, 2)])
def test_a_block_drops_the_same_branches(post_norm, scale, frozen):
    block, x, embedding = Block(8, 0.5, post_norm, scale), paddle.randn([8, 5, 6, 8]), paddle.randn([5, 6, 8])
    for parameter in block.parameters()[frozen]:
        parameter.stop_gradient = True
    embedding.stop_gradient = False
    results = []
    for _ in range(2):
        paddle.seed(1)
        block.clear_gradients()
        x.stop_gradient = False
        x.clear_gradient()
        embedding.clear_gradient()
        out = block(x, embedding)
        (out * out).sum().backward()
        trained = [parameter for parameter in block.parameters() if not parameter.stop_gradient]
        results.append([out, *(tensor.grad.clone() for tensor in (x, embedding, *trained))])
        accelerate_training(block)
    assert type(block) is TrainedBlock
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours.numpy(), theirs.numpy()) < 1e-5  # float32 on both sides


@needs_kernels
@pytest.mark.parametrize("watched", ["norm2", "mlp", "mlp.fc1", "drop_path", "hco", "hco.dwconv"])
def test_a_watched_layer_is_called(watched, monkeypatch):
    ran, run = [], fused.run
    monkeypatch.setattr(fused, "run", lambda name, *arguments: ran.append((name, arguments)) or run(name, *arguments))
    block, x, embedding = Block(4, 0.0, False, None), paddle.randn([1, 2, 2, 4]), paddle.randn([2, 2, 4])
    expected, seen = block(x, embedding), []
    accelerate_training(block)
    layer = block
    for name in watched.split("."):
        layer = getattr(layer, name)
    assert relative_error(block(x, embedding).numpy(), expected.numpy()) < 1e-6
    assert [name for name, _ in ran] == ["decay", "heat_conduction", "mlp"]
    assert all(arguments[1] is not None for _, arguments in ran[1:])  # each with its LayerNorm, a whole branch
    ran.clear()
    layer.register_forward_post_hook(lambda layer, inputs, output: seen.append(output))
    assert relative_error(block(x, embedding).numpy(), expected.numpy()) < 1e-6
    assert len(seen) == (2 if watched == "drop_path" else 1)
    names = {name for name, _ in ran}
    assert "decay" in names
    assert {"mlp.fc1": "mlp", "hco.dwconv": "heat_conduction"}.get(watched) not in names
    for name, arguments in ran:
        assert name not in ("mlp", "heat_conduction") or arguments[1] is None  # no branch


def test_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    native._load.cache_clear()
    try:
        assert "no-such-compiler" in native.missing()
        mlp = accelerate_training(MLP(4))
        assert gradients(mlp, paddle.randn([1, 2, 2, 4]), 1.0)[0].shape == [1, 2, 2, 4]
    finally:
        native._load.cache_clear()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("variant", [{}, {"post_norm": True, "layer_scale": 0.1}])
def test_a_model(variant, recompute):
    options = {"embed_dim": 8, "depths": (1, 1, 2, 1), "drop_path_rate": 0.0, "img_size": 64, "recompute": recompute}
    model = VHeatClassifier(num_classes=10, **options, **variant)
    x = paddle.randn([2, 3, 64, 64])
    expected, names = gradients(model, x, 1.0), list(model.state_dict())
    evaluated = fold(model, 64)(x)
    accelerate_training(model)
    assert list(model.state_dict()) == names
    for ours, theirs in zip(gradients(model, x, 1.0), expected, strict=True):
        # float32 through 5 blocks, forward and back
        assert relative_error(ours.numpy(), theirs.numpy()) < 2e-5
    folded = fold(model, 64)
    assert not any(hasattr(layer, "plain_form") for layer in folded.sublayers())
    assert (folded(x) == evaluated).all()
    model.eval()
    # Forward passes of other products: rounding only.
    assert relative_error(model(x).numpy(), evaluated.numpy()) < 1e-5


def test_the_trainer_trains_this_form(tmp_path, monkeypatch):
    task = ToyTask({})
    monkeypatch.setattr(task, "build_model", lambda: nn.Sequential(nn.Linear(3, 1)))
    run = Trainer(task, TrainOptions(save_dir=str(tmp_path)))
    assert type(run.model[0]) is TrainedLinear
    assert run.optimizer._parameter_list == run.model.parameters()
