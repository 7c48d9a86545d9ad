"""The exponential moving average against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_vheat._paddle import nn
from paddle_vheat.engine.hooks import ExponentialMovingAverage
from tests.conftest import paddle


class Model(nn.Layer):
    """A parameter, a floating-point buffer and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("mean", paddle.ones([4]))
        self.register_buffer("count", paddle.to_tensor(0, dtype="int64"))


def arrays(state) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in state.items()}


def change(model, rng) -> None:
    for name, value in model.state_dict().items():
        if name == "count":
            value.set_value(value + 7)
        else:
            value.set_value(rng.standard_normal(value.shape).astype(np.float32))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_formula(decay):
    model, rng = Model(), np.random.default_rng(0)
    ema = ExponentialMovingAverage(model, decay)
    expected = {name: value.astype(np.float64) for name, value in arrays(model.state_dict()).items()}
    for iteration in range(1, 9):
        change(model, rng)
        ema.update(iteration)
        kept = min(1 - 1 / (iteration + 1), decay)
        for name, value in arrays(model.state_dict()).items():
            expected[name] = value if name == "count" else kept * expected[name] + (1 - kept) * value
    for name, value in arrays(ema.state_dict()).items():
        # 8 updates of 3 float32 roundings of values of about 1, each at most 6e-8.
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=8 * 3 * 6e-8 * 4, err_msg=name)
    assert ema.state_dict()["count"].dtype == paddle.int64
    assert int(ema.state_dict()["count"]) == 56


def test_the_first_updates_forget_the_initial_weights():
    """With 1 - 1/(i + 1), the average of the first iterations is the plain mean of all that was."""
    model, rng = Model(), np.random.default_rng(0)
    ema = ExponentialMovingAverage(model, 0.999)
    seen = [arrays(model.state_dict())["linear.weight"]]
    for iteration in range(1, 6):
        change(model, rng)
        ema.update(iteration)
        seen.append(arrays(model.state_dict())["linear.weight"])
    np.testing.assert_allclose(ema.average["linear.weight"].numpy(), np.mean(seen, axis=0), rtol=0, atol=1e-6)


def test_the_average_is_no_alias_of_the_model():
    model = Model()
    ema = ExponentialMovingAverage(model)
    before = arrays(ema.state_dict())
    change(model, np.random.default_rng(0))
    for name, value in arrays(ema.state_dict()).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("fail", [False, True])
def test_applied_restores(fail):
    model = Model()
    ema = ExponentialMovingAverage(model)
    change(model, np.random.default_rng(0))
    own, average = arrays(model.state_dict()), arrays(ema.state_dict())
    inside = None
    try:
        with ema.applied():
            inside = arrays(model.state_dict())
            if fail:
                raise RuntimeError("the evaluation fails")
    except RuntimeError:
        assert fail
    for name in own:
        np.testing.assert_array_equal(inside[name], average[name])
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), own[name])
        np.testing.assert_array_equal(ema.state_dict()[name].numpy(), average[name])
    assert not np.array_equal(own["linear.weight"], average["linear.weight"])


def test_update_leaves_no_gradient_behind():
    model = Model()
    ema = ExponentialMovingAverage(model)
    ema.update(1)
    assert all(value.stop_gradient for value in ema.state_dict().values())
    assert not model.linear.weight.stop_gradient
