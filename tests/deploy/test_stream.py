"""Folders and videos, predicted as they come; and what comes out of the model itself."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest

from paddle_vheat.deploy import Predictor
from tests.export.networks import noise


@pytest.fixture(scope="module")
def predictor(exported):
    return Predictor(exported, threads=1)


def test_a_folder(predictor, files):
    expected = [predictor.predict(path) for path in files]
    streamed = list(predictor.stream(files[0].parent, progress=False))
    assert [path for path, _ in streamed] == files
    predicted = predictor.predict(files[0].parent)
    assert iter(predicted) is predicted  # nothing is done before it is asked for
    for one, (_, two), three in zip(expected, streamed, predicted):
        assert np.array_equal(one, two.value)
        assert np.array_equal(one, three)


def test_a_video(predictor, tmp_path, capsys, monkeypatch):
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (128, 64))
    assert writer.isOpened()
    for i in range(3):
        writer.write(noise(64, 128, seed=i))
    writer.release()
    video = cv2.VideoCapture(str(path))
    frames = [video.read()[1] for _ in range(3)]
    video.release()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # a bar is for terminals
    streamed = list(predictor.stream(path))
    assert [number for number, _ in streamed] == [0, 1, 2]
    assert "3/3" in capsys.readouterr().err
    for frame, (_, prediction), value in zip(frames, streamed, predictor.predict(str(path))):
        assert np.array_equal(prediction.value, predictor.predict(frame))
        assert np.array_equal(prediction.value, value)


def test_what_is_no_video(predictor, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"a\.mp4: OpenCV cannot decode a frame of it"):
        next(predictor.stream(tmp_path / "a.mp4"))
    with pytest.raises(FileNotFoundError, match="no such video"):
        next(predictor.stream(tmp_path / "b.mp4"))
    with pytest.raises(FileNotFoundError, match="no such image, folder or list"):
        next(predictor.stream(tmp_path / "b"))


def test_outputs_of_images_and_of_prepared_inputs(predictor, files):
    found = predictor.outputs(files)
    assert [output["logits"].shape for output in found] == 3 * [(19, 64, 128)]
    assert np.array_equal(found[1]["logits"].argmax(0), predictor.predict(files[1]))
    inputs = [predictor._processor.prepare(path)[0] for path in files]
    for one, two in zip(predictor.outputs(inputs, prepared=True), found):
        assert np.array_equal(one["logits"], two["logits"])
    assert predictor.outputs([]) == []
