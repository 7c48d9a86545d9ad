"""The Heat Conduction Operator against the reference outputs, closed forms and numeric gradients."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import scipy.fft

from paddle_vheat import ops
from paddle_vheat._paddle import nn, paddle
from paddle_vheat.ops.without import without_conduction
from paddle_vheat.weights.loading import load_state
from tests.conftest import golden, relative_error, sample

heat_module = importlib.import_module("paddle_vheat.ops.heat")


def conduct_reference(heat, decay):
    """Float64 heat conduction with SciPy: (B, H, W, C)."""
    modes = scipy.fft.dctn(heat, norm="ortho", axes=(1, 2))
    return scipy.fft.idctn(modes * decay, norm="ortho", axes=(1, 2))


def tensor(array, trainable=False):
    return paddle.to_tensor(array, stop_gradient=not trainable)


def fill(layer, data, dtype):
    for name, parameter in layer.named_parameters():
        value = data["param/" + name.replace("to_k.", "to_k.0.")].astype(dtype)
        parameter.set_value(
            value.T if name.split(".")[0] in ("linear", "to_k", "out_linear") and value.ndim == 2 else value
        )


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", ["hco_c8_7x7", "hco_c8_14x14", "hco_c8_33x47"])
def test_equals_the_references_with_every_gradient(name, data_format):
    data = golden(name)
    layer = ops.HeatConduction2D(8, data_format=data_format)
    fill(layer, data, np.float32)
    order = (0, 1, 2, 3) if data_format == "NCHW" else (0, 2, 3, 1)
    back = (0, 1, 2, 3) if data_format == "NCHW" else (0, 3, 1, 2)
    x = tensor(data["x"].transpose(order), trainable=True)
    embedding = tensor(data["freq_embed"], trainable=True)
    y = layer(x, embedding)
    (y * tensor(data["cotangent"].transpose(order))).sum().backward()
    # float32: 6e-8 per operation, some 50-term sums in sequence; references in float64, so the error is ours.
    bound = 3e-5
    pairs = {
        "y_f64": y.numpy().transpose(back),
        "grad_x_f64": x.grad.numpy().transpose(back),
        "grad_freq_embed_f64": embedding.grad.numpy(),
    }
    for key, ours in pairs.items():
        reference = data[key]
        ours = sample(ours, 4000) if reference.ndim == 1 else ours
        assert relative_error(ours, reference) < bound, key
    for key, parameter in layer.named_parameters():
        reference = data["grad/" + key.replace("to_k.", "to_k.0.")]
        ours = parameter.grad.numpy()
        assert (
            relative_error(
                ours.T if ours.shape != reference.shape or "linear.weight" in key or "to_k.weight" in key else ours,
                reference,
            )
            < bound
        ), key


def test_folded_decay_equals_the_reference():
    for name in ("hco_c8_7x7", "hco_c8_14x14"):
        data = golden(name)
        layer = ops.HeatConduction2D(8, data_format="NCHW")
        fill(layer, data, np.float32)
        decay = layer.decay(tensor(data["freq_embed"]))
        assert relative_error(decay.numpy(), data["k_exp"]) < 3e-6
        assert relative_error(layer.conduct(tensor(data["x"]), decay).numpy(), data["y_infer"]) < 3e-5


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (1, 6), (6, 1), (1, 1)])
def test_conduction_equals_scipy_in_float64(size):
    rng = np.random.default_rng(1)
    heat, k = rng.standard_normal((2, *size, 3)), rng.uniform(0, 3, (*size, 3))
    rows, columns = (np.pi * np.arange(n) / n for n in size)
    decay = np.exp(-k * (rows[:, None] ** 2 + columns[None, :] ** 2)[..., None])
    ours = ops.heat_decay(tensor(k))
    assert ours.dtype == paddle.float64
    # an exponent k w^2 of up to 60, rounded to 1e-16 of it
    assert relative_error(ours.numpy(), decay) < 1e-13
    assert relative_error(ops.conduct_heat(tensor(heat), tensor(decay)).numpy(), conduct_reference(heat, decay)) < 1e-13


def test_limits_of_the_diffusivity():
    heat = np.random.default_rng(2).standard_normal((2, 7, 10, 3))
    still = ops.conduct_heat(tensor(heat), ops.heat_decay(paddle.zeros([7, 10, 3], "float64")))
    assert relative_error(still.numpy(), heat) < 1e-13
    assert float((still**2).sum()) == pytest.approx((heat**2).sum(), rel=1e-13)
    mixed = ops.conduct_heat(tensor(heat), ops.heat_decay(paddle.full([7, 10, 3], 1e6, "float64")))
    mixed_at_once = ops.conduct_heat(tensor(heat), ops.heat_decay(paddle.full([7, 10, 3], np.inf, "float64")))
    assert np.array_equal(mixed_at_once.numpy(), mixed.numpy())
    mean = np.broadcast_to(heat.mean(axis=(1, 2), keepdims=True), heat.shape)
    assert relative_error(mixed.numpy(), mean) < 1e-13


def test_numeric_gradients():
    rng = np.random.default_rng(3)
    heat, k = rng.standard_normal((2, 4, 5, 2)), rng.uniform(0, 1, (4, 5, 2))
    cotangent = rng.standard_normal(heat.shape)

    def loss(heat, k):
        return (ops.conduct_heat(heat, ops.heat_decay(k)) * tensor(cotangent)).sum()

    heat_t, k_t = tensor(heat, True), tensor(k, True)
    loss(heat_t, k_t).backward()
    step = 1e-5  # central differences in float64: error about step^2 = 1e-10 of the third derivative
    for array, gradient, place in ((heat, heat_t.grad, 0), (k, k_t.grad, 1)):
        numeric = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            sides = []
            for sign in (1, -1):
                moved = array.copy()
                moved[index] += sign * step
                arguments = [heat, k]
                arguments[place] = moved
                sides.append(float(loss(*(tensor(a) for a in arguments))))
            numeric[index] = (sides[0] - sides[1]) / (2 * step)
        assert relative_error(gradient.numpy(), numeric) < 1e-7


def test_own_backward_equals_autograd_of_the_plain_formula():
    rng = np.random.default_rng(4)
    heat, decay = tensor(rng.standard_normal((3, 6, 5, 4)), True), tensor(rng.uniform(0, 1, (6, 5, 4)), True)
    cotangent = tensor(rng.standard_normal((3, 6, 5, 4)))
    (ops.conduct_heat(heat, decay) * cotangent).sum().backward()
    ours = heat.grad.numpy(), decay.grad.numpy()
    heat.clear_grad()
    decay.clear_grad()
    (ops.idct2(ops.dct2(heat, (1, 2)) * decay, (1, 2)) * cotangent).sum().backward()
    for mine, plain in zip(ours, (heat.grad.numpy(), decay.grad.numpy())):
        assert relative_error(mine, plain) < 1e-13


@pytest.mark.parametrize("trainable", [(True, False), (False, True)])
def test_gradient_of_only_one_input(trainable):
    heat = tensor(np.ones((1, 4, 4, 2), np.float32), trainable[0])
    decay = tensor(np.full((4, 4, 2), 0.5, np.float32), trainable[1])
    ops.conduct_heat(heat, decay).sum().backward()
    assert [t.grad is not None for t in (heat, decay)] == list(trainable)


def test_gradients_of_a_chosen_input_and_second_gradients():
    rng = np.random.default_rng(8)
    heat, decay = tensor(rng.standard_normal((2, 5, 4, 3)), True), tensor(rng.uniform(0, 1, (5, 4, 3)), True)

    def plain(heat, decay):
        return ops.idct2(ops.dct2(heat, (1, 2)) * decay, (1, 2))

    results = []
    for function in (ops.conduct_heat, plain):
        loss = (function(heat, decay) ** 3).sum()
        alone = [paddle.grad(loss, [x], retain_graph=True)[0] for x in (heat, decay)]
        (penalized,) = paddle.grad(loss, [heat], create_graph=True)
        second = paddle.grad((penalized**2).sum(), [heat, decay])
        results.append([x.numpy() for x in (*alone, *second)])
    for mine, theirs in zip(*results):
        assert relative_error(mine, theirs) < 1e-12


def test_half_precision_input_keeps_its_type_and_a_wide_product():
    # The CPU multiplies no half-precision matrices; what surrounds the products is looked at in their place.
    heat = tensor(np.full((1, 2, 2, 1), 60000, np.float16), True)
    decay = tensor(np.ones((2, 2, 1), np.float32), True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heat_module, "_dct_map", lambda x, inverse: x * 1)
        out = ops.conduct_heat(heat, decay)
        (out.astype("float32") * 1000).sum().backward()
    assert [x.dtype for x in (out, heat.grad, decay.grad)] == [paddle.float16, paddle.float16, paddle.float32]
    # 60000 * 1000 is far beyond 65504, the largest number of half precision
    assert np.array_equal(decay.grad.numpy(), np.full((2, 2, 1), 6e7, np.float32))


def test_keeps_only_the_modes_and_the_decay():
    saved = []
    heat, decay = (
        tensor(np.ones((2, 4, 4, 3), np.float32), True),
        tensor(np.ones((4, 4, 3), np.float32), True),
    )
    with paddle.autograd.saved_tensors_hooks(lambda t: (saved.append(t.shape), t)[1], lambda t: t):
        ops.conduct_heat(heat, decay)
    assert saved == [[2, 4, 4, 3], [4, 4, 3]]


@pytest.mark.parametrize("value", [0.0, 1e-30, 1.0, 1e4, 1e30, 3e38, np.inf])
def test_gradients_are_finite_for_every_diffusivity(value):
    k = tensor(np.full((6, 6, 2), value, np.float32), True)
    heat = tensor(np.random.default_rng(5).standard_normal((2, 6, 6, 2)).astype(np.float32), True)
    out = ops.conduct_heat(heat, ops.heat_decay(k))
    (out**2).sum().backward()
    for array in (out, heat.grad, k.grad):
        assert np.isfinite(array.numpy()).all()


def test_decay_is_float32_for_half_precision_parameters():
    # to_k's weights of 100 on an embedding of 1000 pass half precision's largest number, 65504.
    for dtype in ("float16", "bfloat16"):
        layer = ops.HeatConduction2D(4)
        layer.to_k.weight.set_value(paddle.full([4, 4], 100.0))
        layer.to_k.to(dtype=dtype)
        embedding = paddle.full([5, 5, 4], 1000.0).astype(dtype)
        embedding.stop_gradient = False
        decay = layer.decay(embedding)
        assert decay.dtype == paddle.float32
        assert float(decay[0, 0, 0]) == 1.0
        decay.sum().backward()
        for gradient in (embedding.grad, layer.to_k.weight.grad):
            assert np.isfinite(gradient.astype("float32").numpy()).all()


def test_decay_is_float32_under_autocast():
    layer = ops.HeatConduction2D(4)
    layer.to_k.weight.set_value(paddle.full([4, 4], 100.0))
    with paddle.amp.auto_cast(level="O1", dtype="bfloat16"):
        decay = layer.decay(paddle.full([5, 5, 4], 0.0123))
    expected = ops.heat_decay(paddle.full([5, 5, 4], 4 * 100 * 0.0123))
    assert decay.dtype == paddle.float32
    # bfloat16 anywhere on the way would be off by 4e-3.
    assert relative_error(decay.numpy(), expected.numpy()) < 1e-5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("folded", [False, True])
def test_a_transform_in_float32_of_maps_in_half_precision(dtype, folded):
    """A CPU has no products in half precision: without the option, it refuses."""
    layer = ops.HeatConduction2D(3, float32_transform=True)
    embedding = paddle.randn([6, 5, 3])
    decay, heat = layer.decay(embedding), paddle.randn([2, 6, 5, 3]).astype(dtype)
    layer = heat_module.FoldedHeatConduction2D(layer, embedding) if folded else layer
    found = layer._conduct_heat(heat, decay)
    expected = ops.conduct_heat(heat.astype("float32"), decay).astype(dtype)
    assert found.dtype == heat.dtype
    assert np.array_equal(found.astype("float32").numpy(), expected.astype("float32").numpy())
    layer.float32_transform = False
    with pytest.raises(ValueError, match=f"got {dtype}, of which it has no products"):
        layer._conduct_heat(heat, decay)


def test_without_conduction():
    """k is 0 in a copy, folded or not, also after decays have been kept; the network itself is as it was."""
    layer = ops.HeatConduction2D(3, (6, 5))
    layer.to_k.bias.set_value(paddle.full([3], 2.0))
    layer.out_linear.weight.set_value(paddle.randn([3, 3]))
    network = nn.Sequential(layer)
    network.eval()
    x = paddle.randn([1, 3, 6, 5])
    with paddle.no_grad():
        conducted = network(x).numpy()
        expected = layer.conduct(x, paddle.ones([6, 5, 3])).numpy()
        kept = ops.fold(network)
        kept(x)
        for copied in (network, kept, ops.fold(network, (6, 5))):
            found = without_conduction(copied)(x).numpy()
            assert relative_error(found, expected) < 1e-5
            assert relative_error(copied(x).numpy(), conducted) < 1e-5
    assert relative_error(conducted, expected) > 0.05
    with pytest.raises(ValueError, match="Linear holds no heat conduction operator"):
        without_conduction(nn.Linear(2, 2))


def test_heat_and_decay_of_different_precision():
    # As under AMP, with the pair of dtypes that the CPU has products for.
    rng = np.random.default_rng(6)
    heat = tensor(rng.standard_normal((2, 6, 6, 3)), True)
    decay = tensor(rng.uniform(0, 1, (6, 6, 3)).astype(np.float32), True)
    out = ops.conduct_heat(heat, decay)
    (out**2).sum().backward()
    assert [t.dtype for t in (out, heat.grad, decay.grad)] == [paddle.float64, paddle.float64, paddle.float32]
    reference = conduct_reference(heat.numpy(), decay.numpy().astype(np.float64))
    assert relative_error(out.numpy(), reference) < 1e-13


def test_empty_batch_and_bad_shapes():
    assert ops.conduct_heat(paddle.zeros([0, 4, 4, 2]), paddle.ones([4, 4, 2])).shape == [0, 4, 4, 2]
    with pytest.raises(ValueError, match=r"is not that of decay \[4, 5, 2\]"):
        ops.conduct_heat(paddle.zeros([1, 4, 4, 2]), paddle.ones([4, 5, 2]))
    with pytest.raises(ValueError, match="expected heat"):
        ops.conduct_heat(paddle.zeros([4, 4, 2]), paddle.ones([4, 4, 2]))
    with pytest.raises(ValueError, match="data_format"):
        ops.HeatConduction2D(4, data_format="CHW")
    with pytest.raises(ValueError, match="needs a frequency embedding with each map"):
        ops.HeatConduction2D(4)(paddle.zeros([1, 6, 5, 4]))
    with pytest.raises(ValueError, match=r"expected NCHW maps of 4 channels, got \[1, 6, 5, 4\]"):
        ops.HeatConduction2D(4, size=6)(paddle.zeros([1, 6, 5, 4]))
    with pytest.raises(ValueError, match="HeatConduction2D: size: expected a positive int or"):
        ops.HeatConduction2D(4, size=(6, 0))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int64"])
def test_dtypes_of_which_a_cpu_has_no_products(dtype):
    x = paddle.ones([1, 4, 4, 2]).astype(dtype)
    with pytest.raises(ValueError, match=f"conduct_heat: .*, got {dtype}"):
        ops.conduct_heat(x, paddle.ones([4, 4, 2]))
    if dtype == "int64":
        with pytest.raises(ValueError, match="heat_decay: expected a floating-point input, got int64"):
            ops.heat_decay(x[0])
    else:
        assert ops.heat_decay(x[0]).dtype == paddle.float32


@pytest.mark.parametrize("size", [(6, 5), (9, 4)])
def test_an_operator_that_owns_its_embedding(size):
    """NCHW; at another size its embedding is resized."""
    layer = ops.HeatConduction2D(3, (6, 5))
    assert layer.frequency_embedding.shape == [6, 5, 3]
    shared = ops.HeatConduction2D(3)
    load_state(shared, {k: v.numpy() for k, v in layer.state_dict().items() if k != "frequency_embedding"}, "x")
    x = paddle.randn([2, 3, *size])
    expected = shared(x.transpose([0, 2, 3, 1]), ops.resize_bicubic(layer.frequency_embedding, *size))
    ours = layer(x)
    assert np.array_equal(ours.numpy(), expected.transpose([0, 3, 1, 2]).numpy())
    ours.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_embedding_at_frequency_zero_never_matters():
    layer = ops.HeatConduction2D(3)
    embedding = tensor(np.random.default_rng(7).standard_normal((5, 4, 3)).astype(np.float32), True)
    layer(paddle.randn([2, 5, 4, 3]), embedding).sum().backward()
    assert np.array_equal(embedding.grad.numpy()[0, 0], np.zeros(3))


def test_training_in_a_static_graph():
    layer = ops.HeatConduction2D(3)
    x, embedding = paddle.randn([2, 6, 5, 3]), paddle.randn([6, 5, 3])
    expected = layer(x, embedding)
    expected.sum().backward()
    gradient = layer.linear.weight.grad.numpy()
    layer.clear_gradients()
    static = paddle.jit.to_static(layer, full_graph=True)
    out = static(x, embedding)
    out.sum().backward()
    assert relative_error(out.numpy(), expected.numpy()) < 1e-5
    assert relative_error(layer.linear.weight.grad.numpy(), gradient) < 1e-5
