"""Saving and resuming with one file operation that fails: what was good before is good after."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from paddle_vheat.engine.checkpoint import list_checkpoints, read_checkpoint
from paddle_vheat.errors import UserError
from paddle_vheat.weights.loading import read_weights
from tests.engine.small import SmallTask, assert_same, assert_same_checkpoint, train
from tests.faults import ERRORS, failing

OPTIONS = {"save_interval": 2, "keep_checkpoint_max": 2, "do_eval": True, "use_ema": True}
BEST = {"best_model": "model.pdparams", "ema_best_model": "ema_model.pdparams"}


class Scored(SmallTask):
    """The further its weights are from the first ones, the better: each evaluation finds a new best model."""

    def build_model(self, pretrained=True):
        self.first = self.model[0].weight.numpy().copy()
        return self.model

    def infer(self, model, batch):
        self.found = float(abs(model[0].weight.numpy() - self.first).sum())

    def score(self):
        return self.found


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """A run of 4 iterations, and of 6."""
    folder = tmp_path_factory.mktemp("faults")
    for iters in (4, 6):
        train(Scored(), folder / str(iters), iters=iters, **OPTIONS)
    return folder / "4", folder / "6"


def resume(out: Path) -> None:
    train(Scored(), out, iters=6, resume_model="auto", **OPTIONS)


def equal(one: Path, other: Path) -> bool:
    """Paddle's names of tensors, which differ from run to run, apart."""
    ours, theirs = read_weights(one), read_weights(other)
    return ours.keys() == theirs.keys() and all((value == theirs[name]).all() for name, value in ours.items())


def assert_good(out: Path, before: Path, after: Path, where: str) -> None:
    """Every checkpoint is whole and one of the two runs', at least as many as there were; best models are too."""
    found = [path.name for path in list_checkpoints(out)]
    assert found in (["iter_2", "iter_4"], ["iter_2", "iter_4", "iter_6"], ["iter_4", "iter_6"]), where
    for name in found:
        _, arrays = read_checkpoint(out / name)
        _, expected = read_checkpoint((after if name == "iter_6" else before) / name)
        for file, content in expected.items():
            assert_same(arrays[file], content)
    for folder, file in BEST.items():
        assert any(equal(out / folder / file, run / folder / file) for run in (before, after)), where


def test_the_operations(runs, tmp_path, monkeypatch):
    shutil.copytree(runs[0], tmp_path / "out")
    with failing(monkeypatch, tmp_path / "out") as faults:
        resume(tmp_path / "out")
    said = " | ".join(faults.operations)
    for expected in (
        "open /iter_4/state.json",
        "stat /iter_4/model.pdparams",
        "os.mkdir /.iter_6.",
        "write /.iter_6.",
        "fsync /",
        "os.rename /.iter_6.",
        "os.rename /iter_2",
        "os.remove model.pdparams",
        "open /train.log",
        "os.rename /.best_model.",
    ):
        assert expected in said
    assert len(faults.operations) > 100


@pytest.mark.parametrize(
    "first", [pytest.param(0, id="quick"), *(pytest.param(n, id=f"more{n}", marks=pytest.mark.slow) for n in (1, 2))]
)
def test_each_fails_once(runs, tmp_path, monkeypatch, first):
    """With another error each; then the run goes on as if nothing had been."""
    before, after = runs
    number, failed = 0, 0
    while True:
        code = ERRORS[(number + first) % len(ERRORS)]
        out = tmp_path / f"out{number}"
        shutil.copytree(before, out)
        told = ""
        with failing(monkeypatch, out, number, code) as faults:
            try:
                resume(out)
            except (UserError, OSError) as error:
                told = str(error)
        if len(faults.operations) <= number:
            break
        where = f"{os.strerror(code)}: operation {number}, {faults.operations[number]}: {told}"
        failed += bool(told)
        assert not told or str(out) in told, where
        assert_good(out, before, after, where)
        resume(out)
        assert sorted(os.listdir(out)) == sorted(os.listdir(after)), where
        for path in list_checkpoints(after):
            assert_same_checkpoint(out / path.name, path)
        for folder, file in BEST.items():
            assert equal(out / folder / file, after / folder / file), where
            assert (out / folder / "metrics.json").read_bytes() == (after / folder / "metrics.json").read_bytes(), where
        shutil.rmtree(out)
        number += 1
    assert failed > number / 2
