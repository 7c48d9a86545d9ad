"""Shifted sets on synthetic folders in the published layouts, by a model whose logits are known."""

from __future__ import annotations

import argparse
import json
import re

import numpy as np
import pytest
from PIL import Image

from paddle_vheat import cli
from paddle_vheat._paddle import nn, paddle
from paddle_vheat.config import ConfigError, load_config
from paddle_vheat.engine.evaluate import evaluate
from paddle_vheat.errors import UserError
from paddle_vheat.tasks.classification.shift_scores import ALEXNET_ERROR, corruption_errors
from paddle_vheat.tasks.classification.shifts import (
    ARCHIVES,
    PUBLISHED,
    SETS,
    ShiftedData,
    objectnet_classes,
    read_flags,
    subsets,
)
from paddle_vheat.tasks.classification.task import ClassificationTask
from paddle_vheat.tasks.classification.wnids import imagenet_classes
from paddle_vheat.weights.loading import save_weights

WNIDS = list(imagenet_classes())
CONFIG = "configs/vheat_imagenet.yml"
SMALL = ["Arch.name=vHeat", "+Arch.embed_dim=8", "Arch.depths=[1,1,1,1]", "Arch.img_size=32"]
OPS = [
    {"DecodeImage": None},
    {"ResizeImage": {"resize_short": 40}},
    {"CropImage": {"size": 32}},
    {"NormalizeImage": {"mean": [0, 0, 0], "std": [1, 1, 1], "order": ""}},
]


class Pictures:
    """Writes pictures whose colour is a number, under which the model's logits are kept."""

    def __init__(self):
        self.logits = []

    def add(self, path, answers):
        """A picture that the model takes for these classes, the likeliest first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        number = len(self.logits)
        colour = (number // 256, number % 256, 0)
        Image.new("RGB", (36, 36), colour).save(path, compress_level=1)
        self.logits.append({index: 10.0 - place for place, index in enumerate(answers)})

    def model(self):
        table = np.zeros((len(self.logits), 1000), np.float32)
        for row, logits in zip(table, self.logits):
            for index, value in logits.items():
                row[index] = value
        return Known(table)


class Known(nn.Layer):
    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, x):
        red, green = np.rint(x.numpy()[:, :2, 16, 16] * 255).astype(int).T
        return paddle.to_tensor(self.table[256 * red + green])


def task_of(folder, shift=(), real=None, **validation):
    config = load_config(CONFIG)
    dataset = {"name": "ImageNetDataset", "image_root": str(folder / "val"), "transform_ops": OPS, **validation}
    config["DataLoader"]["Eval"]["dataset"] = dataset
    flags = argparse.Namespace(shift=[f"{name}={path}" for name, path in dict(shift).items()] or None, real=real)
    return ClassificationTask(config, CONFIG, flags)


def scored(pictures, task):
    scores = evaluate(task, pictures.model(), progress=False)
    return scores, {key: (row["top1"], row["top5"], row["images"]) for key, row in scores.report["sets"].items()}


def write_subset(pictures, root, name, wrong=()):
    """One picture a class. Each is taken first for a class outside the 200, then for the right one (or, if wrong, for
    six others of the 200 first). The class's rank is the least likely answer but one."""
    columns = subsets()[name]
    outside = next(i for i in range(1000) if i not in columns)
    for rank, index in enumerate(columns):
        others = [i for i in columns[:8] if i != index][:6] if rank in wrong else []
        pictures.add(root / WNIDS[index] / f"{'art' if rank % 2 else 'toy'}_{rank}.png", [outside, *others, index])
    (root / "README.txt").write_text("beside the folders")


def test_facts_of_the_sets():
    lists = subsets()
    assert {name: (len(ids), len(set(ids)), ids == sorted(ids)) for name, ids in lists.items()} == dict.fromkeys(
        ("imagenet-a", "imagenet-r"), (200, 200, True)
    )
    assert len(set(lists["imagenet-a"]) & set(lists["imagenet-r"])) == 86
    assert (lists["imagenet-a"][:3], lists["imagenet-a"][-1], lists["imagenet-r"][:2]) == ([6, 11, 13], 988, [1, 2])
    overlap = [one for one in objectnet_classes() if one.indices]
    indices = [index for one in overlap for index in one.indices]
    assert (len(objectnet_classes()), len(overlap), len(indices), len(set(indices))) == (313, 113, 125, 125)
    assert sorted(one.id for one in objectnet_classes()) == list(range(313))
    assert sum(one.images for one in overlap) == PUBLISHED["objectnet"] == 18574
    assert sum(len(one.indices) > 1 for one in overlap) == 9
    assert objectnet_classes()[1] == ("alarm_clock", 1, (409, 530), 144)
    fifteen = [name for archive, names in ARCHIVES.items() if archive != "extra" for name in names]
    assert (len(fifteen), len(ARCHIVES["extra"]), sorted([*fifteen, *ARCHIVES["extra"]])) == (
        15,
        4,
        sorted(ALEXNET_ERROR),
    )
    assert np.mean([ALEXNET_ERROR[name] for name in fifteen]) == pytest.approx(0.789, abs=5e-4)


def test_two_hundred_classes_are_scored_among_their_own_columns(tmp_path):
    pictures = Pictures()
    write_subset(pictures, tmp_path / "a", "imagenet-a", wrong=range(50))
    write_subset(pictures, tmp_path / "r", "imagenet-r", wrong=range(20))
    # Clean: one picture of every class, taken for the class itself if that is among the 200 of A, else for class 0.
    for index in range(1000):
        likeliest = index if index in subsets()["imagenet-a"] else 0
        pictures.add(tmp_path / "val" / WNIDS[index] / "x.png", [likeliest])
    task = task_of(tmp_path, {"imagenet-a": tmp_path / "a", "imagenet-r": tmp_path / "r"})
    scores, rows = scored(pictures, task)
    assert rows["imagenet-a"] == (0.75, 0.75, 200)
    assert rows["imagenet-r"] == (0.9, 0.9, 200)
    assert rows["imagenet-r/art"] == rows["imagenet-r/toy"] == (0.9, 0.9, 100)
    assert rows["imagenet-a clean"] == (1.0, 1.0, 200)
    # Of R's classes the 86 that A shares; the others are taken for class 0, which is not among the 200: then the first
    # of the 200 counts, of equal logits, which is class 1 of R's.
    assert rows["imagenet-r clean"][0] == pytest.approx((86 + (1 not in subsets()["imagenet-a"])) / 200)
    assert rows["imagenet-r clean"][2] == 200
    assert rows["validation"][2] == len(set(subsets()["imagenet-a"]) | set(subsets()["imagenet-r"])) == 314
    assert "imagenet-a: 200 images, published are 7500" in scores.report["notes"]
    assert scores.report["sets"]["imagenet-a"]["published_images"] == 7500
    assert scores.report["sets"]["validation"]["published_images"] == 314 * 50
    assert re.search(r"imagenet-a +200 +7500 +75.00 +75.00  argmax among the set's 200 classes", scores.table)
    assert "note: imagenet-r: 200 images, published are 30000" in scores.table


def test_without_validation_images_there_is_no_companion_and_a_note_says_so(tmp_path, capsys):
    pictures = Pictures()
    write_subset(pictures, tmp_path / "a", "imagenet-a")
    scores, rows = scored(pictures, task_of(tmp_path, {"imagenet-a": tmp_path / "a"}))
    assert list(rows) == ["imagenet-a"]
    assert "no clean companion, as there are no validation images" in scores.table
    assert "note: imagenet-a: 200 images, published are 7500" in capsys.readouterr().out


@pytest.mark.parametrize("names", [[str(i) for i in range(1000)], WNIDS], ids=["numbers", "wnids"])
def test_imagenetv2_folders_are_numbers_not_their_order_as_text(tmp_path, names):
    """As text "10" comes before "2"; and the release has three sets side by side, or one by wnid."""
    pictures, root = Pictures(), tmp_path / "v2" / "imagenetv2-top-images-format-val"
    for index, name in enumerate(names):
        pictures.add(root / name / "x.png", [index])
    for given in (tmp_path / "v2", root):
        _, rows = scored(pictures, task_of(tmp_path, {"imagenetv2": given}))
        assert rows == {"imagenetv2-top-images-format-val": (1.0, 1.0, 1000)}


def test_real_counts_any_of_the_labels_and_leaves_out_empty_lists(tmp_path):
    pictures, lines = Pictures(), []
    labels = [[] for _ in range(50000)]
    # number of the image, its label, what the model says, ReaL's labels
    for number, label, answers, found in [
        (7, 3, [3], [3, 4]),  # right in both
        (1, 5, [6, 5], [6]),  # ReaL corrects the label
        (50000, 8, [8], []),  # not counted
        (22, 9, [1, 2, 3, 4, 9], [9]),  # top-5 in both
        (23, 9, [1, 2, 3, 4, 5, 9], [0]),
    ]:
        name = f"ILSVRC2012_val_{number:08d}.png"
        pictures.add(tmp_path / "val" / name, answers)
        lines.append(f"{name} {label}\n")
        labels[number - 1] = found
    (tmp_path / "list.txt").write_text("".join(lines))
    (tmp_path / "real.json").write_text(json.dumps(labels))
    task = task_of(tmp_path, real=str(tmp_path / "real.json"), cls_label_path=str(tmp_path / "list.txt"))
    scores, rows = scored(pictures, task)
    assert rows == {"validation": (0.4, 0.8, 5), "imagenet-real": (0.5, 0.75, 4)}
    assert scores.report["sets"]["imagenet-real"]["published_images"] == 46837


def test_objectnet_by_both_protocols(tmp_path):
    pictures, overlap = Pictures(), [one for one in objectnet_classes() if one.indices]
    mapped = {index for one in overlap for index in one.indices}
    unmapped = next(index for index in range(1000) if index not in mapped)
    for i, one in enumerate(overlap):
        answers = [one.indices[-1]] if i % 2 else [unmapped, one.indices[-1]]
        if i == 0:  # all five first answers are unmapped
            answers = [*[index for index in range(1000) if index not in mapped][:5], one.indices[0]]
        pictures.add(tmp_path / "objectnet-1.0" / "images" / one.folder / "x.png", answers)
    _, rows = scored(pictures, task_of(tmp_path, {"objectnet": tmp_path / "objectnet-1.0"}))
    assert rows["objectnet template"] == (pytest.approx(56 / 113), pytest.approx(112 / 113), 113)
    assert rows["objectnet maximum"] == (1.0, 1.0, 113)


def test_objectnets_border_is_cut_before_anything_else(tmp_path):
    overlap = [one for one in objectnet_classes() if one.indices]
    for one in overlap:
        (tmp_path / one.folder).mkdir()
        picture = Image.new("RGB", (44, 36), (255, 0, 0))
        picture.paste((0, 0, 255), (2, 2, 42, 34))
        picture.save(tmp_path / one.folder / "x.png")
    data = ShiftedData({"objectnet": str(tmp_path)}, None, [{"ResizeImage": {"size": [50, 60]}}])
    np.testing.assert_array_equal(data[5]["img"], np.broadcast_to([[[0]], [[0]], [[255]]], (3, 60, 50)))
    assert data[5]["label"] == 5


def write_corruption(root, corruption, severity, wrong, pictures):
    for index in range(1000):
        answers = [999 - index] if index < wrong else [index]
        pictures.add(root / corruption / severity / WNIDS[index] / "x.png", answers)


def test_corruptions_are_not_resized_and_a_part_of_them_has_no_mce(tmp_path):
    pictures = Pictures()
    write_corruption(tmp_path / "c", "noise/shot_noise", "2", 100, pictures)
    write_corruption(tmp_path / "c", "spatter", "5", 250, pictures)
    ring = Image.new("RGB", (32, 32), (9, 9, 9))
    ring.paste((200, 100, 0), (4, 4, 28, 28))
    first = tmp_path / "c" / "noise" / "shot_noise" / "2" / WNIDS[0] / "x.png"
    ring.save(first)
    task = task_of(tmp_path, {"imagenet-c": tmp_path / "c"})
    np.testing.assert_allclose(task.dataset("val")[0]["img"] * 255, np.moveaxis(np.asarray(ring), -1, 0), atol=1e-4)
    Image.new("RGB", (36, 36), (0, 0, 0)).save(first)
    scores, rows = scored(pictures, task)
    assert {key: (row[0], row[2]) for key, row in rows.items()} == {
        "imagenet-c/shot_noise/2": (0.9, 1000),
        "imagenet-c/spatter/5": (0.75, 1000),
    }
    found = scores.report["imagenet-c"]
    assert found["mce"] is None
    assert found["corruptions"]["spatter"] == {"archive": "extra", "error": pytest.approx(0.25), "ce": None}
    assert "1 of 5 severities are there, so it has no CE" in scores.table


def test_mce_is_the_mean_of_fifteen_ratios_of_sums():
    severities = {"1": 0.2, "2": 0.6, "3": 1.0, "4": 1.4, "5": 1.8}  # their mean is 1
    errors = {f"imagenet-c/{name}/{s}": 0.5 * part * ALEXNET_ERROR[name] for name in ALEXNET_ERROR
              for s, part in severities.items()}  # fmt: skip
    for name in ARCHIVES["extra"]:  # must not count
        errors.update({f"imagenet-c/{name}/{s}": 1.0 for s in severities})
    found = corruption_errors({**errors, "validation": 0.2})
    assert found["mce"] == pytest.approx(0.5)
    assert found["corruptions"]["fog"] == {
        "archive": "weather",
        "error": pytest.approx(0.819324 / 2),
        "ce": pytest.approx(0.5),
    }
    assert found["corruptions"]["saturate"]["ce"] == pytest.approx(1 / 0.658248)
    # One corruption of 15 twice as bad moves the mean by a fifteenth; one severity missing leaves no mCE.
    errors.update({f"imagenet-c/fog/{s}": 2 * errors[f"imagenet-c/fog/{s}"] for s in severities})
    assert corruption_errors(errors)["mce"] == pytest.approx(0.5 + 0.5 / 15)
    del errors["imagenet-c/fog/3"]
    assert corruption_errors(errors)["mce"] is None
    assert corruption_errors({"validation": 0.2}) == {}


def folders(root, names):
    for name in names:
        (root / name).mkdir(parents=True)
    return root


A, R = (subsets()[name] for name in ("imagenet-a", "imagenet-r"))


@pytest.mark.parametrize(
    ("name", "names", "fragments"),
    [
        ("imagenet-a", None, ["--shift imagenet-a=", "there is no such folder"]),
        ("imagenet-a", WNIDS[:200], ["imagenet-a's 200 classes", f"{len(set(A) - set(range(200)))} absent, such as"]),
        (
            "imagenet-r",
            [WNIDS[i] for i in A],
            ["imagenet-r's 200 classes", "114 absent, such as", "114 other"],
        ),
        ("imagenet-sketch", [*WNIDS[:997], "x", "y", "z"], [f"3 absent, such as {', '.join(WNIDS[997:])}", "x, y, z"]),
        (
            "imagenetv2",
            map(str, range(1, 1001)),
            ["ILSVRC's own numbers, 1 to 1000, are not in the order of"],
        ),
        ("imagenet-c", ["rain"], ["none of ImageNet-C's corruptions, such as gaussian_noise"]),
        ("objectnet", ["alarm_clock", "tank"], ["112 absent, such as backpack, banana,", "1 other, such as tank"]),
    ],
)
def test_folders_that_are_not_the_sets_are_refused_before_the_first_batch(tmp_path, name, names, fragments):
    root = tmp_path / "set" if names is None else folders(tmp_path / "set", names)
    with pytest.raises(ConfigError) as error:
        task_of(tmp_path, {name: root}).dataset("val")
    assert all(fragment in str(error.value) for fragment in fragments)


def test_a_class_without_images_is_refused(tmp_path):
    root = folders(tmp_path / "set", [WNIDS[i] for i in subsets()["imagenet-a"]])
    with pytest.raises(UserError, match=f"{WNIDS[6]}: holds no images"):
        task_of(tmp_path, {"imagenet-a": root}).dataset("val")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["imagenet-b=x"], "expected NAME=DIR, the name one of imagenet-a, .*; did you mean 'imagenet-r'"),
        (["imagenet-a"], "expected NAME=DIR"),
        (["imagenet-a="], "expected NAME=DIR"),
        (["objectnet=x", "objectnet=y"], "objectnet is given twice"),
    ],
)
def test_flags_are_read_strictly(entries, message):
    assert read_flags([f"{name}=a=b" for name in SETS]) == dict.fromkeys(SETS, "a=b")
    with pytest.raises(UserError, match=message):
        read_flags(entries)


def test_mistakes_with_real_labels(tmp_path):
    def fails(message, real, **validation):
        with pytest.raises(ConfigError, match=message):
            task_of(tmp_path, real=str(real), **validation).dataset("val")

    real = tmp_path / "real.json"
    fails("there is no such file", real)
    for text, message in (
        ("[[1],", "not valid JSON"),
        ("[[1]]", "50000 lists"),
        (json.dumps([[1000]] * 50000), "0 to 999"),
    ):
        real.write_text(text)
        fails(message, real)
    real.write_text(json.dumps([[1]] * 50000))
    fails("no such folder of images", real)
    Pictures().add(tmp_path / "val" / "cat_00000001.png", [1])
    (tmp_path / "list.txt").write_text("cat_00000001.png 1\n")
    fails("needs the images' own names", real, cls_label_path=str(tmp_path / "list.txt"))


def test_the_command_writes_the_table_and_refuses_other_models(tmp_path, capsys):
    pictures = Pictures()
    write_subset(pictures, tmp_path / "a", "imagenet-a")
    config = load_config(CONFIG)
    config["Arch"] = {"name": "vHeat", "class_num": 1000, "embed_dim": 8, "depths": [1, 1, 1, 1], "img_size": 32}
    config["DataLoader"]["Eval"]["dataset"]["transform_ops"] = OPS
    import yaml

    (tmp_path / "c.yml").write_text(yaml.safe_dump(config))
    save_weights(ClassificationTask(config, "c").build_model(), tmp_path / "w.pdparams")
    given = ["--config", str(tmp_path / "c.yml"), "--model_path", str(tmp_path / "w.pdparams")]
    shift = ["--shift", f"imagenet-a={tmp_path / 'a'}"]
    assert cli.val([*given, *shift, "--json", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    assert "200 images" in out
    assert "argmax among the set's 200 classes" in out
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["sets"]["imagenet-a"]["images"] == 200
    assert report["sets"]["imagenet-a"]["classes"] == 200
    assert report["notes"][-1] == "imagenet-a: 200 images, published are 7500"
    assert cli.val([*given, *shift, "--opts", "Arch.class_num=200"]) == 2
    assert "--shift and --real need a model of 1000 classes, not 200" in capsys.readouterr().err
    assert cli.val(["--config", "configs/demo.yml", "--model_path", "x", *shift]) == 2
    assert "--shift is an option of classification" in capsys.readouterr().err
