"""Exports of restoration: verified, of any size, and predicting as the checkpoint does, on uint8 pictures."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from paddle_vheat import cli
from paddle_vheat._paddle import PADDLE_2
from paddle_vheat.deploy import Predictor
from paddle_vheat.engine.evaluate import evaluate, evaluate_exported
from paddle_vheat.errors import ConfigError, UserError
from paddle_vheat.tasks.restoration.task import restore
from paddle_vheat.weights.loading import save_weights
from tests.conftest import needs_onnx
from tests.engine import tiny
from tests.tasks.restoration.small import config, lively, make_task, picture, write_pictures

FORMAT = "paddle" if PADDLE_2 else "both"
SWIN = {"model": {"name": "swin_ir", "width": 8, "heads": 2, "window": 4}, "model__depths": [2]}


def export(folder, pictures, *options, model_format="paddle", **changes):
    """The task, a model, and its export."""
    folder.mkdir()
    changes.setdefault("model__depths", [1])
    task = make_task(pictures, **changes)
    model = lively(task.build_model())
    model.eval()
    save_weights(model, folder / "model.pdparams")
    path = tiny.write_config(folder / "small.yml", config(pictures, **changes))
    words = ["--config", path, "--model_path", folder / "model.pdparams", "--save_dir", folder / "out"]
    assert cli.export([*map(str, words), "--format", model_format, "--device", "cpu", *options]) == 0
    return task, model, folder / "out"


@pytest.fixture(scope="module")
def dynamic(gray, tmp_path_factory):
    return export(tmp_path_factory.mktemp("export") / "gray", gray, model_format=FORMAT, model__depths=[1, 1])


def expected(task, model, image, tile=None, overlap=0):
    planes = image[None, None] if image.ndim == 2 else image[..., ::-1].transpose(2, 0, 1)[None]
    values = planes.astype(np.float32) / np.float32(255)
    after = restore(model, values, tile, overlap)[0] * 255
    after = after.clip(0, 255).round().astype(np.uint8)
    return after[0] if image.ndim == 2 else after[::-1].transpose(1, 2, 0)


def close(a, b):
    """Values next to a rounding edge may go the other way."""
    assert (a.shape, a.dtype) == (b.shape, np.uint8)
    return np.abs(a.astype(int) - b).max() <= 1 and (a != b).mean() < 1e-2


@pytest.mark.parametrize("runtime", ["paddle", pytest.param("onnx", marks=needs_onnx)])
def test_pictures_of_any_size(dynamic, gray, runtime):
    task, model, folder = dynamic
    predictor = Predictor(folder, runtime, threads=1)
    for size in ((40, 52), (8, 8), (61, 33)):
        image = picture(*size, seed=7)
        assert close(predictor.predict(image), expected(task, model, image))
        assert close(predictor.predict(image[..., None]), expected(task, model, image))
    assert close(predictor.predict(str(gray / "1.png")), task.predict(model, str(gray / "1.png")).value)
    first, second = picture(20, 24, 1), picture(20, 24, 2)
    for one, image in zip(predictor.predict([first, second]), (first, second)):
        assert close(one, expected(task, model, image))


def test_the_score_of_an_export_is_the_checkpoints(dynamic):
    task, model, folder = dynamic
    ours, theirs = evaluate(task, model), evaluate_exported(task, Predictor(folder, "paddle", threads=1))
    assert ours.samples == theirs.samples > 0
    assert theirs.values["PSNR"] == pytest.approx(
        ours.values["PSNR"], abs=0.01
    )  # pixels may be rounded to another step
    assert theirs.report["means"]["input"] == ours.report["means"]["input"]


def test_what_is_no_picture_for_it_is_reported(dynamic, colour):
    predictor = Predictor(dynamic[2], "paddle", threads=1)
    with pytest.raises(UserError, match="at least 8 pixels a side, got 7 x 20"):
        predictor.predict(picture(7, 20, 0))
    with pytest.raises(UserError, match=r"0\.png: a colour image, and the model is gray"):
        predictor.predict(str(colour / "0.png"))
    with pytest.raises(UserError, match="expected a picture of uint8"):
        predictor.predict(picture(20, 20, 0) / 255)


@needs_onnx
def test_onnx_needs_no_paddle(dynamic, gray, tmp_path):
    words = ["--exported", dynamic[2], "--runtime", "onnx", "--image_path", gray, "--save_dir", tmp_path]
    code = "import sys\nfrom paddle_vheat import cli\nassert cli.predict(sys.argv[1:]) == 0\n"
    code += "sys.exit('paddle' in sys.modules)"
    command = [sys.executable, "-c", code, *map(str, words), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, env=tiny.environment())
    assert done.returncode == 0, done.stderr
    assert {path.parent.name for path in tmp_path.rglob("*.png")} == {"restored", "compared"}


@pytest.mark.parametrize("changes", [{}, SWIN], ids=["vheat", "swin"])
def test_an_export_of_a_fixed_size_restores_larger_and_smaller_pictures(gray, tmp_path, changes):
    """In tiles of that size, and continued to it by mirroring."""
    task, model, folder = export(tmp_path / "fixed", gray, "--input_shape", "2", "1", "24", "32", **changes)
    predictor = Predictor(folder, "paddle", threads=1)
    model.multiple = 1  # the export's windows fit already, so that nothing is to be continued
    image = picture(50, 61, 3)
    assert close(predictor.predict(image), expected(task, model, image, (24, 32), 16))
    image = picture(13, 40, 4)
    mirrored = np.concatenate([image, image[::-1]])[:24]
    assert close(predictor.predict(image), expected(task, model, mirrored, (24, 32), 16)[:13])


def test_colours_and_tiles(colour, tmp_path):
    tile = ["--tile", "24", "--overlap", "8"]
    task, model, folder = export(tmp_path / "colour", colour, *tile, model__in_channels=3)
    image = picture(40, 33, 5, colour=True)
    found = Predictor(folder, "paddle", threads=1).predict(image)
    assert close(found, expected(task, model, image, (24, 24), 8))
    assert not close(found, expected(task, model, image))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 3}, "'Deploy.options.channels' is 3, and 'Deploy.input_shape' has 1"),
        ({"channels": 1, "tile": 8, "overlap": 9}, "'Deploy.options.tile': tiles of 8 pixels with an overlap of 9"),
        ({"channels": 1, "til": 8}, "unknown key 'Deploy.options.til'; did you mean 'tile'"),
    ],
)
def test_a_spoilt_description_is_reported(dynamic, tmp_path, options, message):
    for path in dynamic[2].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    deploy = yaml.safe_load((tmp_path / "deploy.yaml").read_text())
    deploy["Deploy"]["options"] = options
    (tmp_path / "deploy.yaml").write_text(yaml.safe_dump(deploy))
    with pytest.raises(ConfigError, match=message):
        Predictor(tmp_path)


def test_a_prediction_in_colour(tmp_path):
    folder = write_pictures(tmp_path / "in", colour=True)
    task = make_task(folder, model__in_channels=3)
    model = lively(task.build_model())
    prediction = task.predict(model, str(folder / "0.png"))
    drawn = prediction.draw(str(folder / "0.png"))
    before = np.asarray(Image.open(folder / "0.png"))
    assert np.array_equal(drawn["compared"][:, :52], before)
    assert np.array_equal(drawn["restored"], prediction.value[..., ::-1])
    assert np.array_equal(drawn["compared"][:, 52:104], drawn["restored"])
    assert (prediction.to_json(), prediction.line()) == (None, "")
