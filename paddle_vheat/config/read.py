"""Reading PaddleSeg's YAML: inheritance, replacement on the command line, checks that name the key at fault."""

from __future__ import annotations

import ast
import difflib
import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from paddle_vheat._files import no_such_file
from paddle_vheat.config.build import did_you_mean
from paddle_vheat.errors import ConfigError

MAX_FILE_BYTES = 1 << 20
MAX_VALUES = 100_000
MAX_MERGED = 1000
"""Bounds of a configuration; the largest of ours has some hundred values. Anchors make billions of a few lines."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number, as everybody writes it, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, (str, int, float, bool)):
                raise ConfigError(f"{self.name}, line {line}: a key must be a word or a number, not {key!r}")
            if key in seen:
                raise ConfigError(f"{self.name}: the key {key!r} is given twice, the second time in line {line}")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge keys (<<) copy what they name, and what that merges: bounded, as copies of copies grow without end."""
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge" and len(value_node.value) > MAX_MERGED:
                raise ConfigError(f"{self.name}: '<<' merges more than {MAX_MERGED} blocks or keys")
        super().flatten_mapping(node)
        if len(node.value) > MAX_MERGED:
            raise ConfigError(f"{self.name}: '<<' makes a block of more than {MAX_MERGED} keys")


_Loader.add_constructor("tag:paddle-vheat,exponent", lambda loader, node: float(node.value.replace("_", "")))
_Loader.add_implicit_resolver(
    "tag:paddle-vheat,exponent",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _read_configuration(path: Path, named_by: Path | None) -> dict[str, Any]:
    if why := no_such_file(path, "configuration"):
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml") if p.is_file()], n=1)
        origin = f" (the _base_ of {named_by})" if named_by else ""
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise FileNotFoundError(f"{why}{origin}{hint}")
    return _parse(path)


def _parse(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: {path.stat().st_size} bytes; a configuration has at most {MAX_FILE_BYTES}")
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8: {error}") from error
    except (ConfigError, RecursionError):
        raise
    except Exception as error:  # PyYAML says it in any way: a date that is none, !!int x, a million digits ...
        raise ConfigError(f"{path}: holds a value that YAML cannot read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values, got {type(content).__name__}")
    return content


def _merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """``own`` over ``base``, block by block; a block with ``_inherited_: False`` replaces the base's."""
    if not own.get("_inherited_", True):
        return {key: value for key, value in own.items() if key != "_inherited_"}
    merged = dict(base)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _finish(value: Any, count: Iterator[int], where: str = "") -> Any:
    """A copy without inheritance markers, in which what a YAML anchor named in two places is two things, and ``~/`` at
    the beginning of a word is the home folder."""
    if next(count) > MAX_VALUES:
        raise ConfigError(f"more than {MAX_VALUES} values, once every YAML anchor is followed")
    if not isinstance(value, (str, int, float, type(None), dict, list, tuple)):
        raise ConfigError(f"holds {value!r}, a {type(value).__name__}; expected words, numbers, lists and blocks")
    if isinstance(value, int) and value.bit_length() > 63:
        raise ConfigError("holds an integer of more than 64 bits")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"'{where[1:]}' must be a finite number, got {value}")
    if isinstance(value, dict):
        return {key: _finish(item, count, f"{where}.{key}") for key, item in value.items() if key != "_inherited_"}
    if isinstance(value, list):
        return [_finish(item, count, f"{where}.{i}") for i, item in enumerate(value)]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _read_inherited(path: Path, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    path = path.resolve()
    if path in chain:
        raise ConfigError(f"{path}: inherits from itself by way of {' -> '.join(p.name for p in chain)}")
    config = _read_configuration(path, chain[-1] if chain else None)
    bases = config.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not (isinstance(bases, list) and all(isinstance(base, str) for base in bases)):
        raise ConfigError(f"{path}: _base_ must be a file name or a list of them, got {bases!r}")
    for base in bases:  # as PaddleSeg does it: of two bases, the first has the say
        config = _merge(_read_inherited(path.parent / base, (*chain, path)), config)
    return config


def _set(config: dict[str, Any], assignment: str) -> None:
    key, separator, text = assignment.partition("=")
    if not separator or not key:
        raise ConfigError(f"--opts {assignment!r}: expected key=value, such as train_dataset.dataset_root=data/x")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # as its documentation lists them
        value = {"true": True, "false": False, "null": None}.get(text.lower(), text)
    try:
        value = _finish(value, itertools.count(), f".{key}")
    except ConfigError as error:
        raise ConfigError(f"--opts {key}: {error}") from error
    *parents, last = key.split(".")
    block: Any = config
    top = key.split(".")[0]
    if top not in config and did_you_mean(top, config):
        raise ConfigError(f"--opts {assignment!r}: no key {top!r}{did_you_mean(top, config)}")
    if parents:
        config.setdefault(top, {})  # the schema says whether there is such a block
    for depth, name in enumerate(parents):
        block = _child(block, name, ".".join(parents[: depth + 1]), assignment)
    if isinstance(block, list):
        block[_index(block, last, key, assignment)] = value
    elif isinstance(block, dict):
        block[last] = value
    else:
        raise ConfigError(f"--opts {assignment!r}: {'.'.join(parents)!r} is no block of keys")


def _index(block: list, name: str, key: str, assignment: str) -> int:
    if not name.isdecimal() or int(name) >= len(block):
        raise ConfigError(f"--opts {assignment!r}: {key!r} must be a position from 0 to {len(block) - 1}")
    return int(name)


def _child(block: Any, name: str, path: str, assignment: str) -> Any:
    if isinstance(block, list):
        return block[_index(block, name, path, assignment)]
    if not isinstance(block, dict) or name not in block:
        known = block if isinstance(block, dict) else ()
        raise ConfigError(f"--opts {assignment!r}: no key {path!r}{did_you_mean(name, known)}")
    return block[name]


def _bounded(path: str | Path, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        content = read()
        try:
            return _finish(content, itertools.count())
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deep, or a YAML anchor within itself") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Keys and values of one YAML file, within the bounds above and without inheritance.

    Raises:
        ConfigError: naming the file, if it is not valid.
    """
    return _bounded(path, lambda: _parse(path))


def load_config(path: str | Path, opts: Sequence[str] | None = None) -> dict[str, Any]:
    """Read a configuration, with what it inherits (``_base_``) and ``--opts key=value`` applied.

    Raises:
        FileNotFoundError: if the file, or one that it inherits from, does not exist.
        ConfigError: if a file is not valid, or an option names a block within a block that is not there. A new key is
            taken, for what has a default need not be given: the task says which keys there are.
    """
    config = _bounded(path, lambda: _read_inherited(Path(path)))
    for assignment in opts or ():
        _set(config, assignment)
    return config
