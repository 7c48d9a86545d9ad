"""Resizing against independent float64 computations."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_vheat import ops
from paddle_vheat._paddle import F, paddle
from tests.conftest import relative_error


@pytest.mark.parametrize(
    ("old", "new"), [((4, 6), (16, 24)), ((5, 7), (13, 9)), ((1, 1), (4, 5)), ((6, 1), (7, 3)), ((9, 12), (4, 5))]
)
def test_bilinear_value_and_gradient(old, new):
    rng = np.random.default_rng(1)
    x = paddle.to_tensor(rng.standard_normal((2, 3, *old)), stop_gradient=False)
    cotangent = rng.standard_normal((2, 3, *new))
    y = ops.resize_bilinear(x, list(new))
    assert np.array_equal(y.numpy(), F.interpolate(x, list(new), mode="bilinear", align_corners=False).numpy())
    (y * paddle.to_tensor(cotangent)).sum().backward()
    # a linear map: its gradient is found exactly by applying it to every unit vector
    unit = np.eye(old[0] * old[1]).reshape(-1, 1, *old)
    columns = F.interpolate(paddle.to_tensor(unit), list(new), mode="bilinear", align_corners=False).numpy()
    expected = np.einsum("nkij,bcij->bcn", columns, cotangent).reshape(x.shape)
    # the matrices are float32 numbers
    assert relative_error(x.grad.numpy(), expected) < 1e-6


def test_bilinear_of_the_same_size_is_the_input():
    x = paddle.randn([1, 2, 5, 4])
    assert ops.resize_bilinear(x, [5, 4]) is x


def test_bicubic_gradient_is_the_transpose():
    rng = np.random.default_rng(2)
    x = paddle.to_tensor(rng.standard_normal((4, 5, 2)), stop_gradient=False)
    cotangent = rng.standard_normal((7, 3, 2))
    (ops.resize_bicubic(x, 7, 3) * paddle.to_tensor(cotangent)).sum().backward()
    unit = paddle.to_tensor(np.eye(20).reshape(4, 5, 20))
    columns = ops.resize_bicubic(unit, 7, 3).numpy()
    expected = np.einsum("hwn,hwc->nc", columns, cotangent).reshape(4, 5, 2)
    assert relative_error(x.grad.numpy(), expected) < 1e-12


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int64"])
def test_bicubic_of_a_dtype_without_products(dtype):
    with pytest.raises(ValueError, match=f"resize_bicubic: .*, got {dtype}"):
        ops.resize_bicubic(paddle.ones([4, 5, 2]).astype(dtype), 3, 3)
