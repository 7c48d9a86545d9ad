"""Checkpoints: complete or absent, and they know whether they are damaged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from paddle_vheat._paddle import nn
from paddle_vheat.engine import checkpoint
from paddle_vheat.engine.checkpoint import (
    CheckpointError,
    list_checkpoints,
    optimizer_arrays,
    prune_checkpoints,
    read_checkpoint,
    read_newest,
    replace_folder,
    restore_optimizer,
    save_checkpoint,
)
from tests.conftest import paddle

STATE = {"best": {"best_model": {"score": 0.5, "iteration": 3}}, "options": {"seed": 1}, "config": {0: (1, 2)}}


def save(folder: Path, iteration: int, value: float = 1.0) -> Path:
    arrays = {
        "model.pdparams": {"w": paddle.full([3, 4], value), "count": paddle.to_tensor([7])},
        "model.pdopt": {"w|moment1_0": paddle.full([3, 4], -value)},
    }
    return save_checkpoint(folder, iteration, arrays, STATE)


def names(folder: Path) -> list[str]:
    """All names in a folder, the hidden ones as well."""
    return sorted(os.listdir(folder))


def test_round_trip(tmp_path):
    folder = save(tmp_path, 12, 2.5)
    assert folder == tmp_path / "iter_12"
    assert names(tmp_path) == ["iter_12"]
    assert names(folder) == ["model.pdopt", "model.pdparams", "state.json"]
    state, arrays = read_checkpoint(folder)
    assert state["iteration"] == 12
    assert state["best"] == STATE["best"]
    assert state["config"] == {"0": [1, 2]}  # as JSON has it
    np.testing.assert_array_equal(arrays["model.pdparams"]["w"], np.full((3, 4), 2.5, np.float32))
    np.testing.assert_array_equal(arrays["model.pdparams"]["count"], [7])
    assert arrays["model.pdparams"]["count"].dtype == np.int64
    np.testing.assert_array_equal(arrays["model.pdopt"]["w|moment1_0"], np.full((3, 4), -2.5, np.float32))
    assert sorted(arrays["model.pdparams"]) == ["count", "w"]


def test_saving_again_replaces(tmp_path):
    save(tmp_path, 5, 1.0)
    folder = save(tmp_path, 5, 2.0)
    assert names(tmp_path) == ["iter_5"]
    assert read_checkpoint(folder)[1]["model.pdparams"]["w"].max() == 2.0


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("step", ["paddle.save", "json", "fsync", "rename", "interrupt"])
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, step, old):
    """Whatever breaks in the middle: the old checkpoint whole or none, and no new name."""
    if old:
        save(tmp_path, 5, 1.0)
    before = names(tmp_path)
    error = KeyboardInterrupt if step == "interrupt" else OSError
    calls = []

    def fail_second(original):
        def wrapped(*args, **kwargs):
            calls.append(args)
            if len(calls) == 2:
                raise error("no space left on device")
            return original(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        if step in ("paddle.save", "interrupt"):
            patch.setattr(checkpoint.paddle, "save", fail_second(paddle.save))
        elif step == "json":
            calls.append(None)  # there is one call only
            patch.setattr(Path, "write_text", fail_second(Path.write_text))
        elif step == "fsync":
            patch.setattr(checkpoint.os, "fsync", fail_second(os.fsync))
        else:
            if not old:
                calls.append(None)  # one rename, not two
            patch.setattr(checkpoint.os, "replace", fail_second(os.replace))
        with pytest.raises(error, match="no space left"):
            save(tmp_path, 5, 2.0)
    assert len(calls) >= 2
    assert names(tmp_path) == before
    if old:
        assert read_checkpoint(tmp_path / "iter_5")[1]["model.pdparams"]["w"].max() == 1.0


def test_what_a_killed_process_leaves_is_no_checkpoint(tmp_path):
    save(tmp_path, 5)
    (tmp_path / ".iter_10.abcdef").mkdir()
    (tmp_path / "iter_x").mkdir()
    (tmp_path / "iter_11").write_text("a file", encoding="utf-8")
    assert list_checkpoints(tmp_path) == [tmp_path / "iter_5"]
    assert read_newest(tmp_path)[::2] == (tmp_path / "iter_5", [])
    prune_checkpoints(tmp_path, 1, 20)
    assert names(tmp_path) == [".iter_10.abcdef", "iter_11", "iter_5", "iter_x"]


def test_replace_folder_makes_parents_and_a_readable_folder(tmp_path):
    replace_folder(tmp_path / "a" / "b", lambda folder: (folder / "x").write_text("1", encoding="utf-8"))
    assert names(tmp_path / "a") == ["b"]
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o755


# --- damage -----------------------------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(content[: len(content) * 2 // 3])
    elif how == "longer":
        path.write_bytes(content + b"\0")
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "longer", "bit"])
@pytest.mark.parametrize("file", ["model.pdparams", "model.pdopt", "state.json"])
def test_damage_is_recognised_and_named(tmp_path, file, how):
    folder = save(tmp_path, 5)
    damage(folder / file, how)
    with pytest.raises(CheckpointError, match=r"missing|damaged") as error:
        read_checkpoint(folder)
    assert file in str(error.value)
    assert str(folder) in str(error.value)


def test_any_flipped_bit_of_the_state_is_recognised(tmp_path):
    folder = save(tmp_path, 5)
    whole = (folder / "state.json").read_bytes()
    expected = json.loads(whole)
    for position in range(len(whole)):
        spoilt = bytearray(whole)
        spoilt[position] ^= 1 << position % 8
        (folder / "state.json").write_bytes(spoilt)
        try:
            state, _ = read_checkpoint(folder)
        except CheckpointError:
            continue
        assert state == expected, position  # such as one kind of white space for another


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"files": [], "iteration": 1}', "not JSON", "\xff"])
def test_state_of_another_kind(tmp_path, content):
    folder = save(tmp_path, 5)
    (folder / "state.json").write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
        read_checkpoint(folder)


def test_no_such_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"no such checkpoint folder: .*iter_7"):
        read_checkpoint(tmp_path / "iter_7")


@pytest.mark.parametrize("kind", ["a folder", "a FIFO", "a device"])
def test_a_state_that_is_no_file(tmp_path, kind):
    """To open a FIFO would wait for ever, and a device may never end."""
    path = save(tmp_path, 5) / "state.json"
    path.unlink()
    {"a folder": path.mkdir, "a FIFO": lambda: os.mkfifo(path), "a device": lambda: path.symlink_to("/dev/zero")}[
        kind
    ]()
    with pytest.raises(CheckpointError, match=rf"state.json is missing \(it is {kind}"):
        read_checkpoint(path.parent)


def test_newest_passes_over_damaged_ones(tmp_path):
    for iteration in (5, 10, 100, 20):
        save(tmp_path, iteration)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["iter_5", "iter_10", "iter_20", "iter_100"]
    assert read_newest(tmp_path)[::2] == (tmp_path / "iter_100", [])
    damage(tmp_path / "iter_100" / "model.pdopt", "bit")
    damage(tmp_path / "iter_20" / "state.json", "missing")
    folder, (state, arrays), skipped = read_newest(tmp_path)
    assert folder == tmp_path / "iter_10"
    assert state["iteration"] == 10
    assert sorted(arrays) == ["model.pdopt", "model.pdparams"]
    assert len(skipped) == 2
    assert "iter_100" in skipped[0]
    assert "iter_20" in skipped[1]


def test_newest_of_nothing(tmp_path):
    assert read_newest(tmp_path) == (None, None, [])
    assert read_newest(tmp_path / "absent") == (None, None, [])
    damage(save(tmp_path, 5) / "model.pdparams", "truncated")
    with pytest.raises(CheckpointError, match="none of its 1 checkpoints can be resumed from"):
        read_newest(tmp_path)


def test_prune(tmp_path):
    for iteration in (2, 4, 10, 8):
        save(tmp_path, iteration)
    prune_checkpoints(tmp_path, 0, 10)
    assert len(list_checkpoints(tmp_path)) == 4
    prune_checkpoints(tmp_path, 2, 10)
    assert names(tmp_path) == ["iter_10", "iter_8"]


def test_prune_leaves_the_newest_of_this_run(tmp_path):
    """A later checkpoint of an earlier run in the same folder must not push out what was just saved."""
    for iteration in (1000, 2000, 10, 20):
        save(tmp_path, iteration)
    prune_checkpoints(tmp_path, 1, 20)
    assert names(tmp_path) == ["iter_1000", "iter_20", "iter_2000"]


# --- the optimizer ----------------------------------------------------------------------------------


def make_model() -> nn.Layer:
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))


def make_optimizer(kind: str, model: nn.Layer):
    rate = paddle.optimizer.lr.PolynomialDecay(0.05, decay_steps=20, end_lr=0.0)
    plain = [p for name, p in model.named_parameters() if "1." in name]
    rest = [p for name, p in model.named_parameters() if "1." not in name]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": rest}]
    return getattr(paddle.optimizer, kind)(learning_rate=rate, parameters=groups, weight_decay=0.05)


def step(model, optimizer, iteration: int) -> None:
    x = paddle.to_tensor(np.random.default_rng(iteration).standard_normal((5, 4)).astype(np.float32))
    (model(x) ** 2).mean().backward()
    optimizer.step()
    optimizer.clear_grad()
    optimizer._learning_rate.step()


@pytest.mark.parametrize("kind", ["AdamW", "Adam", "Momentum", "SGD"])
def test_optimizer_goes_on_in_a_model_with_other_names(tmp_path, kind):
    model = make_model()
    optimizer = make_optimizer(kind, model)
    for iteration in range(4):
        step(model, optimizer, iteration)
    scheduler = optimizer._learning_rate.state_dict()
    arrays = {"model.pdparams": model.state_dict(), "model.pdopt": optimizer_arrays(optimizer, model)}
    folder = save_checkpoint(tmp_path, 4, arrays, {})
    for iteration in range(4, 8):
        step(model, optimizer, iteration)

    # Another process that has built something else before: the names that Paddle gives are then others.
    with paddle.utils.unique_name.guard():
        nn.Linear(2, 2)
        new = make_model()
        new_optimizer = make_optimizer(kind, new)
        assert {p.name for p in new.parameters()} != {p.name for p in model.parameters()}
        _, read = read_checkpoint(folder)
        for name, value in new.state_dict().items():
            value.set_value(read["model.pdparams"][name])
        restore_optimizer(new_optimizer, new, read["model.pdopt"])
        new_optimizer._learning_rate.set_state_dict(scheduler)
        for iteration in range(4, 8):
            step(new, new_optimizer, iteration)
        restored = optimizer_arrays(new_optimizer, new)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(new.state_dict()[name].numpy(), value.numpy(), err_msg=name)
    kept = optimizer_arrays(optimizer, model)
    assert sorted(kept) == sorted(restored)
    for name, value in kept.items():
        np.testing.assert_array_equal(restored[name].numpy(), value.numpy(), err_msg=name)


def test_optimizer_state_is_named_by_the_model():
    model = make_model()
    optimizer = make_optimizer("AdamW", model)
    step(model, optimizer, 0)
    kept = optimizer_arrays(optimizer, model)
    assert {name.split("|")[0] for name in kept} == {name for name, _ in model.named_parameters()}
    kinds = {name.split("|")[1] for name in kept}
    assert {"moment1_0", "moment2_0"} <= kinds
    assert kept["0.weight|moment1_0"].shape == [4, 8]


def test_optimizer_of_another_model():
    model = make_model()
    optimizer = make_optimizer("Momentum", model)
    step(model, optimizer, 0)
    other = nn.Sequential(nn.Linear(4, 8))
    kept = {name: value.numpy() for name, value in optimizer_arrays(optimizer, model).items()}
    with pytest.raises(CheckpointError, match=r"the optimizer's state has '1\.weight', which the model does not have"):
        restore_optimizer(paddle.optimizer.Momentum(parameters=other.parameters()), other, kept)
    with pytest.raises(CheckpointError, match="optimizer state of no parameter"):
        optimizer_arrays(optimizer, other)


def test_reads_only_arrays(tmp_path):
    """A checkpoint whose file was replaced by a program is not run, even if its checksum was set right."""
    folder = save(tmp_path, 5)
    import pickle
    import zlib

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    content = pickle.dumps({"w": Evil()})
    (folder / "model.pdparams").write_bytes(content)
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    state["files"]["model.pdparams"] = {"size": len(content), "crc32": zlib.crc32(content)}
    state["crc32"] = checkpoint._state_crc32(state)
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(ValueError, match=r"asks for .*mkdir"):
        read_checkpoint(folder)
    assert not (tmp_path / "pwned").exists()
    shutil.rmtree(folder)
