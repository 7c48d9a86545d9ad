"""The procedural street scenes: what is in them, and how they are written."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddle_vheat.data import street_scenes

SMALL = (64, 128)


def digests(root: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pictures(root: Path) -> dict[str, str]:
    return {name: digest for name, digest in digests(root).items() if name.endswith(".png")}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small complete data set; tests must not change it."""
    root = tmp_path_factory.mktemp("scenes") / "data"
    assert street_scenes.write_dataset(root, train=6, val=4, size=SMALL, seed=3, progress=False)
    return root


@pytest.fixture(scope="module")
def sample() -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """The first scenes of the default data set, by split."""
    return {
        split: [
            street_scenes.render_scene(scene.seed, (128, 256), city=scene.city)
            for scene in street_scenes.list_scenes(Path(), split, 50, 0)
        ]
        for split in ("train", "val")
    }


def test_tables_are_those_of_cityscapes():
    assert len(street_scenes.CLASS_NAMES) == len(street_scenes.PALETTE) == 19
    assert len(set(street_scenes.CLASS_NAMES)) == len(set(street_scenes.PALETTE)) == 19
    for name, train_id, colour in (
        ("road", 0, (128, 64, 128)), ("sky", 10, (70, 130, 180)), ("rider", 12, (255, 0, 0)),
        ("train", 16, (0, 80, 100)), ("bicycle", 18, (119, 11, 32)),
    ):  # fmt: skip
        assert street_scenes.CLASS_NAMES.index(name) == train_id
        assert street_scenes.PALETTE[train_id] == colour


@pytest.mark.parametrize("size", [(64, 128), (65, 131), (96, 128), (128, 512)])
def test_render_gives_the_size_and_types(size):
    image, label = street_scenes.render_scene(5, size)
    assert image.shape == (*size, 3)
    assert label.shape == size
    assert image.dtype == label.dtype == np.uint8
    assert set(np.unique(label)) <= {*range(19), 255}
    assert image.std() > 10


def test_render_is_decided_by_the_seed():
    image, label = street_scenes.render_scene(11, SMALL)
    again, label_again = street_scenes.render_scene(11, SMALL)
    other, other_label = street_scenes.render_scene(12, SMALL)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(label, label_again)
    assert (image != other).mean() > 0.5
    assert (label != other_label).mean() > 0.1


def test_render_is_the_same_in_every_process():
    """The order of a set of names changes from process to process; nothing may depend on it."""
    code = (
        "import hashlib; from paddle_vheat.data.street_scenes import render_scene\n"
        "print([hashlib.sha256(render_scene(i)[0].tobytes()).hexdigest() for i in range(12)])"
    )
    outputs = []
    for salt in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": salt, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", code]
        outputs.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) > 12 * 64


def test_a_larger_picture_shows_the_same_scene():
    _, small = street_scenes.render_scene(4, (128, 256))
    _, large = street_scenes.render_scene(4, (256, 512))
    assert (large[::2, ::2] == small).mean() > 0.85


@pytest.mark.parametrize("size", [(63, 128), (64, 127), (0, 0), (-64, 128)])
def test_too_small_a_size_is_an_error(size):
    with pytest.raises(ValueError, match=r"too small: at least 64 x 128"):
        street_scenes.render_scene(0, size)


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_class_occurs_often_enough_to_be_learnt(sample, split):
    labels = [label for _, label in sample[split]]
    for train_id, name in enumerate(street_scenes.CLASS_NAMES):
        # Twenty pixels: something of 4 x 5 and not a stray corner.
        share = np.mean([(label == train_id).sum() >= 20 for label in labels])
        assert share >= 0.1, f"{name} is in {share:.0%} of the {split} scenes"


@pytest.mark.parametrize("split", ["train", "val"])
def test_common_classes_fill_what_they_fill_in_cityscapes(sample, split):
    labels = np.stack([label for _, label in sample[split]])
    shares = {name: (labels == i).mean() for i, name in enumerate(street_scenes.CLASS_NAMES)}
    assert 0.2 < shares["road"] < 0.45
    assert 0.1 < shares["building"] < 0.3
    assert 0.06 < shares["vegetation"] < 0.25
    assert 0.03 < shares["sky"] < 0.15
    assert 0.02 < shares["sidewalk"] < 0.12
    assert 0.03 < shares["car"] < 0.16
    assert (labels == 255).mean() < 0.06


def test_ground_is_below_and_sky_above(sample):
    labels = np.stack([label for pairs in sample.values() for _, label in pairs])
    upper, lower = labels[:, :38], labels[:, 70:]
    assert (upper == 0).sum() == 0, "the horizon is never above 38 % of the height"
    assert (lower == 10).sum() == 0, "nor below 48 %, and the camera hardly rolls"
    assert (lower == 0).mean() > 0.4


def test_labels_follow_the_picture(sample):
    """Sky is smoother than leaves, and lit differently from the road: labels fit what is painted."""
    images = np.stack([image for image, _ in sample["train"]]).astype(np.float32)
    labels = np.stack([label for _, label in sample["train"]])
    step = np.abs(np.diff(images.mean(axis=-1), axis=2))
    same = labels[:, :, 1:] == labels[:, :, :-1]
    roughness = {i: step[same & (labels[:, :, 1:] == i)].mean() for i in (8, 10)}
    assert roughness[8] > 1.5 * roughness[10]
    green = images[..., 1] - (images[..., 0] + images[..., 2]) / 2
    assert green[labels == 8].mean() > green[labels == 0].mean() + 5
    # Where the label changes, so does the colour.
    assert step[~same].mean() > 2 * step[same].mean()


def test_riders_sit_on_two_wheelers(sample):
    """Nearly every rider of some size touches a motorcycle or a bicycle."""
    touching = []
    for pairs in sample.values():
        for _, label in pairs:
            rider = np.pad(label == 12, 2)
            if rider.sum() < 60:
                continue
            near = np.zeros_like(rider)
            for dy in (-2, 0, 2):
                for dx in (-2, 0, 2):
                    near |= np.roll(rider, (dy, dx), (0, 1))
            touching.append(bool(np.isin(label, (17, 18))[near[2:-2, 2:-2]].any()))
    assert len(touching) >= 20
    assert np.mean(touching) > 0.9


def test_no_two_scenes_are_alike(sample):
    images = [image.tobytes() for pairs in sample.values() for image, _ in pairs]
    assert len(set(images)) == len(images) == 100


def test_splits_lie_in_different_cities(written):
    cities = {split: {p.name for p in (written / "leftImg8bit" / split).iterdir()} for split in ("train", "val")}
    assert len(cities["train"]) >= 4
    assert len(cities["val"]) >= 2
    assert not cities["train"] & cities["val"]


def test_layout_is_read_back_in_pairs(written):
    for split, count in (("train", 6), ("val", 4)):
        images = sorted((written / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
        labels = sorted((written / "gtFine" / split).glob("*/*_gtFine_labelTrainIds.png"))
        assert len(images) == len(labels) == count
        for image_path, label_path in zip(images, labels):
            assert image_path.name.replace("_leftImg8bit", "") == label_path.name.replace("_gtFine_labelTrainIds", "")
            assert image_path.parent.name == label_path.parent.name == image_path.name.split("_")[0]
            with Image.open(image_path) as image, Image.open(label_path) as label:
                assert (image.mode, label.mode) == ("RGB", "L")
                assert image.size == label.size == (128, 64)
                assert set(np.unique(np.asarray(label))) <= {*range(19), 255}
    meta = json.loads((written / "meta.json").read_text())
    assert meta == {
        "generator_version": street_scenes.GENERATOR_VERSION,
        "seed": 3,
        "train": 6,
        "val": 4,
        "height": 64,
        "width": 128,
    }
    assert "--seed 3" in (written / "README.txt").read_text()
    assert not list(written.rglob("*.tmp"))


def test_same_arguments_give_the_same_bytes(written, tmp_path):
    street_scenes.write_dataset(tmp_path / "again", train=6, val=4, size=SMALL, seed=3, progress=False)
    assert digests(tmp_path / "again") == digests(written)


def test_scenes_do_not_depend_on_the_counts(written, tmp_path):
    street_scenes.write_dataset(tmp_path / "few", train=2, val=1, size=SMALL, seed=3, progress=False)
    few, many = pictures(tmp_path / "few"), pictures(written)
    assert len(few) == 6
    assert few.items() <= many.items()


def test_another_seed_gives_other_scenes(written, tmp_path):
    street_scenes.write_dataset(tmp_path / "other", train=2, val=1, size=SMALL, seed=4, progress=False)
    other, known = pictures(tmp_path / "other"), pictures(written)
    assert set(other) < set(known)
    assert not any(known[name] == digest for name, digest in other.items())


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A complete data set of three scenes that a test may change."""
    root = tmp_path / "data"
    street_scenes.write_dataset(root, train=2, val=1, size=SMALL, seed=3, progress=False)
    return root


def test_complete_data_is_left_alone(dataset):
    stamps = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    assert not street_scenes.write_dataset(dataset, train=2, val=1, size=SMALL, seed=3, progress=False)
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == stamps


def test_lost_files_are_written_again(dataset):
    before = digests(dataset)
    next((dataset / "leftImg8bit" / "train").rglob("*.png")).unlink()
    next((dataset / "gtFine" / "val").rglob("*.png")).unlink()
    assert street_scenes.write_dataset(dataset, train=2, val=1, size=SMALL, seed=3, progress=False)
    assert digests(dataset) == before


def test_interrupted_writing_is_finished(dataset, tmp_path, monkeypatch):
    root, render, calls = tmp_path / "interrupted", street_scenes.render_scene, []

    def stop_at_the_third(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return render(*args, **kwargs)

    monkeypatch.setattr(street_scenes, "render_scene", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        street_scenes.write_dataset(root, train=2, val=1, size=SMALL, seed=3, progress=False)
    assert not (root / "meta.json").exists()
    with pytest.raises(ValueError, match="seed is 3 there and 9 here"):
        street_scenes.write_dataset(root, train=2, val=1, size=SMALL, seed=9, progress=False)
    assert street_scenes.write_dataset(root, train=2, val=1, size=SMALL, seed=3, progress=False)
    assert len(calls) == 4, "the two finished scenes are not drawn again"
    assert digests(root) == digests(dataset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed is 3 there and 4 here"),
        ({"train": 1}, "train is 2 there and 1 here"),
        ({"val": 2}, "val is 1 there and 2 here"),
        ({"size": (64, 130)}, "width is 128 there and 130 here"),
        ({"size": (66, 128)}, "height is 64 there and 66 here"),
    ],
)
def test_other_arguments_are_an_error_that_names_them(dataset, change, message):
    before = digests(dataset)
    arguments = {"train": 2, "val": 1, "size": SMALL, "seed": 3, "progress": False, **change}
    with pytest.raises(ValueError, match=message):
        street_scenes.write_dataset(dataset, **arguments)
    assert digests(dataset) == before


def test_another_generator_version_is_an_error(dataset, monkeypatch):
    monkeypatch.setattr(street_scenes, "GENERATOR_VERSION", street_scenes.GENERATOR_VERSION + 1)
    with pytest.raises(ValueError, match="generator_version is"):
        street_scenes.write_dataset(dataset, train=2, val=1, size=SMALL, seed=3, progress=False)


def test_overwrite_leaves_nothing_of_the_old_data(dataset, tmp_path):
    street_scenes.write_dataset(tmp_path / "fresh", train=1, val=1, size=SMALL, seed=5, progress=False)
    assert street_scenes.write_dataset(dataset, train=1, val=1, size=SMALL, seed=5, progress=False, overwrite=True)
    assert digests(dataset) == digests(tmp_path / "fresh")


def test_pictures_without_meta_are_not_taken_for_ours(dataset):
    (dataset / "meta.json").unlink()
    with pytest.raises(ValueError, match=r"no meta\.json"):
        street_scenes.write_dataset(dataset, train=2, val=1, size=SMALL, seed=3, progress=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_real_cityscapes_is_never_touched(tmp_path, overwrite):
    photograph = tmp_path / "leftImg8bit" / "train" / "aachen" / "aachen_000000_000019_leftImg8bit.png"
    photograph.parent.mkdir(parents=True)
    photograph.write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"from elsewhere.*aachen"):
        street_scenes.write_dataset(tmp_path, 1, 1, SMALL, progress=False, overwrite=overwrite)
    assert photograph.read_bytes() == b"precious"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [photograph]


def test_a_stray_picture_among_ours_is_an_error(dataset):
    known = next((dataset / "leftImg8bit" / "val").rglob("*.png"))
    known.with_name(known.name.replace("_000000_", "_000777_")).write_bytes(known.read_bytes())
    with pytest.raises(ValueError, match=r"000777.*no part of it"):
        street_scenes.write_dataset(dataset, train=2, val=1, size=SMALL, seed=3, progress=False)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_meta_is_an_error(dataset, text):
    (dataset / "meta.json").write_text(text)
    with pytest.raises(ValueError, match="JSON"):
        street_scenes.write_dataset(dataset, train=2, val=1, size=SMALL, seed=3, progress=False)


@pytest.mark.parametrize("name", ["train", "val", "seed"])
def test_negative_arguments_are_errors(tmp_path, name):
    arguments = {"train": 1, "val": 1, "seed": 0, name: -1}
    with pytest.raises(ValueError, match=f"{name} must not be negative, got -1"):
        street_scenes.write_dataset(tmp_path / "data", size=SMALL, progress=False, **arguments)
    assert not (tmp_path / "data").exists()


def test_nothing_to_write_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to write"):
        street_scenes.write_dataset(tmp_path / "data", train=0, val=0, size=SMALL, progress=False)


def test_command_writes_data_and_preview(written, tmp_path, capsys):
    arguments = ["--output", str(tmp_path / "data"), "--train", "2", "--val", "1"]
    arguments += ["--height", "64", "--width", "128", "--seed", "3", "--preview", str(tmp_path / "sheet.png")]
    assert street_scenes.main(arguments) == 0
    assert "2 training and 1 validation scenes written" in capsys.readouterr().out
    assert pictures(tmp_path / "data").items() <= pictures(written).items()
    with Image.open(tmp_path / "sheet.png") as sheet:
        # Two rows of two pairs, 4 pixels apart.
        assert sheet.size == (2 * 256 + 4, 2 * 64 + 4)
        first = np.asarray(sheet)[:64, :128]
    image, _ = (
        street_scenes.render_scene(scene.seed, SMALL, city=scene.city)
        for scene in street_scenes.list_scenes(tmp_path, "train", 2, 3)
    )
    np.testing.assert_array_equal(first, image[0])
    assert street_scenes.main(arguments) == 0
    assert "already complete" in capsys.readouterr().out
    assert street_scenes.main([*arguments, "--train", "1", "--overwrite"]) == 0
    assert len(pictures(tmp_path / "data")) == 4


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--height", "32"], "too small"),
        (["--train", "-1"], "train must not be negative"),
        (["--seed", "-5"], "seed must not be negative"),
    ],
)
def test_command_explains_bad_arguments(tmp_path, capsys, extra, message):
    assert street_scenes.main(["--output", str(tmp_path / "data"), "--train", "1", "--val", "1", *extra]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_colour_label_uses_the_palette():
    label = np.array([[0, 10], [18, 255]], np.uint8)
    coloured = street_scenes.colour_label(label)
    assert coloured.tolist() == [[[128, 64, 128], [70, 130, 180]], [[119, 11, 32], [0, 0, 0]]]


def test_modules_need_neither_paddle_nor_opencv():
    """Making the data must be possible where Paddle is not installed."""
    folder = Path(street_scenes.__file__).parent
    # The packages' own __init__ modules are left out: this is about the modules that make the data.
    code = f"""
import sys, types
for name, path in (("paddle_vheat", {str(folder.parent)!r}), ("paddle_vheat.data", {str(folder)!r})):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
for name in ("paddle", "paddleseg", "cv2", "tqdm", "scipy"):
    sys.modules[name] = None
from paddle_vheat.data import street_scenes
print(street_scenes.render_scene(0, (64, 128))[1].shape)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "(64, 128)", result.stderr
