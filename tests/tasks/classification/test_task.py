"""The classification task: configuration, schedule, parameter groups, scores, and a run from start to end."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
from PIL import Image

from paddle_vheat import cli
from paddle_vheat._paddle import F, paddle
from paddle_vheat.config import ConfigError, load_config
from paddle_vheat.engine.schedules import WarmupCosine
from paddle_vheat.engine.tasks import make_task
from paddle_vheat.engine.tasks.classification import ClassificationTask
from paddle_vheat.engine.trainer import Trainer, TrainOptions

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


@pytest.mark.parametrize("size", "tsb")
def test_schedule_of_the_whole_published_run(size):
    task = make_task(load_config(f"configs/vheat_{size}_imagenet.yml"), "imagenet")
    task.__dict__["steps_per_epoch"] = 1281167 // 2048
    schedule = task.lr_scheduler
    assert task.iters == 300 * 625
    worst = 0.0
    for step in range(task.iters):
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
    task = make_task(load_config("configs/vheat_s_imagenet.yml", ["Arch.class_num=10"]), "imagenet")
    decayed = task.decayed_parameters()
    names = {name for name, _ in task.model.named_parameters()}
    for name in names:
        kind = name.rsplit(".", 1)[-1]
        expected = kind == "frequency_embedding" or (kind == "weight" and "norm" not in name.split(".")[-2])
        assert (name in decayed) == expected, name
    assert {n.rsplit(".", 1)[-1] for n in names - decayed} == {"weight", "bias", "gamma1", "gamma2"}


def test_optimizer_decays_exactly_those():
    config = tiny(Optimizer__weight_decay=0.5, Optimizer__lr__warmup_epoch=0)
    task = make_task(config, "tiny")
    before = {n: p.numpy().copy() for n, p in task.model.named_parameters()}
    (sum(p.sum() for p in task.model.parameters()) * 0.0).backward()
    task.optimizer.step()
    rate = 2e-3
    for name, parameter in task.model.named_parameters():
        factor = 1 - rate * 0.5 if name in task.decayed_parameters() else 1.0
        np.testing.assert_allclose(parameter.numpy(), before[name] * factor, rtol=1e-6, atol=1e-12)


def test_published_recipe_is_what_the_files_say():
    for size, drop in (("t", 0.1), ("s", 0.3), ("b", 0.5)):
        task = make_task(load_config(f"configs/vheat_{size}_imagenet.yml"), "imagenet")
        assert task.clip_norm == 5.0
        assert task.ema_decay == 0.9999
        assert not task.ema_warm_up
        assert task.precision == "fp16"
        assert task.batch_size == 256
        assert task._get("Arch.drop_path_rate") == drop
        transform = task._batch_transform
        assert [(c.prob, type(c.op).__name__, c.op.alpha) for c in transform.choices] == [
            (0.5, "MixupOperator", 0.8),
            (0.5, "CutmixOperator", 1.0),
        ]
        assert transform.smoothing == 0.1


def test_loss_is_cross_entropy_with_smoothed_labels():
    task = make_task(tiny(), "tiny")
    batch = {"img": paddle.randn([4, 3, 32, 32]), "label": paddle.to_tensor([1, 0, 9, 3])}
    prepared = task.prepare_batch(batch, seed=3)
    loss, parts = task.forward_loss(task.model, prepared)
    logits = task.model(batch["img"]).numpy().astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    right = logs[np.arange(4), [1, 0, 9, 3]]
    expected = -(0.9 * right + 0.1 * logs.mean(axis=1)).mean()
    assert parts == {}
    assert float(loss) == pytest.approx(expected, rel=1e-5)  # float32 log-sum-exp


def test_mixing_is_a_function_of_the_seed():
    task = make_task(copy.deepcopy(load_config("configs/vheat_t_imagenet.yml", ["Arch.class_num=10"])), "imagenet")
    batch = {"img": paddle.randn([4, 3, 32, 32]), "label": paddle.to_tensor([1, 0, 9, 3])}
    one, two, other = (task.prepare_batch(batch, seed) for seed in (5, 5, 6))
    assert np.array_equal(one["img"].numpy(), two["img"].numpy())
    assert not np.array_equal(one["img"].numpy(), other["img"].numpy())
    np.testing.assert_allclose(one["target"].numpy().sum(axis=1), 1.0, rtol=1e-6)


def test_scores_equal_a_plain_count(monkeypatch):
    task = make_task(tiny(), "tiny")
    rng = np.random.default_rng(0)
    table = rng.standard_normal((len(task.val_dataset), 10)).astype(np.float32)
    calls = iter(range(0, len(table), 90))

    class Table(paddle.nn.Layer):
        def forward(self, x):
            start = next(calls)
            return paddle.to_tensor(table[start : start + len(x)])

    result = task.evaluate(Table(), progress=False)
    labels = np.array([label for _, label in task.val_dataset.file_list])
    rank = (table > table[np.arange(len(table)), labels][:, None]).sum(axis=1)
    assert result["report"]["top1"] == pytest.approx((rank < 1).mean())
    assert result["report"]["top5"] == pytest.approx((rank < 5).mean())
    loss = float(F.cross_entropy(paddle.to_tensor(table), paddle.to_tensor(labels)))
    assert result["report"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert result["score"] == result["report"]["top1"]


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
        return make_task(config, "tiny")

    straight = mixing()
    Trainer(straight, options(tmp_path / "a", use_ema=True, ema_decay=0.99)).run()
    Trainer(mixing(), options(tmp_path / "b", use_ema=True, ema_decay=0.99, iters=3)).run()
    resumed = mixing()
    again = options(tmp_path / "b", use_ema=True, ema_decay=0.99, resume_model="auto")
    result = Trainer(resumed, again).run()
    assert result["iteration"] == 6
    for (name, a), b in zip(straight.model.state_dict().items(), resumed.model.state_dict().values()):
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
    task = make_task(load_config(DIGITS), DIGITS)
    task.val_dataset.image(0).save(picture)
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
    task = make_task(config, "folders")
    assert task.class_names == ["cat", "dog"]
    result = Trainer(task, options(tmp_path / "out", iters=2, batch_size=2, do_eval=True)).run()
    assert result["iteration"] == 2
    assert set(task.evaluate(task.model, progress=False)["report"]) == {"images", "top1", "top5", "loss"}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("Globl", {}, "unknown key 'Globl'; did you mean 'Global'"),
        ("Arch__name", "vHeat_tinny", "no such architecture 'vHeat_tinny'; did you mean 'vHeat_tiny'"),
        ("Arch__drop_path", 0.1, "unknown key 'Arch.drop_path'; did you mean 'drop_path_rate'"),
        ("Optimizer__name", "Momentum", "'Optimizer.name' must be 'AdamW'"),
        ("Optimizer__lr__warmup", 5, "unknown key 'Optimizer.lr.warmup'"),
        ("DataLoader__Train__dataset__name", "ImageNet", "no dataset 'ImageNet'; did you mean 'ImageNetDataset'"),
    ],
)
def test_mistakes_are_named(path, value, message):
    with pytest.raises(ConfigError, match=message):
        ClassificationTask(tiny(**{path: value}), "file.yml")


def test_missing_data_names_the_option():
    config = load_config("configs/vheat_t_imagenet.yml")
    config["DataLoader"]["Train"]["dataset"]["image_root"] = "/nowhere"
    with pytest.raises(FileNotFoundError, match=r"--opts DataLoader\.Train\.dataset\.image_root=DIR"):
        _ = make_task(config, "imagenet").train_dataset


def test_fine_tuning_starts_exactly_the_head_anew(tmp_path, capsys):
    source = make_task(tiny(), "tiny").model
    path = tmp_path / "ten.pdparams"
    paddle.save(source.state_dict(), str(path))
    model = make_task(tiny(Arch__class_num=3, Arch__pretrained=str(path)), "three").model
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
