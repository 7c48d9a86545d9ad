"""vHeatIR and SwinIR against the published implementation in float64 (tests/golden), and what is done with them."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_vheat._paddle import paddle
from paddle_vheat.models import restoration
from paddle_vheat.models.restoration import build_swin_ir, build_vheat_ir
from paddle_vheat.ops import HeatConduction2D, fold
from paddle_vheat.weights.loading import load_state
from paddle_vheat.weights.swinir_keys import convert_state, load_swinir
from tests.conftest import golden, relative_error

MICRO = {"width": 12, "drop_path_rate": 0.0}
GRAY = {"in_channels": 1, "depths": (2, 2), "img_range": 1.0, **MICRO}
COLOR = {"in_channels": 3, "depths": (2,), "img_range": 255.0, **MICRO}
CASES = [(mixer, case) for mixer in ("swin", "vheat") for case in ("gray", "color")]
# Relative: output and input gradient, parameter gradients. In float64 what remains is LayerNorm's epsilon, which
# Paddle keeps in float32 (outputs), and that the references of parameter gradients are float32. In float32, the
# published code itself differs from them by 1e-6 and 5e-6, by 2e-5 in a resized embedding's.
TOLERANCES = {"float32": (4e-6, 2e-5), "float64": (2e-11, 2e-7)}


def micro(mixer, case="gray", **changes):
    options = {**(GRAY if case == "gray" else COLOR), **changes}
    if mixer == "swin":
        return build_swin_ir(heads=3, window=4 if case == "gray" else 3, **options)
    return build_vheat_ir(**{"freq_size": 16 if case == "gray" else 12, **options})


@pytest.fixture(params=CASES, ids=lambda pair: "-".join(pair))
def reference(request, golden_checkpoint):
    """A model with the reference's parameters, and its data by the number of the input."""
    mixer, case = request.param
    data = {name[len(case) + 1 :]: value for name, value in golden(f"{mixer}ir_micro").items() if name.startswith(case)}
    model = micro(mixer, case)
    if mixer == "swin":
        load_swinir(model, golden_checkpoint("swinir_micro" if case == "gray" else "swinir_micro_color"))
    else:
        load_state(model, convert_state(part(data, "param.")), "the reference")
    model.eval()
    return model, [part(data, f"{i}.") for i in range(len([name for name in data if name.endswith(".x")]))]


def part(data, prefix):
    return {name[len(prefix) :]: value for name, value in data.items() if name.startswith(prefix)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_published_outputs_and_gradients(reference, dtype):
    model, inputs = reference
    model.to(dtype=dtype)
    close, gradients_close = TOLERANCES[dtype]
    compared = 0
    for i, data in enumerate(inputs):
        x = paddle.to_tensor(data["x"].astype(dtype), stop_gradient=False)
        model.clear_gradients()
        y = model(x)
        assert relative_error(y.numpy(), data["y"]) < close
        (y * paddle.to_tensor(data["w"].astype(dtype))).sum().backward()
        assert relative_error(x.grad.numpy(), data["gx"]) < close
        expected = convert_state(part(data, "grad."))
        ours = dict(model.named_parameters())
        assert set(expected) == set(ours) if i == 0 else set(expected) <= set(ours)
        for name, gradient in expected.items():
            assert relative_error(ours[name].grad.numpy(), gradient) < gradients_close, name
        compared += len(expected)
    # Every parameter at the first size; at the others, the embeddings, which are resized there.
    assert compared == len(ours) + sum("frequency_embedding" in name for name in ours) * (len(inputs) - 1)


def test_folded_forms_equal_the_published_outputs(reference):
    """For any size, where the second image of a size takes kept decays, and for one size."""
    model, inputs = reference
    anywhere = fold(model)
    with paddle.no_grad():
        for data in [*inputs, *inputs]:
            x = paddle.to_tensor(data["x"])
            assert relative_error(anywhere(x).numpy(), data["y"]) < 4e-6
            folded = fold(model, x.shape[2:])
            assert relative_error(folded(x).numpy(), data["y"]) < 4e-6
            with pytest.raises(ValueError, match="folded for"):
                folded(x[:, :, 1:])


def test_a_folded_model_computes_a_decay_once_for_a_size_and_none_is_kept_above_the_limit(monkeypatch):
    computed = []
    decay = HeatConduction2D.decay
    monkeypatch.setattr(HeatConduction2D, "decay", lambda self, e: computed.append(e.shape[:2]) or decay(self, e))
    model = fold(micro("vheat"))
    with paddle.no_grad():
        for _ in range(2):
            model(paddle.zeros([1, 1, 10, 14]))
        assert computed == [[10, 14]] * 4
        monkeypatch.setattr(restoration, "KEPT_VALUES", 2 * 10 * 15 * 12 - 1)
        for _ in range(2):
            model(paddle.zeros([1, 1, 10, 15]))
    assert computed[4:] == [[10, 15]] * 8


# Counted from the release of SwinIR; of vHeatIR by hand, 17 D^2 + ... a block, without embeddings.
@pytest.mark.parametrize(
    ("build", "options", "count"),
    [
        (build_swin_ir, {"in_channels": 1}, 11_497_681),
        (build_swin_ir, {"in_channels": 3}, 11_504_163),
        (build_swin_ir, {"in_channels": 1, "window": 7}, 11_485_585),
        (build_swin_ir, {"in_channels": 3, "window": 7}, 11_492_067),
        (build_vheat_ir, {"in_channels": 1, "freq_size": 1}, 11_526_841 + 6 * 180),
        (build_vheat_ir, {"in_channels": 3, "freq_size": (2, 3)}, 11_533_323 + 6 * 6 * 180),
    ],
)
def test_parameter_counts(build, options, count):
    assert sum(p.size for p in build(**options).parameters()) == count


@pytest.mark.parametrize("mixer", ["swin", "vheat"])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (3, 5)])
def test_any_size(mixer, size):
    """Also sizes so small that the reflection has to turn more than once."""
    model = micro(mixer)
    model.eval()
    x = paddle.rand([2, 1, *size])
    y = model(x)
    assert y.shape == x.shape
    assert np.isfinite(y.numpy()).all()


@pytest.mark.parametrize("size", [1, 2, 5, 8, 9])
def test_padding_is_reflection(size):
    x = np.random.rand(1, 2, size, 8).astype(np.float32)
    padded = restoration._pad_by_reflection(paddle.to_tensor(x), 8).numpy()
    mode = {"mode": "reflect"} if size > 1 else {"mode": "edge"}
    assert np.array_equal(padded, np.pad(x, ((0, 0), (0, 0), (0, -size % 8), (0, 0)), **mode))


def test_heat_reaches_across_the_map_and_a_window_does_not():
    """Gradient of the first output pixel: for conduction, with strong k, all of the image has a part in it."""
    reached = {}
    for mixer in ("vheat", "swin"):
        model = micro(mixer, depths=(1,))
        model.eval()
        if mixer == "vheat":
            model.groups[0].blocks[0].mixer.to_k.bias.set_value(np.full(12, 5.0, np.float32))
        x = paddle.rand([1, 1, 32, 32])
        x.stop_gradient = False
        model(x)[0, 0, 0, 0].backward()
        reached[mixer] = (np.abs(x.grad.numpy()) > 0).mean()
    assert reached["vheat"] == 1
    assert reached["swin"] < 0.1


def test_start_of_training():
    """Published initialisation, and stochastic depth that rises over all blocks."""
    model = build_vheat_ir(width=60, depths=(2, 3), freq_size=32)
    rates = [block.drop_path.rate for group in model.groups for block in group.blocks]
    assert np.allclose(rates, np.linspace(0, 0.1, 5))
    block = model.groups[1].blocks[0]
    linears = [block.mixer.linear, block.mixer.to_k, block.mixer.out_linear, block.mlp.fc1, block.mlp.fc2]
    normal = [linear.weight for linear in linears] + [model.groups[0].frequency_embedding]
    normal.append(build_swin_ir(depths=(1,)).groups[0].blocks[0].mixer.relative_position_bias_table)
    for value in normal:
        value = value.numpy()
        assert abs(value.std() / 0.02 - 1) < 5 / np.sqrt(2 * value.size)  # five deviations of a sample's deviation
    assert all((linear.bias.numpy() == 0).all() for linear in linears)
    for conv, fan_in in ((model.conv_after_body, 540), (block.mixer.dwconv, 9)):
        largest = np.abs(conv.weight.numpy()).max() * np.sqrt(fan_in)
        assert 0.95 < largest <= 1


@pytest.mark.parametrize("mixer", ["swin", "vheat"])
def test_static_graph(mixer):
    """Of any size with heat conduction, of a fixed one with windows."""
    model = micro(mixer, depths=(1,) if mixer == "vheat" else (2,))
    model.eval()
    x = paddle.rand([1, 1, 13, 18])
    with paddle.no_grad():
        expected = model(x).numpy()
    shape = [None, 1, None, None] if mixer == "vheat" else [1, 1, 13, 18]
    spec = [paddle.static.InputSpec(shape, "float32")]
    graph = paddle.jit.to_static(model, input_spec=spec, full_graph=True)
    assert relative_error(graph(x).numpy(), expected) < 4e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_vheat_ir(in_channels=4), "in_channels must be 1 .* got 4"),
        (lambda: build_vheat_ir(depths=()), "depths must be positive"),
        (lambda: build_vheat_ir(depths=(2, 0)), "depths must be positive"),
        (lambda: build_vheat_ir(drop_path_rate=1.0), r"drop_path_rate must be in \[0, 1\), got 1.0"),
        (lambda: build_vheat_ir(freq_size=0), "freq_size: expected a positive int"),
        (lambda: build_vheat_ir(freq_size=10**5), "more than 1e\\+09 are not built"),
        (lambda: build_swin_ir(heads=7), "heads must divide width, got 7 and 180"),
        (lambda: build_swin_ir(window=0), "window must be at least 1, got 0"),
        (lambda: micro("vheat")(paddle.zeros([1, 3, 8, 8])), r"expected \(B, 1, H, W\), got shape \[1, 3, 8, 8\]"),
        (lambda: micro("swin")(paddle.zeros([8, 8])), r"expected \(B, 1, H, W\)"),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
