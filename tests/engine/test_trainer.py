"""The training loop: exact on resume, and each part of the recipe against its definition."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from paddle_vheat.config import ConfigError
from paddle_vheat.engine.checkpoint import CheckpointError, list_checkpoints, read_checkpoint
from paddle_vheat.engine.hooks import Hook, NonFiniteLossError
from paddle_vheat.engine.optim import TrainOptions
from paddle_vheat.engine.trainer import Trainer
from paddle_vheat.weights.loading import read_weights
from tests.conftest import paddle
from tests.engine import tiny
from tests.engine.small import (
    SmallTask,
    assert_same,
    assert_same_checkpoint,
    gradients,
    parameters,
    train,
    trainer,
)

# --- the same again ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["AdamW", "Momentum"])
def test_stopped_and_continued_equals_straight(cityscapes, tmp_path, workers, kind):
    """With augmentation, dropout, stochastic depth, EMA and evaluation: everything in the checkpoint, bit for bit."""
    config = tiny.cityscapes_config(cityscapes)
    config["model"]["backbone"]["drop_path_rate"] = 0.3
    config["optimizer"]["type"] = kind
    options = {"use_ema": True, "do_eval": True, "num_workers": workers, "save_interval": 2}
    straight = train(tiny.make_task(config), tmp_path / "straight", **options)
    shutil.copytree(tmp_path / "straight" / "iter_4", tmp_path / "resumed" / "iter_4")
    for where in ("auto", str(tmp_path / "resumed" / "iter_4")):
        paddle.seed(77)  # the state that a resumed process happens to be in
        resumed = train(tiny.make_task(config), tmp_path / "resumed", resume_model=where, **options)
        assert resumed == straight
        assert_same_checkpoint(tmp_path / "resumed" / "iter_6", tmp_path / "straight" / "iter_6")
        shutil.rmtree(tmp_path / "resumed" / "iter_6")
    names = [path.name for path in list_checkpoints(tmp_path / "straight")]
    assert names == ["iter_2", "iter_4", "iter_6"]
    _, arrays = read_checkpoint(tmp_path / "straight" / "iter_6")
    assert sorted(arrays) == ["ema_model.pdparams", "model.pdopt", "model.pdparams"]
    assert arrays["model.pdopt"]


def test_stopped_and_continued_with_accumulation(cityscapes, tmp_path):
    config = tiny.cityscapes_config(cityscapes)
    options = {"accumulation": 3, "batch_size": 1, "iters": 4, "save_interval": 1}
    train(tiny.make_task(config), tmp_path / "straight", **options)
    shutil.copytree(tmp_path / "straight" / "iter_1", tmp_path / "resumed" / "iter_1")
    train(tiny.make_task(config), tmp_path / "resumed", resume_model="auto", **options)
    assert_same_checkpoint(tmp_path / "resumed" / "iter_4", tmp_path / "straight" / "iter_4")


def test_seed_decides(cityscapes, tmp_path):
    config = tiny.cityscapes_config(cityscapes)
    results = []
    for i, (seed, workers) in enumerate([(1, 0), (1, 2), (2, 0)]):
        paddle.seed(i)
        task = tiny.make_task(config)
        train(task, tmp_path / str(i), iters=3, seed=seed, num_workers=workers)
        results.append(parameters(task.model))
    assert_same(results[0], results[1])
    assert any(not np.array_equal(results[0][name], results[2][name]) for name in results[0])


def test_evaluation_and_checkpoints_do_not_change_the_run(cityscapes, tmp_path):
    config = tiny.cityscapes_config(cityscapes)
    final = []
    for i, options in enumerate([{"save_interval": 100}, {"save_interval": 1, "do_eval": True, "use_vdl": True}]):
        task = tiny.make_task(config)
        train(task, tmp_path / str(i), iters=4, **options)
        final.append(parameters(task.model))
    assert_same(final[0], final[1])


# --- the recipe -------------------------------------------------------------------------------------


def order(seed: int, length: int) -> list[int]:
    return np.random.default_rng([seed, 0]).permutation(length).tolist()


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 1), (2, 2), (1, 4)])
def test_accumulated_gradients_are_those_of_the_large_batch(tmp_path, batch_size, accumulation):
    """True of a model without batch norm whose loss is the mean over equally many pixels in every batch."""
    paddle.seed(42)
    task = SmallTask(lr=0.1)
    before = parameters(task.model)
    expected = gradients(task, 42, order(42, 8)[:4])
    train(task, tmp_path, iters=1, batch_size=batch_size, accumulation=accumulation, seed=42)
    assert task.calls == accumulation + 1
    for name, value in parameters(task.model).items():
        # The update is exact to a few float32 roundings of the weights (about 0.5), divided by the rate.
        found = (before[name] - value) / np.float32(0.1)
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=4 * 6e-8 * 0.5 / 0.1, err_msg=name)
        assert np.abs(expected[name]).max() > 1e-3, name


@pytest.fixture
def sgd_config(cityscapes):
    """Plain gradient descent in two parameter groups, without augmentation."""
    config = tiny.cityscapes_config(cityscapes, augment=False)
    config["model"]["backbone"]["drop_path_rate"] = 0.0
    config["optimizer"] = {
        "type": "SGD",
        "grad_clip_cfg": {"name": "ClipGradByGlobalNorm", "clip_norm": 0.05},
        "weight_decay": 0.0,
        "custom_cfg": [{"name": "norm", "weight_decay_mult": 0.5}],
    }
    config["lr_scheduler"] = {"type": "PolynomialDecay", "learning_rate": 4.0, "end_lr": 4.0}
    return config


@pytest.mark.parametrize("clip", [0.05, 1e6])
def test_the_gradient_is_clipped_by_its_global_norm(sgd_config, tmp_path, clip):
    sgd_config["optimizer"]["grad_clip_cfg"]["clip_norm"] = clip
    task = tiny.make_task(sgd_config)
    run = trainer(task, tmp_path, iters=1, seed=3)
    groups = [group for group in run.optimizer._param_groups if group["params"]]
    assert len(groups) == 2
    before = parameters(task.model)
    found = gradients(task, 3, order(3, tiny.TRAIN_SCENES)[:2])
    for name, value in task.model.state_dict().items():
        value.set_value(before[name])  # batch norm's statistics have moved
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in found.values()))
    assert 0.05 < norm < 1e6
    factor = min(1.0, clip / norm)
    run.run()
    after = parameters(task.model)
    updates = {name: (before[name].astype(np.float64) - after[name]) / 4.0 for name in found}
    total = np.sqrt(sum((u**2).sum() for u in updates.values()))
    # Rounding of the weights, 6e-8 of about 1 in some 10^4 of them, against a step of 4 x 0.05; and Paddle's
    # 1e-6 beside the norm in the denominator. Clipping each group by itself would give 1.4 times this.
    assert total == pytest.approx(norm * factor, rel=1e-4)
    for name, gradient in found.items():
        scale = norm * factor
        np.testing.assert_allclose(updates[name], gradient * factor, rtol=0, atol=1e-4 * scale, err_msg=name)


def test_weight_decay_leaves_out_what_is_named(cityscapes, tmp_path):
    """With a loss of zero, AdamW's step is the decay alone: w (1 - lr x decay)."""
    config = tiny.cityscapes_config(cityscapes)
    config["optimizer"]["weight_decay"] = 0.5
    config["lr_scheduler"].update(warmup_start_lr=0.1, learning_rate=0.2)
    task = tiny.make_task(config)
    losses = task.losses
    task.losses = lambda model, batch: {name: 0.0 * part for name, part in losses(model, batch).items()}
    run = trainer(task, tmp_path, iters=1)
    before = parameters(task.model)
    run.run()
    trained = {name for name, p in task.model.named_parameters() if not p.stop_gradient}
    after = parameters(task.model)
    plain = {name for name in trained if "norm" in name}
    assert len(plain) > 20
    assert {"backbone.outnorm0.weight", "backbone.stem.norm1.bias", "backbone.stages.0.blocks.0.norm1.weight"} <= plain
    for name in trained:
        if name in plain:
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
        else:
            # one float32 rounding of the factor and one of the product
            np.testing.assert_allclose(after[name], before[name] * 0.95, rtol=2e-7, err_msg=name)


class Seen(Hook):
    """Keeps the learning rate and the loss of every iteration."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float, float]] = []

    def after_step(self, run) -> None:
        self.seen.append((run.iteration, run.lr, float(run.losses[0])))


def watched(task, **options) -> tuple[Trainer, list[tuple[int, float, float]]]:
    run, hook = Trainer(task, TrainOptions(**options)), Seen()
    run.hooks.insert(0, hook)
    return run, hook.seen


@pytest.mark.parametrize("power", [1.0, 0.9])
def test_learning_rate_in_closed_form(lists, tmp_path, power):
    config = tiny.lists_config(lists)
    config["iters"] = 12
    config["lr_scheduler"].update(warmup_iters=4, warmup_start_lr=1e-5, learning_rate=2e-3, end_lr=1e-4, power=power)

    def closed(t: int) -> float:
        if t < 4:
            return 1e-5 + (2e-3 - 1e-5) * t / 4
        return (2e-3 - 1e-4) * (1 - (t - 4) / 8) ** power + 1e-4

    options = {"iters": 12, "batch_size": 1, "save_interval": 5, "save_dir": str(tmp_path)}
    whole, seen = watched(tiny.make_task(config), **options)
    whole.run()
    expected = [(t + 1, pytest.approx(closed(t), rel=1e-12)) for t in range(12)]
    assert [(iteration, rate) for iteration, rate, _ in seen] == expected
    resumed, again = watched(tiny.make_task(config), **options, resume_model=str(tmp_path / "iter_5"))
    resumed.run()
    assert again == seen[5:]


def test_a_tiny_set_is_learnt(lists, tmp_path):
    config = tiny.lists_config(lists)
    config["train_dataset"]["transforms"] = [{"type": "RandomPaddingCrop", "crop_size": [64, 48]}, tiny.NORMALIZE]
    config["lr_scheduler"].update(learning_rate=5e-3, warmup_iters=5)
    config["iters"] = 60
    task = tiny.make_task(config)
    run, seen = watched(task, iters=60, batch_size=4, save_dir=str(tmp_path), do_eval=True, use_ema=True)
    result = run.run()
    losses = [loss for _, _, loss in seen]
    # Three grey levels that are the classes; a loss of 1.4 ln 3 = 1.5 at first.
    assert losses[0] == pytest.approx(1.4 * np.log(3), rel=0.1)
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    assert result["best"]["best_model"]["score"] > 0.4  # of three classes, guessing one reaches 0.15


# --- what is kept -----------------------------------------------------------------------------------


def test_the_best_model_is_kept(tmp_path):
    task = SmallTask(scores=[0.2, 0.5, 0.4, float("nan"), 0.5, 0.1])
    result = train(task, tmp_path, save_interval=1, do_eval=True)
    assert result["best"] == {"best_model": {"score": 0.5, "iteration": 2}}
    assert result == {"iteration": 6, "best": result["best"], "stopped": None}
    best = read_weights(tmp_path / "best_model" / "model.pdparams")
    assert_same(best, task.evaluations[1])
    assert not np.array_equal(best["0.weight"], task.evaluations[2]["0.weight"])
    metrics = json.loads((tmp_path / "best_model" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == {"iteration": 2, "mIoU": 0.5}


def test_the_best_survives_a_resume(tmp_path):
    train(SmallTask(scores=[0.6, 0.1]), tmp_path, iters=2, save_interval=1, do_eval=True)
    best = (tmp_path / "best_model" / "model.pdparams").read_bytes()
    result = train(SmallTask(scores=[0.5, 0.3]), tmp_path, iters=4, save_interval=1, do_eval=True, resume_model="auto")
    assert result["best"] == {"best_model": {"score": 0.6, "iteration": 1}}
    assert (tmp_path / "best_model" / "model.pdparams").read_bytes() == best


def test_averaged_weights_are_scored_and_kept_apart(tmp_path):
    # Of each pair the first is the model's, the second the average's.
    task = SmallTask(scores=[0.2, 0.3, 0.1, 0.4, 0.25, 0.35])
    run = trainer(task, tmp_path, iters=3, save_interval=1, do_eval=True, use_ema=True)
    initial = parameters(task.model)
    result = run.run()
    assert result["best"]["best_model"] == {"score": 0.25, "iteration": 3}
    assert result["best"]["ema_best_model"] == {"score": 0.4, "iteration": 2}
    assert_same(read_weights(tmp_path / "ema_best_model" / "ema_model.pdparams"), task.evaluations[3])
    assert_same(read_weights(tmp_path / "best_model" / "model.pdparams"), task.evaluations[4])
    assert_same(parameters(task.model), task.evaluations[4])  # the average is taken out again
    # In iteration 1 the average keeps half of the initial weights.
    expected = (initial["0.weight"] + task.evaluations[0]["0.weight"]) / 2
    np.testing.assert_allclose(task.evaluations[1]["0.weight"], expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize(("keep", "kept"), [(0, [1, 2, 3, 4, 5, 6]), (1, [6]), (3, [4, 5, 6])])
def test_checkpoints_kept(tmp_path, keep, kept):
    train(SmallTask(), tmp_path, save_interval=1, keep_checkpoint_max=keep)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"iter_{i}" for i in kept]


def test_the_last_iteration_is_saved(tmp_path):
    train(SmallTask(), tmp_path, iters=5, save_interval=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["iter_3", "iter_5"]


def test_early_stop(tmp_path):
    scores = [0.2, 0.5, 0.4, 0.6, 0.3, 0.6, 0.7]
    result = train(SmallTask(scores=scores), tmp_path, iters=7, save_interval=1, do_eval=True, early_stop_intervals=2)
    assert (result["stopped"], result["iteration"]) == ("early", 6)  # 0.3 and 0.6 are no better than 0.6
    assert result["best"]["best_model"]["iteration"] == 4
    assert "stopped early: no better mIoU for 2 intervals" in (tmp_path / "train.log").read_text(encoding="utf-8")


def test_patience_goes_on_after_a_resume(tmp_path):
    options = {"save_interval": 1, "do_eval": True, "early_stop_intervals": 3}
    train(SmallTask(scores=[0.5, 0.4]), tmp_path, iters=2, **options)
    result = train(SmallTask(scores=[0.3, 0.2, 0.1]), tmp_path, iters=9, resume_model="auto", **options)
    assert (result["stopped"], result["iteration"]) == ("early", 4)


def test_visualdl_records(cityscapes, tmp_path):
    from visualdl import LogReader

    options = {"iters": 4, "save_interval": 2, "do_eval": True, "use_vdl": True, "use_ema": True}
    task = tiny.make_task(tiny.cityscapes_config(cityscapes))
    run, seen = watched(task, batch_size=2, log_iters=1, save_dir=str(tmp_path), **options)
    run.run()
    (record,) = tmp_path.glob("vdlrecords.*.log")
    reader = LogReader(file_path=str(record))
    tags = reader.get_tags()
    assert {"Train/loss", "Train/lr", "Train/loss_0", "Train/loss_1", "Train/images_per_second"} <= set(tags["scalar"])
    assert {"Evaluate/mIoU", "Evaluate/Acc", "Evaluate/Ema_mIoU"} <= set(tags["scalar"])
    rates = [(item.id, item.value) for item in reader.get_data("scalar", "Train/lr")]
    losses = [(item.id, item.value) for item in reader.get_data("scalar", "Train/loss")]
    # VisualDL keeps float32
    assert rates == [(i, pytest.approx(rate, rel=1e-6)) for i, rate, _ in seen]
    assert losses == [(i, pytest.approx(loss, rel=1e-6)) for i, _, loss in seen]
    scores = reader.get_data("scalar", "Evaluate/mIoU")
    assert [item.id for item in scores] == [2, 4]
    assert max(item.value for item in scores) == pytest.approx(run.evaluation.best["best_model"]["score"], abs=1e-6)
    assert sorted(tags["image"]) == [f"Prediction/{i}" for i in range(tiny.VAL_SCENES)]
    assert len(reader.get_data("image", "Prediction/0")) == 2


def test_log(cityscapes, tmp_path, capsys):
    train(tiny.make_task(tiny.cityscapes_config(cityscapes)), tmp_path, iters=5, log_iters=2, save_interval=100)
    text = (tmp_path / "train.log").read_text(encoding="utf-8")
    assert [f"iter {i}/5, loss" in text for i in range(1, 6)] == [False, True, False, True, True]
    assert "lr " in text
    assert "images/s" in text
    assert "ETA" in text
    assert "[TRAIN] iter 4/5" in capsys.readouterr().out


# --- what goes wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(("nan_at", "log_iters"), [(1, 1), (3, 4), (5, 10)])
def test_a_loss_that_is_not_finite(tmp_path, nan_at, log_iters):
    task = SmallTask(nan_at=nan_at)
    with pytest.raises(NonFiniteLossError, match=rf"the loss is nan in iteration {nan_at} \(lr 0\.1\)") as error:
        train(task, tmp_path, iters=20, log_iters=log_iters, save_interval=4)
    assert str(tmp_path) in str(error.value)
    for folder in list_checkpoints(tmp_path):
        assert int(folder.name[5:]) < nan_at
        _, arrays = read_checkpoint(folder)
        assert all(np.isfinite(value).all() for value in arrays["model.pdparams"].values())


def test_a_loss_that_is_not_finite_with_accumulation(tmp_path):
    with pytest.raises(NonFiniteLossError, match="in iteration 3 "):
        train(SmallTask(nan_at=5), tmp_path, iters=20, log_iters=7, accumulation=2)


def test_wrong_number_of_losses(cityscapes, tmp_path):
    config = tiny.cityscapes_config(cityscapes)
    config["loss"]["coef"] = [1.0]
    with pytest.raises(
        ConfigError, match="the model gives 2 outputs in training, but 'loss' has 1 types and coefficients"
    ):
        train(tiny.make_task(config), tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_label_out_of_range_is_named(tmp_path, workers):
    root = tiny.write_lists(tmp_path / "data")
    tiny.spoil_label(root / "labels" / "train2.png", 3)
    with pytest.raises(ValueError, match=r"train2\.png: label value 3 is outside 0 to 2 and is not 255") as error:
        train(tiny.make_task(tiny.lists_config(root)), tmp_path / "out", num_workers=workers)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_on_the_cpu_says_that_it_is_not(tmp_path, capsys, precision):
    results = []
    for i, chosen in enumerate([precision, "fp32"]):
        task = SmallTask()
        train(task, tmp_path / str(i), iters=2, precision=chosen)
        results.append(parameters(task.model))
        said = capsys.readouterr().out
        assert (f"precision {precision} needs a GPU: on this device the run is in fp32" in said) == (i == 0)
    assert_same(results[0], results[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iters": 0}, "'iters' must be an integer of at least 1 and .*, got 0"),
        ({"iters": "many"}, "'iters' must be an integer of at least 1 and .*, got 'many'"),
        ({"batch_size": 2.5}, "'batch_size' must be an integer"),
        ({"log_iters": 0}, "'log_iters' must be"),
        ({"save_interval": -1}, "'save_interval' must be"),
        ({"accumulation": 0}, "'accumulation' must be"),
        ({"seed": -1}, "'seed' must be an integer of at least 0 and .*, got -1"),
        ({"num_workers": -1}, "num_workers must be"),
        ({"keep_checkpoint_max": -1}, "'keep_checkpoint_max' must be"),
        ({"early_stop_intervals": 0}, "'early_stop_intervals' must be an integer of at least 1"),
    ],
)
def test_options_out_of_range(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        trainer(SmallTask(), tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


# --- what cannot be resumed -------------------------------------------------------------------------


@pytest.fixture
def trained(cityscapes, tmp_path):
    """A finished run of 4 iterations with checkpoints at 2 and 4, and its configuration."""
    config = tiny.cityscapes_config(cityscapes)
    train(tiny.make_task(config), tmp_path / "out", iters=4, save_interval=2)
    return config, tmp_path / "out"


def test_resume_auto_skips_damage(trained, capsys):
    config, out = trained
    path = out / "iter_4" / "model.pdopt"
    path.write_bytes(path.read_bytes()[:-9])
    train(tiny.make_task(config), out, iters=5, resume_model="auto")
    said = capsys.readouterr().out
    assert "skipped: " in said
    assert "model.pdopt: damaged" in said
    assert f"resumed {out / 'iter_2'} at iteration 2" in said
    assert read_checkpoint(out / "iter_5")[0]["iteration"] == 5


def test_resume_auto_with_nothing_to_resume(cityscapes, tmp_path, capsys):
    task = tiny.make_task(tiny.cityscapes_config(cityscapes))
    assert train(task, tmp_path / "new", iters=1, resume_model="auto")["iteration"] == 1
    assert "nothing to resume in" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["model.pdparams", "model.pdopt", "state.json"])
def test_resume_of_a_damaged_checkpoint(trained, file):
    config, out = trained
    path = out / "iter_4" / file
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=rf"(?s){file}.*damaged"):
        train(tiny.make_task(config), out, iters=5, resume_model=str(out / "iter_4"))


def test_resume_of_a_finished_run(trained):
    config, out = trained
    task = tiny.make_task(config)
    result = train(task, out, iters=4, resume_model="auto")
    assert (result["iteration"], result["stopped"]) == (4, None)
    assert "the run is complete (4 of 4 iterations)" in (out / "train.log").read_text(encoding="utf-8")
    with pytest.raises(CheckpointError, match="iter_4 is of iteration 4, and the run ends at 3"):
        train(tiny.make_task(config), out, iters=3, resume_model="auto")


def test_a_new_run_does_not_mix_with_an_earlier_one(trained):
    config, out = trained
    with pytest.raises(CheckpointError, match=r"holds a run already \(iter_4\): continue it with --resume_model auto"):
        train(tiny.make_task(config), out, iters=4)


def test_resume_with_ema_of_a_run_without(trained):
    config, out = trained
    with pytest.raises(CheckpointError, match="was saved without EMA"):
        train(tiny.make_task(config), out, iters=5, use_ema=True, resume_model="auto")


def test_resume_with_another_optimizer(trained):
    config, out = trained
    config["optimizer"]["type"] = "Momentum"
    with pytest.raises(CheckpointError, match="was saved with AdamW, and this run is with Momentum"):
        train(tiny.make_task(config), out, iters=5, resume_model="auto")


def test_resume_of_another_model(trained):
    config, out = trained
    config["model"]["channels"] = 24
    with pytest.raises(ValueError, match="does not fit UPerNetMMSeg"):
        train(tiny.make_task(config), out, iters=5, resume_model="auto")


def test_resume_with_another_size_of_the_embeddings(trained):
    """Loading would resize them, but not the optimizer's moments."""
    config, out = trained
    config["model"]["backbone"]["img_size"] = [64, 64]
    with pytest.raises(CheckpointError, match=r"embedding' is \(8, 16, 8\), the model's parameter \(16, 16, 8\)"):
        train(tiny.make_task(config), out, iters=5, resume_model="auto")


def test_resume_with_another_seed_is_told(trained, capsys):
    config, out = trained
    train(tiny.make_task(config), out, iters=5, seed=7, resume_model="auto")
    assert "note: changed since the checkpoint: seed: 42 -> 7" in capsys.readouterr().out


def test_resume_of_no_folder(cityscapes, tmp_path):
    with pytest.raises(CheckpointError, match=r"no such checkpoint folder: .*iter_9"):
        train(tiny.make_task(tiny.cityscapes_config(cityscapes)), tmp_path, resume_model=str(tmp_path / "iter_9"))


# --- signals ----------------------------------------------------------------------------------------


def wait_for(condition, process, seconds: float = 120) -> None:
    """The limit only keeps a hang from hanging the tests."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "workers", "group"),
    [(signal.SIGTERM, 0, False), (signal.SIGINT, 2, True), (signal.SIGTERM, 2, True)],
    ids=["SIGTERM", "Ctrl-C with workers", "SIGTERM to all with workers"],
)
def test_a_signal_saves_and_stops(cityscapes, tmp_path, number, workers, group):
    config = tiny.write_config(tmp_path / "tiny.yml", tiny.cityscapes_config(cityscapes))
    out = tmp_path / "out"
    command = ["train.py", "--config", config, "--save_dir", out, "--device", "cpu", "--num_workers", workers]
    process = subprocess.Popen(
        [sys.executable, *map(str, command), "--iters", "100000", "--log_iters", "1", "--save_interval", "100000"],
        cwd=tiny.REPOSITORY,
        env=tiny.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        log = out / "train.log"
        wait_for(lambda: log.is_file() and "iter 3/" in log.read_text(encoding="utf-8"), process)
        (os.killpg if group else os.kill)(process.pid, number)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, stderr
    assert f"{number.name}: saved at iteration" in stdout
    assert "Traceback" not in stderr
    (folder,) = list_checkpoints(out)
    state, _ = read_checkpoint(folder)
    assert state["iteration"] >= 3
    assert not (out / "best_model").exists()
    goal = state["iteration"] + 2
    resumed = tiny.run([*command, "--iters", goal, "--resume_model", "auto"])
    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed {folder} at iteration {state['iteration']}" in resumed.stdout
    assert read_checkpoint(out / f"iter_{goal}")[0]["iteration"] == goal


class Signalled(SmallTask):
    """Gets signals in its second iteration, as a launcher sends them: several, one shortly after the other."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self.numbers = numbers

    def losses(self, model, batch):
        if self.calls == 1:
            for number in self.numbers:
                os.kill(os.getpid(), number)
        return super().losses(model, batch)


@pytest.mark.parametrize("numbers", [(signal.SIGINT,), (signal.SIGTERM,) * 3, (signal.SIGINT, signal.SIGTERM)])
def test_more_signals_do_not_keep_it_from_saving(tmp_path, numbers):
    result = train(Signalled(*numbers), tmp_path)
    assert (result["stopped"], result["iteration"]) == ("signal", 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["iter_2"]
    assert read_checkpoint(tmp_path / "iter_2")[0]["iteration"] == 2


def test_a_second_interrupt_stops_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(Signalled(signal.SIGINT, signal.SIGINT), tmp_path)
    assert list_checkpoints(tmp_path) == []


def test_a_signal_in_the_last_iteration_changes_nothing(tmp_path):
    result = train(Signalled(signal.SIGTERM), tmp_path, iters=2)
    assert (result["stopped"], result["iteration"]) == (None, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["iter_2"]


def test_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    train(SmallTask(), tmp_path, iters=1)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_early_stop_needs_evaluation(trained, tmp_path):
    config, _ = trained
    with pytest.raises(ValueError, match="needs --do_eval"):
        train(tiny.make_task(config), tmp_path / "new", iters=2, early_stop_intervals=1)
