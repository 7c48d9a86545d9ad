"""Data parallel training by paddle.distributed.launch, two processes on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from paddle_vheat.engine.checkpoint import list_checkpoints, read_checkpoint, read_newest
from paddle_vheat.engine.optim import TrainOptions
from paddle_vheat.engine.trainer import Trainer
from paddle_vheat.weights.loading import load_weights, read_weights
from tests.engine import tiny

# What each process runs: the trainer, then a report of what it has.
SCRIPT = """
import hashlib, json, os, sys

from paddle_vheat.cpu import configure_cpu

configure_cpu()
from paddle_vheat._paddle import paddle

paddle.set_device("cpu")
paddle.distributed.init_parallel_env()

import builtins
from paddle_vheat.config import load_config
from paddle_vheat.engine.optim import TrainOptions
from paddle_vheat.engine.trainer import Trainer
from paddle_vheat.tasks.segmentation.task import SegmentationTask

config, options, report = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
rank = paddle.distributed.get_rank()
options["save_dir"] = options["save_dir"].replace("RANK", str(rank))
written = []


def audit(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and isinstance(arguments[1], str):
        if set(arguments[1]) & set("wax+") and arguments[0].startswith(options["save_dir"]):
            written.append(arguments[0])
    if event in ("os.mkdir", "os.rename") and str(arguments[0]).startswith(options["save_dir"] + os.sep):
        written.append(str(arguments[0]))


sys.addaudithook(audit)
task = SegmentationTask(load_config(config), config)
trainer = Trainer(task, TrainOptions(**options))
seen = []
losses = task.losses


def watched(model, batch):
    seen.extend(meta["index"] for meta in batch["meta"])
    return losses(model, batch)


task.losses = watched
result = trainer.run()


def digest(state):
    sums = {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in state.items()}
    return {"names": sorted(sums), "sums": sums}


found = {
    "model": digest(trainer.model.state_dict()),
    "ema": digest(trainer.ema.state_dict()) if trainer.ema else None,
    "loss": digest(trainer.loss_layers[0].state_dict()) if trainer.loss_layers else None,
    "result": result,
    "seen": seen,
    "written": written,
}
with open(f"{report}.{rank}", "w") as file:
    json.dump(found, file)
"""


def launch(folder: Path, command: list, **popen) -> subprocess.Popen:
    """``python -m paddle.distributed.launch`` on two CPU processes; its logs go into ``folder``."""
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", 2, "--log_dir", folder / "launch_log"]
    return subprocess.Popen(
        [sys.executable, *map(str, launcher), *map(str, command)],
        cwd=tiny.REPOSITORY,
        env=tiny.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **popen,
    )


def finish(process: subprocess.Popen, folder: Path, timeout: float = 120) -> str:
    """Wait for a launch to end well; the time limit only keeps a hang from hanging the tests."""
    try:
        said, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    logs = "\n".join(path.read_text() for path in sorted((folder / "launch_log").glob("workerlog.*")))
    assert process.returncode == 0, said + logs
    return logs


def train_on_two(folder: Path, config: Path, **options) -> list[dict]:
    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    fixed = {"save_dir": str(folder / "out"), "log_iters": 1, "save_interval": 2}
    command = [folder / "script.py", config, json.dumps({**fixed, **options}), folder / "report"]
    finish(launch(folder, command), folder)
    return [json.loads((folder / f"report.{rank}").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def config(cityscapes, tmp_path_factory) -> Path:
    return tiny.write_config(tmp_path_factory.mktemp("config") / "tiny.yml", tiny.cityscapes_config(cityscapes))


@pytest.fixture(scope="module")
def two(config, tmp_path_factory):
    """Twenty iterations on two processes, with evaluation and EMA."""
    folder = tmp_path_factory.mktemp("two")
    options = {"iters": 20, "batch_size": 1, "save_interval": 10, "do_eval": True, "use_ema": True}
    return folder, train_on_two(folder, config, **options)


def test_processes_end_with_equal_weights(two):
    first, second = two[1]
    assert len(first["model"]["names"]) > 50
    assert first["model"] == second["model"]
    assert first["ema"] == second["ema"]
    assert first["result"] == second["result"]
    assert first["result"]["iteration"] == 20


def test_each_process_saw_its_own_share(two):
    """Together what one process with both batches would have seen."""
    first, second = (report["seen"] for report in two[1])
    epochs = -(-40 // tiny.TRAIN_SCENES)
    orders = [np.random.default_rng([42, epoch]).permutation(tiny.TRAIN_SCENES) for epoch in range(epochs)]
    order = np.concatenate(orders).tolist()
    assert first == order[0:40:2]
    assert second == order[1:40:2]


def test_only_the_first_process_writes(two):
    folder, (first, second) = two
    assert second["written"] == []
    assert any("model.pdparams" in path for path in first["written"])
    assert [path.name for path in list_checkpoints(folder / "out")] == ["iter_10", "iter_20"]
    log = (folder / "out" / "train.log").read_text(encoding="utf-8")
    assert log.count("[TRAIN] iter 3/20") == 1


def test_sharded_evaluation_equals_one_process(two, config, cityscapes):
    folder, (first, _) = two
    task = tiny.make_task(tiny.cityscapes_config(cityscapes))
    for name, file in (("best_model", "model.pdparams"), ("ema_best_model", "ema_model.pdparams")):
        load_weights(task.model, folder / "out" / name / file)
        alone = task.evaluate(task.model)
        metrics = json.loads((folder / "out" / name / "metrics.json").read_text(encoding="utf-8"))
        assert metrics == {"iteration": metrics["iteration"], **alone["report"]}
        # The matrices are integers; only a pixel with two equal classes could fall the other way.
        assert alone["score"] == pytest.approx(first["result"]["best"][name]["score"], abs=1e-9)


def test_the_saved_weights_are_those_of_the_processes(two):
    import hashlib

    folder, (first, _) = two
    _, arrays = read_checkpoint(folder / "out" / "iter_20")
    sums = {n: hashlib.sha256(v.tobytes()).hexdigest() for n, v in arrays["model.pdparams"].items()}
    assert sums == first["model"]["sums"]


def test_resume_on_two_processes(two, config, tmp_path):
    """Stopped and continued equals straight, bit for bit, here as well."""
    folder, straight = two
    (tmp_path / "out").mkdir()
    tiny.copy_tree(folder / "out" / "iter_10", tmp_path / "out" / "iter_10")
    options = {"iters": 20, "batch_size": 1, "save_interval": 10, "do_eval": True, "use_ema": True}
    resumed = train_on_two(tmp_path, config, **options, resume_model="auto")
    for ours, theirs in zip(resumed, straight):
        assert ours["model"] == theirs["model"]
        assert ours["ema"] == theirs["ema"]
        assert ours["result"] == theirs["result"]


def test_a_folder_that_only_one_process_sees(two, config, tmp_path):
    """Such as one on each node's own disk: all would go on, each from elsewhere."""
    tiny.copy_tree(two[0] / "out" / "iter_10", tmp_path / "out0" / "iter_10")
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    options = {"save_dir": str(tmp_path / "outRANK"), "iters": 20, "batch_size": 1, "resume_model": "auto"}
    command = [tmp_path / "script.py", config, json.dumps({**options, "use_ema": True}), tmp_path / "report"]
    process = launch(tmp_path, command)
    try:
        process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0
    logs = [path.read_text() for path in sorted((tmp_path / "launch_log").glob("workerlog.*"))]
    assert any("the processes start at different iterations [10, 0]" in log for log in logs)
    assert not (tmp_path / "out1" / "train.log").exists()


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_two_processes_equal_one_with_both_batches(cityscapes, tmp_path, accumulation):
    """One step of gradient descent; batch norm sees one image at a time in both."""
    config = tiny.cityscapes_config(cityscapes, augment=False)
    config["model"]["backbone"]["drop_path_rate"] = 0.0
    backbone = config["model"]["backbone"]
    config["model"] = {"type": "FCN", "num_classes": 19, "backbone_indices": [3], "channels": 8, "backbone": backbone}
    config["loss"] = {"types": [{"type": "CrossEntropyLoss"}], "coef": [1.0]}
    config["optimizer"] = {"type": "SGD"}
    config["lr_scheduler"] = {"type": "PolynomialDecay", "learning_rate": 1.0, "end_lr": 1.0}
    path = tiny.write_config(tmp_path / "fcn.yml", config)
    train_on_two(tmp_path, path, iters=1, batch_size=1, accumulation=accumulation)
    ours = read_weights(tmp_path / "out" / "iter_1" / "model.pdparams")
    assert ours
    task = tiny.make_task(config)
    options = {"iters": 1, "batch_size": 1, "accumulation": 2 * accumulation, "save_dir": str(tmp_path / "one")}
    Trainer(task, TrainOptions(**options)).run()
    trained = [name for name, p in task.model.named_parameters() if not p.stop_gradient]
    for name in trained:
        # Sums of float32 gradients in another order, on weights of about 1.
        np.testing.assert_allclose(ours[name], task.model.state_dict()[name].numpy(), rtol=0, atol=2e-6, err_msg=name)


def test_train_py_on_two_processes(config, cityscapes, tmp_path):
    """The command line, with fewer validation images than processes."""
    root = tiny.write_cityscapes(tmp_path / "data", train=4, val=1)
    roots = [f"{key}_dataset.dataset_root={root}" for key in ("train", "val")]
    options = ["--iters", 2, "--batch_size", 1, "--do_eval", "--save_dir", tmp_path / "out", "--opts", *roots]
    logs = finish(launch(tmp_path, ["train.py", "--config", config, "--device", "cpu", *options]), tmp_path)
    assert logs.count("[EVAL] iter 2, model: mIoU") == 1
    assert "on 1 images" in logs
    threads = max(len(os.sched_getaffinity(0)) // 2, 1)
    assert f"CPU: {threads} threads" in logs
    assert [path.name for path in list_checkpoints(tmp_path / "out")] == ["iter_2"]


def test_a_signal_stops_both_at_the_same_iteration(config, tmp_path):
    out = tmp_path / "out"
    options = ["--iters", 100000, "--batch_size", 1, "--log_iters", 2, "--save_interval", 100000, "--save_dir", out]
    process = launch(tmp_path, ["train.py", "--config", config, "--device", "cpu", *options], start_new_session=True)
    try:
        end = time.monotonic() + 120
        log = out / "train.log"
        while not (log.is_file() and "iter 4/" in log.read_text(encoding="utf-8")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)  # to the launcher, which passes it on
        process.communicate(timeout=60)
    finally:
        process.kill()
    logs = [path.read_text() for path in sorted((tmp_path / "launch_log").glob("workerlog.*"))]
    (folder,) = list_checkpoints(out)
    state, _ = read_checkpoint(folder)
    assert state["iteration"] % 2 == 0
    assert f"SIGTERM: saved at iteration {state['iteration']}" in "".join(logs)
    assert all("Traceback" not in text for text in logs)


def test_a_process_that_dies_ends_the_job(config, tmp_path):
    """Either process: an error, a whole checkpoint, and a job that goes on from it."""
    out, saved = tmp_path / "out", 0
    options = ["--iters", 100000, "--batch_size", 1, "--log_iters", 5, "--save_interval", 5, "--save_dir", out]
    command = ["train.py", "--config", config, "--device", "cpu", *options, "--resume_model", "auto"]
    for rank in ("1", "0"):
        process = launch(tmp_path, command)
        try:
            end = time.monotonic() + 120
            log = out / "train.log"
            while not (log.is_file() and f"saved {out / f'iter_{saved + 10}'}" in log.read_text(encoding="utf-8")):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < end
                time.sleep(0.1)
            workers = {w.environ().get("PADDLE_TRAINER_ID"): w for w in psutil.Process(process.pid).children()}
            workers[rank].kill()
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode not in (0, None)
        assert "Container failed" in said
        assert psutil.wait_procs(workers.values(), timeout=10)[1] == []
        _, (state, _), skipped = read_newest(out)
        assert skipped == []
        assert saved + 10 <= state["iteration"]
        saved = state["iteration"]
        text = log.read_text(encoding="utf-8")
        assert ("resumed" in text) == (rank == "0")
        assert "skipped: " not in text
