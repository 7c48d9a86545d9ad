"""The classification task: configuration, schedule, parameter groups, scores, and a run from start to end."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

from paddle_vheat import cli
from paddle_vheat._paddle import F, paddle
from paddle_vheat.config import ConfigError, load_config
from paddle_vheat.engine.evaluate import evaluate
from paddle_vheat.engine.optim import TrainOptions, WarmupCosine, build_optimizer, build_scheduler
from paddle_vheat.engine.trainer import Trainer
from paddle_vheat.tasks.classification.task import ClassificationTask

DIGITS = "configs/demo_digits.yml"


def tiny(**changes):
    config = load_config(DIGITS)
    config["Arch"].update(embed_dim=8, depths=[1, 1, 1, 1], drop_path_rate=0.0)
    config["DataLoader"]["Train"]["sampler"]["batch_size"] = 8
    for path, value in changes.items():
        block = config
        *parents, last = path.split("__")
        for name in parents:
            block = block.setdefault(name, {})
        block[last] = value
    return config


def published_rate(step, steps_per_epoch, epochs=300, warmup_epochs=20, total_batch=2048):
    """5e-4 x batch / 512, from 5e-7 x linearly over 20 epochs, then a cosine to 5e-6 x, per iteration."""
    scale = total_batch / 512
    warmup, total = warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
    if step < warmup:
        return scale * (5e-7 + (5e-4 - 5e-7) * step / warmup)
    angle = math.pi * (step - warmup) / (total - warmup)
    return scale * (5e-6 + (5e-4 - 5e-6) * (1 + math.cos(angle)) / 2)


def test_schedule_of_the_whole_published_run():
    """8 processes of 256 images, 1,281,167 images: 625 iterations an epoch."""
    task = ClassificationTask(load_config("configs/vheat_t_imagenet.yml"), "imagenet")
    recipe = task.recipe.in_iterations(1281167, world_size=8)
    assert (recipe.iters, recipe.save_interval, recipe.eval_interval) == (300 * 625, 625, 625)
    schedule, worst = build_scheduler(recipe, "lr"), 0.0
    for step in range(recipe.iters):
        worst = max(worst, abs(schedule() - published_rate(step, 625)) / published_rate(step, 625))
        schedule.step()
    # both are float64 formulas, in another order of operations
    assert worst < 1e-12


def test_schedule_is_a_function_of_the_step_alone():
    first, second = (WarmupCosine(1.0, 100, warmup=10, start=0.1, end=0.2) for _ in range(2))
    for _ in range(37):
        first.step()
    second.set_state_dict(first.state_dict())
    assert first() == second()
    second.step()
    first.step()
    assert first() == second()
    with pytest.raises(ValueError, match="must be shorter"):
        WarmupCosine(1.0, 10, warmup=10)


def test_parameter_groups_by_name():
    task = ClassificationTask(load_config("configs/vheat_s_imagenet.yml", ["Arch.class_num=10"]), "imagenet")
    model = task.build_model()
    factors = task.parameter_factors(model)
    names = {name for name, _ in model.named_parameters()}
    for name in names:
        kind = name.rsplit(".", 1)[-1]
        expected = kind == "frequency_embedding" or (kind == "weight" and "norm" not in name.split(".")[-2])
        assert (name not in factors) == expected, name
    assert {factor.decay for factor in factors.values()} == {0.0}
    assert {n.rsplit(".", 1)[-1] for n in factors} == {"weight", "bias", "gamma1", "gamma2"}


def test_optimizer_decays_exactly_those():
    task = ClassificationTask(tiny(Optimizer__weight_decay=0.5, Optimizer__lr__warmup_epoch=0), "tiny")
    model, recipe = task.build_model(), task.recipe.in_iterations(1437, 1)
    factors = task.parameter_factors(model)
    optimizer = build_optimizer(recipe, model, build_scheduler(recipe, "lr"), factors, "optimizer")
    before = {n: p.numpy().copy() for n, p in model.named_parameters()}
    (sum(p.sum() for p in model.parameters()) * 0.0).backward()
    optimizer.step()
    rate = 2e-3
    for name, parameter in model.named_parameters():
        factor = 1.0 if name in factors else 1 - rate * 0.5
        np.testing.assert_allclose(parameter.numpy(), before[name] * factor, rtol=1e-6, atol=1e-12)


def test_the_published_recipe_is_read():
    """Every key is compared with its source in tests/configs; here what becomes of them."""
    task = ClassificationTask(load_config("configs/vheat_b_imagenet.yml"), "imagenet")
    recipe = task.recipe
    assert (recipe.clip_norm, recipe.ema_decay, recipe.ema_warm_up, recipe.batch_size) == (5.0, 0.9999, False, 256)
    assert (recipe.precision, recipe.amp_level, recipe.shuffle) == ("fp16", "O1", True)


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        ("AMP", {"use_amp": True, "level": "O2", "scale_loss": 128.0, "use_dynamic_loss_scaling": False},
         {"precision": "fp16", "amp_level": "O2", "loss_scale": 128.0, "dynamic_loss_scale": False}),
        ("AMP", {"use_amp": False}, {"precision": "fp32"}),
        ("DataLoader__Train__sampler__shuffle", False, {"shuffle": False}),
        ("DataLoader__Train__sampler__drop_last", True, {"drop_last": True}),
        ("Global__eval_interval", 3, {"eval_interval": 540, "save_interval": 180}),
        ("DataLoader__Train__loader", {"num_workers": 2}, {"num_workers": 2}),
    ],
)  # fmt: skip
def test_keys_that_are_accepted_are_obeyed(path, value, found):
    """1,440 images in batches of 8 are 180 iterations an epoch."""
    recipe = ClassificationTask(tiny(**{path: value}), "tiny").recipe.in_iterations(1440, 1)
    assert {name: getattr(recipe, name) for name in found} == found


def test_loss_is_cross_entropy_with_smoothed_labels():
    task = ClassificationTask(tiny(), "tiny")
    batch = {"img": paddle.randn([4, 3, 32, 32]), "label": paddle.to_tensor([1, 0, 9, 3])}
    model = task.build_model()
    (loss,) = task.losses(model, task.prepare(batch, seed=3)).values()
    logits = model(batch["img"]).numpy().astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    right = logs[np.arange(4), [1, 0, 9, 3]]
    expected = -(0.9 * right + 0.1 * logs.mean(axis=1)).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)  # float32 log-sum-exp


def test_mixing_is_a_function_of_the_seed():
    task = ClassificationTask(load_config("configs/vheat_t_imagenet.yml", ["Arch.class_num=10"]), "imagenet")
    batch = {"img": paddle.randn([4, 3, 32, 32]), "label": paddle.to_tensor([1, 0, 9, 3])}
    one, two, other = (task.prepare(batch, seed) for seed in (5, 5, 6))
    assert np.array_equal(one["img"].numpy(), two["img"].numpy())
    assert not np.array_equal(one["img"].numpy(), other["img"].numpy())
    np.testing.assert_allclose(one["target"].numpy().sum(axis=1), 1.0, rtol=1e-6)


def test_scores_equal_a_plain_count():
    task = ClassificationTask(tiny(), "tiny")
    rng = np.random.default_rng(0)
    table = rng.standard_normal((360, 10)).astype(np.float32)
    calls = iter(range(0, len(table), 90))

    class Table(paddle.nn.Layer):
        def forward(self, x):
            start = next(calls)
            return paddle.to_tensor(table[start : start + len(x)])

    report = evaluate(task, Table(), progress=False).report
    labels = np.array([sample["label"] for sample in map(task.dataset("val").__getitem__, range(len(table)))])
    rank = (table > table[np.arange(len(table)), labels][:, None]).sum(axis=1)
    assert report["top1"] == pytest.approx((rank < 1).mean())
    assert report["top5"] == pytest.approx((rank < 5).mean())
    loss = float(F.cross_entropy(paddle.to_tensor(table), paddle.to_tensor(labels)))
    assert report["loss"] == pytest.approx(loss, rel=1e-5)


def options(save_dir, **changes):
    settings = {"iters": 6, "batch_size": 8, "save_dir": str(save_dir), "save_interval": 3, "log_iters": 3, "seed": 1}
    return TrainOptions(**{**settings, **changes})


def test_resume_equals_not_stopping(tmp_path):
    def mixing():
        config = tiny()
        config["DataLoader"]["Train"]["dataset"]["batch_transform_ops"] = [
            {"OpSampler": {"MixupOperator": {"alpha": 0.8, "prob": 0.5}, "CutmixOperator": {"alpha": 1.0, "prob": 0.5}}}
        ]
        config["Arch"]["drop_path_rate"] = 0.2
        config["Global"]["iters"] = 6
        config["EMA"] = {"decay": 0.99}
        return ClassificationTask(config, "tiny")

    straight = Trainer(mixing(), options(tmp_path / "a"))
    straight.run()
    shutil.copytree(tmp_path / "a" / "iter_3", tmp_path / "b" / "iter_3")
    resumed = Trainer(mixing(), options(tmp_path / "b", resume_model="auto"))
    assert resumed.run()["iteration"] == 6
    for ours, theirs in ((straight.model, resumed.model), (straight.ema, resumed.ema)):
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values()):
            assert np.array_equal(a.numpy(), b.numpy()), name


def test_from_start_to_end_by_the_command_lines(tmp_path, capsys):
    small = ["--opts", "Arch.embed_dim=16", "Arch.depths=[1,1,1,1]", "DataLoader.Train.sampler.batch_size=32"]
    out = tmp_path / "run"
    assert cli.train(["--config", DIGITS, "--do_eval", "--iters", "60", "--save_interval", "30", "--save_dir", str(out),
                      "--device", "cpu", *small]) == 0  # fmt: skip
    model = str(out / "best_model" / "model.pdparams")
    scores = tmp_path / "scores.json"
    assert cli.val(["--config", DIGITS, "--model_path", model, "--json", str(scores), *small]) == 0
    reached = json.loads(scores.read_text())
    assert reached["images"] == 360
    assert reached["top1"] > 0.5  # chance is 0.1; the full demonstration reaches 0.97 and more
    picture = tmp_path / "pictures" / "seven.png"
    picture.parent.mkdir()
    task = ClassificationTask(load_config(DIGITS), DIGITS)
    task.dataset("val").image(0).save(picture)
    capsys.readouterr()
    assert cli.predict(["--config", DIGITS, "--model_path", model, "--image_path", str(picture.parent),
                        "--save_dir", str(tmp_path / "result"), *small]) == 0  # fmt: skip
    written = json.loads((tmp_path / "result" / "predictions.json").read_text())
    assert len(written["seven.png"]) == 5
    assert sum(entry["score"] for entry in written["seven.png"]) <= 1.0 + 1e-5
    exported = tmp_path / "exported"
    assert cli.export(["--config", DIGITS, "--model_path", model, "--save_dir", str(exported),
                       "--input_shape", "-1", "3", "32", "32", "--output_op", "softmax", *small]) == 0  # fmt: skip
    assert {path.name for path in exported.iterdir()} >= {"deploy.yaml", "model.pdiparams"}


def test_class_folders(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(3):
                Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    config = load_config("configs/vheat_t_imagenet.yml")
    config["Arch"] = {"name": "vHeat", "embed_dim": 8, "depths": [1, 1, 1, 1], "img_size": 32, "class_num": 2}
    config["Global"]["epochs"], config["Optimizer"]["lr"]["warmup_epoch"] = 2, 1
    config["DataLoader"]["Train"]["sampler"]["batch_size"] = 2
    for part, folder in (("Train", "train"), ("Eval", "val")):
        dataset = config["DataLoader"][part]["dataset"]
        dataset["image_root"] = str(tmp_path / folder)
        dataset["cls_label_path"] = None
    for op in config["DataLoader"]["Train"]["dataset"]["transform_ops"]:
        for arguments in op.values():
            for key in ("size", "img_size"):
                if key in arguments:
                    arguments[key] = 32
    task = ClassificationTask(config, "folders")
    assert task.class_names == ["cat", "dog"]
    run = Trainer(task, options(tmp_path / "out", iters=2, batch_size=2, do_eval=True))
    assert run.run()["iteration"] == 2
    assert set(evaluate(task, run.model, progress=False).report) == {"images", "top1", "top5", "loss"}
    (tmp_path / "val" / "dog").rename(tmp_path / "val" / "cow")
    other = ClassificationTask(config, "folders")
    other.dataset("train")
    with pytest.raises(ConfigError, match=r"the classes of .*train and .*val differ; in one alone are cow, dog"):
        other.dataset("val")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("Globl", {}, "unknown key 'Globl'; did you mean 'Global'"),
        ("Arch__name", "vHeat_tinny", "nothing is called 'vHeat_tinny'; did you mean 'vHeat_tiny'"),
        ("Arch__drop_path", 0.1, "unknown key 'Arch.drop_path'; did you mean 'drop_path_rate'"),
        ("Optimizer__name", "Momentum", "'Optimizer.name' must be one of AdamW, got 'Momentum'"),
        ("AMP", {"use_ammp": True}, "unknown key 'AMP.use_ammp'; did you mean 'use_amp'"),
        ("EMA", {"decai": 0.9}, "unknown key 'EMA.decai'; did you mean 'decay'"),
        ("DataLoader__Train__sampler__shufle", True, "unknown key 'DataLoader.Train.sampler.shufle'"),
        ("DataLoader__Train__loader", {"num_wrokers": 1}, "unknown key 'DataLoader.Train.loader.num_wrokers'"),
        ("Optimizer__clip_norm", -1.0, "'Optimizer.clip_norm' must be a number of above 0"),
        ("Optimizer__clip_norm", 0, "'Optimizer.clip_norm' must be a number of above 0"),
        ("Global__checkpoints", "x", "'Global.checkpoints' must be"),
        ("Optimizer__lr__warmup", 5, "unknown key 'Optimizer.lr.warmup'"),
        (
            "DataLoader__Train__dataset__name",
            "ImageNet",
            "nothing is called 'ImageNet'; did you mean 'ImageNetDataset'",
        ),
    ],
)
def test_mistakes_are_named(path, value, message):
    with pytest.raises(ConfigError, match=message):
        ClassificationTask(tiny(**{path: value}), "file.yml")


def test_missing_data_names_the_option():
    config = load_config("configs/vheat_t_imagenet.yml")
    config["DataLoader"]["Train"]["dataset"]["image_root"] = "/nowhere"
    with pytest.raises(FileNotFoundError, match=r"--opts DataLoader\.Train\.dataset\.image_root=DIR"):
        ClassificationTask(config, "imagenet").dataset("train")


def test_fine_tuning_leaves_exactly_the_head_as_initialised(tmp_path, capsys):
    source = ClassificationTask(tiny(), "tiny").build_model()
    path = tmp_path / "ten.pdparams"
    paddle.save(source.state_dict(), str(path))
    model = ClassificationTask(tiny(Arch__class_num=3, Arch__pretrained=str(path)), "three").build_model()
    assert "head.weight, head.bias" in capsys.readouterr().out
    ours, theirs = model.backbone.stem.conv1.weight, source.backbone.stem.conv1.weight
    assert np.array_equal(ours.numpy(), theirs.numpy())


@pytest.mark.slow
def test_the_digits_reach_what_the_readme_says(tmp_path):
    out = tmp_path / "run"
    assert cli.train(["--config", DIGITS, "--do_eval", "--save_dir", str(out), "--device", "cpu"]) == 0
    best = json.loads((out / "best_model" / "metrics.json").read_text())
    assert best["images"] == 360
    assert best["top1"] >= 0.97
