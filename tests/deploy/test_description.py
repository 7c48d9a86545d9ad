"""deploy.yaml: what is in it comes from anywhere and is checked."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from paddle_vheat.config import ConfigError
from paddle_vheat.deploy import read_description
from paddle_vheat.deploy.processor import make_processor

GOOD = {
    "model": "model.json",
    "params": "model.pdiparams",
    "onnx": "model.onnx",
    "opset": 17,
    "programs": {"model": "x float32 [1, 3, 64, 96] -> classes int32 [1, 64, 96]"},
    "onednn": "full",
    "checked_on": {"paddle": "3.2.2"},
    "task": "segmentation",
    "transforms": [{"type": "Normalize"}],
    "input_shape": [1, 3, 64, 96],
    "min_size": 32,
    "options": {
        "output_op": "argmax", "num_classes": 2, "class_names": ["a", "b"], "palette": [[0, 0, 0], [255, 1, 2]],
    },
}  # fmt: skip
FIRST_LAYOUT = {key: value for key, value in GOOD.items() if key not in ("programs", "options")}
FIRST_LAYOUT.update(GOOD["options"], output_dtype="int32")


@pytest.fixture(params=["first", "this"])
def layout(request):
    return {"first": FIRST_LAYOUT, "this": GOOD}[request.param]


@pytest.fixture
def write(tmp_path):
    """Write deploy.yaml with some values replaced (None: left out), beside the files that it names."""
    for name in ("model.json", "model.pdiparams", "model.onnx"):
        (tmp_path / name).touch()

    def write(base=GOOD, **changes):
        base = dict(base)
        for key in ("output_op", "num_classes", "class_names", "palette"):
            if key in changes and "options" in base:
                base["options"] = {**base["options"], key: changes.pop(key)}
                base["options"] = {k: v for k, v in base["options"].items() if v is not None}
        block = {key: value for key, value in {**base, **changes}.items() if value is not None}
        (tmp_path / "deploy.yaml").write_text(yaml.safe_dump({"Deploy": block}), encoding="utf-8")
        return tmp_path

    return write


def test_what_is_read(write, layout):
    described = read_description(write(layout))
    assert (described.task, described.model, described.onnx) == (
        "segmentation", {"model": "model.json"}, {"model": "model.onnx"},
    )  # fmt: skip
    assert described.input_shape == (1, 3, 64, 96)
    assert described.size == (64, 96)
    assert described.checked_on == {"paddle": "3.2.2"}
    assert described.options == GOOD["options"]
    processor = make_processor(described)
    np.testing.assert_array_equal(processor.palette, [[0, 0, 0], [255, 1, 2]])
    assert str(processor.programs["model"]) == GOOD["programs"]["model"]
    assert described.programs == ({} if layout is FIRST_LAYOUT else GOOD["programs"])
    without = dict.fromkeys(("model", "params", "onednn", "checked_on", "min_size", "class_names", "palette"))
    bare = read_description(write(layout, **without))
    assert (bare.model, bare.onednn, bare.checked_on, bare.min_size) == ({}, "off", {}, 1)
    assert make_processor(bare).palette.shape == (2, 3)
    assert read_description(write(layout, input_shape=[-1, 3, -1, -1])).size is None


def test_how_much_of_onednn(write):
    for value in ("full", "reduced", "off"):
        assert read_description(write(onednn=value)).onednn == value
    # Of exports of before there was a reduced one, and of `off` in YAML without quotes.
    assert read_description(write(onednn=True)).onednn == "full"
    assert read_description(write(onednn=False)).onednn == "off"


LONG = "x" * 10_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": None}, "no 'Deploy.task'; an older version or another program wrote it: export again"),
        ({"task": "segmentashun"}, "'Deploy.task': no task is called 'segmentashun'; did you mean 'segmentation'"),
        ({"task": "../../x"}, r"'Deploy.task': no task is called '\.\./\.\./x'"),
        ({"task": LONG}, r"no task is called 'x{100,200}\.\.\. \(10002 characters\)"),
        ({"transforms": "Normalize"}, "'Deploy.transforms' must be a list of blocks, got 'Normalize'"),
        ({"transforms": ["Normalize"]}, "'Deploy.transforms' must be"),
        ({"transforms": [{"type": "Normalise"}]}, r"'Deploy.transforms.0': nothing is called 'Normalise'; did"),
        ({"transforms": [{"type": "Resize", "target_size": [10**6, 10**6]}]},
         r"'Deploy.transforms.0.target_size' must be at most 134217728 pixels, got \[1000000, 1000000\]"),
        ({"transforms": [{"type": "Normalize", "std": [0]}]}, "0.std' must be a list of numbers of at least 1e-06"),
        ({"input_shape": None}, "'Deploy.input_shape' is missing; expected a list of 4 integers"),
        ({"input_shape": [1, 3, -1, 64]}, r"'Deploy.input_shape' must be \[N, C, H, W\]"),
        ({"input_shape": [1, -1, 64, 64]}, "'Deploy.input_shape'"),
        ({"input_shape": [1, 3, 64.0, 64]}, "'Deploy.input_shape'"),
        ({"input_shape": [1, 3, 0, 64]}, "'Deploy.input_shape'"),
        ({"input_shape": [1, 3, 10**6, 10**6]}, "'Deploy.input_shape' is .*134217728 pixels can be taken"),
        ({"input_shape": [10**9, 3, -1, -1]}, "'Deploy.input_shape' is .*at most 4096 images"),
        ({"output_op": "sigmoid"}, "output_op' must be one of argmax, softmax, none"),
        ({"class_names": []}, "class_names' must have 2 entries"),
        ({"class_names": ["a"]}, r"class_names' must have 2 entries \('num_classes'\), got 1"),
        ({"class_names": ["a", 3]}, "class_names' must be a list of words"),
        ({"num_classes": 3}, "class_names' must have 3 entries.*\n.*palette' must have 3 entries"),
        ({"num_classes": None}, "num_classes' is missing"),
        ({"palette": [[0, 0, 256], [0, 0, 0]]}, r"palette' must be a list of \[red, green, blue\], 0 to 255"),
        ({"palette": [[0, 0, 0]]}, "palette' must have 2 entries"),
        ({"onednn": "yes"}, "'Deploy.onednn' must be one of off, reduced, full, got 'yes'"),
        ({"onednn": "reduce"}, "'Deploy.onednn' must be .*got 'reduce'; did you mean 'reduced'"),
        ({"onednn": 1}, "'Deploy.onednn' must be one of off, reduced, full, got 1"),
        ({"checked_on": {"paddle": 3.2}}, "'Deploy.checked_on'"),
        ({"min_size": 0}, "'Deploy.min_size'"),
        ({"model": "../model.json"}, "'Deploy.model' must be the name of a file beside it"),
        ({"onnx": "/etc/passwd"}, "'Deploy.onnx' must be the name of a file beside it"),
        ({"onnx": ".."}, "'Deploy.onnx' must be the name of a file beside it"),
        ({"onnx": {"model": 3}}, "'Deploy.onnx' must be the name of a file beside it, got 3"),
        ({"onnx": {"heads": "model.onnx"}}, "has a program 'heads'; segmentation has model"),
        ({"onnx": LONG}, r"'Deploy.onnx' names 'x{100,200}\.\.\. \(10002 characters\)"),
        ({"params": None}, "belong together, and one is missing"),
        ({"model": None, "params": None, "onnx": None}, "names no model"),
        ({"outputs": 3}, "unknown key 'Deploy.outputs'; did you mean 'options'"),
    ],
)  # fmt: skip
def test_values_that_cannot_be(write, layout, changes, message):
    folder = write(layout, **changes)
    with pytest.raises(ConfigError, match=message) as error:
        make_processor(read_description(folder))
    assert str(folder / "deploy.yaml") in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_op": "softmax"}, "classes int32.*'Deploy.options' means .*probabilities float32"),
        ({"output_op": "none"}, "classes int32.*'Deploy.options' means .*logits float32"),
        ({"input_shape": [1, 3, 64, 64]}, r"is 'x float32 \[1, 3, 64, 96\].*means x float32 \[1, 3, 64, 64\]"),
        (
            {"programs": {"model": "x -> y"}},
            "'Deploy.programs.model' is 'x -> y', but 'Deploy.options' means x float32",
        ),
        ({"programs": {"model": 3}}, "'Deploy.programs' must be a text for each name"),
        ({"programs": 3}, "'Deploy.programs' must be a block of keys, got 3"),
    ],
)
def test_options_and_programs_that_contradict_each_other(write, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_processor(read_description(write(**changes)))


ANCHORS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Deploy: [1", "not valid YAML"),
        ("Deploy: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("- a", "expected keys and values"),
        ("", "expected keys and values"),
        ("Deploy: 3", "no block 'Deploy'"),
        (b"\xff", "not a text file in UTF-8"),
        ("Deploy: 2024-99-99", "holds a value that YAML cannot read"),
        (f"{ANCHORS}Deploy: *i", "more than 100000 values, once every YAML anchor is followed"),
        ("Deploy: &x {options: *x}", "within itself"),
        ("[" * 5000, "nested too deep"),
        ("Deploy: {task: a, task: b}", "the key 'task' is given twice"),
        (f"Deploy: {{opset: {2**70}}}", "an integer of more than 64 bits"),
        ("# " + "x" * (1 << 20), "at most 1048576"),
    ],
)
def test_files_that_cannot_be(tmp_path, text, message):
    (tmp_path / "deploy.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message) as error:
        read_description(tmp_path)
    assert str(tmp_path / "deploy.yaml") in str(error.value)


def test_what_is_missing(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder; give the folder that export.py wrote"):
        read_description(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"no deploy.yaml in it"):
        read_description(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'Deploy.onnx' names 'other.onnx', and there is no such file"):
        read_description(write(onnx="other.onnx"))
