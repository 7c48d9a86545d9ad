"""Uploads, their limits, and predictions as the page gets them."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddle_vheat.app import session as sessions
from paddle_vheat.app.pictures import COLD, WARM, data_url, ramp, veil
from paddle_vheat.app.session import Session, check_upload, show
from paddle_vheat.errors import UserError
from paddle_vheat.tasks.classification.visualize import ClassificationPrediction
from paddle_vheat.tasks.restoration.visualize import RestorationPrediction
from paddle_vheat.tasks.segmentation.visualize import SegmentationPrediction


def png(height=6, width=8):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def decoded(url):
    kind, _, text = url.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def refuse(path):
    raise AssertionError("the model must not be asked")


def test_a_picture_survives_the_way_to_the_page():
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    assert (decoded(data_url(array)) == array).all()
    assert (decoded(data_url(array[..., :3][:, ::-1])) == array[..., :3][:, ::-1]).all()


def test_heat_is_opaque_where_it_peaks_and_cold_below_zero():
    shown = veil(np.array([[4.0, 0.4, 0.004, 0.0, -0.04]]))
    assert shown[0, :, 3].tolist() == [255, 170, 0, 0, 85]  # a third for each power of ten
    assert shown[0, :, :3].tolist() == [list(WARM)] * 4 + [list(COLD)]
    assert (veil(np.zeros((2, 2)))[..., 3] == 0).all()


def test_the_ramp_runs_from_dark_to_bright():
    colours = ramp(np.array([[0.0, 1.0, 2.0, np.nan]]), 2.0)[0].astype(int)
    assert colours[:3].sum(axis=1).tolist() == sorted(colours[:3].sum(axis=1))
    assert colours[3].tolist() == [128, 128, 128]
    assert (ramp(np.zeros((1, 2)), 0.0) == colours[0]).all()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "the picture cannot be read: the file is empty"),
        (b"no picture", "the picture cannot be read: the file is no image that Pillow knows, or the beginning of one"),
        (png(60, 50), "it has 50 x 60 = 3000 pixels, and at most 2999 are taken (--max_pixels)"),
    ],
    ids=["empty", "no image", "pixels"],
)
def test_what_is_not_taken_is_said_and_never_reaches_the_model(data, text):
    with pytest.raises(UserError) as error:
        Session("m", [], refuse, max_pixels=2999).predict(data)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_the_limit_counts_what_the_header_claims():
    data = bytearray(png())
    data[16:24] = (12000).to_bytes(4, "big") * 2  # a PNG's width and height
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(UserError, match="the image is too large: its header says 12000 x 12000"):
        check_upload(bytes(data), 1 << 27)


@pytest.mark.parametrize("limit", [0, (1 << 27) + 1])
def test_limits_that_cannot_be_are_refused(limit):
    with pytest.raises(UserError, match=f"--max_pixels {limit}: expected 1 to 134217728"):
        Session("m", [], refuse, max_pixels=limit)


def test_the_file_is_there_for_the_model_alone_and_gone_afterwards(tmp_path):
    seen = []

    def predict(path):
        seen.append(path)
        assert Path(path).read_bytes() == png()
        assert Path(path).stat().st_mode & 0o077 == 0 or Path(path).parent.stat().st_mode & 0o077 == 0
        if len(seen) == 2:
            raise ValueError(f"cannot read the image {path}: truncated")
        return ClassificationPrediction([{"class": 1, "name": "cat", "score": 0.5}])

    session = Session("m", [], predict, folder=str(tmp_path))
    assert session.predict(png())["classes"] == [{"class": 1, "name": "cat", "score": 0.5}]
    with pytest.raises(UserError, match=r"^cannot read the image the picture: truncated$"):
        session.predict(png())
    assert len(seen) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_segmentation_has_pictures_and_a_legend(tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(png(2, 4))
    classes = np.array([[0, 0, 0, 2], [0, 0, 2, 2]], np.int32)
    palette = np.array([(1, 2, 3), (4, 5, 6), (7, 8, 9)], np.uint8)
    found = show(SegmentationPrediction(classes, palette, ["road", "car", "sky"]), str(path))
    assert found["legend"] == [
        {"name": "road", "colour": [1, 2, 3], "share": 0.625},
        {"name": "sky", "colour": [7, 8, 9], "share": 0.375},
    ]
    assert [one["caption"] for one in found["pictures"]] == ["classes over the picture", "classes"]
    assert (decoded(found["pictures"][1]["picture"]) == classes).all()
    assert [one["name"] for one in show(SegmentationPrediction(classes, palette), str(path))["legend"]] == ["0", "2"]


def test_a_restored_picture_comes_first():
    picture = np.full((4, 5), 100, np.uint8)
    found = show(RestorationPrediction(picture, picture), "")
    assert (decoded(found["pictures"][0]["picture"]) == 100).all()
    assert decoded(found["pictures"][1]["picture"]).shape == (4, 15, 3)
    assert (found["text"], found["classes"], found["legend"]) == ("", [], [])


def test_what_another_task_draws_is_shown_under_its_own_name():
    class Other:
        value = 1

        def draw(self, image):
            return {"depth": np.zeros((2, 2, 3), np.uint8)}

        def line(self):
            return "2 m"

    found = show(Other(), "")
    assert (found["text"], [one["caption"] for one in found["pictures"]]) == ("2 m", ["depth"])


def test_the_description_is_json():
    text = json.dumps(Session("demo", ["segmentation"], refuse, why_no_heat="none").describe())
    assert json.loads(text) == {
        "title": "demo",
        "facts": ["segmentation"],
        "max_bytes": sessions.MAX_BYTES,
        "heat": None,
        "why_no_heat": "none",
    }
