"""Losses, gradients and weights that are not finite: named, skipped if asked, never saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from paddle_vheat.engine.checkpoint import list_checkpoints, read_checkpoint
from paddle_vheat.engine.hooks import NonFiniteLossError, all_finite, restore_tensors, untrained_state
from tests.conftest import paddle
from tests.engine import tiny
from tests.engine.small import SmallTask, assert_same, assert_same_checkpoint, parameters, train, trainer
from tests.engine.test_distributed import SCRIPT, finish, launch


def assert_finite_checkpoints(folder: Path) -> None:
    for checkpoint in list_checkpoints(folder):
        for content in read_checkpoint(checkpoint)[1].values():
            assert all(np.isfinite(value).all() for value in content.values())


class Spoilt(SmallTask):
    """A toy whose loss, or whose gradients alone, are NaN in some calls."""

    def __init__(self, at: tuple[int, ...], gradients_only: bool = False, **options) -> None:
        super().__init__(**options)
        self.at = at
        self.gradients_only = gradients_only

    def losses(self, model, batch):
        loss = super().losses(model, batch)["loss"]
        if self.calls in self.at:
            if not self.gradients_only:
                return {"loss": loss * float("nan")}
            # The derivative of the root is infinite at 0, times 0 is NaN; its value is 0.
            loss = loss + paddle.sqrt(model[0].weight.sum() * 0.0)
        return {"loss": loss}


def test_the_files_of_the_batch_are_named(cityscapes, tmp_path):
    task = tiny.make_task(tiny.cityscapes_config(cityscapes))
    data = task.dataset("train")
    files = {path for i in range(len(data)) for path in data.files(i)}
    plain, calls = task.losses, []

    def losses(model, batch):
        calls.append([meta["index"] for meta in batch["meta"]])
        parts = plain(model, batch)
        return {name: part * float("inf") if len(calls) == 3 else part for name, part in parts.items()}

    task.losses = losses
    with pytest.raises(NonFiniteLossError, match="the loss is inf in iteration 3 ") as error:
        train(task, tmp_path, iters=4, log_iters=4, save_interval=4)
    expected = [path for i in calls[2] for path in data.files(i)]
    assert {path for path in files if path in str(error.value)} == set(expected)


@pytest.mark.parametrize(("interval", "kept"), [(2, ["iter_2"]), (3, []), (1, ["iter_1", "iter_2"])])
def test_gradients_alone_spoil_no_checkpoint(tmp_path, interval, kept):
    """The loss of iteration 3 is finite, the weights after it are not."""
    task = Spoilt((3,), gradients_only=True)
    with pytest.raises(NonFiniteLossError, match=r"0\.weight is not finite after iteration 3|the loss is nan in"):
        train(task, tmp_path, iters=9, log_iters=9, save_interval=interval)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == kept
    assert_finite_checkpoints(tmp_path)


@pytest.mark.parametrize("gradients_only", [False, True])
@pytest.mark.parametrize("ema", [False, True])
def test_a_skipped_step_changes_nothing_but_the_iteration(tmp_path, gradients_only, ema):
    task = Spoilt((2,), gradients_only)
    run = trainer(task, tmp_path, iters=2, save_interval=1, max_skipped_steps=1, use_ema=ema, log_iters=2)
    run.run()
    (_, before), (state, after) = (read_checkpoint(tmp_path / f"iter_{i}") for i in (1, 2))
    assert_same(after["model.pdparams"], before["model.pdparams"])
    assert_same(after["model.pdopt"], before["model.pdopt"])
    if ema:
        assert_same(after["ema_model.pdparams"], before["ema_model.pdparams"])
    assert state["skipped_steps"] == run.guard.skipped_steps == 1
    log = (tmp_path / "train.log").read_text(encoding="utf-8")
    what = "the gradients are not finite" if gradients_only else "the loss is nan"
    assert f"[SKIP] {what} in iteration 2 (lr 0.1); step skipped, 1 of at most 1; the batch is sample " in log


def test_no_more_are_skipped_than_allowed(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"the loss is nan in iteration 5 .*2 steps are skipped already"):
        train(Spoilt((2, 3, 5)), tmp_path, iters=9, save_interval=4, max_skipped_steps=2)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["iter_4"]
    assert_finite_checkpoints(tmp_path)


def test_an_interval_in_which_all_steps_are_skipped(tmp_path):
    result = train(Spoilt((3, 4)), tmp_path, iters=6, log_iters=2, save_interval=6, max_skipped_steps=9)
    log = (tmp_path / "train.log").read_text(encoding="utf-8")
    assert result["iteration"] == 6
    assert ["[TRAIN] iter " + n in log for n in ("2/6", "4/6", "6/6")] == [True, False, True]


def test_skipping_resumes_exactly(tmp_path):
    """The limit holds over a stop, and a run that was stopped equals one that was not."""

    class ByIteration(SmallTask):
        """Spoils the batches with an image of index 3, whenever they come."""

        def losses(self, model, batch):
            loss = super().losses(model, batch)["loss"]
            return {"loss": loss * float("nan") if 3 in [meta["index"] for meta in batch["meta"]] else loss}

    options = {"iters": 12, "save_interval": 6, "max_skipped_steps": 3, "use_ema": True}
    train(ByIteration(), tmp_path / "straight", **options)
    shutil.copytree(tmp_path / "straight" / "iter_6", tmp_path / "resumed" / "iter_6")
    train(ByIteration(), tmp_path / "resumed", resume_model="auto", **options)
    state, _ = read_checkpoint(tmp_path / "straight" / "iter_12")
    assert state["skipped_steps"] == 3
    assert read_checkpoint(tmp_path / "resumed" / "iter_12")[0]["skipped_steps"] == 3
    assert_same_checkpoint(tmp_path / "resumed" / "iter_12", tmp_path / "straight" / "iter_12")
    with pytest.raises(NonFiniteLossError, match="2 steps are skipped already"):
        train(ByIteration(), tmp_path / "again", **{**options, "max_skipped_steps": 2})


def test_looking_changes_nothing(cityscapes, tmp_path):
    """With the check in each step, a run without a fault is the same run."""
    for folder, allowed in (("plain", 0), ("watched", 5)):
        task = tiny.make_task(tiny.cityscapes_config(cityscapes))
        train(task, tmp_path / folder, iters=2, save_interval=2, max_skipped_steps=allowed)
    assert_same_checkpoint(tmp_path / "watched" / "iter_2", tmp_path / "plain" / "iter_2")


def test_running_statistics_are_put_back():
    """A batch of NaN spoils them in the forward pass."""
    model = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.BatchNorm2D(4))
    model.train()
    before, kept = parameters(model), untrained_state([model])
    model(paddle.full([2, 3, 8, 8], float("nan")))
    assert not all(np.isfinite(value).all() for value in parameters(model).values())
    restore_tensors(kept)
    assert_same(parameters(model), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_all_finite(value):
    tensors = [paddle.ones([2, 3]), paddle.ones([4]) * 1e30]
    assert all_finite(tensors)
    tensors[0][1, 2] = value
    assert not all_finite(tensors)


SPOIL = """
plain, calls = task.losses, []


def spoilt(model, batch):
    parts = plain(model, batch)
    calls.append(0)
    return {name: p * float("nan") if rank == 1 and len(calls) == 2 else p for name, p in parts.items()}


task.losses = spoilt
result = trainer.run()
result["skipped"] = trainer.guard.skipped_steps
"""


def test_two_processes_skip_together(cityscapes, tmp_path):
    """The loss is NaN in the second process alone."""
    config = tiny.write_config(tmp_path / "tiny.yml", tiny.cityscapes_config(cityscapes))
    (tmp_path / "script.py").write_text(SCRIPT.replace("result = trainer.run()\n", SPOIL), encoding="utf-8")
    options = {"save_dir": str(tmp_path / "out"), "log_iters": 1, "save_interval": 3, "iters": 3, "batch_size": 1}
    command = [tmp_path / "script.py", config, json.dumps({**options, "max_skipped_steps": 1}), tmp_path / "report"]
    logs = finish(launch(tmp_path, command), tmp_path)
    first, second = (json.loads((tmp_path / f"report.{rank}").read_text(encoding="utf-8")) for rank in (0, 1))
    assert first["result"]["skipped"] == second["result"]["skipped"] == 1
    assert first["model"] == second["model"]
    assert "[SKIP] the loss is nan in iteration 2" in logs
    assert "(process 1)" in logs
    assert_finite_checkpoints(tmp_path / "out")
    assert [folder.name for folder in list_checkpoints(tmp_path / "out")] == ["iter_3"]
