"""Training on a CPU by the kernels of ``native.c`` and ``products.c``: parts of the network as one operation each.

Between matrix products, everything that goes over a map value by value is one pass. What a pass can compute again is
not kept for the backward pass. All maps are float32 and channels last.
"""

from __future__ import annotations

import math
from typing import Any

from paddle_vheat._paddle import paddle
from paddle_vheat.ops.dct import cosine_basis
from paddle_vheat.ops.fold import affine
from paddle_vheat.ops.heat import _dct_map
from paddle_vheat.ops.native import run

Tensor = Any

PATCH_VALUES = 2**24  # neighbourhoods of a convolution that are laid out at a time, of whole samples: 64 MiB
NO_NORM = None, None, 0.0  # of kernels of products.c: that begin with no LayerNorm,
BARE = *NO_NORM, None, None, 0, None  # and end with the linear layer


def _like(x: Tensor) -> Tensor:
    return paddle.empty(x.shape, x.dtype)


def _rows(x: Tensor) -> tuple[int, int]:
    """Number of rows of a map, and their length."""
    *sides, length = x.shape
    return math.prod(sides), length


def _sample_rows(x: Tensor) -> tuple[int, int, int]:
    """Number of rows of a sample, and :func:`_rows`."""
    rows, length = _rows(x)
    return rows // x.shape[0], rows, length


def _samples(x: Tensor) -> tuple[int, int]:
    """Number of samples of a map, and the values of each."""
    batch, *sides = x.shape
    return batch, math.prod(sides)


def flat(x: Tensor) -> Tensor:
    return x.reshape([-1, x.shape[-1]])


def column_sums(x: Tensor) -> Tensor:
    """(N, C) -> (C,)."""
    return paddle.matmul(paddle.ones([1, x.shape[0]], x.dtype), x).reshape([-1])


def needed(*inputs: Tensor) -> list[bool]:
    return [not tensor.stop_gradient for tensor in inputs]


def wanted(ctx: Any, *gradients: Any) -> Any:
    """What a backward pass returns: the gradients that are wanted, given as they are or as functions that make them,
    and None for the others."""
    given = zip(gradients, ctx.needed)
    return tuple((one() if callable(one) else one) if is_needed else None for one, is_needed in given)


def _parameters(branch: Any) -> list[Tensor]:
    """Those of a branch's arguments that are tensors."""
    return [given for given in branch if isinstance(given, paddle.Tensor)]


class LayerNorm(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        ctx.needed, ctx.epsilon = needed(x, weight, bias), epsilon
        ctx.save_for_backward(x, weight)
        out = _like(x)
        run("layer_norm", x, weight, bias, epsilon, None, None, 0, *_rows(x), out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensor()
        found = _like(x), _like(weight), _like(weight)
        run("layer_norm_gradient", gradient, x, weight, ctx.epsilon, None, None, 0, *_rows(x), *found)
        return wanted(ctx, *found)


class GELU(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        out = _like(x)
        run("gelu", x, *_rows(x), out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensor()
        of_x = _like(x)
        run("gelu_gradient", gradient, x, None, *_rows(x), None, of_x, None)
        return of_x


class NormedResidual(paddle.autograd.PyLayer):
    """x + factors * LayerNorm(branch), the factors (B, 1, 1, 1) being one for each sample, without a gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, factors: Tensor, epsilon: float
    ) -> Tensor:
        ctx.needed, ctx.epsilon = needed(x, branch, weight, bias, factors), epsilon
        ctx.save_for_backward(branch, weight, factors)
        out = _like(x)
        run("layer_norm", branch, weight, bias, epsilon, x, factors, *_sample_rows(x), out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        branch, weight, factors = ctx.saved_tensor()
        found = _like(branch), _like(weight), _like(weight)
        run("layer_norm_gradient", gradient, branch, weight, ctx.epsilon, None, factors, *_sample_rows(branch), *found)
        return wanted(ctx, gradient, *found, None)


# A residual branch that begins with LayerNorm, x + factors * operator(LayerNorm(x)), is one operation with its
# operator, which takes a `branch`: weight, bias and epsilon of the LayerNorm, and the factors of
# :class:`NormedResidual`. Without one, None for each, it is the operator alone.
ALONE = *NO_NORM, None


def _ending(x: Tensor, weight: Tensor, bias: Tensor, branch: Any) -> tuple[Any, ...]:
    """Arguments of a kernel for what follows the operator, its last linear layer included."""
    factors = branch[3]
    joined = BARE if factors is None else (*NO_NORM, None, factors, _sample_rows(x)[0], x)
    return weight, bias, *joined


def _inside(ctx: Any, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """What the operator was given, and the gradient of what it gave."""
    weight, bias, epsilon, factors = ctx.branch
    if weight is None:
        return x, gradient
    inner, of_inner = _like(x), _like(x)
    run("layer_norm", x, weight, bias, epsilon, None, None, 0, *_rows(x), inner)
    run("scale_samples", gradient, factors, *_samples(x), of_inner)
    return inner, of_inner


def _outside(ctx: Any, x: Tensor, gradient: Tensor, of_inner: Tensor) -> list[Tensor]:
    """Gradients of ``x`` and of the LayerNorm's weight and bias."""
    weight, _, epsilon, _ = ctx.branch
    if weight is None:
        return [of_inner, None, None]
    found = [_like(x), _like(weight), _like(weight)]
    run("layer_norm_gradient", of_inner, x, weight, epsilon, gradient, None, 0, *_rows(x), *found)
    return found


class MLP(paddle.autograd.PyLayer):
    """Linear, GELU, linear. Of the widened map, what comes before the first bias is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, *branch: Any
    ) -> Tensor:
        ctx.needed, ctx.branch = needed(x, weight1, bias1, weight2, bias2, *_parameters(branch)), branch
        hidden, out = paddle.empty([*x.shape[:-1], weight1.shape[1]], x.dtype), _like(x)
        ending = _ending(x, weight2, bias2, branch)
        run("mlp", x, *branch[:3], weight1, bias1, *ending, *_rows(x), weight1.shape[1], out, hidden)
        ctx.save_for_backward(x, weight1, bias1, weight2, hidden)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight1, bias1, weight2, hidden = ctx.saved_tensor()
        inner, of_out = _inside(ctx, x, gradient)
        of_hidden = paddle.matmul(of_out, weight2, transpose_y=True)
        activated, of_bias1 = _like(hidden), _like(bias1)
        run("gelu_gradient", of_hidden, hidden, bias1, *_rows(hidden), activated, of_hidden, of_bias1)
        of_x, *of_norm = _outside(ctx, x, gradient, paddle.matmul(of_hidden, weight1, transpose_y=True))
        return wanted(
            ctx,
            of_x,
            paddle.matmul(flat(inner), flat(of_hidden), transpose_x=True),
            of_bias1,
            paddle.matmul(flat(activated), flat(of_out), transpose_x=True),
            column_sums(flat(of_out)),
            *of_norm,
            None,
        )


class Convolution(paddle.autograd.PyLayer):
    """3 x 3, margin 1, of a map (B, H, W, C) -> (B, ceil(H/stride), ceil(W/stride), D); weight (D, C, 3, 3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.needed, ctx.stride = needed(x, weight, *([] if bias is None else [bias])), stride
        ctx.save_for_backward(x, weight)
        out = paddle.empty([x.shape[0], *_strided(x, stride), weight.shape[0]], x.dtype)
        run("convolution", x, weight, bias, *NO_NORM, 0, *x.shape, stride, out.shape[3], out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensor()
        stride: int = ctx.stride
        matrix = weight.reshape([weight.shape[0], -1])
        count = max(1, PATCH_VALUES // (9 * x.shape[3] * math.prod(_strided(x, stride))))
        of_x, of_weight = [], []
        for part, of_part in zip(_split(x, count), _split(gradient, count)):
            rows = flat(of_part)
            if ctx.needed[0]:
                of_x.append(_like(part))
                run("patches_gradient", paddle.matmul(rows, matrix), *part.shape, stride, of_x[-1])
            of_weight.append(paddle.matmul(rows, _patches(part, stride), transpose_x=True))
        return wanted(
            ctx,
            lambda: of_x[0] if len(of_x) == 1 else paddle.concat(of_x),
            sum(of_weight[1:], of_weight[0]).reshape(weight.shape),
            lambda: column_sums(flat(gradient)),
        )


def _strided(x: Tensor, stride: int) -> list[int]:
    return [(side + stride - 1) // stride for side in x.shape[1:3]]


def _split(x: Tensor, count: int) -> list[Tensor]:
    """The samples of a map, so many at a time."""
    return [x] if count >= x.shape[0] else [x[i : i + count] for i in range(0, x.shape[0], count)]


def _patches(x: Tensor, stride: int) -> Tensor:
    """The neighbourhood of every stride-th pixel, (N, C * 9)."""
    out = paddle.empty([x.shape[0] * math.prod(_strided(x, stride)), 9 * x.shape[3]], x.dtype)
    run("patches", x, *x.shape, stride, out)
    return out


class Decay(paddle.autograd.PyLayer):
    """The decay (H, W, C) of an embedding (H, W, C), by the linear layer that gives k."""

    @staticmethod
    def forward(ctx: Any, embedding: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.needed = needed(embedding, weight, bias)
        found = affine(embedding, weight, bias)
        out = _like(found)
        run("decay", found, *found.shape, out)
        ctx.save_for_backward(embedding, weight, found)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        embedding, weight, found = ctx.saved_tensor()
        of_found = _like(found)
        run("decay_gradient", gradient, found, *found.shape, of_found)
        return wanted(
            ctx,
            lambda: paddle.matmul(of_found, weight, transpose_y=True),
            lambda: paddle.matmul(flat(embedding), flat(of_found), transpose_x=True),
            lambda: column_sums(flat(of_found)),
        )


class HeatConduction(paddle.autograd.PyLayer):
    """The Heat Conduction Operator for a decay (H, W, C) that is 1 at mode (0, 0).

    A constant is a multiple of that mode, which is not damped. So the gradient of the linear layer's bias on the heat
    is already known from the conducted heat's.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        decay: Tensor,
        kernel: Tensor,
        kernel_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        out_weight: Tensor,
        out_bias: Tensor,
        epsilon: float,
        *branch: Any,
    ) -> Tensor:
        ctx.epsilon, ctx.branch = epsilon, branch
        given = x, decay, kernel, kernel_bias, weight, bias, norm_weight, norm_bias, out_weight, out_bias
        ctx.needed = needed(*given, *_parameters(branch))
        bases = cosine_basis(x.shape[1]), cosine_basis(x.shape[2])
        ending = _ending(x, out_weight, out_bias, branch)
        out, *kept = (_like(x) for _ in range(5))
        run(
            "heat_conduction", x, *branch[:3], kernel, kernel_bias, weight, bias, *bases, decay, norm_weight, norm_bias,
            epsilon, *ending, *x.shape, out, *kept,
        )  # fmt: skip
        ctx.save_for_backward(x, decay, kernel, weight, norm_weight, norm_bias, out_weight, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, decay, kernel, weight, norm_weight, norm_bias, out_weight, convolved, modes, gate, heat = ctx.saved_tensor()
        inner, of_out = _inside(ctx, x, gradient)
        channels = x.shape[-1]
        of_heat = paddle.matmul(of_out, out_weight, transpose_y=True)
        gated, of_gate, of_bias = _like(x), _like(x), paddle.empty([2 * channels], x.dtype)
        of_norm = _like(norm_weight), _like(norm_bias)
        run(
            "norm_gate_gradient", of_heat, heat, gate, norm_weight, norm_bias, ctx.epsilon, *_rows(x), gated, of_heat,
            of_gate, of_bias, *of_norm,
        )  # fmt: skip
        of_out_weight = paddle.matmul(flat(gated), flat(of_out), transpose_x=True)
        of_damped = _dct_map(of_heat, inverse=False)
        of_modes, of_decay = gated, _like(decay)
        run("damp_gradient", of_damped, modes, decay, *_samples(x), of_modes, of_decay)
        of_heat = _dct_map(of_modes, inverse=True)
        of_convolved, of_weight = gated, _like(weight)
        run("split_linear_gradient", of_heat, of_gate, convolved, weight, *_rows(x), of_convolved, of_weight)
        of_inner, of_kernel, of_kernel_bias = of_heat, _like(kernel), _like(norm_bias)
        run("depthwise_gradient", of_convolved, inner, kernel, *x.shape, of_inner, of_kernel, of_kernel_bias)
        of_x, *of_branch = _outside(ctx, x, gradient, of_inner)
        return wanted(
            ctx,
            of_x,
            of_decay,
            of_kernel,
            of_kernel_bias,
            of_weight,
            of_bias,
            *of_norm,
            of_out_weight,
            column_sums(flat(of_out)),
            *of_branch,
            None,
        )
