"""Losses, gradients and weights that are NaN or infinite: noticed, told with the batch's files, never saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from paddle_vheat._paddle import paddle
from paddle_vheat.engine.data import sample_files


class NonFiniteLossError(RuntimeError):
    """The loss, the gradients or the weights are NaN or infinite."""


def untrained_state(layers: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Every tensor of layers that training changes without a gradient, such as running statistics, and a copy.

    A NaN in a batch spoils them in the forward pass, before a step can be skipped.
    """
    # To Paddle, running statistics are parameters as well.
    tensors = [t for layer in layers for t in (*layer.parameters(), *layer.buffers()) if t.stop_gradient and t.size]
    return [(tensor, tensor.detach().clone()) for tensor in tensors]


def restore(kept: list[tuple[Any, Any]]) -> None:
    """Inverse of :func:`untrained_state`."""
    for tensor, value in kept:
        tensor.set_value(value)


def all_finite(tensors: Iterable[Any]) -> bool:
    """Whether all values are finite, in every process of a distributed run. Waits for what a GPU has queued."""
    # A sum is NaN or infinite if one of its values is; a sum of gradients or weights is far from overflow.
    sums = paddle.stack([tensor.detach().astype("float32").sum() for tensor in tensors])
    finite = paddle.isfinite(sums).all().astype("int32")
    if paddle.distributed.get_world_size() > 1:
        paddle.distributed.all_reduce(finite, op=paddle.distributed.ReduceOp.MIN)
    return bool(finite)


def check_weights(state: dict[str, Any], iteration: int, save_dir: Any) -> None:
    """Raise a :class:`NonFiniteLossError` if weights that are about to be scored or saved are not finite."""
    for name, value in state.items():
        if paddle.is_floating_point(value) and not bool(paddle.isfinite(value.astype("float32")).all()):
            raise NonFiniteLossError(
                f"{name} is not finite after iteration {iteration}; it is not saved, and checkpoints saved before it "
                f"are kept in {save_dir}"
            )


def not_finite(losses: Sequence[float], iteration: int, rate: float, files: str, rest: str) -> NonFiniteLossError:
    """The error for an iteration of which a loss or, if all are finite, the gradients are not finite."""
    worst = int(np.argmin(np.isfinite(losses)))
    what = "the gradients are not finite" if np.isfinite(losses[worst]) else f"the loss is {losses[worst]}"
    return NonFiniteLossError(f"{what} in iteration {iteration} (lr {rate:.3g}); {rest}; the batch is {files}")


def batch_files(dataset: Any, indices: Iterable[Any]) -> str:
    """The files of a batch's samples, for a message."""
    numbers = [int(i) for index in indices for i in np.ravel(index.numpy())]
    return ", ".join(" ".join(sample_files(dataset, i)) or f"sample {i}" for i in numbers)
