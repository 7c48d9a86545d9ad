"""deploy.yaml: what is in it comes from anywhere and is checked."""

from __future__ import annotations

import pytest
import yaml

from paddle_vheat.config import ConfigError
from paddle_vheat.deploy import read_description

GOOD = {
    "model": "model.json",
    "params": "model.pdiparams",
    "onnx": "model.onnx",
    "opset": 17,
    "onednn": "full",
    "checked_on": {"paddle": "3.2.2"},
    "task": "segmentation",
    "transforms": [{"type": "Normalize"}],
    "input_shape": [1, 3, 64, 96],
    "min_size": 32,
    "output_op": "argmax",
    "output_dtype": "int32",
    "num_classes": 2,
    "class_names": ["a", "b"],
    "palette": [[0, 0, 0], [255, 1, 2]],
}


@pytest.fixture
def write(tmp_path):
    """Write deploy.yaml with some values replaced (None: left out), beside the files that it names."""
    for name in ("model.json", "model.pdiparams", "model.onnx"):
        (tmp_path / name).touch()

    def write(**changes):
        block = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
        (tmp_path / "deploy.yaml").write_text(yaml.safe_dump({"Deploy": block}), encoding="utf-8")
        return tmp_path

    return write


def test_what_is_read(write):
    described = read_description(write())
    assert (described.task, described.output_op, described.onnx) == ("segmentation", "argmax", "model.onnx")
    assert described.input_shape == (1, 3, 64, 96)
    assert described.size == (64, 96)
    assert described.checked_on == {"paddle": "3.2.2"}
    assert read_description(write(input_shape=[-1, 3, -1, -1])).size is None
    without = read_description(write(model=None, params=None, onednn=None, checked_on=None, min_size=None))
    assert (without.model, without.onednn, without.checked_on, without.min_size) == (None, "off", {}, 1)


def test_how_much_of_onednn(write):
    for value in ("full", "reduced", "off"):
        assert read_description(write(onednn=value)).onednn == value
    # Of exports of before there was a reduced one, and of `off` in YAML without quotes.
    assert read_description(write(onednn=True)).onednn == "full"
    assert read_description(write(onednn=False)).onednn == "off"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": None}, "no 'Deploy.task'; an older version or another program wrote it: export again"),
        ({"task": "segmentashun"}, "'Deploy.task' must be one of .*got 'segmentashun'; did you mean 'segmentation'"),
        ({"transforms": "Normalize"}, "'Deploy.transforms' must be a list of blocks, got 'Normalize'"),
        ({"transforms": ["Normalize"]}, "'Deploy.transforms' must be"),
        ({"input_shape": None}, r"'Deploy.input_shape' must be \[N, C, H, W\].*it is not there"),
        ({"input_shape": [1, 3, -1, 64]}, "'Deploy.input_shape'"),
        ({"input_shape": [1, -1, 64, 64]}, "'Deploy.input_shape'"),
        ({"input_shape": [1, 3, 64.0, 64]}, "'Deploy.input_shape'"),
        ({"output_op": "sigmoid"}, "'Deploy.output_op' must be one of argmax, softmax, none"),
        ({"class_names": []}, "'Deploy.class_names'"),
        ({"class_names": ["a", 3]}, "'Deploy.class_names'"),
        ({"palette": [[0, 0, 256], [0, 0, 0]]}, "'Deploy.palette' must be a list of"),
        ({"palette": [[0, 0, 0]]}, "'Deploy.palette' must be the colours of 2 classes"),
        ({"palette": None}, "'Deploy.palette' must be the colours of 2 classes, it is not there"),
        ({"onednn": "yes"}, "'Deploy.onednn' must be one of off, reduced, full, got 'yes'"),
        ({"onednn": "reduce"}, "'Deploy.onednn' must be .*got 'reduce'; did you mean 'reduced'"),
        ({"onednn": 1}, "'Deploy.onednn' must be one of off, reduced, full, got 1"),
        ({"checked_on": {"paddle": 3.2}}, "'Deploy.checked_on'"),
        ({"min_size": 0}, "'Deploy.min_size'"),
        ({"model": "../model.json"}, "'Deploy.model' must be the name of a file beside it"),
        ({"onnx": "/etc/passwd"}, "'Deploy.onnx' must be the name of a file beside it"),
        ({"onnx": ".."}, "'Deploy.onnx' must be the name of a file beside it"),
        ({"params": None}, "belong together, and one is missing"),
        ({"model": None, "params": None, "onnx": None}, "names no model"),
    ],
)
def test_values_that_cannot_be(write, changes, message):
    folder = write(**changes)
    with pytest.raises(ConfigError, match=message) as error:
        read_description(folder)
    assert str(folder / "deploy.yaml") in str(error.value)


@pytest.mark.parametrize(
    "text", ["Deploy: [1", "Deploy: !!python/object/apply:os.getcwd []", "- a", "", "Deploy: 3", b"\xff"]
)
def test_files_that_cannot_be(tmp_path, text):
    (tmp_path / "deploy.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"deploy\.yaml: (not valid YAML|no block 'Deploy')"):
        read_description(tmp_path)


def test_what_is_not_there(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder; give the folder that export.py wrote"):
        read_description(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"no deploy.yaml in it"):
        read_description(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'Deploy.onnx' names other.onnx, and there is no such file"):
        read_description(write(onnx="other.onnx"))
