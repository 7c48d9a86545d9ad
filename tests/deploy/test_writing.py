"""Predicting files: what images there are, the pictures, lines and JSON that are written, and what fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddle_vheat.data.image_file import read_bgr
from paddle_vheat.deploy import Predictor
from paddle_vheat.deploy.writing import list_images, picture_names, write_picture, write_predictions
from paddle_vheat.errors import DataError, UserError
from paddle_vheat.tasks.classification.visualize import ClassificationPrediction
from paddle_vheat.tasks.segmentation.visualize import SegmentationPrediction
from tests.conftest import needs_onnx
from tests.export.networks import CLASSES, PALETTE, classes_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def images(tmp_path) -> Path:
    """Nested folders of images of several sizes and kinds, with names that are patterns to a glob."""
    root = tmp_path / "im[a]ges*"
    (root / "a" / "[b]").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("top.png", (40, 64)), ("a/one.JPG", (33, 47)), ("a/[b]/two.bmp", (64, 32))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(root / name)
    Image.fromarray(rng.integers(0, 256, (36, 50), np.uint8)).save(root / "grey.png")
    (root / "notes.txt").write_text("no image", encoding="utf-8")
    (root / "folder.png").mkdir()
    return root


def relatives(pairs) -> list[str]:
    return [relative.as_posix() for _, relative in pairs]


# --- sources ----------------------------------------------------------------------------------------


def test_folder(images):
    pairs = list_images(images)
    assert relatives(pairs) == ["a/[b]/two.bmp", "a/one.JPG", "grey.png", "top.png"]
    assert [path for path, _ in pairs] == [images / relative for relative in relatives(pairs)]


def test_file(images):
    assert list_images(images / "a" / "one.JPG") == [(images / "a" / "one.JPG", Path("one.JPG"))]
    assert list_images(str(images / "top.png")) == [(images / "top.png", Path("top.png"))]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_list_from_another_system(images, mark):
    (images / "some.txt").write_bytes(mark + b"top.png 3\r\na/one.JPG 4\r\n")
    assert relatives(list_images(images / "some.txt")) == ["top.png", "a/one.JPG"]
    (images / "some.txt").write_bytes(b"top.png\t3\n")
    with pytest.raises(UserError, match=r"some.txt, line 1: a tab; expected ' ' between the columns"):
        list_images(images / "some.txt")


def test_list(images):
    listed = images / "some.txt"
    listed.write_text(f"a/one.JPG a/label.png\n\n{images / 'top.png'}\na/[b]/two.bmp\n", encoding="utf-8")
    pairs = list_images(listed)
    assert relatives(pairs) == ["a/one.JPG", "top.png", "a/[b]/two.bmp"]
    assert all(path.is_file() for path, _ in pairs)


def test_list_that_points_outside_its_folder(images):
    """The pictures must not be written beside --save_dir."""
    listed = images / "a" / "some.txt"
    listed.write_text("../top.png\n[b]/../one.JPG\n", encoding="utf-8")
    assert relatives(list_images(listed)) == ["top.png", "one.JPG"]


def test_sources_that_cannot_be(images, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such image, folder or list: .*absent"):
        list_images(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "list.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"no images in it \(known suffixes: \.jpg"):
        list_images(tmp_path / "empty")
    with pytest.raises(ValueError, match="no images in it"):
        list_images(tmp_path / "empty" / "list.txt")
    (images / "list.txt").write_text("top.png\nabsent.png\n", encoding="utf-8")
    message = r"list\.txt, read as a list of images, line 2: no such image: .*absent\.png"
    with pytest.raises(FileNotFoundError, match=message):
        list_images(images / "list.txt")
    (tmp_path / "x.bin").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match=r"x\.bin is neither an image nor a list"):
        list_images(tmp_path / "x.bin")


def test_names_of_pictures():
    def names(*relative: str) -> list[str]:
        return [name.as_posix() for name in picture_names([(Path("/x") / r, Path(r)) for r in relative])]

    assert names("a/one.jpg", "b/one.jpg", "two.png") == ["a/one.png", "b/one.png", "two.png"]
    assert names("one.jpg", "one.png", "two.jpg") == ["one.jpg.png", "one.png.png", "two.png"]
    with pytest.raises(ValueError, match=r"/x/one\.jpg and /x/one\.jpg would both be written as"):
        names("one.jpg", "one.jpg")


# --- results ----------------------------------------------------------------------------------------


def predict_grey(path: Path) -> SegmentationPrediction:
    """Classes by brightness."""
    return SegmentationPrediction((read_bgr(path).mean(axis=2) / 14).astype(np.int32), np.array(PALETTE, np.uint8))


def test_the_own_output_is_not_predicted_again(images):
    before = relatives(list_images(images))
    for _ in range(2):
        pairs = list_images(images, images / "a" / "out")
        assert relatives(pairs) == before
        write_predictions(pairs, images / "a" / "out", predict_grey)
    assert len(list_images(images)) == 3 * len(before)
    (images.parent / "link").symlink_to(images)
    for save_dir in (images, images.parent / "link", images / "a" / "..", images / "a"):
        with pytest.raises(ValueError, match=r"--save_dir .* has images in it.*give another"):
            list_images(images, save_dir)
    # Predicting pictures into the folder that they are of would write over them.
    pairs = list_images(images / "a" / "out" / "added_prediction", images / "a" / "out")
    with pytest.raises(ValueError, match="the picture would be written over the image"):
        write_predictions(pairs, images / "a" / "out", predict_grey)


def test_pictures(images, tmp_path):
    out = tmp_path / "o[u]t"
    written = write_predictions(list_images(images), out, predict_grey)
    assert written == [out / "pseudo_color_prediction", out / "added_prediction"]
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    names = ["a/[b]/two.png", "a/one.png", "grey.png", "top.png"]
    assert found == [f"{kind}/{name}" for kind in ("added_prediction", "pseudo_color_prediction") for name in names]
    for path, relative in list_images(images):
        expected = predict_grey(path).value
        pseudo = Image.open(out / "pseudo_color_prediction" / relative.with_suffix(".png"))
        added = Image.open(out / "added_prediction" / relative.with_suffix(".png"))
        assert (pseudo.mode, added.mode) == ("P", "RGB")
        assert pseudo.size == added.size == Image.open(path).size
        np.testing.assert_array_equal(np.asarray(pseudo), expected)  # the pixels are the class ids
        colours = np.array(PALETTE)[expected]
        np.testing.assert_array_equal(np.asarray(pseudo.convert("RGB")), colours)
        image = read_bgr(path)[..., ::-1].astype(float)
        assert np.abs(np.asarray(added) - (0.6 * image + 0.4 * colours)).max() <= 0.5 + 1e-3
        assert len(np.unique(expected)) > 2


@needs_onnx
def test_the_pictures_of_an_exported_model(segmentor, exported_onnx, files, tmp_path):
    predictor = Predictor(exported_onnx, threads=1)
    pairs = list_images(files[0].parent)
    write_predictions(pairs, tmp_path / "out", lambda path: predictor.predictions([path])[0])
    for path in files:
        picture = Image.open(tmp_path / "out" / "pseudo_color_prediction" / path.name)
        # rounding decides between equally likely classes
        assert (np.asarray(picture) != classes_of(segmentor, read_bgr(path))).mean() < 1e-3
        assert picture.getpalette()[: 3 * CLASSES] == np.ravel(PALETTE).tolist()


WITHOUT_PADDLE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("paddle", "paddleseg", "paddle2onnx", "scipy", "visualdl"):
            raise ImportError(f"{name} is not to be imported")
sys.meta_path.insert(0, Refuse())
from paddle_vheat.deploy import Predictor
from paddle_vheat.deploy.processor import find_processor
from paddle_vheat.deploy.writing import list_images, write_predictions
find_processor("classification", "x")
predictor = Predictor(sys.argv[1], "onnx")
write_predictions(list_images(sys.argv[2]), sys.argv[3], lambda path: predictor.predictions([path])[0])
"""


@needs_onnx
def test_onnx_needs_no_paddle(exported_onnx, files, tmp_path):
    command = [sys.executable, "-c", WITHOUT_PADDLE, exported_onnx, files[0], tmp_path / "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2


def test_lines_and_json(images, tmp_path, capsys):
    scores = np.array([0.1, 0.625, 0.05, 0.2, 0.02, 0.005])

    def predict(path):
        return ClassificationPrediction.of(scores, ["cat", "dog", "cow", "ant", "bee", "fox"])

    written = write_predictions(list_images(images), tmp_path / "out", predict)
    assert written == [tmp_path / "out" / "predictions.json"]
    assert os.listdir(tmp_path / "out") == ["predictions.json"]
    assert (
        capsys.readouterr().out.splitlines()[0] == "a/[b]/two.bmp: dog 62.5%, ant 20.0%, cat 10.0%, cow 5.0%, bee 2.0%"
    )
    found = json.loads(written[0].read_text(encoding="utf-8"))
    assert list(found) == ["a/[b]/two.bmp", "a/one.JPG", "grey.png", "top.png"]
    assert [one["class"] for one in found["grey.png"]] == [1, 3, 0, 2, 4]
    assert found["grey.png"][0] == {"class": 1, "name": "dog", "score": 0.625}
    nameless = ClassificationPrediction.of(scores, None)
    assert nameless.value[0] == {"class": 1, "name": "1", "score": 0.625}
    assert ClassificationPrediction([{"class": 2, "name": "cow", "score": None}]).line() == "cow"


def test_a_broken_image_does_not_stop_the_others(images, tmp_path):
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")

    def predict(path):
        if path.name == "top.png":
            raise ValueError("the model needs at least 99 pixels a side")
        return predict_grey(path)

    message = (
        r"(?s)^3 of 5 images were predicted into .*out; these failed:\n"
        r"  cannot read the image .*broken\.png: it cannot be decoded.*\n  .*top\.png: the model needs at least 99"
    )
    with pytest.raises(DataError, match=message):
        write_predictions(list_images(images), tmp_path / "out", predict)
    assert sorted(path.name for path in (tmp_path / "out" / "added_prediction").rglob("*.png")) == [
        "grey.png", "one.png", "two.png",
    ]  # fmt: skip


def test_nothing_is_written_where_all_fail(images, tmp_path):
    def predict(path):
        raise ValueError("no")

    with pytest.raises(DataError, match="0 of 4 images"):
        write_predictions(list_images(images), tmp_path / "out", predict)
    assert not (tmp_path / "out").exists()


def test_a_failed_write_leaves_no_half_picture(images, tmp_path, monkeypatch):
    def fail(self, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*pseudo_color_prediction/a/\[b\]/two\.png'"):
        write_predictions(list_images(images), tmp_path / "out", predict_grey)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_picture(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    write_picture(tmp_path / "a" / "x.png", colours[:, ::-1])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / "x.png")), colours[:, ::-1])
