"""The layers that train faster on a CPU: Paddle's own results and gradients."""

from __future__ import annotations

import pytest

from paddle_vheat._paddle import nn, paddle
from paddle_vheat.engine.optim import TrainOptions
from paddle_vheat.engine.trainer import Trainer
from paddle_vheat.models import VHeatClassifier
from paddle_vheat.ops import fold
from paddle_vheat.ops.training import TrainedDepthwise, TrainedLayerNorm, TrainedLinear, accelerate_training
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
