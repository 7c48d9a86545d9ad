"""Shared fixtures. CPU settings come first: Paddle reads them once, when it is imported."""

from __future__ import annotations

import lzma
import os
import re
import sys
from pathlib import Path

import pytest

from paddle_vheat.cpu import configure_cpu, count_cores

os.environ.setdefault("SEG_HOME", str(Path(__file__).resolve().parent.parent / "build" / "seg_home"))
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).resolve().parent.parent / "build" / "cache")
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # the cores are divided between the workers
    share = count_cores() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(share, 1)))
if "paddle" not in sys.modules:
    configure_cpu()

import numpy as np

from paddle_vheat._paddle import PADDLE_2, paddle

GOLDEN = Path(__file__).parent / "golden"

_PINNED = re.search(r"^paddlepaddle==(.+)$", (Path(__file__).parents[1] / "requirements.txt").read_text(), re.MULTILINE)
assert _PINNED is not None
on_pinned_paddle = paddle.__version__ == _PINNED[1]
# How much of oneDNN is right for our exports, by the versions that are supported (docs/versions.md).
ONEDNN_HERE = "full" if on_pinned_paddle else "reduced"
# requirements.txt has the ONNX packages, so with Paddle 3 they are there, or the test fails.
needs_onnx = pytest.mark.skipif(
    PADDLE_2, reason="paddle2onnx takes Paddle 3; what a user of Paddle 2 is told: test_paddle_2_has_no_onnx"
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    paddle.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def golden_checkpoint(tmp_path_factory):
    """Unpack a reference checkpoint and give its path."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def unpack(name: str) -> Path:
        path = folder / f"{name}.pth"
        if not path.exists():
            path.write_bytes(lzma.decompress((GOLDEN / f"{name}.pth.xz").read_bytes()))
        return path

    return unpack


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as archive:
        return {key: archive[key] for key in archive.files}


def sample(array: np.ndarray, limit: int) -> np.ndarray:
    """Every k-th value, as the larger references are stored (tests/golden/README.md)."""
    step = max(1, array.size // limit)
    if step > 1 and step % 2 == 0:
        step += 1
    return array.reshape(-1)[::step]


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference over the largest magnitude of the reference."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    assert np.isfinite(ours).all()
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))
