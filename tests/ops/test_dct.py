"""The cosine transform against SciPy's, in float64."""

from __future__ import annotations

import copy
import importlib
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.fft

from paddle_vheat import ops
from paddle_vheat._paddle import paddle
from tests.conftest import relative_error

dct_module = importlib.import_module("paddle_vheat.ops.dct")  # the package exports the function of that name

# float64 carries 1.1e-16 per operation; sums of at most 64 terms and a rounded basis leave 1e-13 ample room.
EXACT = 1e-13
SHAPES = [(7, 7), (14, 14), (33, 47), (1, 9), (9, 1), (1, 1), (64, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_dct2_equals_scipy(shape):
    x = np.random.default_rng(1).standard_normal((2, 3, *shape))
    expected = scipy.fft.dctn(x, type=2, norm="ortho", axes=(-2, -1))
    assert relative_error(ops.dct2(paddle.to_tensor(x)).numpy(), expected) < EXACT
    inverse = scipy.fft.idctn(x, type=2, norm="ortho", axes=(-2, -1))
    assert relative_error(ops.idct2(paddle.to_tensor(x)).numpy(), inverse) < EXACT


@pytest.mark.parametrize("axes", [(1, 2), (2, 1), (0, 3), (-1, 0), (-3, -2)])
def test_given_axes(axes):
    x = np.random.default_rng(2).standard_normal((4, 5, 6, 7))
    expected = scipy.fft.dctn(x, type=2, norm="ortho", axes=axes)
    assert relative_error(ops.dct2(paddle.to_tensor(x), axes=axes).numpy(), expected) < EXACT
    assert relative_error(ops.idct2(paddle.to_tensor(expected), axes=axes).numpy(), x) < EXACT


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_one_axis(axis):
    x = np.random.default_rng(3).standard_normal((4, 5, 6))
    expected = scipy.fft.dct(x, type=2, norm="ortho", axis=axis)
    assert relative_error(ops.dct(paddle.to_tensor(x), axis=axis).numpy(), expected) < EXACT
    assert relative_error(ops.idct(paddle.to_tensor(expected), axis=axis).numpy(), x) < EXACT
    vector = paddle.to_tensor(x[0, 0])
    assert relative_error(ops.idct(ops.dct(vector)).numpy(), x[0, 0]) < EXACT


def test_inverse_and_energy_in_float32():
    x = np.random.default_rng(4).standard_normal((2, 56, 40)).astype(np.float32)
    modes = ops.dct2(paddle.to_tensor(x))
    # Two products of 56 terms each: rounding grows like sqrt(56) * 6e-8, four times over.
    assert relative_error(ops.idct2(modes).numpy(), x) < 5e-6
    assert float((modes**2).sum()) == pytest.approx(float((x.astype(np.float64) ** 2).sum()), rel=1e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 255, 512])
def test_basis_is_orthonormal_and_exact_at_large_sizes(n):
    basis = ops.cosine_basis(n, "float64").numpy()
    assert np.abs(basis @ basis.T - np.eye(n)).max() < 1e-13 * max(n, 10)
    # float32 is the float64 basis rounded once: half a unit in the last place of numbers below 1.
    assert np.abs(ops.cosine_basis(n, "float32").numpy() - basis).max() <= 6e-8


def test_gradient_is_the_inverse():
    x = paddle.to_tensor(np.random.default_rng(5).standard_normal((3, 8, 5)), stop_gradient=False)
    cotangent = np.random.default_rng(6).standard_normal((3, 8, 5))
    (ops.dct2(x) * paddle.to_tensor(cotangent)).sum().backward()
    assert relative_error(x.grad.numpy(), scipy.fft.idctn(cotangent, norm="ortho", axes=(1, 2))) < EXACT


def test_empty_input_gives_empty_output():
    assert ops.dct2(paddle.zeros([0, 3, 8, 8])).shape == [0, 3, 8, 8]
    assert ops.idct(paddle.zeros([0, 8])).shape == [0, 8]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: ops.dct(x, axis=3), ValueError, "axis 3 is out of range"),
        (lambda x: ops.dct2(x, axes=(1, -2)), ValueError, "must differ"),
        (lambda x: ops.dct2(x, axes=(1,)), ValueError, "two axes"),
        (lambda x: ops.dct(x.astype("int32")), ValueError, "floating-point input, got int32"),
        (
            lambda x: ops.dct2(x.astype("float16")),
            ValueError,
            "dct2: on a CPU expected float32 or float64, got float16",
        ),
        (lambda x: ops.cosine_basis(0), ValueError, "at least 1"),
        (lambda x: ops.cosine_basis(np.int64(-1)), ValueError, "at least 1"),
        (lambda x: ops.cosine_basis(4, "int32"), ValueError, "floating-point dtype, got int32"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(paddle.zeros([2, 3, 4]))


def test_cache_is_shared_bounded_and_frozen():
    dct_module._cache.items.clear()
    assert ops.cosine_basis(9) is ops.cosine_basis(9, paddle.float32)
    assert ops.cosine_basis(9).stop_gradient
    assert ops.cosine_basis(9, "float64") is not ops.cosine_basis(9)
    for n in range(1, 128 + 20):
        ops.cosine_basis(n)
    assert len(dct_module._cache.items) == 128
    assert not any(key[0] == 1 for key in dct_module._cache.items)  # the oldest went first


def test_cache_under_many_threads(monkeypatch):
    dct_module._cache.items.clear()
    monkeypatch.setattr(dct_module._cache, "limit", 3)  # so that every thread drops what the others look for
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            sizes = [1 + i % 7 for i in range(4000)]
            assert [basis.shape[0] for basis in pool.map(ops.cosine_basis, sizes)] == sizes
    finally:
        sys.setswitchinterval(interval)
    assert len(dct_module._cache.items) <= 3


def test_bases_made_without_gradients_serve_training():
    dct_module._cache.items.clear()
    with paddle.no_grad():
        ops.dct2(paddle.ones([6, 6]))
    x = paddle.ones([6, 6])
    x.stop_gradient = False
    ops.dct2(x)[0, 0].backward()
    # Mode (0, 0) is the sum over the square root of the count.
    assert np.allclose(x.grad.numpy(), 1 / 6, atol=1e-7)


def test_static_graph_computes_the_same_basis():
    class Transform(paddle.nn.Layer):
        def forward(self, x):
            return ops.dct2(x)

    spec = [paddle.static.InputSpec([None, 3, None, None], "float32")]
    static = paddle.jit.to_static(Transform(), input_spec=spec, full_graph=True)
    for shape in [(2, 3, 17, 9), (1, 3, 250, 33)]:
        x = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
        expected = scipy.fft.dctn(x.astype(np.float64), norm="ortho", axes=(-2, -1))
        # float32 cosines (1e-7 each) and sums of up to 250 terms.
        assert relative_error(static(paddle.to_tensor(x)).numpy(), expected) < 3e-6
    spec = [paddle.static.InputSpec([None, 3, None, None], "float64")]
    static = paddle.jit.to_static(Transform(), input_spec=spec, full_graph=True)
    x = np.random.default_rng(7).standard_normal((1, 3, 33, 20))
    expected = scipy.fft.dctn(x, norm="ortho", axes=(-2, -1))
    assert relative_error(static(paddle.to_tensor(x)).numpy(), expected) < EXACT


def test_layers_carry_no_basis():
    layer = ops.HeatConduction2D(4)
    layer(paddle.ones([1, 6, 5, 4]), paddle.zeros([6, 5, 4]))
    names = {"dwconv", "linear", "to_k", "out_norm", "out_linear"}
    assert {name.split(".")[0] for name in layer.state_dict()} == names
    twin = copy.deepcopy(layer)
    x, embedding = paddle.randn([1, 6, 5, 4]), paddle.randn([6, 5, 4])
    assert np.array_equal(twin(x, embedding).numpy(), layer(x, embedding).numpy())
    state = pickle.loads(pickle.dumps({k: v.numpy() for k, v in layer.state_dict().items()}))
    assert set(state) == set(layer.state_dict())
