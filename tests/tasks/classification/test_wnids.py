"""Classes from folder names: each way in which a rank would be wrong without a word."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from paddle_vheat.config import ConfigError
from paddle_vheat.tasks.classification.wnids import folder_classes, imagenet_classes, same_classes

WNIDS = list(imagenet_classes())
# The first and last of ImageNet-A's 200 classes and three others, with their places among the 1000.
SOME = {"n01498041": 6, "n01531178": 11, "n02119022": 277, "n03110669": 513, "n12267677": 988}
SUBSET = WNIDS[3:1000:5][:200]


def test_the_thousand_classes_are_in_the_order_of_their_wnids():
    assert len(WNIDS) == 1000
    assert sorted(WNIDS) == WNIDS
    assert [index for index, _ in imagenet_classes().values()] == list(range(1000))
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in WNIDS)
    assert imagenet_classes()["n01440764"] == (0, "tench, Tinca tinca")
    assert imagenet_classes()["n15075141"][0] == 999
    assert {wnid: imagenet_classes()[wnid][0] for wnid in SOME} == SOME


@pytest.mark.parametrize("num_classes", [1000, None])
def test_all_wnids_are_their_own_classes(num_classes: int | None):
    labels, names, ranked = folder_classes(WNIDS[::-1], num_classes, "x")
    assert labels == {wnid: index for index, wnid in enumerate(WNIDS)}
    assert (names[0], len(names), ranked) == ("tench, Tinca tinca", 1000, None)


def test_some_wnids_keep_their_places_among_the_thousand():
    labels, names, ranked = folder_classes(list(SOME)[::-1], 1000, "x")
    assert labels == SOME
    assert (len(names), ranked) == (1000, None)
    assert folder_classes(SUBSET, 1000, "x").labels == {wnid: 3 + 5 * i for i, wnid in enumerate(sorted(SUBSET))}


def test_some_wnids_are_ranked_for_a_model_of_just_as_many_classes():
    labels, names, ranked = folder_classes(list(SOME)[::-1], 5, "x")
    assert labels == {wnid: rank for rank, wnid in enumerate(SOME)}
    assert names[0] == imagenet_classes()["n01498041"][1]
    assert ranked == list(SOME)
    assert folder_classes(SUBSET, 200, "x").labels == {wnid: rank for rank, wnid in enumerate(sorted(SUBSET))}


def test_wnids_outside_the_thousand_are_ranked_for_a_model_of_just_as_many_classes():
    tiny = [*SOME, "n99999999"]
    assert folder_classes(tiny, 6, "x").labels == {wnid: rank for rank, wnid in enumerate(sorted(tiny))}
    assert folder_classes(["n99999999", "n99999998"], None, "x").ranked == ["n99999998", "n99999999"]


@pytest.mark.parametrize("num_classes", [1000, None, 12])
def test_numbers_are_the_classes(num_classes: int | None):
    count = num_classes or 1000
    labels, names, ranked = folder_classes(sorted(str(i) for i in range(count)), num_classes, "x")
    assert labels == {str(i): i for i in range(count)}
    assert (names, ranked) == ([str(i) for i in range(count)], None)
    assert folder_classes(["02", "00", "01"], 3, "x").labels == {"00": 0, "01": 1, "02": 2}


@pytest.mark.parametrize("num_classes", [3, None])
def test_other_names_are_ranked(num_classes: int | None):
    labels, names, ranked = folder_classes(["dog", "cat", "10"], num_classes, "x")
    assert labels == {"10": 0, "cat": 1, "dog": 2}
    assert names == ranked == ["10", "cat", "dog"]


@pytest.mark.parametrize(
    ("folders", "num_classes", "message"),
    [
        (SUBSET, None, "x: holds folders of 200 of ImageNet's 1000 classes; expected a model of 1000 classes (a class"),
        (SUBSET, 500, "or of 200 (a class is then the rank), got 500"),
        (WNIDS, 10, "x: holds folders of 1000 of ImageNet's 1000 classes; expected a model of 1000"),
        ([*WNIDS[:996], *"dbca"], 1000, "x: 996 of 1000 folders are wnids of ImageNet's 1000 classes, and 4 are not, "
         "such as a, b, c; expected wnids only, or none"),
        ([*WNIDS[:999], "n99999999"], 1000, "999 of 1000 folders are wnids of ImageNet's 1000 classes, and 1 are not"),
        ([*SOME, "n99999999"], None, "such as n99999999"),
        ([*SOME, "other"], 6, "such as other"),
        ([*SOME, "7"], 6, "such as 7"),
        ([str(i) for i in range(1, 1001)], 1000, "x: holds 1000 folders with numbers as names, 1 to 1000; expected 0 "
         "to 999, each once, as the number is the class; ILSVRC's own numbers, 1 to 1000, are not in the order of"),
        ([str(i) for i in range(200)], 1000, "200 folders with numbers as names, 0 to 199; expected 0 to 999, each"),
        (["0", "1", "3"], None, "expected 0 to 2, each once"),
        (["0", "1", "01"], 3, "expected 0 to 2, each once"),
        (["cat", "dog"], 1000, "x: holds 2 folders of classes, and the model has 1000 classes; expected as many"),
        (["cat", "dog"], 1, "holds 2 folders of classes, and the model has 1"),
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_refused(folders: list[str], num_classes: int | None, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        folder_classes(folders, num_classes, "x")


def of(root: str, *folders: str) -> SimpleNamespace:
    return SimpleNamespace(image_root=Path(root), ranked_folders=list(folders) or None)


def test_ranks_of_training_and_validation_are_compared():
    same_classes(of("train", "a", "b"), of("val", "a", "b"))
    same_classes(of("train", "a", "b"), of("val"))  # classes by name or list
    same_classes(of("train"), SimpleNamespace())
    with pytest.raises(ConfigError, match=r"the classes of train and val differ; in one alone are b, c$"):
        same_classes(of("train", "a", "b"), of("val", "a", "c"))
    with pytest.raises(ConfigError, match=r"differ; in one alone are c$"):
        same_classes(of("train", "a", "b"), of("val", "a", "b", "c"))
