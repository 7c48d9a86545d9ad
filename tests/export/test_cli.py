"""export.py, and predict.py and val.py --exported: as from the checkpoint, without Paddle where none is needed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from paddle_vheat import cli
from paddle_vheat._paddle import PADDLE_2
from paddle_vheat.config import load_config
from paddle_vheat.errors import UserError
from paddle_vheat.tasks.classification.task import ClassificationTask
from paddle_vheat.weights.loading import save_weights
from tests.conftest import needs_onnx, paddle
from tests.engine import tiny
from tests.engine.test_cli import one_error

DIGITS = str(tiny.REPOSITORY / "configs" / "demo_digits.yml")
SMALL = ["--opts", "Arch.embed_dim=8", "Arch.depths=[1,1,1,1]"]


@pytest.fixture(scope="module")
def project(cityscapes, tmp_path_factory) -> Path:
    """A configuration, a checkpoint, and its export in both formats, for the size of the scenes."""
    folder = tmp_path_factory.mktemp("project")
    config = tiny.cityscapes_config(cityscapes)
    tiny.write_config(folder / "tiny.yml", config)
    save_weights(tiny.lively(tiny.make_task(config).model), folder / "model.pdparams")
    return folder


@pytest.fixture(scope="module")
def exported(project) -> Path:
    options = ["--device", "cpu", "--model_path", project / "model.pdparams", "--input_shape", "-1", "3", "64", "128"]
    options += ["--save_dir", project / "out", "--format", "paddle" if PADDLE_2 else "both"]
    assert cli.export(["--config", str(project / "tiny.yml"), *map(str, options)]) == 0
    return project / "out"


def pictures(folder: Path) -> dict[str, np.ndarray]:
    return {path.relative_to(folder).as_posix(): np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))}


@needs_onnx
@pytest.mark.parametrize("runtime", ["onnx", "paddle", None])
def test_the_pictures_are_those_of_the_checkpoint(project, exported, cityscapes, tmp_path, runtime, capsys):
    images = ["--image_path", str(cityscapes / "leftImg8bit" / "val")]
    model = ["--config", str(project / "tiny.yml"), "--model_path", str(project / "model.pdparams"), "--device", "cpu"]
    assert cli.predict([*model, *images, "--save_dir", str(tmp_path / "a")]) == 0
    capsys.readouterr()
    chosen = [] if runtime is None else ["--runtime", runtime, "--threads", "1"]
    assert cli.predict(["--exported", str(exported), *images, "--save_dir", str(tmp_path / "b"), *chosen]) == 0
    said = capsys.readouterr().out
    assert ("Paddle Inference" if runtime == "paddle" else "ONNX Runtime") in said
    assert f"{tiny.VAL_SCENES} images; written: " in said
    expected, found = pictures(tmp_path / "a"), pictures(tmp_path / "b")
    assert list(found) == list(expected)
    assert len(expected) == 2 * tiny.VAL_SCENES
    for name, picture in expected.items():
        assert (found[name] != picture).mean() < 1e-3, name  # rounding decides between equally likely classes


WITHOUT_PADDLE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("paddle", "paddleseg", "paddle2onnx", "scipy", "visualdl"):
            raise ImportError(f"{name} is not to be imported")
sys.meta_path.insert(0, Refuse())
from paddle_vheat import cli
sys.exit(cli.predict(sys.argv[1:]))
"""


@needs_onnx
def test_onnx_needs_no_paddle(exported, cityscapes, tmp_path):
    image = next((cityscapes / "leftImg8bit" / "val").rglob("*.png"))
    options = ["--exported", exported, "--image_path", image, "--save_dir", tmp_path / "out", "--runtime", "onnx"]
    finished = tiny.run(["-c", WITHOUT_PADDLE, *options])
    assert finished.returncode == 0, finished.stderr
    assert f"{exported}: ONNX Runtime" in finished.stdout
    assert len(pictures(tmp_path / "out")) == 2


@needs_onnx
def test_classification(tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "in" / name)
    config = load_config(DIGITS, SMALL[1:])
    save_weights(ClassificationTask(config, DIGITS).build_model(), tmp_path / "model.pdparams")
    model = ["--config", DIGITS, "--model_path", str(tmp_path / "model.pdparams"), "--device", "cpu", *SMALL]
    shape = ["--input_shape", "1", "3", "32", "32"]
    assert cli.export([*model, "--save_dir", str(tmp_path / "out"), "--format", "onnx", *shape]) == 0
    deploy = yaml.safe_load((tmp_path / "out" / "deploy.yaml").read_text(encoding="utf-8"))["Deploy"]
    assert (deploy["task"], deploy["options"]["output_op"]) == ("classification", "softmax")
    images = ["--image_path", str(tmp_path / "in")]
    assert cli.predict([*model, *images, "--save_dir", str(tmp_path / "a")]) == 0
    assert cli.predict(["--exported", str(tmp_path / "out"), *images, "--save_dir", str(tmp_path / "b")]) == 0
    expected, found = (json.loads((tmp_path / side / "predictions.json").read_text()) for side in "ab")
    assert list(found) == list(expected) == ["a.png", "b.png"]
    for name, top in expected.items():
        assert len(top) == 5
        assert [(one["class"], one["name"]) for one in found[name]] == [(one["class"], one["name"]) for one in top]
        np.testing.assert_allclose([one["score"] for one in found[name]], [one["score"] for one in top], rtol=1e-5)


# --- val.py --exported --------------------------------------------------------------------------------


def val(tmp_path, *options):
    scores = tmp_path / "scores.json"
    assert cli.val([*map(str, options), "--json", str(scores), "--device", "cpu"]) == 0
    return json.loads(scores.read_text())


@needs_onnx
@pytest.mark.parametrize("runtime", ["onnx", "paddle"])
def test_the_scores_are_those_of_the_checkpoint(project, exported, tmp_path, capsys, runtime):
    config = "--config", project / "tiny.yml"
    expected = val(tmp_path, *config, "--model_path", project / "model.pdparams")
    found = val(tmp_path, *config, "--exported", exported, "--runtime", runtime, "--threads", 1)
    said = capsys.readouterr().out
    assert f"{exported}: {'ONNX Runtime' if runtime == 'onnx' else 'Paddle Inference'}" in said
    assert said.count(f"{found['images']} images") == 2
    assert found["exported"] == str(exported)
    for name in ("mIoU", "Acc", "Kappa", "mDice"):  # rounding decides between equally likely classes
        assert found[name] == pytest.approx(expected[name], abs=1e-3)
    assert 0 < found["Acc"] < 1


def test_the_scores_of_a_classifier(tmp_path):
    """On the digits, which are no files, and on files of the same size."""
    config = load_config(DIGITS, SMALL[1:])
    rng, ops = np.random.default_rng(0), config["DataLoader"]["Eval"]["dataset"]["transform_ops"]
    for number in range(20):
        path = tmp_path / "val" / str(number % 10) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    dataset = {"name": "ImageNetDataset", "image_root": str(tmp_path / "val")}
    config["DataLoader"]["Eval"]["dataset"] = {**dataset, "transform_ops": [{"DecodeImage": None}, *ops]}
    (tmp_path / "files.yml").write_text(yaml.safe_dump(config))
    save_weights(ClassificationTask(config, "files").build_model(), tmp_path / "model.pdparams")
    model = "--model_path", str(tmp_path / "model.pdparams")
    exporting = ["--save_dir", str(tmp_path / "out"), "--input_shape", "-1", "3", "32", "32", "--device", "cpu"]
    assert cli.export(["--config", DIGITS, *model, *exporting, *SMALL]) == 0
    for options, images in ((["--config", DIGITS, *SMALL], 360), (["--config", tmp_path / "files.yml"], 20)):
        expected, found = val(tmp_path, *options, *model), val(tmp_path, *options, "--exported", tmp_path / "out")
        assert (found["images"], found["top1"], found["top5"]) == (images, expected["top1"], expected["top5"])
        # float32 through a softmax and a logarithm
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_the_best_class_alone_cannot_be_scored(tmp_path):
    task = ClassificationTask(load_config(DIGITS, SMALL[1:]), DIGITS)
    predictor = SimpleNamespace(
        outputs=lambda images: [{"classes": np.int32(3)}], description=SimpleNamespace(path=tmp_path / "deploy.yaml")
    )
    with pytest.raises(UserError, match=r"gives the best class alone, .*export with --output_op softmax or none"):
        task.infer_exported(predictor, {"meta": [{"index": 0}]})


def test_what_cannot_be_scored(project, exported, tmp_path, capsys):
    seg, folder = ["--config", str(project / "tiny.yml")], ["--exported", str(exported)]
    takes_no = "--exported: the folder says all that is needed, and takes no"
    cases = [
        (["--config", DIGITS, *SMALL, *folder], "is an export for segmentation, and"),
        ([*seg, *folder, "--aug_eval"], f"{takes_no} --aug_eval"),
        ([*seg, *folder, "--model_path", "x"], f"{takes_no} --model_path"),
        ([*seg, "--model_path", "x", "--runtime", "onnx"], "--runtime, --threads and --precision are for --exported"),
        ([*seg, "--exported", "/no/such"], "/no/such: no such folder; give the folder that export.py wrote"),
    ]
    for options, message in cases:
        assert message in one_error(cli.val([*options, "--device", "cpu"]), capsys.readouterr().err), options


# --- mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--config is needed: the configuration that the model was trained with (or give --exported)"),
        (
            ["--config", "x.yml", "--runtime", "onnx"],
            "--runtime, --threads and --precision are for --exported, which is not given",
        ),
        (
            ["--config", "x.yml", "--precision", "int8"],
            "--threads and --precision are for --exported, which is not given",
        ),
        (
            ["--config", "x.yml", "--threads", "2"],
            "--runtime, --threads and --precision are for --exported, which is not given",
        ),
        (["--exported", "x", "--config", "x.yml"], "says all that is needed, and takes no --config"),
        (["--exported", "x", "--model_path", "m", "--opts", "a=1"], "takes no --model_path, --opts"),
        (["--exported", "x", "--aug_eval"], "takes no --aug_eval"),
        (["--exported", "x", "--is_slide", "--crop_size", "64", "64", "--stride", "32", "32"], "takes no --is_slide"),
        (["--exported", "x", "--device", "npu"], "--device npu: an exported model is run on cpu or gpu"),
        (["--exported", "/no/such"], "/no/such: no such folder; give the folder that export.py wrote"),
        (["--exported", "/", "--threads", "0"], "threads must be an integer of at least 1 and at most"),
        (["--exported", "/", "--runtime", "tvm"], "invalid choice: 'tvm'"),
        (["--exported", "/", "--save_dir", "{folder}"], "{folder} has images in it"),
    ],
)
def test_options_that_cannot_be(cityscapes, capsys, options, message):
    image = next((cityscapes / "leftImg8bit" / "val").rglob("*.png"))
    options = [option.format(folder=image.parent) for option in options]
    source = image.parent if "--save_dir" in options else image
    try:
        code = cli.predict(["--image_path", str(source), *options])
    except SystemExit as stop:
        code = stop.code
    assert message.format(folder=image.parent) in one_error(code, capsys.readouterr().err)


SLOW_EXPORT = """
import sys, time
from paddle_vheat import cli
start = cli._start_paddle
def started(args):
    start(args)
    from paddle_vheat.export import parity
    parity.load_runtime = lambda *args: print("checking", flush=True) or time.sleep(60)
cli._start_paddle = started
sys.exit(cli.export(sys.argv[1:]))
"""


def test_sigterm_leaves_nothing(project, tmp_path):
    """Sent while the export is compared. Paddle, which is imported by the command, sets a handler of its own."""
    command = ["--config", project / "tiny.yml", "--model_path", project / "model.pdparams", "--device", "cpu"]
    command += ["--input_shape", "1", "3", "32", "64", "--save_dir", tmp_path / "out"]
    command = [sys.executable, "-c", SLOW_EXPORT, *map(str, command)]
    process = subprocess.Popen(command, env=tiny.environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "checking" not in (line := process.stdout.readline()):
        assert line, "the export ended by itself"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == cli.EXIT_SIGNAL
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format(project, capsys):
    with pytest.raises(SystemExit):
        cli.export(["--config", str(project / "tiny.yml"), "--format", "torch"])
    assert "invalid choice: 'torch'" in capsys.readouterr().err


def test_paddle_2_has_no_onnx(project, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paddle, "__version__", "2.6.2")
    model = ["--config", str(project / "tiny.yml"), "--model_path", str(project / "model.pdparams"), "--device", "cpu"]
    options = ["--input_shape", "1", "3", "64", "128", "--save_dir", str(tmp_path / "out"), "--format", "onnx"]
    message = one_error(cli.export([*model, *options]), capsys.readouterr().err)
    assert "--format onnx needs Paddle 3" in message
    assert not (tmp_path / "out").exists()
