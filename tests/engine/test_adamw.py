"""AdamW by its kernel, beside float64 NumPy and Paddle's own."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_vheat._paddle import PADDLE_2, paddle
from paddle_vheat.engine.adamw import AdamW
from paddle_vheat.ops import native
from tests.conftest import relative_error

BETAS, EPSILON, DECAY = (0.9, 0.995), 1e-7, 0.1
RATES = 1e-2, 5e-3, 2e-2, 1e-2
KINDS = AdamW, paddle.optimizer.AdamW


def steps(kind, gradients, **options):
    """The parameters after a step for each gradient, of two groups, and the optimizer."""
    initial = {name: np.linspace(-1, 2, value.size).reshape(value.shape) for name, value in gradients[0].items()}
    parameters = {name: paddle.create_parameter(value.shape, "float32") for name, value in initial.items()}
    for name, parameter in parameters.items():
        parameter.set_value(initial[name].astype(np.float32))
    groups = [{"params": [parameters["a"]], "learning_rate": 0.5}, {"params": [parameters["b"]], "weight_decay": 0.0}]
    optimizer = kind(RATES[0], *BETAS, EPSILON, parameters=groups, weight_decay=DECAY, **options)
    for rate, gradient in zip(RATES, gradients, strict=True):
        optimizer.set_lr(rate)
        for name, parameter in parameters.items():
            (parameter * paddle.to_tensor(gradient[name].astype(np.float32))).sum().backward()
        optimizer.step()
        optimizer.clear_grad()
    return {name: parameter.numpy() for name, parameter in parameters.items()}, optimizer


@pytest.fixture(scope="module")
def gradients():
    rng = np.random.default_rng(0)
    # One larger than the piece that a thread takes, one that is no multiple of a vector.
    return [{"a": rng.standard_normal((130, 67)), "b": rng.standard_normal(5)} for _ in RATES]


def in_float64(gradients):
    found = {}
    for name, lr_factor, decay in (("a", 0.5, DECAY), ("b", 1.0, 0.0)):
        value = np.linspace(-1, 2, gradients[0][name].size).reshape(gradients[0][name].shape)
        first, second = np.zeros_like(value), np.zeros_like(value)
        for t, (rate, given) in enumerate(zip(RATES, gradients, strict=True), start=1):
            g = given[name]
            first = BETAS[0] * first + (1 - BETAS[0]) * g
            second = BETAS[1] * second + (1 - BETAS[1]) * g**2
            unbiased = first / (1 - BETAS[0] ** t), second / (1 - BETAS[1] ** t)
            value = value * (1 - lr_factor * rate * decay)
            value = value - lr_factor * rate * unbiased[0] / (np.sqrt(unbiased[1]) + EPSILON)
        found[name] = value
    return found


def test_steps_are_those_of_the_formula_and_of_paddle(gradients, monkeypatch):
    called = []
    original = native.run
    monkeypatch.setattr(native, "run", lambda name, *arguments: (called.append(name), original(name, *arguments)))
    ours, optimizer = steps(AdamW, gradients)
    assert called == ([] if native.missing() else ["adamw"] * 8)
    theirs, plain = steps(paddle.optimizer.AdamW, gradients)
    for name, expected in in_float64(gradients).items():
        # 1 - beta2^t is 0.005 in the first step and has an error of float32 at 1: 1e-5 of a step of a hundredth, and
        # four roundings of values up to 2
        assert np.abs(ours[name] - expected).max() < 1e-6
        assert relative_error(ours[name], theirs[name]) < 1e-6
    # What is saved is Paddle's state: the same values under the same names, those of the parameters apart.
    states = [
        {key.split("_0_", 1)[-1] + str(i): value for i, (key, value) in enumerate(o.state_dict().items())}
        for o in (optimizer, plain)
    ]
    assert list(states[0]) == list(states[1])
    for mine, other in zip(states[0].values(), states[1].values(), strict=True):
        if isinstance(mine, paddle.Tensor):
            assert relative_error(mine.numpy(), other.numpy()) < 1e-6


def test_parameters_can_be_spared(gradients):
    found = [steps(kind, gradients, apply_decay_param_fun=lambda name: False)[0] for kind in KINDS]
    for name, expected in found[1].items():
        assert relative_error(found[0][name], expected) < 1e-6
    assert relative_error(found[0]["a"], steps(AdamW, gradients)[0]["a"]) > 1e-5  # the decay makes a difference


@pytest.mark.parametrize("first", [0, 1])
def test_a_run_continues_with_the_others_state(first):
    """Two steps by one and two by the other are four steps by either."""
    parameter = paddle.create_parameter([300], "float32")
    initial = parameter.numpy()
    results = []
    for kinds in ((KINDS[first], KINDS[1 - first]), (KINDS[0], KINDS[0])):
        parameter.set_value(initial)
        state = {}
        for kind in kinds:
            with paddle.utils.unique_name.guard():  # the state has the names of a new process
                optimizer = kind(RATES[0], parameters=[parameter], weight_decay=DECAY)
                optimizer.set_state_dict(state)
                for _ in range(2):
                    (parameter**2).sum().backward()
                    optimizer.step()
                    optimizer.clear_grad()
                state = optimizer.state_dict()
        results.append(parameter.numpy())
    assert relative_error(results[0], results[1]) < 1e-6
    assert relative_error(initial, results[1]) > 1e-3


@pytest.mark.parametrize("what", ["switched off", *([] if PADDLE_2 else ["amsgrad"])])
def test_the_rest_is_left_to_paddle(gradients, monkeypatch, what):
    options = {"amsgrad": True} if what == "amsgrad" else {}
    if what == "switched off":
        monkeypatch.setattr(native, "usable", lambda *arrays: False)
    ours, _ = steps(AdamW, gradients, **options)
    theirs, _ = steps(paddle.optimizer.AdamW, gradients, **options)
    for name, expected in theirs.items():
        assert (ours[name] == expected).all()
