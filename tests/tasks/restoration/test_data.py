"""Folders of images and what is made of them; mistakes name the file."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from paddle_vheat.errors import DataError, MissingFileError, UserError
from paddle_vheat.tasks.restoration import degrade
from paddle_vheat.tasks.restoration.config import DegradationOptions
from paddle_vheat.tasks.restoration.data import RestorationData, as_channels, check_picture, to_image, to_planes
from paddle_vheat.tasks.restoration.metrics import luma
from tests.conftest import golden
from tests.tasks.restoration.small import make_task, picture

NOISE, JPEG = DegradationOptions("noise", sigma=25), DegradationOptions("jpeg", quality=10)


def data(folder, how=NOISE, channels=1, **options):
    return RestorationData([str(folder)], "train.folders", how, channels, **options)


def test_images_of_folders_in_order_whatever_is_beside_them(gray, tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("z.PNG", "b/a.jpeg", "a.bmp"):
        Image.fromarray(picture(20, 20, 0)).save(tmp_path / name)
    (tmp_path / "list.txt").write_text("no image")
    found = RestorationData([str(tmp_path), str(gray)], "train.folders", NOISE, 1)
    assert [name for _, name in found.images] == ["a.bmp", "b/a.jpeg", "z.PNG", "0.png", "1.png", "2.png"]
    assert found.files(4) == [str(gray / "1.png")]


@pytest.mark.parametrize("channels", [1, 3])
def test_scored_samples_are_the_published_degradations(gray, colour, channels):
    folder = gray if channels == 1 else colour
    image = cv2.imread(str(folder / "1.png"), cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE)
    clean = image.astype(np.float32) / np.float32(255)
    np.random.seed(0)
    noisy = (clean + np.random.normal(0, 25 / 255, image.shape)).astype(np.float32)  # drawn on BGR
    jpeg = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 10])[1], cv2.IMREAD_UNCHANGED)
    for how, expected in ((NOISE, noisy), (JPEG, jpeg.astype(np.float32) / np.float32(255))):
        sample = data(folder, how, channels)[1]
        planes = expected[None] if channels == 1 else expected.transpose(2, 0, 1)[::-1]  # RGB
        assert sample["input"].dtype == np.float32
        assert np.array_equal(sample["input"], planes)
        assert np.array_equal(sample["meta"]["target"], image)
        assert (sample["meta"]["name"], sample["meta"]["index"]) == ("1.png", 1)


@pytest.mark.parametrize("how", [NOISE, JPEG])
@pytest.mark.parametrize("cache", [False, True])
def test_training_samples_are_drawn_from_the_global_state(colour, how, cache):
    found = data(colour, how, 3, crop=16, cache=cache)
    for _ in range(2):
        np.random.seed(5)
        sample = found[2]
        np.random.seed(5)
        image = cv2.imread(str(colour / "2.png"))
        pair = degrade.noise_pair(image, 25, 16) if how is NOISE else degrade.jpeg_pair(image, 10, 16, gray=False)
        for name, expected in zip(("input", "target"), pair):
            assert sample[name].shape == (3, 16, 16)
            assert np.array_equal(sample[name], expected.transpose(2, 0, 1)[::-1])
    assert len(found._kept) == cache


def test_how_colours_become_gray(colour):
    image = cv2.imread(str(colour / "0.png"))
    for to_gray, expected in (
        ("luma", luma(image)),
        ("opencv", cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)),
        ("either", image),
    ):
        assert np.array_equal(data(colour, to_gray=to_gray).read(0), expected)
    equal = np.repeat(picture(9, 9, 0)[..., None], 3, axis=2)
    assert np.array_equal(as_channels(equal, 1, None, "x"), equal[..., 0])  # of three equal channels
    assert np.array_equal(as_channels(equal[..., 0], 3, None, "x"), equal)
    assert data(colour, JPEG, to_gray="either", crop=16)[0]["input"].shape == (1, 16, 16)


def test_the_gray_of_the_scores_is_the_published_one():
    reference = golden("restoration_metrics")
    assert np.array_equal(as_channels(reference["ycbcr.bgr"], 1, "luma", "x"), reference["ycbcr.y_uint8"])


def test_planes_and_images():
    image = picture(5, 7, 0, colour=True)
    assert np.array_equal(to_image(to_planes(image)), image)
    assert np.array_equal(to_planes(image)[0], image[..., 2])
    assert np.array_equal(to_image(to_planes(image[..., 0])), image[..., 0])


def test_mistakes_name_the_file(gray, colour, tmp_path):
    with pytest.raises(DataError, match=r"colour.0\.png: a colour image, and the model is gray .*'to_gray'"):
        data(colour).check(0)
    with pytest.raises(DataError, match=r"1\.png: the image is 44 x 36 pixels; a crop of 37 \('train.crop'\) needs at"):
        data(gray, crop=37, smallest=37).check(1)
    data(gray, crop=36, smallest=36).check(1)
    (tmp_path / "a.png").write_bytes((gray / "0.png").read_bytes()[:200])
    with pytest.raises(DataError, match=r"cannot read the image .*a\.png: it cannot be decoded"):
        data(tmp_path).check(0)
    with pytest.raises(MissingFileError, match=r"'train.folders.0' is '/no/such'.*--opts train.folders.0=FOLDER"):
        data("/no/such")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"'train.folders.0' is '.*empty', a folder without images \(.jpg"):
        data(tmp_path / "empty")


@pytest.mark.parametrize(("how", "smallest"), [("noise", 16), ("jpeg", 24)])
def test_the_task_asks_for_images_as_large_as_the_crop(gray, how, smallest):
    """JPEG's crop is cut out of one that is larger by 8; scores need 11 and 16 pixels."""
    degradation = {"type": how, **({"sigma": 5} if how == "noise" else {"quality": 5})}
    task = make_task(gray, degradation=degradation)
    assert task.dataset("train").smallest == smallest
    assert task.dataset("val").smallest == {"noise": 11, "jpeg": 16}[how]
    other = make_task(gray, degradation=degradation, train__crop=20)
    # A larger crop is another rule, so that an earlier check is not remembered for it.
    assert task.dataset("train").rules != other.dataset("train").rules


@pytest.mark.parametrize("image", [np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4), np.float32), "x", np.zeros((0, 4))])
def test_pictures_as_arrays(image):
    with pytest.raises(UserError, match="the image: expected a picture of uint8"):
        check_picture(image, "the image")
    assert check_picture(np.zeros((4, 3, 1), np.uint8), "x").shape == (4, 3)


def test_no_paddle_is_needed():
    code = "import sys, paddle_vheat.tasks.restoration.data, paddle_vheat.tasks.restoration.deploy"
    code += "; sys.exit('paddle' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
