"""What surrounds a step, on the toy task: the order of saving and scoring, signals, data read ahead, skipped keys."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_vheat.engine import saving
from paddle_vheat.engine.checkpoint import CheckpointError, list_checkpoints, read_checkpoint
from paddle_vheat.engine.hooks import ExponentialMovingAverage
from paddle_vheat.engine.loader import IterationSampler, load_batches
from paddle_vheat.engine.optim import Epochs, Recipe, Schedule, TrainOptions, build_scheduler
from paddle_vheat.engine.task import Metric
from paddle_vheat.engine.trainer import Trainer
from paddle_vheat.errors import UserError
from paddle_vheat.weights.loading import live_tensors, load_state
from tests.conftest import paddle
from tests.engine.toy import ToyTask
from tests.engine.toy_parts import Brightness, MeanError, Pictures


def trainer(folder: Path, task: Any = None, **options: Any) -> Trainer:
    defaults = {"save_dir": str(folder), "save_interval": 2, "log_iters": 1}
    return Trainer(task or ToyTask({"iters": 6}), TrainOptions(**{**defaults, **options}))


def run(folder: Path, task: Any = None, **options: Any) -> dict[str, Any]:
    return trainer(folder, task, **options).run()


def states(folder: Path) -> dict[str, Any]:
    return {path.name: read_checkpoint(path) for path in list_checkpoints(folder)}


def assert_same_runs(ours: Path, theirs: Path) -> None:
    """Arrays bit for bit, and what a checkpoint knows of the best models."""
    for name, (state, arrays) in states(theirs).items():
        found, values = states(ours)[name]
        for key in ("best", "best_reports", "stale_intervals", "lr_scheduler", "evaluated", "log_losses"):
            assert found[key] == state[key], (name, key)
        for file, content in arrays.items():
            for key, value in content.items():
                np.testing.assert_array_equal(values[file][key], value, err_msg=f"{name} {file} {key}")


class Dies(ToyTask):
    """Its evaluation dies (or is signalled) at a given image, once."""

    def __init__(self, at: int, action: Any) -> None:
        super().__init__({"iters": 6})
        self.calls, self.at, self.action = 0, at, action

    def infer(self, model: Any, batch: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            self.action()
        return super().infer(model, batch)


def die() -> None:
    raise RuntimeError("out of memory")


# --- saving and scoring -----------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [False, True])
def test_an_evaluation_that_dies_costs_nothing(tmp_path, ema):
    """The checkpoint is there before it; the resumed run begins with the evaluation and equals one that never died."""
    run(tmp_path / "straight", do_eval=True, use_ema=ema)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path / "run", Dies(at=5, action=die), do_eval=True, use_ema=ema)
    newest = list_checkpoints(tmp_path / "run")[-1]
    assert read_checkpoint(newest)[0]["evaluated"] is False
    assert "RuntimeError: out of memory" in (tmp_path / "run" / "train.log").read_text()
    assert run(tmp_path / "run", do_eval=True, use_ema=ema, resume_model="auto")["stopped"] is None
    assert_same_runs(tmp_path / "run", tmp_path / "straight")
    best = json.loads((tmp_path / "run" / "best_model" / "metrics.json").read_text())
    assert best == json.loads((tmp_path / "straight" / "best_model" / "metrics.json").read_text())


def test_a_signal_ends_an_evaluation_at_the_next_image(tmp_path):
    run(tmp_path / "straight", do_eval=True)
    task = Dies(at=2, action=lambda: os.kill(os.getpid(), signal.SIGTERM))
    result = run(tmp_path / "run", task, do_eval=True)
    assert (result["stopped"], result["iteration"], result["best"]) == ("signal", 2, {})
    assert task.calls == 2  # of three images
    assert not (tmp_path / "run" / "best_model").exists()
    assert run(tmp_path / "run", do_eval=True, resume_model="auto")["iteration"] == 6
    assert_same_runs(tmp_path / "run", tmp_path / "straight")


def test_a_signal_in_the_last_evaluation_is_no_end(tmp_path):
    task = Dies(at=8, action=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run(tmp_path, task, do_eval=True)["stopped"] == "signal"
    assert run(tmp_path, do_eval=True, resume_model="auto")["stopped"] is None
    assert read_checkpoint(tmp_path / "iter_6")[0]["evaluated"] is True


def test_killed_between_state_and_best_model(tmp_path, monkeypatch):
    run(tmp_path / "straight", do_eval=True)
    monkeypatch.setattr(saving, "save_best", lambda *_: die())
    with pytest.raises(RuntimeError):
        run(tmp_path / "run", do_eval=True)
    monkeypatch.undo()
    assert not (tmp_path / "run" / "best_model" / "model.pdparams").exists()
    assert run(tmp_path / "run", do_eval=True, iters=2, resume_model="auto")["iteration"] == 2
    assert (tmp_path / "run" / "best_model" / "model.pdparams").exists()


def test_evaluation_and_saving_have_intervals_of_their_own(tmp_path):
    task = ToyTask({"iters": 6})
    task.recipe = Recipe(Schedule(0.01), iters=Epochs(2), batch_size=2, save_interval=Epochs(0.5), eval_interval=3)
    calls = []
    task.evaluator = lambda: calls.append(1) or MeanError()
    run(tmp_path, task, save_interval=None, do_eval=True, keep_checkpoint_max=0)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"iter_{i}" for i in (2, 3, 4, 6, 8)]
    assert len(calls) == 3  # at 3, 6 and the end


# --- which is better --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "value", "text", "worse"),
    [
        (Metric("mIoU", scale=100, unit="%"), 0.4702, "47.02 %", 0.4),
        (Metric("PSNR", unit="dB"), 33.414, "33.41 dB", 33.0),
        (Metric("bbox_AP", scale=100, decimals=1), 0.4514, "45.1", 0.1),
        (Metric("error", higher_is_better=False, decimals=3), 0.5, "0.500", 0.7),
    ],
)
def test_metrics(metric, value, text, worse):
    assert metric.format(value) == text
    assert metric.format(float("nan")) == "-"
    assert metric.better(value, None)
    assert metric.better(value, worse)
    assert not metric.better(worse, value)
    assert not metric.better(value, value)
    assert not metric.better(float("nan"), None)


def test_the_best_of_an_error_is_the_smallest(tmp_path):
    task, scores = ToyTask({"iters": 6}), iter([3.0, 1.0, 2.0])
    task.evaluator = lambda: Scripted(next(scores))
    assert run(tmp_path, task, do_eval=True)["best"] == {"best_model": {"score": 1.0, "iteration": 4}}


class Scripted(MeanError):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def summarize(self) -> Any:
        self.errors = [self.value]
        return super().summarize()


def test_a_score_that_is_none_is_said(tmp_path, capsys):
    task = ToyTask({"iters": 2})
    task.evaluator = lambda: Scripted(float("nan"))
    assert run(tmp_path, task, do_eval=True)["best"] == {}
    assert "error - on 1 images; this is no score: nothing was there to evaluate error on" in capsys.readouterr().out


# --- folders and resumption --------------------------------------------------------------------------


def test_a_folder_with_a_best_model_alone_is_a_run(tmp_path):
    (tmp_path / "best_model").mkdir()
    (tmp_path / "best_model" / "model.pdparams").write_bytes(b"kept")
    for resume in (None, "auto"):
        with pytest.raises(CheckpointError, match=r"holds a run already \(best_model\): give another --save_dir"):
            run(tmp_path, resume_model=resume)
    assert (tmp_path / "best_model" / "model.pdparams").read_bytes() == b"kept"


def test_nothing_is_started_over_what_cannot_be_read(tmp_path):
    run(tmp_path)
    for folder in list_checkpoints(tmp_path):
        (folder / "model.pdparams").write_bytes(b"truncated")
    with pytest.raises(CheckpointError, match="none of its 3 checkpoints can be resumed from; to start over"):
        run(tmp_path, resume_model="auto")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["iter_2", "iter_4", "iter_6"]


def test_an_input_error_of_the_disk_is_no_damage(tmp_path, monkeypatch):
    """A network disk that fails for a moment must not make an older checkpoint, or none, the one to go on from."""
    run(tmp_path)
    real = Path.open

    def fails(self: Path, *args: Any, **options: Any) -> Any:
        if self.name == "model.pdparams" and self.parent.name == "iter_6":
            raise OSError(5, "Input/output error", str(self))
        return real(self, *args, **options)

    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(OSError, match="Input/output error"):
        run(tmp_path, resume_model="auto", iters=8)


def test_a_copied_checkpoint_is_not_taken_by_its_name(tmp_path, capsys):
    run(tmp_path)
    os.symlink(tmp_path / "iter_4", tmp_path / "iter_999")
    assert run(tmp_path, resume_model="auto", iters=1000, save_interval=1000)["iteration"] == 1000
    said = capsys.readouterr().out
    assert f"skipped: {tmp_path / 'iter_999'}: holds iteration 4; a copy or link of another checkpoint" in said
    assert f"resumed {tmp_path / 'iter_6'}" in said


def test_what_changed_is_said(tmp_path, capsys):
    run(tmp_path)
    run(tmp_path, ToyTask({"iters": 6, "lr": 0.02}), resume_model="auto", iters=8, batch_size=4, seed=1)
    said = [line.split(": ", 2)[2] for line in capsys.readouterr().out.splitlines() if line.startswith("note: changed")]
    assert sorted(said) == ["batch_size: 2 -> 4", "iters: 6 -> 8", "lr: None -> 0.02", "seed: 42 -> 1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iters": 0}, "'iters' must be an integer of at least 1"),
        ({"seed": 10**30}, "'seed' must be an integer of at least 0"),
        ({"num_workers": 10**6}, r"num_workers must be from 0 to \d+ on this machine"),
        ({"num_workers": -1}, "num_workers must be from 0"),
        ({"early_stop_intervals": 3}, "needs --do_eval"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        TrainOptions(**options)


# --- data -------------------------------------------------------------------------------------------


def test_drop_last_and_shuffle():
    """9 samples in batches of 4: with drop_last an epoch has two batches, without it they follow without a gap."""
    dropped = [index for batch in IterationSampler(9, 4, 4, seed=1, drop_last=True) for _, index in batch]
    assert len(set(dropped[:8])) == len(set(dropped[8:])) == 8
    gapless = [index for batch in IterationSampler(9, 4, 9, seed=1) for _, index in batch]
    assert [sorted(gapless[i : i + 9]) for i in range(0, 36, 9)] == [list(range(9))] * 4
    plain = [index for batch in IterationSampler(9, 4, 3, seed=1, shuffle=False) for _, index in batch]
    assert plain == [0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2]


class Slow(Pictures):
    """A sample takes 40 ms to read; says when each was begun."""

    def __getitem__(self, key: Any) -> dict:
        began = time.monotonic()
        time.sleep(0.04)
        return {**super().__getitem__(int(key)), "began": np.float64(began)}


def test_the_loader_reads_while_a_step_runs():
    """Workers begin the next batches during a step, and without workers nothing is read then. (Order, not speed.)"""
    for workers in (0, 2):
        ends = []
        for batch in load_batches(Slow(8), [[i] for i in range(8)], workers):
            ends.append((float(batch["began"].numpy()[0]), time.monotonic()))
            time.sleep(0.15)  # a step
        ahead = [begun < arrived for (begun, _), (_, arrived) in zip(ends[1:], ends)]
        assert all(ahead) if workers else not any(ahead)


def test_an_error_of_a_worker_is_the_error():
    class Broken(Pictures):
        def __getitem__(self, key: Any) -> dict:
            raise UserError("picture.png: damaged")

    for workers in (0, 2):
        with pytest.raises(UserError, match=r"picture\.png: damaged"):
            list(load_batches(Broken(4), [[0], [1]], workers))


def test_a_killed_worker_is_named():
    class Killed(Pictures):
        def __getitem__(self, key: Any) -> dict:
            os.kill(os.getpid(), signal.SIGKILL)
            return {}

    with pytest.raises(RuntimeError, match="a process that reads the data has ended: out of memory"):
        list(load_batches(Killed(4), [[0], [1]], 2))


# --- optimization -----------------------------------------------------------------------------------


def test_durations_in_epochs():
    """100 samples, total batch 2 x 4 x 2 = 16: six iterations an epoch."""
    milestones = {"milestones": [Epochs(8), Epochs(11)], "gamma": 0.1}
    schedule = Schedule(0.1, "WarmupMultiStep", milestones, warmup=Epochs(0.5), warmup_start=0.001)
    recipe = Recipe(schedule, iters=Epochs(12), batch_size=4, accumulation=2, save_interval=Epochs(1))
    found = recipe.in_iterations(100, world_size=2)
    assert (found.iters, found.save_interval, found.eval_interval) == (72, 6, None)
    assert (found.schedule.warmup, found.schedule.arguments["milestones"]) == (3, [48, 66])
    scheduler, rates = build_scheduler(found, "lr"), []
    for _ in range(72):
        rates.append(scheduler())
        scheduler.step()
    assert rates[:4] == pytest.approx([0.001, 0.034, 0.067, 0.1])
    assert [rates[i] for i in (47, 48, 65, 66, 71)] == pytest.approx([0.1, 0.01, 0.01, 0.001, 0.001])


def test_weights_of_which_state_dict_gives_copies(tmp_path):
    """What amp.decorate(level="O2", save_dtype="float32") does to a model: half-precision weights behind a state_dict
    of cast copies. Resuming, EMA evaluation and restoring must reach the weights themselves."""
    model = Brightness()
    model.to(dtype="float16")
    with contextlib.suppress(AttributeError):
        model.register_state_dict_post_hook(paddle.amp.auto_cast.StateDictHook("float32"))
    if model.state_dict()["conv.weight"].dtype != paddle.float32:  # where this Paddle calls it otherwise
        model._state_dict_hooks[1] = lambda state: state.update(
            {name: value.astype("float32") for name, value in state.items()}
        )
    assert model.state_dict()["conv.weight"].dtype == paddle.float32
    ones = {name: np.ones(value.shape, np.float32) for name, value in model.state_dict().items()}
    load_state(model, ones, "ones")
    assert (model.conv.weight.numpy() == 1).all()
    ema = ExponentialMovingAverage(model, 0.5, warm_up=False)
    load_state(model, {name: 3 * value for name, value in ones.items()}, "threes")
    ema.update(1)
    assert ema.average["conv.weight"].dtype == paddle.float32
    with ema.applied():
        assert (model.conv.weight.numpy() == 2).all()
    assert (live_tensors(model)["conv.weight"].numpy() == 3).all()
