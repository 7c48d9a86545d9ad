"""What the names of class folders say: ImageNet's classes by their WordNet numbers, numbers, or names by rank.

The 1000 classes, with their numbers and WordNet's words, are in ``imagenet_classes.txt`` (index, wnid, words); after
timm's ``imagenet_synsets.txt`` and ``imagenet_synset_to_lemma.txt`` (Apache-2.0), words from WordNet (Princeton).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from paddle_vheat.errors import ConfigError


@lru_cache(maxsize=1)
def imagenet_classes() -> dict[str, tuple[int, str]]:
    """Index and name of each of the 1000 classes, by its wnid, in the order of the indices."""
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return {wnid: (int(index), name) for index, wnid, name in (line.split("\t") for line in lines)}


class FolderClasses(NamedTuple):
    """Classes of folders.

    Attributes:
        labels: class of each folder, by its name.
        names: of all classes, for people.
        ranked: the folders in the order of their classes if a class is the rank among them; None if it is in the name.
    """

    labels: dict[str, int]
    names: list[str]
    ranked: list[str] | None


def folder_classes(folders: Sequence[str], num_classes: int | None, where: str) -> FolderClasses:
    """The classes that folders stand for; whatever could be read in two ways is an error.

    - All are wnids of the 1000: the class is the wnid's index, if the model has 1000 classes. If it has exactly as
      many classes as there are folders (a subset with a model of its own), it is the rank.
    - Some are: an error. But if all have a wnid's form, and there are as many as classes and not 1000 (Tiny ImageNet,
      parts of ImageNet-21k), it is the rank.
    - All are numbers: the class is the number; they must be 0 to K - 1.
    - Other names: the rank in sorted order; there must be as many as classes.

    Args:
        num_classes: of the model; None for what the folders say.
        where: the folder that they are in, for messages.

    Raises:
        ConfigError: for folders that do not fit each other or the model.
    """
    table, count = imagenet_classes(), len(folders)
    strange = sorted(name for name in folders if name not in table)
    own = num_classes == count != len(table)  # a model of just these classes
    if not strange:
        if num_classes == len(table) or (num_classes is None and count == len(table)):
            return FolderClasses({name: table[name][0] for name in folders}, [name for _, name in table.values()], None)
        if not own:
            raise ConfigError(
                f"{where}: holds folders of {count} of ImageNet's 1000 classes; expected a model of 1000 classes (a "
                f"class is then the wnid's) or of {count} (a class is then the rank), got {num_classes}"
            )
    elif len(strange) < count and not (own and all(re.fullmatch(r"n\d{8}", name) for name in folders)):
        raise ConfigError(
            f"{where}: {count - len(strange)} of {count} folders are wnids of ImageNet's 1000 classes, and "
            f"{len(strange)} are not, such as {', '.join(strange[:3])}; expected wnids only, or none"
        )
    if all(name.isascii() and name.isdigit() for name in folders):
        numbers = sorted(folders, key=int)
        if [int(name) for name in numbers] != list(range(num_classes or count)):
            other = "; ILSVRC's own numbers, 1 to 1000, are not in the order of the wnids" if "1000" in folders else ""
            raise ConfigError(
                f"{where}: holds {count} folders with numbers as names, {numbers[0]} to {numbers[-1]}; expected 0 to "
                f"{(num_classes or count) - 1}, each once, as the number is the class{other}"
            )
        return FolderClasses({name: int(name) for name in numbers}, numbers, None)
    if num_classes not in (None, count):
        raise ConfigError(
            f"{where}: holds {count} folders of classes, and the model has {num_classes} classes; expected as many"
        )
    ranked = sorted(folders)
    names = [table[name][1] if name in table else name for name in ranked]
    return FolderClasses({name: rank for rank, name in enumerate(ranked)}, names, ranked)


def same_classes(train: Any, val: Any) -> None:
    """Raise a ConfigError that names what differs between the classes of two data sets.

    Only ranks are compared: where the class is in the folder's name or in a list, it needs no other folder.
    """
    one, two = (getattr(dataset, "ranked_folders", None) for dataset in (train, val))
    if one and two and one != two:
        told = ", ".join(sorted(set(one) ^ set(two))[:3])
        raise ConfigError(f"the classes of {train.image_root} and {val.image_root} differ; in one alone are {told}")
