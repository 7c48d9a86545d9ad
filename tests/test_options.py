"""Every dataclass of options in the package, with values from inside and outside the ranges that its fields declare."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import paddle_vheat
from paddle_vheat.config.options import option, read_options
from paddle_vheat.engine.optim import build_optimizer, build_scheduler
from paddle_vheat.tasks.classification.operation import Operation
from paddle_vheat.tasks.classification.transforms import OPS
from paddle_vheat.tasks.segmentation import config as segmentation
from paddle_vheat.tasks.segmentation import transforms
from tests.conftest import paddle

QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
QUICK = settings(max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=QUIET)
THOROUGH = settings(QUICK, max_examples=1000)
amounts = pytest.mark.parametrize(
    "how", [pytest.param(QUICK, id="quick"), pytest.param(THOROUGH, id="thorough", marks=pytest.mark.slow)]
)


def classes_of_options() -> dict[str, type]:
    """All of the package's dataclasses with a field made by ``option``, by module and name."""
    found = {}
    for module in pkgutil.walk_packages(paddle_vheat.__path__, "paddle_vheat."):
        if ".integrations.paddle" in module.name:  # needs its library, and holds no options
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            is_ours = isinstance(value, type) and value.__module__ == module.name and dataclasses.is_dataclass(value)
            if is_ours and any("kind" in field.metadata for field in dataclasses.fields(value)):
                found[f"{module.name.removeprefix('paddle_vheat.')}.{name}"] = value
    return found


CLASSES = classes_of_options()
READ = {name: cls for name, cls in CLASSES.items() if not issubclass(cls, Operation)}


def test_all_were_found():
    for name in ("engine.optim.TrainOptions", "deploy.description.Description", "tasks.segmentation.config.AdamW"):
        assert name in READ
    assert len(READ) >= 30


# --- values -----------------------------------------------------------------------------------------

ANYTHING: Any = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.lists(st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=3)), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from(["x" * 10**5, [0] * 10**4, 10**400, -0.0, 5e-324, float("nan"), float("inf"), b"x", 1j, object()]),
)  # fmt: skip


def numbers(kind: type, rule: Mapping[str, Any]) -> Any:
    """Numbers within a field's range, its ends among them."""
    low, high = (
        next((rule[n] for n in names if rule[n] is not None), None) for names in (("min", "above"), ("max", "below"))
    )
    if kind is int:
        return st.integers(None if low is None else math.ceil(low), None if high is None else math.floor(high))
    ends = {"exclude_min": rule["above"] is not None, "exclude_max": rule["below"] is not None}
    return st.floats(low, high, allow_nan=False, allow_infinity=False, **ends)


def within(field: Any) -> Any:
    """Values that a field declares to take."""
    rule = field.metadata
    kind, items = rule["kind"], rule["items"]
    none = [st.none()] if field.default is None else []
    if dataclasses.is_dataclass(kind):
        return st.one_of(*none, blocks(kind))
    if rule["choices"] is not None:
        return st.one_of(*none, st.sampled_from(list(rule["choices"])))
    if kind is list and items is not None:
        one = blocks(items) if dataclasses.is_dataclass(items) else simple(items, rule)
        return st.one_of(*none, st.lists(one, min_size=rule["length"] or 0, max_size=rule["length"] or 3))
    return st.one_of(*none, simple(kind, rule))


def simple(kind: type, rule: Mapping[str, Any]) -> Any:
    if kind in (int, float):
        return numbers(kind, rule)
    others = {bool: st.booleans(), str: st.text(max_size=5), list: st.lists(st.integers(), max_size=3)}
    return others.get(kind, st.dictionaries(st.text(max_size=3), st.integers(), max_size=2))


@st.composite
def blocks(draw: Any, cls: Any) -> dict[str, Any]:
    """A block of keys for a dataclass: what is required, and some of the rest."""
    block = {}
    for field in fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required or draw(st.booleans()):
            block[field.name] = draw(within(field))
    return block


def fields(cls: Any) -> list[Any]:
    return [field for field in dataclasses.fields(cls) if "kind" in field.metadata]


def fits(value: Any, field: Any) -> bool:
    """Whether a field takes a value: what ``option`` says, read a second time."""
    rule = field.metadata
    if value is None and field.default is None:
        return True
    if dataclasses.is_dataclass(rule["kind"]):
        return isinstance(value, dict) and fills(value, rule["kind"])
    if rule["kind"] is not list or rule["items"] is None:
        return of_kind(value, rule["kind"], rule)
    if not isinstance(value, (list, tuple)) or (rule["length"] is not None and len(value) != rule["length"]):
        return False
    if dataclasses.is_dataclass(rule["items"]):
        return all(isinstance(item, dict) and fills(item, rule["items"]) for item in value)
    return all(of_kind(item, rule["items"], rule) for item in value)


def fills(block: dict[str, Any], cls: Any) -> bool:
    known = {field.name: field for field in fields(cls)}
    needed = {
        n for n, f in known.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    return needed <= set(block) <= set(known) and all(fits(value, known[name]) for name, value in block.items())


def of_kind(value: Any, kind: type, rule: Mapping[str, Any]) -> bool:
    kinds = {int: int, float: (int, float), list: (list, tuple), dict: Mapping}
    if not isinstance(value, kinds.get(kind, kind)) or (kind in (int, float) and isinstance(value, bool)):
        return False
    if kind is float and not abs(value) < float("inf"):
        return False
    if rule["choices"] is not None:
        return value in rule["choices"]
    if kind not in (int, float):
        return True
    low, high, above, below = (rule[name] for name in ("min", "max", "above", "below"))
    return not (
        (low is not None and value < low) or (high is not None and value > high)
        or (above is not None and value <= above) or (below is not None and value >= below)
    )  # fmt: skip


# --- reading ----------------------------------------------------------------------------------------


def read(cls: Any, block: Any) -> tuple[Any, list[str]]:
    """The options and the problems, a mistake of one field in another's range apart (``__post_init__``)."""
    problems: list[str] = []
    try:
        return read_options(cls, block, "block", problems), problems
    except ValueError as error:
        return None, [f"'block' {error}"]


@amounts
@pytest.mark.parametrize("name", READ)
def test_what_is_in_range_is_taken(name, how):
    cls = READ[name]

    @how
    @given(blocks(cls))
    def check(block):
        assert fills(block, cls)
        options, problems = read(cls, block)
        if "TrainOptions" in name and problems:  # the machine's processors, and options that need each other
            assert "num_workers" in problems[0] or "--do_eval" in problems[0]
            return
        assert problems == []
        for key, value in block.items():
            found = getattr(options, key)
            if isinstance(value, (int, float, str)):
                assert found == value
            elif isinstance(value, list) and not any(isinstance(item, dict) for item in value):
                assert list(found) == value

    check()


@amounts
@pytest.mark.parametrize("name", READ)
def test_what_is_not_is_named(name, how):
    """One field at a time: it is taken if the declaration says so, else it is named, in words of bounded length."""
    cls = READ[name]
    codes = set()

    @how
    @given(blocks(cls), st.sampled_from(fields(cls)), st.data())
    def check(block, field, data):
        near = [numbers(kind, dict.fromkeys(field.metadata)) for kind in (int, float)]
        value = data.draw(st.one_of(ANYTHING, *near, st.lists(near[1], max_size=3), within(field)))
        options, problems = read(cls, {**block, field.name: value})
        right = fits(value, field)
        codes.add(right)
        if "TrainOptions" in name and right:
            return
        assert (options is not None) == right == (not problems), (value, problems)
        assert all(f"block.{field.name}" in problem for problem in problems), problems
        assert all(len(problem) < 1000 for problem in problems), problems

    check()
    assert False in codes


@pytest.mark.parametrize("name", READ)
def test_keys(name):
    cls = READ[name]
    needed = [f.name for f in fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    _, problems = read(cls, {"no_such_key": 1})
    assert problems[0].startswith("unknown key 'block.no_such_key'")
    assert [problem.split("'")[1] for problem in problems[1:]] == [f"block.{key}" for key in needed]
    assert read(cls, 3)[1] == ["'block' must be a block of keys, got 3"]


def test_the_range_in_words():
    @dataclasses.dataclass
    class Options:
        count: int = option(int, min=1, max=1 << 27)

    assert read(Options, {"count": 0})[1] == [
        "'block.count' must be an integer of at least 1 and at most 134217728, got 0"
    ]


# --- use --------------------------------------------------------------------------------------------


@amounts
@pytest.mark.parametrize("name", OPS)
def test_operations_on_an_image(name, how):
    """With any arguments of their range: a finite result, or an error that says why there is none."""
    cls: Any = OPS[name]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 36, 3), np.uint8))
    kinds = {
        "file": image,
        "image": image,
        "hwc": np.asarray(image, np.float32),
        "chw": np.ones((3, 40, 36), np.float32),
    }

    @how
    @given(blocks(cls), st.data())
    def check(block, data):
        sides = [side for value in block.values() for side in (value if isinstance(value, (list, tuple)) else [value])]
        if any(isinstance(side, int) and side > 1000 for side in sides):
            return  # a picture of such a side is as large as it is asked for
        try:
            operation = cls(**block)
            result = operation(kinds[data.draw(st.sampled_from(operation.stages()[0]))])
        except ValueError as error:
            told = str(error)
        else:
            told = "a finite result" if np.isfinite(np.asarray(result)).all() else ""
        assert 5 < len(told) < 2000

    check()


@amounts
@pytest.mark.parametrize("name", transforms.TRANSFORMS)
def test_transforms_on_an_image(name, how, monkeypatch):
    monkeypatch.setattr("paddle_vheat.deploy.images.MAX_PIXELS", 1 << 20)
    image = np.random.default_rng(0).integers(0, 255, (40, 36, 3), np.uint8)

    @how
    @given(blocks(transforms.TRANSFORMS[name]))
    def check(block):
        try:
            array, undo = transforms.build_transforms([{"type": name, **block}])(image)
            shape = transforms.restore(array[0], undo, "LINEAR").shape
        except ValueError as error:
            told = str(error)
        else:
            told = "a finite result" if np.isfinite(array).all() and shape == (40, 36) else ""
        assert 5 < len(told) < 2000

    check()


@amounts
@pytest.mark.parametrize("name", segmentation.OPTIMIZERS)
def test_optimizers_take_a_step(name, how):
    """A finite one, with any arguments of their range that are not beyond float32 together."""
    config = {"batch_size": 1, "iters": 4, "model": {}, "train_dataset": {}, "loss": {}, "val_dataset": None}
    rate = {"type": "PolynomialDecay", "learning_rate": 1e-3}
    modest = {"weight_decay": st.floats(0, 10)}
    options = {
        f.name: modest.get(f.name, within(f)) for f in fields(segmentation.OPTIMIZERS[name]) if f.name != "custom_cfg"
    }
    options["grad_clip_cfg"] = st.one_of(
        st.none(), *(blocks(c).map(lambda b, n=n: {"name": n, **b}) for n, c in segmentation.CLIPS.items())
    )

    @how
    @given(st.fixed_dictionaries({}, optional=options))
    def check(block):
        given = {**config, "optimizer": {"type": name, **block}, "lr_scheduler": rate}
        assert segmentation._optimizer_problems(given["optimizer"]) == []
        recipe = segmentation.make_recipe(segmentation.SegmentationOptions(**given)).in_iterations(4, 1)
        layer = paddle.nn.Linear(2, 1)
        optimizer = build_optimizer(recipe, layer, build_scheduler(recipe, "lr"), {}, "optimizer")
        layer(paddle.ones([1, 2])).sum().backward()
        optimizer.step()
        assert np.isfinite(layer.weight.numpy()).all()

    check()
