"""The training loop, for every task; it reads top to bottom."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from paddle_vheat import __version__
from paddle_vheat._arguments import check_whole_number
from paddle_vheat._paddle import nn, paddle
from paddle_vheat.engine.checkpoint import (
    CheckpointError,
    list_checkpoints,
    optimizer_arrays,
    prune_checkpoints,
    read_best,
    read_checkpoint,
    read_newest,
    restore_optimizer,
    resuming,
    save_best,
    save_checkpoint,
    sole_writer,
)
from paddle_vheat.engine.data import (
    IterationSampler,
    SeededDataset,
    derived_seed,
    load_batches,
)
from paddle_vheat.engine.ema import ExponentialMovingAverage
from paddle_vheat.engine.finite import (
    all_finite,
    batch_files,
    check_weights,
    not_finite,
    restore,
    untrained_state,
)
from paddle_vheat.engine.records import continue_records
from paddle_vheat.weights.loading import load_state

# A SIGTERM so soon after the first is the same wish: launchers and job managers send several (Paddle's sends three,
# a fifth of a second apart, and gives 30 seconds).
REPEATED_SIGNAL_SECONDS = 3.0
BEST_FILES = {"best_model": "model.pdparams", "ema_best_model": "ema_model.pdparams"}


@dataclass
class TrainOptions:
    """What the command line decides about a run; the rest is the task's configuration."""

    iters: int
    batch_size: int
    save_dir: str = "output"
    save_interval: int = 1000
    log_iters: int = 10
    num_workers: int = 0
    keep_checkpoint_max: int = 5
    seed: int = 42
    accumulation: int = 1
    do_eval: bool = False
    use_vdl: bool = False
    use_ema: bool = False
    ema_decay: float = 0.999
    precision: str = "fp32"
    amp_level: str = "O1"
    resume_model: str | None = None
    early_stop_intervals: int | None = None
    max_skipped_steps: int = 0


class Trainer:
    """Trains a task.

    Random numbers are a function of the seed and the iteration (dropout, stochastic depth) or of the seed and
    the sample's position (order and augmentation of the data), so that a run that was stopped and continued
    equals one that was not.
    """

    def __init__(self, task: Any, options: TrainOptions) -> None:
        self.task = task
        self.options = options
        lowest = dict.fromkeys(("iters", "batch_size", "save_interval", "log_iters", "accumulation"), 1)
        lowest.update(seed=0, num_workers=0, keep_checkpoint_max=0, max_skipped_steps=0)
        for name, least in lowest.items():
            check_whole_number(name, getattr(options, name), least)
        if options.early_stop_intervals is not None and options.early_stop_intervals < 1:
            raise ValueError(f"early_stop_intervals must be at least 1, got {options.early_stop_intervals}")
        if options.early_stop_intervals is not None and not options.do_eval:
            raise ValueError("--early_stop_intervals needs --do_eval: it counts evaluations")
        self.save_dir = Path(options.save_dir)
        self.rank = paddle.distributed.get_rank()
        self.ranks = paddle.distributed.get_world_size()
        self.is_main = self.rank == 0
        self.on_gpu = paddle.get_device().startswith("gpu")
        self.mixed = options.precision != "fp32" and self.on_gpu
        if options.precision != "fp32" and not self.on_gpu:
            self.say(f"precision {options.precision} needs a GPU: on this device the run is in fp32")
        _seed_all(options.seed)
        self.model = task.model
        if self.on_gpu and self.ranks > 1:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.optimizer = task.optimizer
        self.scheduler = task.lr_scheduler
        if task.clip_norm is not None:
            _unset_clip(self.optimizer)
        self.scaler = None
        if self.mixed:
            if options.amp_level == "O2":
                self.model, self.optimizer = paddle.amp.decorate(
                    self.model, self.optimizer, level="O2", dtype=self.half, save_dtype="float32"
                )
            if options.precision == "fp16":
                self.scaler = paddle.amp.GradScaler(init_loss_scaling=1024)
        self.ema = (
            ExponentialMovingAverage(self.model, options.ema_decay, task.ema_warm_up) if options.use_ema else None
        )
        self.iteration = 0
        self.best: dict[str, dict[str, float]] = {}
        self.best_reports: dict[str, dict[str, Any]] = {}
        self.stale_intervals = 0
        self.skipped_steps = 0
        self.stop_signal: int | None = None
        self.stopping = False
        self._bar: Any = None
        self._vdl: Any = None
        self._reset_log()

    # --- small things ---------------------------------------------------------------------------

    @property
    def half(self) -> str:
        return {"fp16": "float16", "bf16": "bfloat16"}[self.options.precision]

    def say(self, text: str) -> None:
        """Print a line (process 0), above the progress bar if there is one, and keep it in ``train.log``."""
        if not self.is_main:
            return
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
        if self.save_dir.is_dir():
            path = self.save_dir / "train.log"
            with self._writing(path), path.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Say what could not be written (the system's error of a full disk does not) and what there is."""
        try:
            yield
        except OSError as error:
            kept = list_checkpoints(self.save_dir)
            raise CheckpointError(
                f"cannot write {path}: {error.strerror or error}; "
                + (f"the last checkpoint is {kept[-1]}" if kept else f"{self.save_dir} holds no checkpoint")
            ) from error

    def autocast(self) -> Any:
        if not self.mixed:
            return contextlib.nullcontext()
        return paddle.amp.auto_cast(level=self.options.amp_level, dtype=self.half)

    def _scalar(self, tag: str, value: float) -> None:
        if self._vdl is not None and np.isfinite(value):
            self._vdl.add_scalar(tag, value, self.iteration)

    # --- the run --------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the last iteration.

        Returns:
            "iteration" reached, "best" score per kind of weights, and "stopped": None, "signal" or "early".
        """
        with self._writing(self.save_dir):
            self.save_dir.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            if self.is_main:
                with self._writing(self.save_dir):
                    locked = stack.enter_context(sole_writer(self.save_dir))
                if not locked:
                    self.say(f"note: {self.save_dir} cannot be locked; nothing there keeps a second run out")
            return self._run()

    def _run(self) -> dict[str, Any]:
        options = self.options
        if options.resume_model is not None:
            with resuming(options.resume_model):
                self._resume(options.resume_model)
            self._agree_on_the_start()
            if self.iteration == options.iters:
                self.say(f"the run is complete ({self.iteration} of {options.iters} iterations); nothing to do")
                return {"iteration": self.iteration, "best": self.best, "stopped": None}
        elif list_checkpoints(self.save_dir):
            raise CheckpointError(
                f"{self.save_dir} holds a run already ({list_checkpoints(self.save_dir)[-1].name}): continue it with "
                "--resume_model auto, or give another --save_dir"
            )
        network = self.model
        if self.ranks > 1:
            # A PaddleSeg model may hold layers that its forward pass does not use.
            network = paddle.DataParallel(self.model, find_unused_parameters=True)
        if options.use_vdl and self.is_main:
            with self._writing(self.save_dir / "vdlrecords"):
                self._vdl = continue_records(self.save_dir, self.iteration)
        stopped = None
        with self._signals(), warnings.catch_warnings():
            # Paddle 3 says so in every training step of every BatchNorm.
            warnings.filterwarnings("ignore", message="When training, we now always track global mean")
            try:
                self.model.train()
                for batches in self._iterations():
                    self._train_iteration(network, batches)
                    last = self.iteration == options.iters
                    if self.iteration % options.save_interval == 0 or last:
                        self._interval()
                        if self._should_stop_early() and not last:
                            stopped = "early"
                            self.say(
                                f"stopped early: no better {self.task.score_name} for {self.stale_intervals} intervals"
                            )
                            break
                    elif self.stopping:
                        self._synchronise()
                        self._check_weights()
                        self._save()
                    if self.stopping and not last:
                        stopped = "signal"
                        name = signal.Signals(self.stop_signal or signal.SIGTERM).name
                        self.say(f"{name}: saved at iteration {self.iteration}; continue with --resume_model auto")
                        break
            finally:
                if self._bar is not None:
                    self._bar.close()
                if self._vdl is not None:
                    self._vdl.close()
        return {"iteration": self.iteration, "best": self.best, "stopped": stopped}

    def _iterations(self) -> Iterator[list[dict[str, Any]]]:
        """Batches of the remaining iterations, each ``accumulation`` of them, with the bar moving along."""
        options = self.options
        dataset = SeededDataset(self.task.train_dataset, options.seed, self.task.check_sample)
        micro = options.accumulation
        sampler = IterationSampler(
            len(dataset),
            options.batch_size,
            options.iters * micro,
            options.seed,
            start=self.iteration * micro,
            rank=self.rank,
            ranks=self.ranks,
        )
        loader = load_batches(dataset, sampler, options.num_workers)
        self._bar = tqdm(
            total=options.iters,
            initial=self.iteration,
            unit="it",
            desc="training",
            dynamic_ncols=True,
            disable=None if self.is_main else True,
        )
        self._restart_clock()
        while self.iteration < options.iters:
            waited = time.perf_counter()
            batches = [next(loader) for _ in range(micro)]
            self._log_wait += time.perf_counter() - waited
            yield batches

    def _train_iteration(self, network: Any, batches: list[dict[str, Any]]) -> None:
        options = self.options
        _seed_all(derived_seed(options.seed, self.iteration, self.rank))
        losses: list[Any] = []
        before = untrained_state([self.model, *self._loss_layers()]) if options.max_skipped_steps else []
        for i, batch in enumerate(batches):
            # Gradients are exchanged between processes once, with the last batch.
            batch = self.task.prepare_batch(batch, derived_seed(options.seed, self.iteration, self.rank, i + 1))
            silent = self.ranks > 1 and i < len(batches) - 1
            with network.no_sync() if silent else contextlib.nullcontext():
                with self.autocast():
                    loss, parts = self.task.forward_loss(network, batch)
                scaled = loss / len(batches)
                (self.scaler.scale(scaled) if self.scaler else scaled).backward()
            losses.append((loss.detach(), {name: part.detach() for name, part in parts.items()}))
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        if options.max_skipped_steps:
            # A scaler looks at the gradients itself: while it finds its scale, they overflow.
            gradients = [] if self.scaler else [p.grad for p in self.model.parameters() if p.grad is not None]
            if not all_finite([*(loss for loss, _ in losses), *gradients]):
                self._skip_step(losses, batches, before)
                return
        if self.task.clip_norm is not None:
            with_gradient = [p for p in self.model.parameters() if p.grad is not None]
            nn.utils.clip_grad_norm_(with_gradient, self.task.clip_norm)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        rate = self.optimizer.get_lr()
        self.scheduler.step()
        self.optimizer.clear_grad()
        self.iteration += 1
        if self.ema is not None:
            self.ema.update(self.iteration)
        self.stopping = self._agree_to_stop()
        self._log(losses, rate, batches)

    def _skip_step(self, losses: list[Any], batches: list[dict[str, Any]], before: list[tuple[Any, Any]]) -> None:
        """Go on to the next iteration as if this one's data had not been, but for the schedule."""
        limit = self.options.max_skipped_steps
        skip = self.skipped_steps < limit
        self.skipped_steps += skip
        said = (
            f"step skipped, {self.skipped_steps} of at most {limit}" if skip else f"{limit} steps are skipped already"
        )
        files = batch_files(self.task.train_dataset, [batch["index"] for batch in batches])
        files += f" (process {self.rank})" if self.ranks > 1 else ""
        rate = self.optimizer.get_lr()
        error = not_finite([float(loss) for loss, _ in losses], self.iteration + 1, rate, files, said)
        if not skip:
            raise error
        self.say(f"[SKIP] {error}")
        if not self.is_main and not np.isfinite([float(loss) for loss, _ in losses]).all():
            print(f"[SKIP] {error}", flush=True)  # process 0 sees this batch in the gradients only
        restore(before)
        if self.scaler:
            self.scaler.update()
        self.scheduler.step()
        self.optimizer.clear_grad()
        self.iteration += 1
        self.stopping = self._agree_to_stop()
        self._log([], rate, [])

    def _check_weights(self) -> None:
        """Raise if a weight, or its average, is not finite, before it is scored or saved."""
        for part in (self.model, self.ema):
            if part is not None:
                check_weights(part.state_dict(), self.iteration, self.save_dir)

    def _agree_to_stop(self) -> bool:
        """Whether a signal asks to stop after this iteration.

        It reaches the processes of a distributed run in different iterations. So they ask each other, and only
        as often as they log: asking waits for all that a GPU has queued.
        """
        options = self.options
        if self.ranks == 1:
            return self.stop_signal is not None
        if self.iteration % options.log_iters and self.iteration % options.save_interval:
            return False
        number = paddle.to_tensor([self.stop_signal or 0])
        paddle.distributed.all_reduce(number, op=paddle.distributed.ReduceOp.MAX)
        self.stop_signal = int(number) or None
        return self.stop_signal is not None

    # --- logging --------------------------------------------------------------------------------

    def _reset_log(self) -> None:
        self._log_losses: list[Any] = []
        self._log_indices: list[Any] = []
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._log_start = time.perf_counter()
        self._log_wait = 0.0
        self._log_images = 0

    def _log(self, losses: list[Any], rate: float, batches: list[dict[str, Any]]) -> None:
        options = self.options
        self._bar.update(1)
        self._log_losses.extend(losses)
        self._log_indices.extend(batch["index"] for batch in batches)
        images = sum(len(batch["index"]) for batch in batches) * self.ranks
        self._log_images += images
        due = self.iteration % options.log_iters == 0 or self.iteration % options.save_interval == 0
        if not due and self.iteration != options.iters and not self.stopping:
            return
        # The losses are read only here: on a GPU, each reading waits for all that was queued.
        values = [float(loss) for loss, _ in self._log_losses]
        if not values:  # all steps since the last line were skipped
            return
        micro = options.accumulation
        if not np.isfinite(values).all():
            start = int(np.argmin(np.isfinite(values))) // micro * micro
            first = self.iteration - (len(values) - micro - start) // micro
            known = start - (len(values) - len(self._log_indices))  # losses of before a resumption have no indices
            files = batch_files(self.task.train_dataset, self._log_indices[max(known, 0) : max(known + micro, 0)])
            kept = f"checkpoints saved before it are kept in {self.save_dir}"
            raise not_finite(values[start : start + micro], first, rate, files, kept)
        if not due and self.iteration != options.iters:
            return  # about to stop between two lines: what has been added up is saved, and goes on with the run
        loss = float(np.mean(values))
        seconds = time.perf_counter() - self._log_start
        speed = self._log_images / seconds
        remaining = (options.iters - self.iteration) * images / speed
        self._bar.set_postfix_str(f"loss {loss:.4f}, lr {rate:.2e}, {speed:.1f} img/s", refresh=False)
        text = (
            f"[TRAIN] iter {self.iteration}/{options.iters}, loss {loss:.4f}, lr {rate:.3e}, {speed:.2f} images/s, "
            f"data wait {100 * self._log_wait / seconds:.0f}%, ETA {tqdm.format_interval(remaining)}"
        )
        self._scalar("Train/loss", loss)
        self._scalar("Train/lr", rate)
        self._scalar("Train/images_per_second", speed)
        for name in self._log_losses[0][1]:
            part = float(np.mean([float(parts[name]) for _, parts in self._log_losses]))
            text += f", {name} {part:.4f}"
            self._scalar(f"Train/{name}", part)
        self.say(text)
        self._reset_log()

    # --- evaluation and checkpoints -------------------------------------------------------------

    def _interval(self) -> None:
        """Evaluate, save, keep the best: a best model is always one that a checkpoint knows of."""
        self._synchronise()
        self._check_weights()
        if self.options.do_eval:
            improved = self._evaluate("best_model", "Evaluate")
            if self.ema is not None:
                with self.ema.applied():
                    improved = self._evaluate("ema_best_model", "Evaluate/Ema_") or improved
            self.stale_intervals = 0 if improved else self.stale_intervals + 1
        self._save()
        self._save_best()
        self._reset_log()

    def _evaluate(self, folder: str, tag: str) -> bool:
        result = self.task.evaluate(
            self.model,
            num_workers=self.options.num_workers,
            autocast=self.autocast if self.mixed else None,
        )
        score, name = result["score"], self.task.score_name
        tag = tag if tag.endswith("_") else f"{tag}/"
        for key, value in result["report"].items():
            if isinstance(value, float):
                self._scalar(f"{tag}{key}", value)
        best = self.best.get(folder, {"score": float("-inf"), "iteration": 0})
        improved = score > best["score"]
        if improved:
            self.best[folder] = best = {"score": score, "iteration": self.iteration}
            self.best_reports[folder] = {"iteration": self.iteration, **result["report"]}
        self.say(
            f"[EVAL] iter {self.iteration}, {folder.replace('_best_model', '').replace('best_model', 'model')}: "
            f"{name} {100 * score:.2f} on {result['images']} images; best {100 * best['score']:.2f} "
            f"at iteration {best['iteration']}"
        )
        if self._vdl is not None and folder == "best_model" and hasattr(self.task, "preview"):
            for i, picture in enumerate(self.task.preview(self.model)):
                self._vdl.add_image(f"Prediction/{i}", picture, self.iteration)
        return improved

    def _save_best(self, unless_there: bool = False) -> None:
        """Keep the weights as they are now, where they are the best."""
        weights = {"best_model": self.model, "ema_best_model": self.ema}
        for name, report in self.best_reports.items():
            folder, file, of = self.save_dir / name, BEST_FILES[name], weights[name]
            if not self.is_main or of is None or report["iteration"] != self.iteration:
                continue
            if not (unless_there and read_best(folder, file) == report):
                with self._writing(folder):
                    save_best(folder, file, of.state_dict(), report)

    def _synchronise(self) -> None:
        """Give every process what is not trained of process 0, which is what is saved.

        Without SyncBatchNorm (on the CPU) each has the running statistics of its own share of the data.
        """
        if self.ranks == 1:
            return
        # To Paddle, running statistics are parameters as well.
        trained = {name for name, parameter in self.model.named_parameters() if not parameter.stop_gradient}
        states = [self.model.state_dict()] + ([self.ema.state_dict()] if self.ema is not None else [])
        for state in states:
            for name, value in state.items():
                if name not in trained:
                    paddle.distributed.broadcast(value, src=0)

    def _should_stop_early(self) -> bool:
        patience = self.options.early_stop_intervals
        return bool(patience) and self.options.do_eval and self.stale_intervals >= int(patience or 0)

    def _save(self) -> None:
        if not self.is_main:
            return
        arrays = {
            "model.pdparams": self.model.state_dict(),
            "model.pdopt": optimizer_arrays(self.optimizer, self.model),
        }
        if self.ema is not None:
            arrays["ema_model.pdparams"] = self.ema.state_dict()
        for losses in self._loss_layers():
            arrays["loss.pdparams"] = losses.state_dict()
        state = {
            "best": self.best,
            "best_reports": self.best_reports,
            "log_losses": [(float(loss), {k: float(v) for k, v in parts.items()}) for loss, parts in self._log_losses],
            "stale_intervals": self.stale_intervals,
            "skipped_steps": self.skipped_steps,
            "optimizer": type(self.optimizer).__name__,
            "lr_scheduler": _plain(self.scheduler.state_dict()),
            "scaler": {k: _plain(v) for k, v in self.scaler.state_dict().items()} if self.scaler else None,
            "options": asdict(self.options),
            "config": self.task.config,
            "versions": {
                "paddle_vheat": __version__,
                "paddle": paddle.__version__,
                "numpy": np.__version__,
                "python": sys.version.split()[0],
            },
        }
        if self._vdl is not None:
            self._vdl.flush()  # records up to a checkpoint outlive a kill as well
        with self._writing(self.save_dir / f"iter_{self.iteration}"):
            folder = save_checkpoint(self.save_dir, self.iteration, arrays, state)
            prune_checkpoints(self.save_dir, self.options.keep_checkpoint_max, self.iteration)
        self.say(f"saved {folder}")

    def _loss_layers(self) -> list[Any]:
        """The losses that remember, such as by a memory bank, as one layer; [] if none does."""
        layers = getattr(self.task, "loss_layers", ())
        return [layers] if len(layers) else []

    def _resume(self, where: str) -> None:
        if where == "auto":
            folder, content, skipped = read_newest(self.save_dir)
            for reason in skipped:
                self.say(f"passed over: {reason}")
            if folder is None:
                self.say(f"nothing to resume in {self.save_dir}: starting from the beginning")
                return
        else:
            folder = Path(where)
            content = read_checkpoint(folder)
        state, arrays = content
        kind = type(self.optimizer).__name__
        if state.get("optimizer", kind) != kind:
            raise CheckpointError(f"{folder}: was saved with {state['optimizer']}, and this run is with {kind}")
        if "model.pdopt" not in arrays or "model.pdparams" not in arrays:
            raise CheckpointError(f"{folder}: holds no model and optimizer to resume from")
        if state["iteration"] > self.options.iters:
            raise CheckpointError(
                f"{folder} is of iteration {state['iteration']}, and the run ends at {self.options.iters}"
            )
        load_state(self.model, arrays["model.pdparams"], str(folder / "model.pdparams"))
        restore_optimizer(self.optimizer, self.model, arrays["model.pdopt"])
        for losses in self._loss_layers():
            if "loss.pdparams" not in arrays:
                raise CheckpointError(f"{folder}: holds no state of the losses, and this run's have one")
            load_state(losses, arrays["loss.pdparams"], str(folder / "loss.pdparams"))
        with warnings.catch_warnings():
            # LinearWarmup says so of its own state, always.
            warnings.filterwarnings("ignore", "There are some unused values in state_dict")
            self.scheduler.set_state_dict(state["lr_scheduler"])
        if self.scaler and state.get("scaler"):
            self.scaler.load_state_dict({k: np.asarray(v) for k, v in state["scaler"].items()})
        if self.ema is not None:
            if "ema_model.pdparams" not in arrays:
                raise CheckpointError(f"{folder}: was saved without EMA, and this run is with --use_ema")
            for name, value in arrays["ema_model.pdparams"].items():
                self.ema.average[name].set_value(value)
        if state["options"]["seed"] != self.options.seed:
            self.say(f"note: the seed was {state['options']['seed']} and is now {self.options.seed}")
        self.iteration = state["iteration"]
        self.best = state["best"]
        self.best_reports = state.get("best_reports", {})
        self.stale_intervals = state["stale_intervals"]
        self.skipped_steps = state.get("skipped_steps", 0)
        self._log_losses = [tuple(entry) for entry in state.get("log_losses", [])]
        if self.is_main:  # what a process that was killed after its checkpoint did not come to
            self._save_best(unless_there=True)
            prune_checkpoints(self.save_dir, self.options.keep_checkpoint_max, self.iteration)
        self.say(f"resumed {folder} at iteration {self.iteration}")

    def _agree_on_the_start(self) -> None:
        """Raise if the processes of a run have not resumed the same checkpoint, or only some have one."""
        if self.ranks == 1:
            return
        found: list[Any] = []
        paddle.distributed.all_gather(found, paddle.to_tensor([self.iteration]))
        iterations = [int(one) for one in found]
        if len(set(iterations)) > 1:
            raise CheckpointError(
                f"the processes start at different iterations {iterations} (in the order of their ranks): --save_dir "
                f"{self.save_dir} must be one folder that all of them see"
            )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """On SIGTERM or Ctrl-C finish the iteration, save and stop; on a second one stop at once.

        A SIGTERM within :data:`REPEATED_SIGNAL_SECONDS` of the first signal is no second one.
        """
        first: list[float] = []

        def remember(number: int, frame: Any) -> None:
            now = time.monotonic()
            if first and (number == signal.SIGINT or now - first[0] > REPEATED_SIGNAL_SECONDS):
                raise KeyboardInterrupt
            first.append(now)
            self.stop_signal = self.stop_signal or number

        previous = {}
        with contextlib.suppress(ValueError):  # not the main thread
            for number in (signal.SIGTERM, signal.SIGINT):
                previous[number] = signal.signal(number, remember)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _seed_all(seed: int) -> None:
    """Seed Paddle, and Python and NumPy for components that draw from them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    paddle.seed(seed)


def _unset_clip(optimizer: Any) -> None:
    """Take the clipping out of an optimizer: per parameter group, it would not be of the global norm."""
    optimizer._grad_clip = None
    for group in optimizer._param_groups:
        if isinstance(group, dict):
            group["grad_clip"] = None


def _plain(value: Any) -> Any:
    """A state as JSON can hold it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if hasattr(value, "numpy"):
        value = value.numpy()
    return np.asarray(value).tolist()
