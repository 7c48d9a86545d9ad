"""The benchmarks compare equals, and count what they say that they count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddle_vheat._paddle import PADDLE_2, paddle
from paddle_vheat.analysis.cost import count, total
from paddle_vheat.models import UPerNet, VHeat, VHeatClassifier, create_model
from tests.conftest import relative_error

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import _common as common  # noqa: E402
import _plain as plain  # noqa: E402

MICRO = {"embed_dim": 8, "depths": (1, 1, 2, 1), "drop_path_rate": 0.0, "img_size": 64}


@pytest.mark.parametrize("variant", [{}, {"post_norm": True, "layer_scale": 0.1}])
def test_plain_classifier_is_ours_with_another_arithmetic(variant):
    model = VHeatClassifier(num_classes=10, **MICRO, **variant)
    x = paddle.randn([2, 3, 64, 64])
    for port, ours in (
        (plain.PlainClassifier(model), model),
        (plain.PlainClassifier(model, folded_for=64), model.fold(64)),
    ):
        # float32 through 5 blocks, sums in another order
        assert relative_error(port(x).numpy(), ours(x).numpy()) < 1e-5
    assert len(plain.PlainClassifier(model, folded_for=64).port.constants) == 5


def test_plain_upernet_is_ours_with_another_arithmetic():
    model = UPerNet(5, VHeat(**MICRO), channels=16, aux_channels=8, dropout=0.0)
    port = plain.PlainUPerNet(model)
    x = paddle.randn([2, 3, 64, 64])
    for theirs, ours in zip(port(x), model(x), strict=True):
        # BatchNorm divides by deviations of small maps: ten times the rounding of the classifier
        assert relative_error(theirs.numpy(), ours.numpy()) < 1e-4
    # Every parameter is trained in both: the backbone's are copies, the decoders' the same.
    assert sum(p.size for p in port.parameters()) == sum(p.size for p in model.parameters())


def test_multiply_adds_are_those_of_the_analysis():
    """Counted at the kernels, whatever form they are asked for, against the formulas by layer."""
    model = create_model("vheat_tiny", img_size=64, num_classes=10).fold(64)
    model.eval()
    x = paddle.randn([1, 3, 64, 64])
    counts = []
    for grad in (False, True):  # the forms for evaluation, and the layers
        with paddle.set_grad_enabled(grad), common.multiply_adds() as operations:
            model(x)
        counts.append(operations[0])
    norms_and_decays = total(count(model, 64)).multiply_adds - counts[1]
    # A bias passed on through a linear layer is a product more in each of the 12 blocks.
    passed_on = sum(2 * blocks * (96 * 2**i) ** 2 for i, blocks in enumerate((2, 2, 6, 2)))
    assert counts[0] == counts[1] + passed_on
    assert 0 < norms_and_decays < 0.02 * counts[1]


@pytest.mark.skipif(PADDLE_2, reason="Paddle 2.6 cannot forget a peak of memory; the benchmarks are of Paddle 3")
def test_peak_memory_is_what_is_alive_at_once():
    def run():
        first = paddle.ones([256, 1024])  # 1 MiB
        second = first + first
        del first
        return second * 2

    assert common.peak_mib(run) == pytest.approx(2, abs=0.01)


def test_exponent_of_a_power_law():
    assert common.fitted_exponent([1, 4, 9], [2.0, 16.0, 54.0]) == pytest.approx(1.5, abs=1e-12)


@pytest.mark.slow
def test_ablations_are_trained_once_and_summarised(tmp_path):
    """Two models, two seeds; a second call trains nothing."""
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(10):
            folder = tmp_path / "data" / split / str(label)
            folder.mkdir(parents=True)
            for i in range(7):
                Image.fromarray(draw.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    words = ["--iters", "1", "--size", "32", "--eval_size", "40", "--seeds", "0", "1", "--models", "full", "k_fixed 5"]
    places = {name: str(tmp_path / name) for name in ("data", "save_dir", "json", "plot")}
    paths = [word for name, path in places.items() for word in (f"--{name}", path + ".svg" * (name == "plot"))]
    command = [sys.executable, "benchmarks/ablations.py", *paths, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first, second = (
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    )
    assert first.count("[TRAIN]") == 4
    assert second.count("[TRAIN]") == 0
    report = json.loads((tmp_path / "json").read_text())
    full, fixed = report["models"]["full"], report["models"]["k_fixed 5"]
    assert full["mean"] == pytest.approx(np.mean(full["top1"]))
    assert full["deviation"] == pytest.approx(np.std(full["top1"], ddof=1))
    # Four embeddings (8, 4, 2 and 1 patches a side) and to_k of five blocks.
    embeddings = sum(16 * 2**i * side**2 for i, side in enumerate((8, 4, 2, 1)))
    to_k = sum(blocks * (width**2 + width) for blocks, width in zip((1, 1, 2, 1), (16, 32, 64, 128)))
    assert full["parameters"] - fixed["parameters"] == embeddings + to_k
    assert fixed["k_mean"] == {"before": [5.0] * 4, "after": [5.0] * 4}
    assert set(report["alignment"]) == {"bicubic", "zero_pad", "k_bicubic", "k_zero_pad"}
    assert (tmp_path / "plot.svg").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "keys"),
    [
        (
            "inference.py",
            ["--sizes", "64", "--batches", "1", "--rounds", "1"],
            {"settings", "gflops_limit_avx2", "results"},
        ),
        ("resolution.py", ["--sizes", "64", "96", "--positions", "7", "14"], {"settings", "gflops_limit", "tables"}),
    ],
)
def test_benchmarks_run(tmp_path, script, arguments, keys):
    report = tmp_path / "report.json"
    subprocess.run(
        [sys.executable, f"benchmarks/{script}", *arguments, "--json", str(report)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    assert set(json.loads(report.read_text())) == keys
