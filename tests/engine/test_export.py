"""Exports: equal to the trained model, complete or not written."""

from __future__ import annotations

import os

import numpy as np
import pytest
import yaml
from paddle_vheat.engine.export import export_model, parse_input_shape
from paddle_vheat.engine.export_check import (
    ONEDNN,
    PADDLE,
    REDUCED,
    Difference,
    ExportError,
    check_inputs,
    load_runtime,
    right_onednn,
)

from paddle_vheat._paddle import PADDLE_2, F
from paddle_vheat.engine import export, export_check
from tests.conftest import ONEDNN_HERE, paddle, relative_error
from tests.engine import tiny

# float32 through about 30 layers of another graph (folded decay, fused operations), relative to the largest
# logit; the bound that the export itself sets is 1e-3.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def task(cityscapes):
    task = tiny.make_task(tiny.cityscapes_config(cityscapes))
    tiny.lively(task.model)
    return task


def images(*size: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((size[0], 3, *size[1:])).astype(np.float32)


def logits_of(task, x: np.ndarray) -> np.ndarray:
    task.model.eval()
    with paddle.no_grad():
        return task.model(paddle.to_tensor(x))[0].numpy()


def quiet(text: str) -> None:
    """For ``say``."""


def run_and_compare(task, folder, x, output_op) -> None:
    output, logits = load_runtime(folder)(x), logits_of(task, x)
    if output_op == "argmax":
        assert output.dtype == np.int32
        assert output.shape == (len(x), *x.shape[2:])
        chosen = np.take_along_axis(logits, output[:, None].astype(int), axis=1)[:, 0]
        # Of two classes that are nearly equally likely, rounding decides.
        assert (logits.max(axis=1) - chosen).max() <= CLOSE * np.abs(logits).max()
        assert len(np.unique(output)) > 2
        return
    expected = F.softmax(paddle.to_tensor(logits), axis=1).numpy() if output_op == "softmax" else logits
    assert output.dtype == np.float32
    assert relative_error(output, expected) < CLOSE


def test_dynamic_size(task, tmp_path):
    output_op, said = "argmax", []
    differences = export_model(task, tmp_path / "out", None, output_op, say=said.append)
    for size in ((1, 64, 128), (2, 33, 50), (1, 97, 32)):
        run_and_compare(task, tmp_path / "out", images(*size), output_op)
    plain = [d for d in differences if d.runtime == "Paddle Inference"]
    assert sorted(d.size for d in plain) == [(64, 128), (97, 203), (128, 160)]  # the first is of the data
    assert all(d.ok for d in plain)
    assert len(said) >= len(plain)
    assert check_deploy(tmp_path / "out")["input_shape"] == [-1, 3, -1, -1]


@pytest.fixture(scope="module")
def fixed(task, tmp_path_factory):
    """An export of 48 x 80 with the batch decided at run time, into a folder that is there and empty."""
    folder = tmp_path_factory.mktemp("fixed")
    before = {name: value.numpy() for name, value in task.model.state_dict().items()}
    export_model(task, folder, [-1, 3, 48, 80], "none", say=quiet)
    return folder, before


@pytest.mark.parametrize("batch", [1, 3])
def test_fixed_size(task, fixed, batch):
    run_and_compare(task, fixed[0], images(batch, 48, 80), "none")


def test_a_fixed_size_takes_no_other(fixed):
    with pytest.raises(Exception, match=r"(?i)shape|dim|size|invalid"):
        load_runtime(fixed[0])(images(1, 80, 80))


def test_deploy_yaml(task, fixed):
    deploy = check_deploy(fixed[0])
    names = [deploy["model"], deploy["params"], "deploy.yaml"]
    if PADDLE_2:  # whose paddle.jit.load reads the names of the parameters from it
        names.append("model.pdiparams.info")
    assert sorted(os.listdir(fixed[0])) == sorted(names)
    assert deploy["model"] == ("model.pdmodel" if PADDLE_2 else "model.json")
    assert deploy["onednn"] == ONEDNN_HERE
    assert deploy["input_shape"] == [-1, 3, 48, 80]
    assert (deploy["output_op"], deploy["output_dtype"]) == ("none", "float32")
    assert deploy["num_classes"] == 19
    assert deploy["class_names"] == task.class_names
    assert deploy["transforms"] == [tiny.NORMALIZE]
    assert (deploy["task"], deploy["min_size"]) == ("segmentation", 32)
    assert deploy["palette"] == task.palette.tolist()
    assert deploy["checked_on"] == {"paddle": paddle.__version__}


def test_the_model_is_unchanged(task, fixed):
    after = {name: value.numpy() for name, value in task.model.state_dict().items()}
    assert sorted(fixed[1]) == sorted(after)
    for name, value in fixed[1].items():
        np.testing.assert_array_equal(after[name], value)


def test_fixed_size_and_batch_with_argmax(task, tmp_path):
    export_model(task, tmp_path / "out", [1, 3, 48, 80], "argmax", say=quiet)
    run_and_compare(task, tmp_path / "out", images(1, 48, 80), "argmax")
    deploy = check_deploy(tmp_path / "out")
    assert deploy["input_shape"] == [1, 3, 48, 80]
    assert (deploy["output_op"], deploy["output_dtype"]) == ("argmax", "int32")
    # Exporting again replaces.
    export_model(task, tmp_path / "out", [1, 3, 64, 64], "none", say=quiet)
    assert check_deploy(tmp_path / "out")["input_shape"] == [1, 3, 64, 64]
    assert os.listdir(tmp_path) == ["out"]


def check_deploy(folder) -> dict:
    """deploy.yaml names files that exist, and PaddleSeg's own deployment reads it."""
    from paddleseg.deploy.infer import DeployConfig

    config = DeployConfig(str(folder / "deploy.yaml"))
    assert os.path.isfile(config.model)
    assert os.path.isfile(config.params)
    image = np.zeros((40, 50, 3), np.float32)
    assert config.transforms({"img": image})["img"].shape == (3, 40, 50)
    return yaml.safe_load((folder / "deploy.yaml").read_text(encoding="utf-8"))["Deploy"]


def test_values_that_yaml_cannot_hold(cityscapes, tmp_path):
    """A pair from --opts is a tuple."""
    config = tiny.cityscapes_config(cityscapes)
    config["val_dataset"]["transforms"] = [{"type": "Resize", "target_size": (64, 48)}, tiny.NORMALIZE]
    text = export._deploy_yaml(tiny.make_task(config), {}, [1, 3, 48, 64], "argmax")
    assert yaml.safe_load(text)["Deploy"]["transforms"][0] == {"type": "Resize", "target_size": [64, 48]}


@pytest.mark.parametrize("missing", ["folder", "images", "block"])
def test_the_data_is_not_needed(cityscapes, tmp_path, missing):
    config = tiny.cityscapes_config(cityscapes)
    root = tmp_path / "data"
    if missing == "block":
        del config["val_dataset"]
    else:
        config["val_dataset"]["dataset_root"] = str(root)
    if missing == "images":
        (root / "leftImg8bit").mkdir(parents=True)
        (root / "gtFine").mkdir(parents=True)
    task = tiny.make_task(config)
    assert [x.shape for x in check_inputs(task, [1, 3, 32, 64])] == [(1, 3, 32, 64)]
    if missing == "block":
        export_model(task, tmp_path / "out", [1, 3, 32, 64], say=quiet)
        assert check_deploy(tmp_path / "out")["transforms"] == [{"type": "Normalize"}]


def test_what_an_export_is_tried_on(task):
    assert [x.shape for x in check_inputs(task, [2, 3, 48, 80])] == [(2, 3, 48, 80)] * 2
    dynamic = check_inputs(task, [None, 3, None, None])
    # A batch that is free is tried with two images, so that no batch of one is built into the graph.
    assert [x.shape for x in dynamic] == [(2, 3, 128, 160), (2, 3, 97, 203), (1, 3, 64, 128)]
    np.testing.assert_array_equal(dynamic[2][0], task.val_dataset[0]["img"])


def test_one_softmax_is_not_another():
    """The comparison itself: each output operation against what it should be, and against what it should not."""
    logits = images(2, 5, 6)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax = shifted / shifted.sum(axis=1, keepdims=True)
    argmax = logits.argmax(axis=1).astype(np.int32)
    for op, right in (("none", logits), ("softmax", softmax), ("argmax", argmax)):
        assert export_check.difference(right, logits, op) < 1e-6
    assert export_check.difference(softmax, logits, "none") > 0.1
    assert export_check.difference(logits, logits, "softmax") > 0.1
    wrong = argmax.copy()
    wrong[0, 0, 0] = logits[0, :, 0, 0].argmin()
    assert export_check.difference(wrong, logits, "argmax") > 0.01
    assert export_check.difference(argmax[:, :4], logits, "argmax") == float("inf")
    assert export_check.difference(np.full_like(argmax, 3), logits, "argmax") == float("inf")
    assert export_check.difference(logits[:1], logits, "none") == float("inf")
    assert not Difference("x", (1, 1), float("nan")).ok


# --- what must not be written -----------------------------------------------------------------------


def contents(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def tampered(monkeypatch):
    """Exports get other weights than the model has."""
    save = paddle.jit.save

    def spoilt(layer, path, **options):
        for value in layer.state_dict().values():
            if paddle.is_floating_point(value) and value.ndim == 4 and value.shape[0] == 19:
                value.set_value(value * 1.5)
        save(layer, path, **options)

    monkeypatch.setattr(export.paddle.jit, "save", spoilt)


@pytest.mark.parametrize("output_op", ["none", "argmax"])
def test_a_wrong_export_is_not_written(cityscapes, tmp_path, tampered, monkeypatch, output_op):
    task = tiny.make_task(tiny.cityscapes_config(cityscapes))
    tiny.lively(task.model)
    bias = task.model.decode_head.classifier.bias
    bias.set_value(np.random.default_rng(0).standard_normal(19).astype(np.float32) * 3)
    monkeypatch.setattr(export, "fold_model", _fold_a_copy)
    said = []
    with pytest.raises(ExportError, match="differ from the trained model's; nothing was written"):
        export_model(task, tmp_path / "out", [1, 3, 32, 64], output_op, say=said.append)
    assert not (tmp_path / "out").exists()
    assert os.listdir(tmp_path) == []
    assert any("WRONG" in line for line in said)


def _fold_a_copy(model, size):
    """What is exported shares no tensor with the model, so that spoiling the one leaves the other."""
    import copy

    from paddle_vheat.models.vheat import fold_model

    return fold_model(copy.deepcopy(model), size)


def test_a_wrong_export_leaves_the_previous_one(task, tmp_path, monkeypatch):
    export_model(task, tmp_path / "out", [1, 3, 32, 64], say=quiet)
    before = contents(tmp_path / "out")
    runtime = export_check.load_runtime

    def wrong_runtime(folder, name):
        run = runtime(folder, name)
        return lambda array: (run(array) + 1) % 19

    monkeypatch.setattr(export_check, "load_runtime", wrong_runtime)
    with pytest.raises(ExportError, match="nothing was written"):
        export_model(task, tmp_path / "out", [1, 3, 64, 64], say=quiet)
    assert contents(tmp_path / "out") == before
    assert os.listdir(tmp_path) == ["out"]


def test_an_export_that_does_not_run_is_not_written(task, tmp_path, monkeypatch):
    def broken(folder, name):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(export_check, "load_runtime", broken)
    with pytest.raises(ExportError, match="Paddle Inference does not run the exported model: no such operator"):
        export_model(task, tmp_path / "out", [1, 3, 32, 64], say=quiet)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("full", "reduced", "written"),
    [
        ("right", "not run", "full"),
        ("wrong", "right", "reduced"),
        ("crash", "right", "reduced"),
        ("wrong", "wrong", "off"),
        ("crash", "crash", "off"),
    ],
)
def test_an_unsafe_onednn_is_told(task, tmp_path, monkeypatch, full, reduced, written):
    runtime, hows, ran = export_check.load_runtime, {PADDLE: "right", ONEDNN: full, REDUCED: reduced}, []

    def onednn_runtime(folder, name):
        ran.append(name)
        if hows[name] == "crash":
            raise RuntimeError("first line\nConvertPirAttribute2RuntimeAttribute")
        run = runtime(folder, PADDLE)
        return (lambda array: run(array) * 1.01) if hows[name] == "wrong" else run

    monkeypatch.setattr(export_check, "load_runtime", onednn_runtime)
    said = []
    differences = export_model(task, tmp_path / "out", [1, 3, 32, 64], "none", say=said.append)
    assert check_deploy(tmp_path / "out")["onednn"] == right_onednn(differences) == written
    assert ran == [PADDLE, ONEDNN] if full == "right" else [PADDLE, ONEDNN, REDUCED]
    told = [line for line in said if "oneDNN is not safe" in line]
    ends = {"full": [], "reduced": ["Predictor uses the reduced one"], "off": ["Predictor keeps it off"]}[written]
    assert [line.split(" and ")[-1] for line in told] == ends
    verdicts = {
        "right": "ok",
        "wrong": "WRONG",
        "crash": "does not run this model: ConvertPirAttribute2RuntimeAttribute",
    }
    for name, how in ((ONEDNN, full), (REDUCED, reduced)):
        lines = [line for line in said if line.startswith(f"  {name:<31} ")]
        assert bool(lines) == (how != "not run")
        assert all(verdicts[how] in line for line in lines)


def test_paddlesegs_upernet_runs_by_the_reduced_onednn(cityscapes, tmp_path):
    """The full one is wrong for it on 3.2.2 without a word, and does not run it on 2.6.2 and 3.3.1."""
    config = tiny.cityscapes_config(cityscapes)
    head = {"type": "UPerNet", "channels": 16, "backbone_indices": [0, 1, 2, 3], "num_classes": 19}
    config["model"] = {**head, "backbone": config["model"]["backbone"]}
    task = tiny.make_task(config)
    differences = export_model(task, tmp_path / "out", [1, 3, 64, 96], "none", quiet)
    full = [d for d in differences if d.runtime == ONEDNN]
    assert full
    assert not any(d.ok for d in full)
    assert check_deploy(tmp_path / "out")["onednn"] == "reduced"
    x = images(1, 64, 96)
    assert relative_error(load_runtime(tmp_path / "out", REDUCED)(x), logits_of(task, x)) < CLOSE


@pytest.mark.parametrize("with_deploy", [False, True])
def test_a_folder_of_other_things_is_left_alone(task, tmp_path, with_deploy):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work", encoding="utf-8")
    if with_deploy:
        (out / "deploy.yaml").write_text("Deploy: {}", encoding="utf-8")
    before = contents(out)
    with pytest.raises(ValueError, match=r"holds thesis\.tex, which is no part of an export"):
        export_model(task, out, [1, 3, 32, 64], say=quiet)
    assert contents(out) == before


def test_a_file_is_no_folder(task, tmp_path):
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(ValueError, match="is a file"):
        export_model(task, tmp_path / "out", [1, 3, 32, 64], say=quiet)
    assert (tmp_path / "out").read_text(encoding="utf-8") == "a file"


# --- arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "parsed"),
    [
        (None, [None, 3, None, None]),
        ([1, 3, 32, 64], [1, 3, 32, 64]),
        ([-1, 3, -1, -1], [None, 3, None, None]),
        ([-1, 1, 64, 64], [None, 1, 64, 64]),
    ],
)
def test_input_shapes(shape, parsed):
    assert parse_input_shape(shape) == parsed


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([1, 3, 31, 64], "H must be at least 32 pixels, got 31"),
        ([1, 3, 64, 31], "W must be at least 32 pixels, got 31"),
        ([1, 3, 64, -1], "H and W must both be fixed or both be -1"),
        ([1, -1, 64, 64], "the number of channels must be given"),
        ([0, 3, 64, 64], r"at least 1, or -1, got \[0, 3, 64, 64\]"),
        ([1, 3, -2, -2], r"at least 1, or -1"),
        ([3, 64, 64], r"expected N C H W, got \[3, 64, 64\]"),
    ],
)
def test_input_shapes_that_cannot_be(shape, message):
    with pytest.raises(ValueError, match=message):
        parse_input_shape(shape)


def test_channels_that_the_model_does_not_take(task, tmp_path):
    with pytest.raises(ValueError, match="C must be 3, the model's channels, got 4"):
        export_model(task, tmp_path / "out", [1, 4, 64, 64], say=quiet)
    assert os.listdir(tmp_path) == []


def test_an_unknown_output(task, tmp_path):
    with pytest.raises(ValueError, match="expected one of argmax, softmax, none, got 'sigmoid'"):
        export_model(task, tmp_path / "out", None, "sigmoid", say=quiet)
