"""Gradient checkpointing on two processes, against one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paddle_vheat._paddle import PADDLE_2, paddle
from paddle_vheat.models import VHeatClassifier
from tests.conftest import relative_error

MODEL = {"num_classes": 3, "embed_dim": 8, "depths": (1, 1, 2, 1), "img_size": 32, "drop_path_rate": 0.0}
SCRIPT = f"""
import sys
import numpy as np
from paddle_vheat._paddle import paddle
from paddle_vheat.models import VHeatClassifier

paddle.set_device("cpu")
paddle.distributed.init_parallel_env()
rank = paddle.distributed.get_rank()
paddle.seed(0)
model = VHeatClassifier(recompute=True, **{MODEL!r})
parallel = paddle.DataParallel(model, find_unused_parameters=True)
images = np.load(sys.argv[1])
for _ in range(2):
    model.clear_gradients()
    (parallel(paddle.to_tensor(images[rank : rank + 1])) ** 2).sum().backward()
np.savez(sys.argv[2] + str(rank), **{{name: p.grad.numpy() for name, p in model.named_parameters()}})
"""


@pytest.mark.skipif(PADDLE_2, reason="Paddle 2.6 has the form of recomputation that this needs on a GPU only")
def test_gradients_of_two_processes_equal_those_of_one(tmp_path):
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 48)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(tmp_path / "log")]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PADDLE_")}
    result = subprocess.run(
        [sys.executable, *launcher, str(tmp_path / "script.py"), str(tmp_path / "images.npy"), str(tmp_path / "rank")],
        env={**inherited, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,  # only keeps a hang from hanging the tests
    )
    logs = "".join(path.read_text(encoding="utf-8") for path in sorted((tmp_path / "log").glob("workerlog.*")))
    assert result.returncode == 0, result.stdout + result.stderr + logs
    paddle.seed(0)
    model = VHeatClassifier(**MODEL)
    ((model(paddle.to_tensor(images)) ** 2).sum() / 2).backward()  # processes average
    for rank in (0, 1):
        with np.load(tmp_path / f"rank{rank}.npz") as found:
            for name, parameter in model.named_parameters():
                # float32 sums over two images, taken apart
                assert relative_error(found[name], parameter.grad.numpy()) < 1e-5, name
