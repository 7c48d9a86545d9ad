"""Runs that are killed (SIGKILL): every resume works, and loses nothing but the iterations since the last save."""

from __future__ import annotations

import json

import pytest

from tests.engine import tiny


def killed(folder, kind: str, timeout: float = 240) -> dict:
    done = tiny.run(["-m", "tests.engine.killed", folder, kind], timeout=timeout)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_killed_at_25_random_instants(tmp_path):
    """With augmentation, dropout, EMA, evaluation, records and, every other time, workers: bit for bit as unkilled."""
    report = killed(tmp_path, "instants")
    assert report["killed"] == 25
    assert report["while saving"] >= 3
    assert report["differences"] == []
    assert report["lost"] == []


def test_killed_at_every_step_of_saving(tmp_path):
    report = killed(tmp_path, "steps")
    steps = " | ".join(report["steps"])
    for expected in (
        "os.remove model.pdparams",  # clearing away
        "open .iter_24.",
        "os.rename .iter_24.",
        "os.rename .ema_best_model.",
        "os.remove ema_best_model/metrics.json",
        "os.rename iter_20",
    ):
        assert expected in steps
    assert report["killed"] == len(report["steps"]) > 30
    assert report["differences"] == []
    assert report["lost"] == []


@pytest.mark.slow
def test_soak(tmp_path):
    """Two hundred short runs of one and two processes, with random kills and numbers of workers."""
    report = killed(tmp_path, "200", timeout=3600)
    assert report["runs"] == 200
    assert report["of two"] >= 20
    assert report["killed"] >= 100
    assert report["differences"] == []
    assert report["lost"] == []
