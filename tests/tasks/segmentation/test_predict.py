"""Pictures of predictions, and what images they are made of."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from paddle_vheat.data.image_file import read_bgr
from paddle_vheat.deploy.writing import list_images, write_predictions
from paddle_vheat.errors import UserError
from paddle_vheat.tasks.segmentation.cityscapes import CITYSCAPES_PALETTE as PALETTE
from tests.conftest import paddle
from tests.engine import tiny
from tests.tasks.segmentation.test_evaluate import normalised


def predict_folder(task, images, out: Path) -> list[Path]:
    return write_predictions(images, out, lambda path: task.predict(task.model, str(path)))


@pytest.fixture(scope="module")
def task(cityscapes):
    task = tiny.make_task(tiny.cityscapes_config(cityscapes))
    tiny.lively(task.model).eval()
    return task


@pytest.fixture
def images(tmp_path) -> Path:
    """Nested folders of images of several sizes and kinds."""
    root = tmp_path / "images"
    (root / "a" / "b").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("top.png", (40, 64)), ("a/one.JPG", (33, 47)), ("a/b/two.bmp", (64, 32))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(root / name)
    Image.fromarray(rng.integers(0, 256, (36, 50), np.uint8)).save(root / "grey.png")
    (root / "notes.txt").write_text("no image", encoding="utf-8")
    return root


# --- pictures ---------------------------------------------------------------------------------------


def test_pictures(task, images, tmp_path):
    out = tmp_path / "out"
    predict_folder(task, list_images(images), out)
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    names = ["a/b/two.png", "a/one.png", "grey.png", "top.png"]
    assert found == [f"{kind}/{name}" for kind in ("added_prediction", "pseudo_color_prediction") for name in names]
    seen = set()
    for path, relative in list_images(images):
        name = relative.with_suffix(".png")
        with paddle.no_grad():
            expected = task.model(paddle.to_tensor(decoded(path)))[0].numpy()[0].argmax(0)
        pseudo = Image.open(out / "pseudo_color_prediction" / name)
        added = Image.open(out / "added_prediction" / name)
        assert (pseudo.mode, added.mode) == ("P", "RGB")
        assert pseudo.size == added.size == Image.open(path).size
        np.testing.assert_array_equal(np.asarray(pseudo), expected)  # the pixels are the class ids
        colours = np.array(PALETTE)[expected]
        np.testing.assert_array_equal(np.asarray(pseudo.convert("RGB")), colours)
        image = np.asarray(Image.open(path).convert("RGB")).astype(float)
        if path.suffix != ".JPG":  # two decoders of JPEG may differ by a level or two
            assert np.abs(np.asarray(added) - (0.6 * image + 0.4 * colours)).max() <= 0.5 + 1e-3
        seen.update(np.unique(expected))
    assert len(seen) > 2


def decoded(path: Path) -> np.ndarray:
    """The model's input; JPEG by way of OpenCV, whose decoder may differ from Pillow's."""
    if path.suffix != ".JPG":
        return normalised(path)
    image = read_bgr(path)[..., ::-1].astype(np.float32) / 255
    image = (image - np.float32(tiny.NORMALIZE["mean"])) / np.float32(tiny.NORMALIZE["std"])
    return image.transpose(2, 0, 1)[None]


def test_options_reach_the_prediction(task, images):
    whole = task.predict(task.model, images / "top.png").value
    flags = SimpleNamespace(is_slide=True, crop_size=[32, 32], stride=[16, 16])
    sliding = tiny.TinyTask(task.config, flags=flags)
    windows = sliding.predict(task.model, images / "top.png").value
    assert whole.shape == windows.shape == (40, 64)
    assert not np.array_equal(whole, windows)


def test_an_image_is_resized_and_its_prediction_resized_back(cityscapes, images):
    config = tiny.cityscapes_config(cityscapes)
    config["val_dataset"]["transforms"] = [{"type": "Resize", "target_size": [96, 64]}, tiny.NORMALIZE]
    task = tiny.make_task(config)
    tiny.lively(task.model).eval()
    assert task.predict(task.model, images / "top.png").value.shape == (40, 64)


def test_an_image_that_cannot_be_decoded(task, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    with pytest.raises(ValueError, match=r"broken\.png: it cannot be decoded"):
        predict_folder(task, list_images(tmp_path), tmp_path / "out")


def test_an_image_that_is_too_small_is_named(task, tmp_path):
    Image.new("RGB", (50, 20)).save(tmp_path / "flat.png")
    with pytest.raises(ValueError, match=r"flat\.png: .*at least 32 pixels a side, got 20 x 50"):
        predict_folder(task, list_images(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failed_write_leaves_no_half_picture(task, images, tmp_path, monkeypatch):
    def fail(self, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        predict_folder(task, list_images(images), tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_triptych(task):
    _, picture = task.preview(task.model, 2)
    assert picture.dtype == np.uint8
    height, width = tiny.SCENE_SIZE
    assert picture.shape == (height, 3 * width, 3)
    image_path, label_path = task.val_dataset.file_list[1]
    np.testing.assert_array_equal(picture[:, :width], np.asarray(Image.open(image_path)))
    label = np.asarray(Image.open(label_path)).astype(int)
    truth = np.where((label < 19)[..., None], np.array(PALETTE)[np.minimum(label, 18)], 0)
    np.testing.assert_array_equal(picture[:, width : 2 * width], truth)
    classes = task.predict(task.model, image_path).value
    guess = np.where((label < 19)[..., None], np.array(PALETTE)[classes], 0)
    np.testing.assert_array_equal(picture[:, 2 * width :], guess)


def test_triptych_of_ade20k_counts_from_one(ade20k):
    task = tiny.make_task(tiny.ade20k_config(ade20k))
    (picture,) = task.preview(task.model, 1)
    label = np.asarray(Image.open(task.val_dataset.file_list[0][1])).astype(int)
    width = label.shape[1]
    truth = np.where((label > 0)[..., None], task.palette[np.maximum(label - 1, 0)], 0)
    np.testing.assert_array_equal(picture[:, width : 2 * width], truth)
    assert (label == 0).any()
    assert task.model.training  # as it was


def test_preview_keeps_the_mode(task):
    task.model.train()
    assert [picture.shape for picture in task.preview(task.model, count=2)] == [(64, 384, 3)] * 2
    assert len(task.preview(task.model, count=99)) == tiny.VAL_SCENES
    assert task.model.training
    task.model.eval()


def test_a_broken_image_does_not_stop_the_others(cityscapes, tmp_path):
    task = tiny.make_task(tiny.cityscapes_config(cityscapes))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((64, 128, 3), np.uint8)).save(folder / "b.png")
    with pytest.raises(ValueError, match=r"(?s)1 of 2 images were predicted.*a\.png: it cannot be decoded"):
        predict_folder(task, list_images(folder), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out" / "added_prediction").iterdir()] == ["b.png"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"is_slide": True}, "need crop_size and stride"),
        ({"is_slide": True, "crop_size": [32, 32], "stride": [33, 32]}, "larger than the window"),
        (
            {"is_slide": True, "crop_size": [32, 32], "stride": [0, 32]},
            "'stride' must be a list of 2 integers of at least 1",
        ),
        ({"aug_eval": True, "scales": [1.0, 0.0]}, "'scales' must be a list of numbers of above 0"),
        ({"aug_eval": True, "scales": [float("nan")]}, "'scales' must be a list of numbers of above 0"),
        ({"scales": [0.5]}, "for --aug_eval, which is not given"),
    ],
)
def test_options_are_checked_before_anything_is_run(cityscapes, flags, message):
    names = ("aug_eval", "scales", "flip_horizontal", "flip_vertical", "is_slide", "crop_size", "stride")
    given = SimpleNamespace(**{**dict.fromkeys(names), **flags})
    with pytest.raises(UserError, match=message):
        tiny.TinyTask(tiny.cityscapes_config(cityscapes), flags=given)
