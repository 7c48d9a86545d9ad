"""What a run says: lines on the terminal and in ``train.log``, the progress bar, and VisualDL's event file."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from paddle_vheat._files import write_atomically
from paddle_vheat.engine.checkpoint import list_checkpoints
from paddle_vheat.engine.hooks import Hook
from paddle_vheat.errors import CheckpointError

if TYPE_CHECKING:
    from paddle_vheat.engine.trainer import Trainer


class RunLog:
    """Lines of a run; says nothing on processes other than 0."""

    def __init__(self, save_dir: Path, is_main: bool) -> None:
        self.save_dir, self.is_main = save_dir, is_main

    def say(self, text: str, terminal: bool = True) -> None:
        """Print a line above the progress bar, and keep it in ``train.log``."""
        if not self.is_main:
            return
        if terminal:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
        if self.save_dir.is_dir():
            path = self.save_dir / "train.log"
            with self.writing(path), path.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    @contextlib.contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Inside, a failure to write names what could not be written (the system's error of a full disk does not) and
        the last checkpoint."""
        try:
            yield
        except OSError as error:
            kept = list_checkpoints(self.save_dir)
            raise CheckpointError(
                f"cannot write {path}: {error.strerror or error}; "
                + (f"the last checkpoint is {kept[-1]}" if kept else f"{self.save_dir} holds no checkpoint")
            ) from error


class Progress(Hook):
    """The bar, a line every ``log_iters`` iterations, and scalars for VisualDL. Losses are read only there."""

    def __init__(self) -> None:
        self.losses: list[tuple[Any, dict[str, Any]]] = []  # total and parts since the last line
        self.writer: Any = None
        self._bar: Any = None
        self._seconds = self._wait = self._began = 0.0
        self._images = 0

    def start(self, run: Trainer) -> None:
        total, shown = run.recipe.iters, None if run.is_main else True
        self._bar = tqdm(
            total=total, initial=run.iteration, unit="it", desc="training", dynamic_ncols=True, disable=shown
        )
        if run.options.use_vdl and run.is_main:
            with run.log.writing(run.save_dir / "vdlrecords"):
                self.writer = continue_records(run.save_dir, run.iteration, run.evaluation.pending)

    def close(self, run: Trainer) -> None:
        for part in (self._bar, self.writer):
            if part is not None:
                part.close()

    def before_step(self, run: Trainer) -> None:
        self._began = time.perf_counter()

    def after_step(self, run: Trainer) -> None:
        self._bar.update(1)
        self._seconds += time.perf_counter() - self._began
        self._wait += run.data_wait
        self._images += len(run.indices) * run.world_size
        if not run.skipped:
            self.losses += list(zip(run.losses, run.loss_parts))
        if run.log_due and self.losses:
            self._line(run)
            self.losses, self._images, self._seconds, self._wait = [], 0, 0.0, 0.0

    def _line(self, run: Trainer) -> None:
        loss = float(np.mean([float(total) for total, _ in self.losses]))
        speed = self._images / max(self._seconds, 1e-9)
        per_iteration = run.recipe.batch_size * run.recipe.accumulation * run.world_size
        remaining = (run.recipe.iters - run.iteration) * per_iteration / max(speed, 1e-9)
        self._bar.set_postfix_str(f"loss {loss:.4f}, lr {run.lr:.2e}, {speed:.1f} img/s", refresh=False)
        text = (
            f"[TRAIN] iter {run.iteration}/{run.recipe.iters}, loss {loss:.4f}, lr {run.lr:.3e}, {speed:.2f} images/s, "
            f"data wait {100 * self._wait / max(self._seconds, 1e-9):.0f}%, ETA {tqdm.format_interval(remaining)}"
        )
        self.scalars(run, {"Train/loss": loss, "Train/lr": run.lr, "Train/images_per_second": speed})
        for name in self.losses[0][1]:
            part = float(np.mean([float(parts[name]) for _, parts in self.losses]))
            text += f", {name} {part:.4f}"
            self.scalars(run, {f"Train/{name}": part})
        run.log.say(text)

    def scalars(self, run: Trainer, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            if self.writer is not None and np.isfinite(value):
                self.writer.add_scalar(tag, value, run.iteration)

    def pictures(self, run: Trainer, pictures: list[np.ndarray]) -> None:
        for i, picture in enumerate(pictures):
            self.writer.add_image(f"Prediction/{i}", picture, run.iteration)

    def flush(self) -> None:
        """Records up to a checkpoint outlive a kill as well."""
        if self.writer is not None:
            self.writer.flush()

    def state(self, run: Trainer) -> dict[str, Any]:
        self.flush()
        entries = [(float(loss), {k: float(v) for k, v in parts.items()}) for loss, parts in self.losses]
        return {"log_losses": entries}

    def restore(self, run: Trainer, state: Mapping[str, Any], arrays: Mapping[str, Any], folder: Path) -> None:
        self.losses = [(loss, parts) for loss, parts in state.get("log_losses", [])]


# --- VisualDL ---------------------------------------------------------------------------------------
#
# VisualDL shows the newest event file of a folder only, so a resumed run that began another would hide its own past.
# And what was recorded after the checkpoint is recorded again.


_EVENT_FILE = re.compile(r"vdlrecords\..*\.log")


def _read(path: Path) -> Iterator[tuple[int, str, bytes]]:
    """Iteration, tag and bytes of a file's records (each its length in 8 bytes, then a protocol buffer).

    Ends at one that was cut short by a kill.
    """
    from google.protobuf.message import DecodeError
    from visualdl.proto import record_pb2

    with path.open("rb") as file:
        while len(head := file.read(8)) == 8:
            (size,) = struct.unpack("<Q", head)
            content = file.read(min(size, path.stat().st_size))
            try:
                values = record_pb2.Record.FromString(content).values
            except DecodeError:
                return
            if len(content) < size or not values:
                return
            yield int(values[0].id), values[0].tag, head + content


def continue_records(folder: Path, iteration: int, evaluate_again: bool = False) -> Any:
    """A ``LogWriter`` that adds to the records in ``folder``, once those after ``iteration`` have been taken out, and
    with ``evaluate_again`` those of the evaluation at ``iteration``."""
    from visualdl import LogWriter

    earlier = sorted(p for p in folder.iterdir() if _EVENT_FILE.fullmatch(p.name))
    if not earlier:
        return LogWriter(str(folder))
    again = ("Evaluate/", "Prediction/") if evaluate_again else ()
    kept = [
        record
        for path in earlier
        for step, tag, record in _read(path)
        if step < iteration or (step == iteration and not tag.startswith(again))
    ]
    write_atomically(earlier[-1], lambda temporary: Path(temporary).write_bytes(b"".join(kept)))
    for path in earlier[:-1]:
        path.unlink()
    with contextlib.redirect_stdout(io.StringIO()):  # it says that the file exists
        return LogWriter(str(folder), file_name=earlier[-1].name)
