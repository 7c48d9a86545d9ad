"""The restoration task: configuration, loss, scores, a run that is resumed, and the command lines."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from paddle_vheat import cli
from paddle_vheat._paddle import paddle
from paddle_vheat.config import ConfigError
from paddle_vheat.engine.evaluate import evaluate, evaluation_form
from paddle_vheat.engine.loader import to_tensors
from paddle_vheat.engine.optim import TrainOptions, build_scheduler
from paddle_vheat.engine.trainer import Trainer
from paddle_vheat.errors import UserError
from paddle_vheat.tasks.restoration.metrics import luma, to_uint8
from paddle_vheat.tasks.restoration.task import RestorationTask, charbonnier, restore
from paddle_vheat.weights.loading import save_weights
from tests.conftest import golden, relative_error
from tests.engine import tiny
from tests.tasks.restoration.small import SIZES, config, lively, make_task

JPEG = {"type": "jpeg", "quality": 10}


def test_charbonnier_is_the_published_one():
    data = golden("restoration_metrics")
    output, target = (paddle.to_tensor(data[f"charbonnier.{name}"].astype("float32")) for name in "xt")
    for eps in (1e-9, 1e-6):
        # a mean of float32 values
        expected = float(data[f"charbonnier.value_eps{eps:.0e}".replace("e-0", "e-")])
        assert float(charbonnier(output, target, eps)) == pytest.approx(expected, rel=1e-6)


def test_the_loss_is_of_input_and_target(gray):
    task = make_task(gray)
    model = task.build_model()
    batch = to_tensors(task.collate([task.dataset("train")[i] for i in range(2)]))
    loss = task.losses(model.eval() or model, batch)["loss"]
    difference = model(batch["input"]).numpy().astype(np.float64) - batch["target"].numpy()
    assert float(loss) == pytest.approx(np.sqrt(difference**2 + 1e-9).mean(), rel=1e-5)
    assert {name: value.shape for name, value in task.trial_batch().items() if name != "meta"} == {
        "input": (2, 1, 16, 16),
        "target": (2, 1, 16, 16),
    }


def test_schedules(gray):
    """Halved at every milestone; or half a cosine."""
    schedule = build_scheduler(make_task(gray, lr_scheduler__milestones=[2, 5, 6]).recipe, "lr")
    rates = []
    for _ in range(8):
        rates.append(schedule())
        schedule.step()
    assert rates == pytest.approx([1e-3 * f for f in (1, 1, 0.5, 0.5, 0.5, 0.25, 0.125, 0.125)], rel=1e-12)
    cosine = {"type": "Cosine", "learning_rate": 2e-3, "end_lr": 4e-5}
    schedule = build_scheduler(make_task(gray, lr_scheduler=cosine).recipe, "lr")
    for step in range(4):
        expected = 4e-5 + (2e-3 - 4e-5) * (1 + np.cos(np.pi * step / 4)) / 2
        assert schedule() == pytest.approx(expected, rel=1e-12)
        schedule.step()


@pytest.mark.parametrize("how", ["noise", "jpeg"])
def test_resume_equals_not_stopping(gray, tmp_path, how):
    """Weights, their average and the optimizer, bit for bit: order, crops, degradation and drop path are the seed's."""

    def trainer(folder, **options):
        task = make_task(gray, **({"degradation": JPEG, "train__crop": 24} if how == "jpeg" else {}))
        settings = {"save_interval": 2, "log_iters": 2, "seed": 1, "num_workers": 1 if how == "jpeg" else 0}
        return Trainer(task, TrainOptions(save_dir=str(folder), **settings, **options))

    straight = trainer(tmp_path / "a")
    straight.run()
    shutil.copytree(tmp_path / "a" / "iter_2", tmp_path / "b" / "iter_2")
    resumed = trainer(tmp_path / "b", resume_model="auto")
    assert resumed.run()["iteration"] == 4
    compared = 0
    for part in ("model", "ema", "optimizer"):
        ours, theirs = (getattr(run, part).state_dict() for run in (straight, resumed))
        tensors = [(a, b) for a, b in zip(ours.values(), theirs.values()) if hasattr(a, "numpy")]
        assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in tensors)
        compared += len(tensors)
    assert compared > 100


def by_hand(task, model, tile=None):
    """(target, {kind: image}) of every validation image."""
    model.eval()
    found = []
    for i in range(len(SIZES)):
        sample = task.dataset("val")[i]
        with paddle.no_grad():
            restored = model(paddle.to_tensor(sample["input"][None])).numpy()[0]
        images = {"input": sample["input"], "restored": restored}
        planes = {kind: to_uint8(image) for kind, image in images.items()}
        if task.in_channels == 3:
            planes = {kind: image[::-1].transpose(1, 2, 0) for kind, image in planes.items()}
        else:
            planes = {kind: image[0] for kind, image in planes.items()}
        found.append((sample["meta"]["target"], planes))
    return found


def peak(a, b):
    return 20 * np.log10(255 / np.sqrt(((a.astype(np.float64) - b) ** 2).mean()))


@pytest.mark.parametrize("case", ["gray", "colour", "jpeg"])
def test_scores_of_every_image_beside_those_of_the_input(gray, colour, tmp_path, case):
    changes = {"gray": {}, "colour": {"model__in_channels": 3}, "jpeg": {"degradation": JPEG, "val__to_gray": "luma"}}
    flags = SimpleNamespace(save_images=str(tmp_path / "saved"))
    folder = gray if case == "gray" else colour
    task = RestorationTask(config(folder, **changes[case]), "small.yml", flags)
    model = lively(task.build_model())
    scores = evaluate(task, model, progress=False)
    rows, means = scores.report["images"], scores.report["means"]
    assert [row["image"] for row in rows] == ["0.png", "1.png", "2.png"]
    for row, (target, images) in zip(rows, by_hand(task, model)):
        if case == "jpeg":
            assert np.array_equal(target, luma(cv2.imread(str(colour / row["image"]))))
        for kind, image in images.items():
            # The folded form differs by 1e-6, so that a value may be rounded the other way.
            assert row[kind]["PSNR"] == pytest.approx(peak(image, target), abs=2e-3)
            assert set(row[kind]) == {"PSNR", "SSIM", *(["PSNR-B"] if case == "jpeg" else [])}
        saved = np.asarray(Image.open(tmp_path / "saved" / row["image"]))
        saved = saved if saved.ndim == 2 else saved[..., ::-1]
        assert peak(saved, target) == pytest.approx(row["restored"]["PSNR"], rel=1e-9)
    for kind in ("input", "restored"):
        for name, value in means[kind].items():
            assert value == pytest.approx(np.mean([row[kind][name] for row in rows]), rel=1e-12)
    assert scores.values == means["restored"]
    assert (scores.samples, scores.report["PSNR"]) == (3, means["restored"]["PSNR"])
    assert abs(means["input"]["PSNR"] - means["restored"]["PSNR"]) > 0.1
    assert scores.table.splitlines()[-1].split()[:2] == ["mean", f"{means['input']['PSNR']:.2f}"]


def test_equal_images_are_no_number_in_json(gray):
    evaluator = make_task(gray).evaluator()
    image = np.full((16, 16), 7, np.uint8)
    batch = {"meta": [{"index": 0, "name": "x", "target": image}]}
    evaluator.update({"input": image + 1, "restored": image}, batch)
    scores = evaluator.summarize()
    assert scores.values["PSNR"] == np.inf
    assert scores.report["images"][0]["restored"]["PSNR"] is None
    json.dumps(scores.report, allow_nan=False)


def test_evaluators_of_several_processes_are_put_together_in_order(gray):
    task = make_task(gray)
    model = task.build_model()
    whole, parts = task.evaluator(), [task.evaluator(), task.evaluator()]
    for i in range(3):
        batch = to_tensors(task.collate([task.dataset("val")[i]]))
        for evaluator in (whole, parts[i % 2]):
            evaluator.update(task.infer(model, batch), batch)
    parts[0].merge([part.state() for part in parts])
    assert parts[0].summarize().report == whole.summarize().report


def test_without_conduction(gray):
    """Beside the score is that of k = 0: of a model whose decay is 1 everywhere."""
    task = RestorationTask(config(gray), "small.yml", SimpleNamespace(ablate="k=0"))
    model = lively(task.build_model())
    report = evaluate(task, model, progress=False).report
    for group in model.groups:
        for block in group.blocks:
            block.mixer.decay = lambda embedding: paddle.ones_like(embedding)
    for row, (target, images) in zip(report["images"], by_hand(task, model)):
        assert row["k=0"]["PSNR"] == pytest.approx(peak(images["restored"], target), abs=2e-3)
        assert abs(row["k=0"]["PSNR"] - row["restored"]["PSNR"]) > 0.01


def test_windows_are_filled_as_for_the_published_scores(gray):
    """By mirroring with the edge repeated, to the next multiple, a whole window where the size fits already."""
    swin = {"name": "swin_ir", "width": 8, "depths": [2], "heads": 2, "window": 4}
    model = lively(make_task(gray, model=swin).build_model())
    model.eval()
    for size, padded in (((16, 18), (20, 20)), ((13, 16), (16, 20))):
        image = np.random.rand(1, 1, *size).astype(np.float32)
        mirrored = np.concatenate([image, image[:, :, ::-1]], 2)[:, :, : padded[0]]
        mirrored = np.concatenate([mirrored, mirrored[:, :, :, ::-1]], 3)[..., : padded[1]]
        with paddle.no_grad():
            expected = model(paddle.to_tensor(mirrored)).numpy()[:, :, : size[0], : size[1]]
        assert np.array_equal(restore(model, image), expected)
        assert relative_error(restore(evaluation_form(model), image), expected) < 4e-6


@pytest.mark.parametrize(("name", "loaded"), [("published.pth", "swin_ir"), ("ours.pdparams", "vheat_ir")])
def test_weights_to_start_from(gray, tmp_path, golden_checkpoint, capsys, name, loaded):
    path = tmp_path / name
    if loaded == "swin_ir":
        path = golden_checkpoint("swinir_micro")
        block = {"name": "swin_ir", "width": 12, "depths": [2, 2], "heads": 3, "window": 4}
    else:
        block = config(gray)["model"]
        source = make_task(gray, model={**block, "freq_size": 10}).build_model()
        save_weights(source, path)
    model = make_task(gray, model=block, pretrained=str(path)).build_model()
    said = capsys.readouterr().out
    assert f"{path}: " in said
    assert "newly initialised" not in said
    if loaded == "vheat_ir":
        assert "2 frequency embeddings resized" in said
        assert np.array_equal(model.conv_last.weight.numpy(), source.conv_last.weight.numpy())
    fresh = make_task(gray, model=block, pretrained=str(path)).build_model(pretrained=False)
    assert not np.array_equal(fresh.conv_last.weight.numpy(), model.conv_last.weight.numpy())


def test_the_command_lines(gray, tmp_path, capsys):
    path = str(tiny.write_config(tmp_path / "small.yml", config(gray)))
    device = ["--device", "cpu"]
    out = tmp_path / "run"
    assert cli.train(["--config", path, "--do_eval", "--save_dir", str(out), "--save_interval", "2", *device]) == 0
    assert "PSNR" in (out / "train.log").read_text()
    trained = ["--config", path, "--model_path", str(out / "best_model"), *device]
    scores, saved = tmp_path / "scores.json", tmp_path / "saved"
    given = ["--json", str(scores), "--save_images", str(saved), "--ablate", "k=0", "--tile", "24", "--overlap", "8"]
    assert cli.val([*trained, *given]) == 0
    report = json.loads(scores.read_text())
    assert set(report["means"]) == {"input", "restored", "k=0"}
    assert len(report["images"]) == len(list(saved.glob("*.png"))) == 3
    capsys.readouterr()
    assert cli.predict([*trained, "--image_path", str(gray), "--save_dir", str(tmp_path / "p")]) == 0
    for i, (height, width) in enumerate(SIZES):
        before = np.asarray(Image.open(gray / f"{i}.png")).astype(int)
        restored = np.asarray(Image.open(tmp_path / "p" / "restored" / f"{i}.png")).astype(int)
        parts = np.split(np.asarray(Image.open(tmp_path / "p" / "compared" / f"{i}.png")), 3, axis=1)
        assert restored.shape == before.shape == (height, width)
        expected = before, restored, (128 + 4 * (restored - before)).clip(0, 255)
        assert all(np.array_equal(part, np.repeat(e[..., None], 3, 2)) for part, e in zip(parts, expected))


def test_the_preview_is_input_restored_and_clean(gray):
    task = make_task(gray)
    pictures = task.preview(task.build_model(), 2)
    assert [p.shape for p in pictures] == [(40, 3 * 52, 3), (44, 3 * 36, 3)]
    clean = np.asarray(Image.open(gray / "0.png"))
    assert np.array_equal(pictures[0][:, 104:, 0], clean)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__name": "vheat_irr"}, "'model': nothing is called 'vheat_irr'; did you mean 'vheat_ir'"),
        ({"model__widht": 8}, "'model.widht': vheat_ir has no such argument; did you mean 'width'"),
        ({"model__in_channels": 2}, "'model.in_channels' must be one of 1, 3, got 2"),
        ({"degradation": {"type": "noise"}}, "'degradation.sigma' is missing, which 'noise' needs"),
        ({"degradation__quality": 3}, "'degradation.quality' is not for 'noise'"),
        ({"degradation": {"type": "jpeg", "quality": 101}}, "'degradation.quality' must be an integer of at least 1"),
        ({"degradation__type": "nois"}, "'degradation.type' must be one of noise, jpeg, got 'nois'; did you mean"),
        ({"train__crop": 4}, "'train.crop' must be an integer of at least 8"),
        ({"train__to_gray": "either"}, "'train.to_gray' may be 'either' for JPEG only"),
        ({"model__in_channels": 3, "val__to_gray": "luma"}, "'val.to_gray' is for gray models"),
        ({"val__folders": []}, "'train.folders' and 'val.folders' must name at least one folder each"),
        ({"val__tile": 8}, "'val.tile' and 'val.overlap': tiles of 8 pixels with an overlap of 16"),
        ({"lr_scheduler__milestone": [1]}, "unknown key 'lr_scheduler.milestone'; did you mean 'milestones'"),
        ({"emma": 0.9}, "unknown key 'emma'; did you mean 'ema'"),
    ],
)
def test_mistakes_are_named(gray, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_task(gray, **changes)


def test_options_of_the_command_line_are_checked(gray):
    swin = config(gray, model={"name": "swin_ir", "width": 8, "depths": [2], "heads": 2, "window": 4})
    with pytest.raises(ConfigError, match=r"--ablate k=0: 'model.name' is swin_ir, which conducts no heat"):
        RestorationTask(swin, "x.yml", SimpleNamespace(ablate="k=0"))
    with pytest.raises(ConfigError, match="--tile, --overlap: tiles of 16 pixels with an overlap of 16"):
        RestorationTask(config(gray), "x.yml", SimpleNamespace(tile=16))
    task = RestorationTask(config(gray), "x.yml", SimpleNamespace(tile=16, overlap=4))
    assert (task.options.val.tile, task.options.val.overlap) == (16, 4)
    task = RestorationTask(swin, "x.yml")
    model = task.build_model()
    with pytest.raises(UserError, match="swin_ir has windows, which need a fixed size; give N C H W, such as 1 1 128"):
        task.export_spec(model, (None, 1, None, None), None)
