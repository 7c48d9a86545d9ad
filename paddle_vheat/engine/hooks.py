"""What surrounds a training step: one concern for each hook. Logging is in ``log.py``, checkpoints and evaluation in
``saving.py``."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paddle_vheat._paddle import paddle
from paddle_vheat.engine.loader import sample_files
from paddle_vheat.errors import CheckpointError, UserError
from paddle_vheat.weights.loading import live_tensors

if TYPE_CHECKING:
    from paddle_vheat.engine.trainer import Trainer

# A SIGTERM so soon after the first is the same wish: launchers and job managers send several (Paddle's sends three,
# a fifth of a second apart, and gives 30 seconds).
REPEATED_SIGNAL_SECONDS = 3.0


class Hook:
    """Does nothing; a hook overrides what it needs. Hooks are called in the order of the trainer's list."""

    def start(self, run: Trainer) -> None:
        """Before the first step, once a checkpoint has been restored."""

    def before_step(self, run: Trainer) -> None:
        """Before the step's data is asked for."""

    def before_update(self, run: Trainer) -> bool:
        """When gradients are there; False skips the update."""
        return True

    def after_step(self, run: Trainer) -> None:
        """After the update, with ``run.iteration`` counted up."""

    def close(self, run: Trainer) -> None:
        """At the end, however the run ends."""

    def state(self, run: Trainer) -> dict[str, Any]:
        """What of this hook belongs into a checkpoint's ``state.json``."""
        return {}

    def arrays(self, run: Trainer) -> dict[str, Mapping[str, Any]]:
        """Tensors of a checkpoint, by file name and name."""
        return {}

    def restore(self, run: Trainer, state: Mapping[str, Any], arrays: Mapping[str, Any], folder: Path) -> None:
        """Inverse of the two."""


# --- exponential moving average -----------------------------------------------------------------------


class ExponentialMovingAverage(Hook):
    """Average of parameters and buffers over the iterations, in float32.

    In iteration i (from 1) the average keeps ``min(1 - 1 / (i + 1), decay)`` of itself, so that it forgets the
    initial weights; without ``warm_up``, always ``decay``. Integers (counters) are copied.
    """

    FILE = "ema_model.pdparams"

    def __init__(self, model: Any, decay: float = 0.999, warm_up: bool = True) -> None:
        self.model, self.decay, self.warm_up = model, decay, warm_up
        self.average = {name: _wide(value.detach()).clone() for name, value in live_tensors(model).items()}

    def update(self, iteration: int) -> None:
        """Take in the model's weights as they are after ``iteration`` (from 1)."""
        decay = min(1 - 1 / (iteration + 1), self.decay) if self.warm_up else self.decay
        with paddle.no_grad():
            for name, value in live_tensors(self.model).items():
                mean = self.average[name]
                if paddle.is_floating_point(value):
                    mean.scale_(decay)
                    mean.add_(value.astype(mean.dtype) * (1 - decay))
                else:
                    mean.set_value(value)

    def after_step(self, run: Trainer) -> None:
        if not run.skipped:
            self.update(run.iteration)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        target = live_tensors(self.model)
        own = {name: value.detach().clone() for name, value in target.items()}
        try:
            for name, value in target.items():
                value.set_value(self.average[name].astype(value.dtype))
            yield
        finally:
            for name, value in target.items():
                value.set_value(own[name])

    def state_dict(self) -> dict[str, Any]:
        return self.average

    def arrays(self, run: Trainer) -> dict[str, Mapping[str, Any]]:
        return {self.FILE: self.average}

    def restore(self, run: Trainer, state: Mapping[str, Any], arrays: Mapping[str, Any], folder: Path) -> None:
        if self.FILE not in arrays:
            raise CheckpointError(f"{folder}: was saved without EMA, and this run is with --use_ema")
        for name, value in arrays[self.FILE].items():
            self.average[name].set_value(value.astype(str(self.average[name].dtype).rsplit(".", maxsplit=1)[-1]))


def _wide(value: Any) -> Any:
    half = value.dtype in (paddle.float16, paddle.bfloat16)
    return value.astype("float32") if half else value


# --- signals ------------------------------------------------------------------------------------------


class StopOnSignal(Hook):
    """On SIGTERM or Ctrl-C finish the iteration (or the image of an evaluation), save and stop; on a second, stop at
    once.

    A SIGTERM within :data:`REPEATED_SIGNAL_SECONDS` of the first signal is no second one.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._first: float | None = None
        self._previous: dict[int, Any] = {}

    def received(self) -> bool:
        return self.number is not None

    def start(self, run: Trainer) -> None:
        with contextlib.suppress(ValueError):  # not the main thread
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._remember)

    def close(self, run: Trainer) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _remember(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self._first is not None and (number == signal.SIGINT or now - self._first > REPEATED_SIGNAL_SECONDS):
            raise KeyboardInterrupt
        self._first = now if self._first is None else self._first
        self.number = self.number or number

    def after_step(self, run: Trainer) -> None:
        """Agree with the other processes, which a signal reaches in different iterations.

        Only as often as lines are logged: asking waits for all that a GPU has queued.
        """
        if run.world_size > 1:
            if not run.log_due:
                return
            number = paddle.to_tensor([self.number or 0])
            paddle.distributed.all_reduce(number, op=paddle.distributed.ReduceOp.MAX)
            self.number = int(number) or None
        run.stopping = run.stopping or self.received()

    @property
    def name(self) -> str:
        return signal.Signals(self.number or signal.SIGTERM).name


# --- losses, gradients and weights that are not finite --------------------------------------------------


class NonFiniteLossError(UserError):
    """The loss, the gradients or the weights are NaN or infinite."""


def untrained_state(layers: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Every tensor of layers that training changes without a gradient, such as running statistics, and a copy.

    A NaN in a batch spoils them in the forward pass, before a step can be skipped.
    """
    # To Paddle, running statistics are parameters as well.
    tensors = [t for layer in layers for t in (*layer.parameters(), *layer.buffers()) if t.stop_gradient and t.size]
    return [(tensor, tensor.detach().clone()) for tensor in tensors]


def restore_tensors(kept: Sequence[tuple[Any, Any]]) -> None:
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


class NonFiniteGuard(Hook):
    """Raises a :class:`NonFiniteLossError` that names the batch's files, or skips up to ``max_skipped`` such steps.

    Without skips the losses are looked at when a line is logged: on a GPU, each look waits for all that was queued.
    """

    def __init__(self, max_skipped: int = 0) -> None:
        self.max_skipped = max_skipped
        self.skipped_steps = 0
        self._unseen: list[tuple[int, float, list[Any], list[int]]] = []  # iteration, lr, losses, indices
        self._before: list[tuple[Any, Any]] = []

    def before_step(self, run: Trainer) -> None:
        if self.max_skipped:
            self._before = untrained_state([run.model, *run.loss_layers])

    def before_update(self, run: Trainer) -> bool:
        if not self.max_skipped:
            return True
        # A scaler looks at the gradients itself: while it finds its scale, they overflow.
        looked_at = [] if run.precision.scaler.is_enable() else run.model.parameters()
        if all_finite([*run.losses, *(p.grad for p in looked_at if p.grad is not None)]):
            return True
        skip = self.skipped_steps < self.max_skipped
        self.skipped_steps += skip
        what = f"step skipped, {self.skipped_steps} of at most {self.max_skipped}"
        values = [float(loss) for loss in run.losses]
        said = what if skip else f"{self.max_skipped} steps are skipped already"
        error = self._error(run, run.iteration + 1, run.optimizer.get_lr(), values, run.indices, said)
        if not skip:
            raise error
        run.log.say(f"[SKIP] {error}")
        if not run.is_main and not np.isfinite(values).all():
            print(f"[SKIP] {error}", flush=True)  # process 0 sees this batch in the gradients only
        restore_tensors(self._before)
        return False

    def after_step(self, run: Trainer) -> None:
        if not run.skipped:
            self._unseen.append((run.iteration, run.lr, run.losses, run.indices))
        if not (run.log_due or run.stopping):
            return
        unseen, self._unseen = self._unseen, []
        for iteration, lr, losses, indices in unseen:
            values = [float(loss) for loss in losses]
            if not np.isfinite(values).all():
                kept = f"checkpoints saved before it are kept in {run.save_dir}"
                raise self._error(run, iteration, lr, values, indices, kept)

    def check_weights(self, run: Trainer) -> None:
        """Raise if a weight, or its average, is not finite, before it is scored or saved."""
        states = [live_tensors(run.model), *([run.ema.average] if run.ema else [])]
        for name, value in ((name, value) for state in states for name, value in state.items()):
            if paddle.is_floating_point(value) and not bool(paddle.isfinite(value.astype("float32")).all()):
                raise NonFiniteLossError(
                    f"{name} is not finite after iteration {run.iteration}; it is not saved, and checkpoints saved "
                    f"before it are kept in {run.save_dir}"
                )

    @staticmethod
    def _error(
        run: Trainer, iteration: int, lr: float, losses: Sequence[float], indices: Sequence[int], rest: str
    ) -> NonFiniteLossError:
        """The error for an iteration of which a loss or, if all are finite, the gradients are not finite."""
        worst = losses[int(np.argmin(np.isfinite(losses)))]
        what = "the gradients are not finite" if np.isfinite(worst) else f"the loss is {worst}"
        dataset = run.task.dataset("train")
        files = ", ".join(" ".join(sample_files(dataset, i)) or f"sample {i}" for i in indices)
        files += f" (process {run.rank})" if run.world_size > 1 else ""
        return NonFiniteLossError(f"{what} in iteration {iteration} (lr {lr:.3g}); {rest}; the batch is {files}")

    def state(self, run: Trainer) -> dict[str, Any]:
        return {"skipped_steps": self.skipped_steps}

    def restore(self, run: Trainer, state: Mapping[str, Any], arrays: Mapping[str, Any], folder: Path) -> None:
        self.skipped_steps = int(state.get("skipped_steps", 0))
