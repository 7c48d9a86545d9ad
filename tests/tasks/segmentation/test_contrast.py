"""Training with the pixel contrast and its memory bank: exact on resume, the same on two processes, gone in exports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from paddle_vheat.cli import train_parser
from paddle_vheat.engine.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from paddle_vheat.export import export_model, parse_input_shape
from tests.conftest import paddle
from tests.engine import tiny
from tests.engine.small import assert_same_checkpoint, train
from tests.engine.test_distributed import finish, launch, train_on_two


def contrast_config(root: Path, **loss) -> dict:
    """A bank of five slots, which is full and wraps around after a few steps, and two iterations of warm-up."""
    bank = {"memory_size": 5, "num_classes": 19, "proj_dim": 8, "pixel_update_freq": 3}
    return tiny.contrast_config(root, **{**bank, "warmup_iters": 2, **loss})


def export(task, folder: Path, shape) -> None:
    shape = parse_input_shape(shape)
    export_model(task.export_spec(task.model, shape, None), task.name, folder, shape, lambda text: None)


@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_and_continued_equals_straight(cityscapes, tmp_path, workers):
    """Stopped within the warm-up and after it, with augmentation, EMA and evaluation; the bank is in the checkpoint."""
    config = contrast_config(cityscapes)
    options = {"use_ema": True, "do_eval": True, "num_workers": workers, "save_interval": 1, "keep_checkpoint_max": 0}
    straight = train(tiny.make_task(config), tmp_path / "straight", **options)
    for stop in (1, 4):
        shutil.copytree(tmp_path / "straight" / f"iter_{stop}", tmp_path / f"{stop}" / f"iter_{stop}")
        paddle.seed(77)
        assert train(tiny.make_task(config), tmp_path / f"{stop}", resume_model="auto", **options) == straight
        for iteration in range(stop + 1, 7):
            folder = f"iter_{iteration}"
            assert_same_checkpoint(tmp_path / f"{stop}" / folder, tmp_path / "straight" / folder)
    loss = read_checkpoint(tmp_path / "straight" / "iter_6")[1]["loss.pdparams"]
    assert loss["0.calls"].tolist() == [6]
    assert loss["0.bank.segment_count"].max() == 5
    assert loss["0.bank.pixel_queue"].shape == (19, 5, 8)


def test_a_bank_of_another_size(cityscapes, tmp_path):
    train(tiny.make_task(contrast_config(cityscapes)), tmp_path, iters=2, save_interval=2)
    with pytest.raises(ValueError, match=r"loss\.pdparams does not fit.*of another shape"):
        train(tiny.make_task(contrast_config(cityscapes, memory_size=6)), tmp_path, iters=4, resume_model="auto")


def test_a_checkpoint_of_a_run_without_contrast(cityscapes, tmp_path):
    config = contrast_config(cityscapes)
    task = tiny.make_task(config)
    train(task, tmp_path, iters=2, save_interval=2)
    content, arrays = read_checkpoint(tmp_path / "iter_2")
    arrays.pop("loss.pdparams")  # which a run without such a loss does not save
    kept = {key: value for key, value in content.items() if key not in ("iteration", "files", "crc32")}
    save_checkpoint(tmp_path / "other", 2, arrays, kept)
    with pytest.raises(CheckpointError, match="holds no state of the losses"):
        train(tiny.make_task(config), tmp_path / "other", iters=4, resume_model="auto")


def test_without_a_bank_the_warm_up_is_remembered(cityscapes, tmp_path):
    config = contrast_config(cityscapes, memory_size=0, warmup_iters=5)
    train(tiny.make_task(config), tmp_path, iters=6, save_interval=3)
    _, arrays = read_checkpoint(tmp_path / "iter_3")
    assert set(arrays["loss.pdparams"]) == {"0.calls"}
    log = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()
    parts = [float(line.split("loss_1 ")[1].split(",")[0]) for line in log if "[TRAIN]" in line]
    assert [part > 0 for part in parts] == [False] * 5 + [True]


# --- two processes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(cityscapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    config = tiny.write_config(folder / "contrast.yml", contrast_config(cityscapes))
    return folder, config, train_on_two(folder, config, iters=6, batch_size=1, save_interval=3)


def test_both_processes_hold_the_same_bank(two, cityscapes, tmp_path):
    """And it has an entry for all that one process sees with the batches of both (BatchNorm changes their values)."""
    folder, _, (first, second) = two
    assert first["loss"] == second["loss"]
    assert first["model"] == second["model"]
    assert "0.bank.pixel_queue" in first["loss"]["names"]
    task = tiny.make_task(contrast_config(cityscapes))
    train(task, tmp_path, iters=6, batch_size=2)
    alone = task.criteria[0][1].bank
    _, arrays = read_checkpoint(folder / "out" / "iter_6")
    for part in ("segment", "pixel"):
        for name in ("pointer", "count"):
            shared = arrays["loss.pdparams"][f"0.bank.{part}_{name}"]
            assert shared.any()
            assert shared.tolist() == getattr(alone, f"{part}_{name}").tolist()


def test_resume_with_a_bank_on_two_processes(two, tmp_path):
    folder, config, straight = two
    (tmp_path / "out").mkdir()
    tiny.copy_tree(folder / "out" / "iter_3", tmp_path / "out" / "iter_3")
    resumed = train_on_two(tmp_path, config, iters=6, batch_size=1, save_interval=3, resume_model="auto")
    for ours, theirs in zip(resumed, straight):
        assert ours["loss"] == theirs["loss"]
        assert ours["model"] == theirs["model"]


ENTRIES = """
import json, sys

from paddle_vheat.cpu import configure_cpu

configure_cpu()
from paddle_vheat._paddle import paddle

paddle.set_device("cpu")
paddle.distributed.init_parallel_env()
from paddle_vheat.losses import MemoryBank

rank = paddle.distributed.get_rank()
bank = MemoryBank(2, 2, memory_size=5, pixel_update_freq=1)
for step in range(2):
    # Image i of process r in step s has the constant embedding (1, s + r/10 + i/100), normalised by the bank.
    values = [step + rank / 10 + i / 100 for i in range(2)]
    embedding = paddle.stack([paddle.stack([paddle.ones([2, 3]), paddle.full([2, 3], v)]) for v in values])
    labels = paddle.full([2, 2, 3], 1 if rank or step else 0, dtype="int64")
    bank.enqueue(embedding, labels)
queue = bank.segment_queue
ratio = (queue[:, :, 1] / paddle.clip(queue[:, :, 0], min=1e-9)).numpy().round(4)
found = {"ratio": ratio.tolist(), "count": bank.segment_count.tolist(), "pointer": bank.segment_pointer.tolist()}
with open(f"{sys.argv[1]}.{rank}", "w") as file:
    json.dump(found, file)
"""


def test_entries_are_queued_in_the_order_of_the_processes(tmp_path):
    (tmp_path / "script.py").write_text(ENTRIES, encoding="utf-8")
    finish(launch(tmp_path, [tmp_path / "script.py", tmp_path / "found"]), tmp_path)
    first, second = (json.loads((tmp_path / f"found.{rank}").read_text()) for rank in (0, 1))
    assert first == second
    # Class 0: both images of process 0 in step 0. Class 1: process 1 in step 0, then step 1 of 0 and of 1, the sixth
    # of which goes where the first was.
    assert first["count"] == [2, 5]
    assert first["pointer"] == [2, 1]
    expected = [[0.0, 0.01, 0.0, 0.0, 0.0], [1.11, 0.11, 1.0, 1.01, 1.1]]
    np.testing.assert_allclose(first["ratio"], expected, atol=1e-3)


# --- exports and the command line -------------------------------------------------------------------


@pytest.mark.parametrize("shape", [None, (1, 3, 64, 128)])
def test_exports_have_no_projection_head(cityscapes, tmp_path, shape):
    """Byte for byte as large as the export of the same model without the head, and nothing of that name."""
    task = tiny.make_task(contrast_config(cityscapes))
    export(task, tmp_path / "contrast", shape)
    plain_config = tiny.cityscapes_config(cityscapes)
    plain = tiny.make_task(plain_config)
    state = task.model.state_dict()
    plain.model.set_state_dict({name: value for name, value in state.items() if not name.startswith("proj_head.")})
    export(plain, tmp_path / "plain", shape)
    sizes = [(tmp_path / name / "model.pdiparams").stat().st_size for name in ("contrast", "plain")]
    assert sizes[0] == sizes[1]
    assert sum(value.size for value in state.values()) * 4 > sizes[0]
    for path in (tmp_path / "contrast").iterdir():
        if path.suffix == ".info":  # where Paddle 2.6 lists the names of the layer's parameters, used or not
            continue
        assert b"proj_head" not in path.read_bytes()


def test_the_reproductions_options_are_taken():
    """Verbatim, ``--log_iter`` for ``--log_iters`` included."""
    line = "--config configs/HRNet_W48_cityscapes_1024x512_60k.yml --do_eval --use_vdl --log_iter 100"
    args = train_parser().parse_args([*line.split(), "--save_interval", "1000", "--save_dir", "output"])
    assert (args.log_iters, args.save_interval, args.save_dir) == (100, 1000, "output")
    assert args.do_eval
    assert args.use_vdl


@pytest.mark.slow
def test_the_reproductions_commands(tmp_path):
    """At full crop, one image and iteration at a time; some minutes."""
    root = tiny.write_cityscapes(tmp_path / "data", train=2, val=1)
    config = "configs/HRNet_W48_cityscapes_1024x512_60k.yml"
    roots = [f"{key}_dataset.dataset_root={root}" for key in ("train", "val")]
    common = ["--config", config, "--device", "cpu"]
    options = ["--do_eval", "--use_vdl", "--log_iter", 100, "--save_interval", 1000, "--save_dir", tmp_path / "output"]
    small = ["--iters", 2, "--batch_size", 1, "--opts", *roots]
    train_run = tiny.run(["train.py", *common, *options, *small], timeout=1800)
    assert train_run.returncode == 0, train_run.stderr
    assert "[EVAL] iter 2" in train_run.stdout
    model = tmp_path / "output" / "best_model" / "model.pdparams"
    val_run = tiny.run(["val.py", *common, "--model_path", model, "--opts", *roots], timeout=1800)
    assert val_run.returncode == 0, val_run.stderr
    assert "mIoU" in val_run.stdout
