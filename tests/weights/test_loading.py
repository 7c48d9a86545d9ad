"""Strict loading, and files that are whole or absent."""

from __future__ import annotations

import importlib
import os
import stat

import numpy as np
import pytest

import paddle_vheat
from paddle_vheat._paddle import PADDLE_2, paddle
from paddle_vheat.models import VHeat, VHeatClassifier
from paddle_vheat.weights import LoadReport, live_tensors, load_weights, read_weights, save_weights
from paddle_vheat.weights.loading import load_state, write_atomically
from paddle_vheat.weights.safe_pickle import UnsafeFileError
from tests.conftest import relative_error

MICRO = {"embed_dim": 8, "depths": (1, 1, 1, 1), "img_size": 32, "drop_path_rate": 0.0}


def micro(num_classes=3, **changes):
    return VHeatClassifier(num_classes=num_classes, **{**MICRO, **changes})


def arrays(layer):
    return {name: value.numpy().copy() for name, value in layer.state_dict().items()}


def equal(first, second):
    return set(first) == set(second) and all(np.array_equal(first[name], second[name]) for name in first)


def test_round_trip(tmp_path):
    source, target = micro(), micro()
    assert not equal(arrays(source), arrays(target))
    save_weights(source, tmp_path / "new" / "folder" / "x.pdparams")
    report = load_weights(target, tmp_path / "new" / "folder" / "x.pdparams")
    assert equal(arrays(source), arrays(target))
    assert sorted(report.loaded) == sorted(arrays(source))
    assert report.resized == report.newly_initialised == []
    assert str(report) == f"{len(report.loaded)} arrays loaded"


def test_everything_wrong_is_listed_and_nothing_changed():
    model = micro()
    state, before = arrays(micro()), arrays(model)
    state["head.wieght"] = state.pop("head.weight")
    state["entirely.different"] = np.ones(2)
    state["norm.bias"] = np.ones(65)
    state["backbone.stem.conv1.bias"] = np.arange(4)
    with pytest.raises(ValueError, match=r"weights\.x does not fit VHeatClassifier") as error:
        load_state(model, state, "weights.x")
    lines = str(error.value).split("\n  ")
    assert "(1 missing, 2 unexpected, 2 of another shape or dtype)" in lines[0]
    assert lines[1] == "missing keys: head.weight (nearest: head.wieght)"
    assert lines[2] == "unexpected keys: head.wieght (nearest: head.weight), entirely.different"
    assert "norm.bias: the file has [65], the model [64]" in lines[3]
    assert "backbone.stem.conv1.bias: the file has int64, the model float32" in lines[3]
    assert equal(arrays(model), before)


def test_long_lists_are_cut_but_counted():
    state = {f"other.{i}": np.ones(1) for i in range(50)}
    with pytest.raises(ValueError, match="50 unexpected") as error:
        load_state(micro(), state, "x")
    assert str(error.value).count("other.") <= 20


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 5e-4), ("float64", 0.0), ("bfloat16", 4e-3)])
def test_other_precisions_are_converted(tmp_path, dtype, tolerance):
    source, target = micro(), micro()
    content = {name: value.astype(dtype) for name, value in source.state_dict().items()}
    paddle.save(content, str(tmp_path / "x.pdparams"))
    load_weights(target, tmp_path / "x.pdparams")
    for name, value in arrays(target).items():
        # half a unit in the last of the 11 or 8 bits that the format has; Paddle 2.6 does not round but cut
        assert relative_error(value, arrays(source)[name]) <= tolerance * (1 + PADDLE_2), name


def test_into_a_bfloat16_and_a_float64_model(tmp_path):
    source = micro()
    save_weights(source, tmp_path / "x.pdparams")
    for dtype in ("bfloat16", "float64"):
        target = micro()
        target.to(dtype=dtype)
        load_weights(target, tmp_path / "x.pdparams")
        assert target.head.weight.dtype == getattr(paddle, dtype)
        ours = target.head.weight.astype("float32").numpy()
        assert np.array_equal(ours, source.head.weight.astype(dtype).astype("float32").numpy())
    save_weights(micro().to(dtype="bfloat16"), tmp_path / "b.pdparams")
    load_weights(micro().to(dtype="bfloat16"), tmp_path / "b.pdparams")


def test_arrays_of_any_layout():
    source, target = micro(), micro()
    state = {name: np.asfortranarray(value) for name, value in arrays(source).items()}
    for value in state.values():
        value.flags.writeable = False
    load_state(target, state, "x")
    assert equal(arrays(source), arrays(target))


def test_frequency_embeddings_of_another_resolution(tmp_path):
    source, target = micro(), micro(img_size=(64, 96))
    save_weights(source, tmp_path / "x.pdparams")
    report = load_weights(target, tmp_path / "x.pdparams")
    assert len(report.resized) == 4
    assert "backbone.stages.0.frequency_embedding 8x8 -> 16x24" in report.resized
    assert "4 frequency embeddings resized bicubically (backbone.stages.0" in str(report)
    source.eval()
    target.eval()
    x = paddle.randn([1, 3, 64, 96])
    # the source resizes when it runs: the same operation on the same numbers
    assert relative_error(target(x).numpy(), source(x).numpy()) < 1e-6
    for shape in ((8, 8, 9), (8, 8), (0, 8, 8)):
        state = {**arrays(source), "backbone.stages.0.frequency_embedding": np.ones(shape, np.float32)}
        with pytest.raises(ValueError, match="1 of another shape"):
            load_state(target, state, "x")


def test_half_precision_embeddings_are_resized_as_numbers(tmp_path):
    source, target = micro(), micro(img_size=64)
    content = {name: value.astype("bfloat16") for name, value in source.state_dict().items()}
    paddle.save(content, str(tmp_path / "x.pdparams"))
    load_weights(target, tmp_path / "x.pdparams")
    plain = micro(img_size=64)
    load_state(plain, arrays(source), "x")
    ours, theirs = (m.backbone.stages[0].frequency_embedding.numpy() for m in (target, plain))
    # bfloat16 rounds by 2^-9 of each value; the weights of the kernel add up to 1.6 in magnitude, squared
    assert relative_error(ours, theirs) < 2.6 * 2**-9 * (1 + PADDLE_2)


def test_optional_and_unused_prefixes():
    model = VHeat(**MICRO)
    state, initial = arrays(VHeat(out_norms=False, **MICRO)), arrays(model)
    with pytest.raises(ValueError, match="8 missing"):
        load_state(model, state, "x")
    report = load_state(model, state, "x", optional_prefixes=("outnorm",))
    assert len(report.newly_initialised) == 8
    assert "8 newly initialised (outnorm0.weight" in str(report)
    after = arrays(model)
    for name, value in after.items():
        assert np.array_equal(value, initial[name] if name.startswith("outnorm") else state[name])
    # nearly nothing missing must not slip through because something else may be
    with pytest.raises(ValueError, match=r"1 missing(.|\n)*stem\.conv1\.weight"):
        load_state(model, {k: v for k, v in state.items() if k != "stem.conv1.weight"}, "x", ("outnorm",))
    state["head.weight"] = np.ones(3)
    with pytest.raises(ValueError, match="1 unexpected"):
        load_state(model, state, "x", ("outnorm",))
    assert "head.weight" not in load_state(model, state, "x", ("outnorm",), ("head.",)).loaded


class Toy(paddle.nn.Layer):
    """Shared parameters, a buffer that is saved and one that is not."""

    def __init__(self):
        super().__init__()
        self.first = paddle.nn.Sequential(paddle.nn.Linear(2, 2), paddle.nn.BatchNorm1D(2))
        self.second = self.first[0]
        self.register_buffer("kept", paddle.ones([3]))
        self.register_buffer("passing", paddle.ones([3]), persistable=False)
        self.nothing = None


def test_live_tensors_are_those_of_the_state_dict():
    model = Toy()
    state, live = model.state_dict(), live_tensors(model)
    assert list(live) == list(state)
    assert all(live[name] is state[name] for name in live)
    assert list(live_tensors(micro())) == list(micro().state_dict())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loading_into_a_model_decorated_for_mixed_precision(dtype):
    """``amp.decorate(save_dtype=...)`` registers this hook, after which ``state_dict()`` gives copies."""
    model, values = Toy(), {name: 7 + value.numpy() for name, value in Toy().state_dict().items()}
    for layer in model.sublayers(include_self=True):
        layer.register_state_dict_hook(importlib.import_module("paddle.amp.auto_cast").StateDictHook(dtype))
    model.to(dtype="float64")
    load_state(model, values, "x")
    assert model.kept.dtype == paddle.float64
    for name, tensor in live_tensors(model).items():
        assert np.array_equal(tensor.numpy(), values[name]), name


def test_files_that_are_no_weights(tmp_path):
    path = tmp_path / "x.pdparams"
    paddle.save([paddle.ones([1])], str(path))
    with pytest.raises(UnsafeFileError, match=r"x\.pdparams: expected a dict of arrays, got list"):
        read_weights(path)
    paddle.save({"epoch": 3, "model": {"a": paddle.ones([1])}}, str(path))
    with pytest.raises(UnsafeFileError, match="not a file of model weights; no arrays: epoch, model"):
        read_weights(path)
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "y.pdparams")


@pytest.mark.parametrize("fails", ["in the middle", "when flushed"])
def test_no_half_file_remains(tmp_path, monkeypatch, fails):
    path = tmp_path / "x.pdparams"
    path.write_bytes(b"before")

    def write(temporary):
        with open(temporary, "wb") as file:
            file.write(b"half")
        if fails == "in the middle":
            raise KeyboardInterrupt

    def full(_):
        raise OSError("no space left on device")

    if fails == "when flushed":
        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((KeyboardInterrupt, OSError)):
        write_atomically(path, write)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["x.pdparams"]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "x.pdparams"
    path.write_bytes(b"before")
    seen = []

    def write(temporary):
        with open(temporary, "wb") as file:
            file.write(b"after")
        seen.append(path.read_bytes())

    before = os.umask(0o027)
    try:
        write_atomically(path, write)
        save_weights(paddle.nn.Linear(2, 2), tmp_path / "x.safetensors")
    finally:
        os.umask(before)
    assert seen == [b"before"]
    assert path.read_bytes() == b"after"
    assert sorted(os.listdir(tmp_path)) == ["x.pdparams", "x.safetensors"]
    assert [stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()] == [0o640, 0o640]


def test_create_model_with_weights(tmp_path):
    source = paddle_vheat.create_model("vheat_tiny", num_classes=5, img_size=64)
    path = tmp_path / "tiny.pdparams"
    save_weights(source, path)
    model = paddle_vheat.create_model("vheat_tiny", num_classes=5, img_size=64, pretrained=path)
    assert equal(arrays(source), arrays(model))
    larger = paddle_vheat.create_model("vheat_tiny", num_classes=5, img_size=96, pretrained=str(path))
    assert larger.backbone.stages[0].frequency_embedding.shape == [24, 24, 96]
    assert np.array_equal(larger.head.weight.numpy(), source.head.weight.numpy())
    with pytest.raises(ValueError, match=r"tiny\.pdparams does not fit(.|\n)*head\.weight: the file has \[768, 5\]"):
        paddle_vheat.create_model("vheat_tiny", num_classes=6, img_size=64, pretrained=path)
    with pytest.raises(ValueError, match=r"missing(.|\n)*gamma1"):
        paddle_vheat.create_model("vheat_small", num_classes=5, img_size=64, pretrained=path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        paddle_vheat.create_model("vheat_tiny", pretrained=tmp_path / "absent.pdparams")


def test_an_empty_report():
    assert str(LoadReport()) == "0 arrays loaded"
