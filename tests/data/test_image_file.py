"""Image files of every kind, sound and damaged."""

from __future__ import annotations

import io
import os
import signal
import socket
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from paddle_vheat.data import image_file
from paddle_vheat.data.image_file import (
    MAX_PIXELS,
    absent_files,
    check_header,
    has_orientation,
    open_image,
    read_bgr,
    read_label,
)
from paddle_vheat.errors import DataError


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp", "ppm"])
def test_pixels_are_opencvs_and_a_truncated_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(picture()).save(path)
    np.testing.assert_array_equal(read_bgr(path), cv2.imread(str(path)))
    grey = read_bgr(path, cv2.IMREAD_GRAYSCALE)
    assert grey.shape == (48, 64)
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ValueError, match=rf"cannot read the image .*x\.{suffix}: it cannot be decoded"):
            read_bgr(path)


def test_opencv_alone_would_fill_a_truncated_jpeg(tmp_path):
    """What the second look at a JPEG is for; no longer needed once this fails."""
    path = tmp_path / "x.jpg"
    Image.fromarray(picture()).save(path)
    path.write_bytes(path.read_bytes()[:-300])
    assert cv2.imread(str(path)).shape == (48, 64, 3)


@pytest.fixture(params=[(48, 64), (40, 40)], ids=["oblong", "square"])
def turned(request, tmp_path):
    """A function that writes a picture which asks for an orientation: (suffix, orientation) -> (path, BGR pixels)."""

    def write(suffix, orientation):
        path, pixels, exif = tmp_path / f"x.{suffix}", picture(*request.param), Image.Exif()
        exif[274] = orientation
        Image.fromarray(pixels).save(path, exif=exif, quality=100)
        return path, pixels[..., ::-1]

    return write


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_an_orientation_is_seen_and_ignored(turned, suffix, orientation):
    """An image that OpenCV turned would not lie under its label any more, and a square one would not even show it."""
    path, pixels = turned(suffix, orientation)
    assert has_orientation(path)
    found = read_bgr(path)
    assert found.shape == pixels.shape
    # Halved colour resolution costs about 4 levels in the mean, a turn about 60.
    assert np.abs(found.astype(int) - pixels).mean() < 8
    if suffix != "webp":  # what the flag is for
        assert np.abs(cv2.imread(str(path)).ravel().astype(int) - pixels.ravel()).mean() > 30


def test_upright_files_have_no_orientation(turned, tmp_path):
    assert not has_orientation(turned("jpg", 1)[0])
    assert not has_orientation(turned("jpg", 0)[0])  # some cameras write 0, which is none
    Image.new("L", (4, 3)).save(tmp_path / "plain.png")
    assert not has_orientation(tmp_path / "plain.png")
    with pytest.raises(DataError, match=r"cannot read the image .*gone\.jpg: there is no such file"):
        has_orientation(tmp_path / "gone.jpg")


def test_a_turned_tiff_is_refused(turned):
    """Pillow and OpenCV turn it, so its label would have to be turned alike."""
    path, _ = turned("tif", 6)
    for read in (read_bgr, read_label, check_header):
        with pytest.raises(DataError, match=r"x\.tif: .* a TIFF with orientation 6; expected one stored upright"):
            read(path)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_are_refused(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    frames = [Image.fromarray(picture() // n) for n in (1, 2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    for read in (read_bgr, read_label, check_header):
        with pytest.raises(DataError, match=rf"x\.{suffix}: .* animation \({suffix.upper()}\), .*only the first frame"):
            read(path)
    frames[0].save(path)
    check_header(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no FIFOs")
def test_what_is_no_file_is_named_and_never_waited_for(tmp_path):
    def late(*_):
        raise TimeoutError("waited for a FIFO")

    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.relpath(tmp_path / "socket.png"))
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    try:
        for name, kind in {"fifo": "a FIFO", "folder": "a folder", "socket": "a socket"}.items():
            for read in (read_bgr, read_label, check_header, has_orientation):
                with pytest.raises(DataError, match=rf"{name}\.png: it is {kind}.*, not a file"):
                    read(tmp_path / f"{name}.png")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        listener.close()
    with pytest.raises(DataError, match=f"{os.devnull}: it is a device, not a file"):
        read_bgr(os.devnull)
    with pytest.raises(DataError, match="it cannot be opened"):
        read_bgr("a\0b.png")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.array([[0, 1], [2, 255]], np.uint8), np.uint8),
        (np.array([[0, 1], [2, 255]], np.uint16), np.uint8),
        (np.array([[0, 1], [2, 255]], np.int32), np.uint8),
        (np.array([[0, 1], [2, 256]], np.uint16), np.uint16),
        (np.array([[0, 1], [1, 0]], bool), np.uint8),
    ],
)
def test_labels_of_any_depth(tmp_path, stored, expected):
    path = tmp_path / "x.png"
    Image.fromarray(stored).save(path)
    label = read_label(path)
    assert label.dtype == expected
    np.testing.assert_array_equal(label, stored.astype(np.int64))


def test_labels_with_a_palette_are_its_indices(tmp_path):
    image = Image.fromarray(np.array([[0, 3], [7, 255]], np.uint8))
    image.putpalette(list(range(255, -1, -1)) * 3)
    image.save(tmp_path / "x.png")
    assert read_label(tmp_path / "x.png").tolist() == [[0, 3], [7, 255]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_labels_with_colours(tmp_path, mode):
    path = tmp_path / "x.tif"
    Image.new(mode, (4, 3)).save(path)
    with pytest.raises(DataError, match=f"the label is a picture of mode {mode}; expected one integer per pixel"):
        read_label(path)


def test_floating_point_pixels_are_refused(tmp_path):
    Image.new("F", (4, 3)).save(tmp_path / "x.tif")
    for read in (read_bgr, read_label, check_header):
        with pytest.raises(DataError, match=r"x\.tif: .*floating-point numbers \(mode F\); expected integers"):
            read(tmp_path / "x.tif")


def test_the_limit_of_pixels(tmp_path, monkeypatch):
    Image.new("L", (40, 30)).save(tmp_path / "x.png")
    monkeypatch.setattr(image_file, "MAX_PIXELS", 1200)
    check_header(tmp_path / "x.png")
    monkeypatch.setattr(image_file, "MAX_PIXELS", 1199)
    for read in (check_header, read_bgr, read_label):
        with pytest.raises(ValueError, match=r"x\.png: .*its header says 40 x 30 pixels, and at most 1199 are decoded"):
            read(tmp_path / "x.png")
    assert MAX_PIXELS < 2 * Image.MAX_IMAGE_PIXELS  # or Pillow would refuse first, with another message


def test_no_other_program_is_started(tmp_path, monkeypatch):
    """Pillow hands EPS to Ghostscript."""
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    assert Image.open(io.BytesIO(content)).format == "EPS"
    with pytest.raises(ValueError, match="no image that Pillow knows"):
        open_image(content)
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read the label .*x\.png"):
        read_label(tmp_path / "x.png")


def test_files_that_are_not_there(tmp_path):
    for read in (check_header, read_bgr, read_label):
        with pytest.raises(ValueError, match=r"cannot read the .* there is no such file"):
            read(tmp_path / "x.png")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1").touch()
    paths = [tmp_path / "a" / "1", tmp_path / "a" / "2", str(tmp_path / "b" / "1")]
    assert absent_files(paths) == [str(path) for path in paths[1:]]
    assert absent_files([Path(__file__)]) == []
