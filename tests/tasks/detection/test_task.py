"""The detection task: configuration, recipe, training, exact resume, weights to start from."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from paddle_vheat.config import ConfigError
from paddle_vheat.engine.checkpoint import read_checkpoint
from paddle_vheat.engine.loader import load_batches
from paddle_vheat.engine.optim import TrainOptions, build_optimizer, build_scheduler
from paddle_vheat.engine.trainer import Trainer
from paddle_vheat.models.mask_rcnn import MaskRCNN
from paddle_vheat.tasks.detection.task import DetectionTask
from tests.conftest import paddle
from tests.engine import tiny
from tests.tasks.detection import small

LOSSES = ["loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("modle", {}, "unknown key 'modle'; did you mean 'model'"),
        ("model__chanels", 3, "unknown key 'model.chanels'; did you mean 'channels'"),
        ("model__name", "mask_rcnn_vheat_tinny", "'model.name' must be one of .*did you mean 'mask_rcnn_vheat_tiny'"),
        ("model__name", "mask_rcnn_vheat_tiny", "'model.embed_dim' and 'model.depths' are needed by mask_rcnn_vheat"),
        ("model__num_classes", 0, "'model.num_classes' must be an integer of at least 1"),
        ("model__selection", {"proposal": 3}, "unknown key 'model.selection.proposal'; did you mean 'proposals'"),
        ("transforms__scale", [64, 96], r"'transforms.scale' must be \[longest side, shortest side\], got \[64, 96\]"),
        ("transforms__crop", {"short_sides": [64], "min": 32, "max": 64}, "'transforms.crop' needs 'transforms.short"),
        ("transforms__mean", [1.0], "'transforms.mean' must be a list of 3 numbers"),
        ("schedule", {"iters": 3, "epochs": 2}, "'schedule' must have one of epochs and iters"),
        ("schedule", {"iters": 3, "milestones": [2, 1]}, r"'schedule.milestones' must rise, got \[2, 1\]"),
        ("optimizer", {"learning_rate": -1.0}, "'optimizer.learning_rate' must be a number of above 0"),
        ("data", {"train": {"image_dir": "x"}}, "'data.train.annotations' is missing"),
    ],
)
def test_mistakes_are_named(coco, path, value, message):
    with pytest.raises(ConfigError, match=message):
        small.make_task(coco, **{path: value})


def test_classes_of_the_model_and_of_the_annotations(coco):
    with pytest.raises(ValueError, match=r"train\.json: has 3 categories, and 'model\.num_classes' is 4"):
        small.make_task(coco, model__num_classes=4).dataset("train")


def test_a_folder_that_is_not_there(coco):
    with pytest.raises(
        ConfigError, match=r"no such folder of images: /no/such; .* --opts data\.train\.image_dir=FOLDER"
    ):
        small.make_task(coco, data__train__image_dir="/no/such").dataset("train")


def test_the_recipe_of_an_epoch(coco):
    schedule = {"epochs": 12, "milestones": [8, 11], "warmup_iters": 1000, "warmup_factor": 0.001}
    recipe = small.make_task(coco, schedule=schedule, optimizer={"learning_rate": 1e-4}).recipe
    scheduler = build_scheduler(recipe.in_iterations(117_266, 8), "x")  # two images on each of eight
    per_epoch = 117_266 // 16
    rates = dict.fromkeys((0, 500, 1000, 8 * per_epoch - 1, 8 * per_epoch, 11 * per_epoch), 0.0)
    for step in rates:
        scheduler.step(step)
        rates[step] = scheduler.get_lr()
    assert list(rates.values()) == pytest.approx([1e-7, 1e-4 * (0.001 + 0.999 * 0.5), 1e-4, 1e-4, 1e-5, 1e-6], rel=1e-9)


def test_weight_decay_reaches_the_parameters_that_are_published_to_have_it(coco):
    task = small.make_task(coco, optimizer={"learning_rate": 1e-2, "weight_decay": 0.5})
    model = task.build_model()
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    (sum(p.sum() for p in model.parameters()) * 0.0).backward()
    build_optimizer(task.recipe, model, 1e-2, task.parameter_factors(model), "optimizer").step()
    kept = {
        name for name, p in model.named_parameters() if np.array_equal(p.numpy(), before[name]) and before[name].any()
    }
    weights = {name for name in before if before[name].any()}
    # tests/models/mask_rcnn compares no_weight_decay() with the published names
    assert kept == model.no_weight_decay() & weights
    assert any(name.endswith("downsample.norm.weight") for name in weights - kept)


def parts(task, indices, seed=3, model=None):
    """Losses of a batch, and the names of the parameters that get a gradient."""
    model = model or task.build_model()
    model.train()
    batch = next(load_batches(task.dataset("train"), [indices], 0, task.collate))
    losses = task.losses(model, task.prepare(batch, seed))
    sum(losses.values()).backward()
    used = {name for name, p in model.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}
    return {name: float(loss) for name, loss in losses.items()}, used


def test_images_without_objects_train(coco):
    task = small.make_task(coco, data__train__skip_empty=False)
    assert len(task.dataset("train")) == 5
    losses, used = parts(task, [small.EMPTY, 0])
    assert list(losses) == LOSSES
    assert all(np.isfinite(value) for value in losses.values())
    losses, used = parts(task, [small.EMPTY, small.EMPTY])
    assert (losses["loss_mask"], losses["loss_rpn_bbox"]) == (0, 0)
    assert min(losses["loss_rpn_cls"], losses["loss_cls"]) > 0
    assert not any(name.startswith("roi_head.mask_head") for name in used)


def test_losses_depend_on_the_seed_of_the_step_alone(coco):
    task = small.make_task(coco, transforms__flip=0.0)
    model = task.build_model()
    same = [parts(task, [0, 1], seed, model)[0] for seed in (3, 3, 4)]
    assert same[0] == same[1] != same[2]


def options(folder, **changes):
    return TrainOptions(**{"save_dir": str(folder), "save_interval": 2, "log_iters": 1, "iters": 4, **changes})


def final(folder):
    _, arrays = read_checkpoint(folder / "iter_4")
    return arrays


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for file in first:
        assert first[file].keys() == second[file].keys()
        for name, value in first[file].items():
            np.testing.assert_array_equal(np.asarray(value), np.asarray(second[file][name]), err_msg=f"{file} {name}")


AUGMENTED = {"transforms__short_sides": [48, 64, 80], "transforms__crop": {"short_sides": [64], "min": 40, "max": 60}}


def test_a_resumed_run_is_bit_equal(coco, tmp_path):
    """Order, orientation groups, crops, stochastic depth, the sampling of anchors and moments; with workers or not."""
    changes = {**AUGMENTED, "model__drop_path_rate": 0.2, "data__train__skip_empty": False}
    make = lambda: small.make_task(coco, **changes)  # noqa: E731
    whole = Trainer(make(), options(tmp_path / "whole", use_ema=True, do_eval=True))
    assert whole.run()["iteration"] == 4
    Trainer(make(), options(tmp_path / "parts", use_ema=True, do_eval=True, iters=2)).run()
    resumed = options(tmp_path / "parts", use_ema=True, do_eval=True, resume_model="auto", num_workers=2)
    Trainer(make(), resumed).run()
    assert_equal(final(tmp_path / "whole"), final(tmp_path / "parts"))
    scores = json.loads((tmp_path / "whole" / "best_model" / "metrics.json").read_text(encoding="utf-8"))
    assert "bbox_AP" in json.dumps(scores)


@pytest.mark.slow
def test_a_killed_run_is_bit_equal(coco, tmp_path):
    path = tiny.write_config(tmp_path / "small.yml", small.config(coco, **AUGMENTED))
    command = [sys.executable, "train.py", "--config", path, "--save_interval", "1", "--iters", "6", "--save_dir"]
    run = lambda folder, *more: subprocess.run(  # noqa: E731
        [*map(str, command), str(folder), *more], cwd=tiny.REPOSITORY, check=True, capture_output=True
    )
    run(tmp_path / "whole")
    process = subprocess.Popen([*map(str, command), str(tmp_path / "parts")], cwd=tiny.REPOSITORY)
    while not list((tmp_path / "parts").glob("iter_2")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(tmp_path / "parts", "--resume_model", "auto")
    assert_equal(*(read_checkpoint(tmp_path / name / "iter_6")[1] for name in ("whole", "parts")))


@pytest.mark.slow
def test_two_processes_train_and_evaluate(coco, tmp_path):
    """The figures of a model are the same with one process and with two."""
    path = tiny.write_config(tmp_path / "small.yml", small.config(coco, data__train__skip_empty=False))
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(tmp_path / "log")]
    train = ["train.py", "--config", path, "--save_dir", tmp_path / "out", "--device", "cpu", "--iters", "2"]
    done = tiny.run([*launch, *train], PYTHONPATH=":".join(sys.path))
    assert done.returncode == 0, done.stdout + done.stderr
    scores = []
    for number, prefix in enumerate(([], launch)):
        out = tmp_path / f"scores{number}.json"
        val = [
            "val.py",
            "--config",
            path,
            "--model_path",
            tmp_path / "out" / "iter_2",
            "--json",
            out,
            "--device",
            "cpu",
        ]
        found = ["--save_json", tmp_path / f"found{number}.json"]
        done = tiny.run([*prefix, *val, *found], PYTHONPATH=":".join(sys.path))
        assert done.returncode == 0, done.stdout + done.stderr
        results = json.loads((tmp_path / f"found{number}.json").read_text(encoding="utf-8"))
        scores.append((json.loads(out.read_text(encoding="utf-8")), sorted(map(json.dumps, results))))
    assert scores[0] == scores[1]


def test_training_finds_the_shapes(coco, tmp_path):
    """Loss falls, and every part learns: the one check that gradients and targets belong together."""
    task = small.make_task(coco, optimizer={"learning_rate": 3e-3, "clip_norm": 10.0}, schedule={"iters": 30})
    trainer = Trainer(task, options(tmp_path, iters=30, save_interval=30, log_iters=30))
    totals = []
    losses = task.losses

    def watched(model, batch):
        found = losses(model, batch)
        totals.append(sum(float(loss) for loss in found.values()))
        return found

    task.losses = watched
    trainer.run()
    assert np.mean(totals[-5:]) < 0.8 * np.mean(totals[:3])


# --- weights ----------------------------------------------------------------------------------------


def test_what_is_new_in_fine_tuning_is_listed(coco, tmp_path):
    from paddle_vheat.models import VHeatClassifier
    from paddle_vheat.weights.loading import load_detector, save_weights

    model = small.make_task(coco).build_model()
    names = set(model.state_dict())
    backbone = {"embed_dim": 8, "depths": (1, 1, 1, 1), "img_size": 32, "drop_path_rate": 0.0}
    save_weights(VHeatClassifier(num_classes=2, **backbone), tmp_path / "cls.pdparams")
    report = load_detector(model, tmp_path / "cls.pdparams")
    heads = {name for name in names if name.startswith(("neck.", "rpn_head.", "roi_head.", "backbone.outnorm"))}
    assert set(report.newly_initialised) == heads
    assert set(report.loaded) == names - heads
    assert len(report.resized) == 4
    save_weights(small.make_task(coco, model__num_classes=7).build_model(), tmp_path / "seven.pdparams")
    report = load_detector(model, tmp_path / "seven.pdparams")
    places = ("box_head.scores", "box_head.deltas", "mask_head.classifier")
    assert set(report.newly_initialised) == {f"roi_head.{p}.{kind}" for p in places for kind in ("weight", "bias")}
    other = small.make_task(coco, model__fc_channels=16).build_model()
    save_weights(other, tmp_path / "other.pdparams")
    with pytest.raises(ValueError, match=r"of another shape or dtype: roi_head\.box_head\.fc1"):
        load_detector(model, tmp_path / "other.pdparams")


def test_pretrained_weights_of_the_configuration(reference, capsys):
    config = copy.deepcopy(reference.config)
    config["model"]["pretrained"] = str(reference.weights)
    model = DetectionTask(config).build_model()
    assert isinstance(model, MaskRCNN)
    assert "143 arrays loaded" in capsys.readouterr().out
    DetectionTask(config).build_model(pretrained=False)
    assert capsys.readouterr().out == ""


def test_evaluation_is_of_the_folded_form(coco):
    """As the engine evaluates: the copy gives the same detections."""
    from paddle_vheat.engine.evaluate import evaluation_form

    task = small.make_task(coco)
    model = task.build_model()
    model.eval()
    batch = next(load_batches(task.dataset("val"), [[0, 1]], 0, task.collate))
    with paddle.no_grad():
        first, second = (task.infer(form, batch) for form in (model, evaluation_form(model)))
    for ours, theirs in zip(first, second):
        assert ours["boxes"].shape == theirs["boxes"].shape
        assert np.abs(ours["scores"] - theirs["scores"]).max() < 1e-4
