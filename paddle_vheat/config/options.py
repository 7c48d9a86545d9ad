"""Options as frozen dataclasses whose fields carry their kind and range; one reader fills them from a block."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from paddle_vheat.config.build import did_you_mean, unknown_keys
from paddle_vheat.errors import UserError

T = TypeVar("T")
_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "a word or a path",
    list: "a list",
    dict: "a block of keys",
}
INFINITE = 1e30


def option(
    kind: Any,
    default: Any = dataclasses.MISSING,
    *,
    min: float | None = None,
    max: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[Any] | None = None,
    items: Any = None,
    length: int | None = None,
) -> Any:
    """A field of a dataclass of options.

    Args:
        kind: int, float, bool, str, list, dict, or a dataclass of options (a nested block).
        default: without one the key is required; with None, null is taken.
        min, max: range, both ends included; ``above``, ``below``: the ends not included.
        choices: the only values.
        items: kind of the entries of a list; they are bounded as a single value would be.
        length: number of entries of a list.
    """
    metadata = {
        "kind": kind, "min": min, "max": max, "above": above, "below": below, "choices": choices, "items": items,
        "length": length,
    }  # fmt: skip
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: default.copy(), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def read_options(cls: type[T], block: Any, where: str, problems: list[str]) -> T | None:
    """Fill a dataclass of options from a block.

    Args:
        where: the block's path, for messages; "" for the whole file.
        problems: gets a text for each unknown and missing key, and for values of another kind or out of range.

    Returns:
        The options; None if there were problems.
    """
    if not isinstance(block, Mapping):
        problems.append(f"'{where}' must be a block of keys, got {short(block)}")
        return None
    before, values, prefix = len(problems), dict[str, Any](), f"{where}." if where else ""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.metadata}  # type: ignore[arg-type]
    problems += unknown_keys(block, fields, where)
    for name, field in fields.items():
        if name in block:
            values[name] = check_value(block[name], field, f"{prefix}{name}", problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"'{prefix}{name}' is missing; expected {expected(field.metadata)}")
    return cls(**values) if len(problems) == before else None


def check_value(value: Any, field: Any, where: str, problems: list[str]) -> Any:
    """The value in the field's kind; a text into ``problems`` if it is none."""
    rule: Mapping[str, Any] = field.metadata
    if value is None and field.default is None:
        return None
    if dataclasses.is_dataclass(rule["kind"]):
        return read_options(cast(type, rule["kind"]), value, where, problems)
    if rule["kind"] is list and rule["items"] is not None:
        right = isinstance(value, (list, tuple)) and rule["length"] in (None, len(value))
        if right and dataclasses.is_dataclass(rule["items"]):
            kind = cast(type, rule["items"])
            return [read_options(kind, item, f"{where}.{i}", problems) for i, item in enumerate(value)]
        if right and all(_is(item, rule["items"]) and _in_range(item, rule) for item in value):
            return [rule["items"](item) for item in value]
    elif _is(value, rule["kind"]) and _in_range(value, rule):
        return rule["kind"](value)
    hint = did_you_mean(value, rule["choices"]) if rule["choices"] and isinstance(value, str) else ""
    problems.append(f"'{where}' must be {expected(rule)}, got {short(value)}{hint}")
    return None


def check_fields(options: Any) -> None:
    """Raise a UserError for fields of a dataclass of options that its constructor was given and that cannot be."""
    problems: list[str] = []
    for field in dataclasses.fields(options):
        check_value(getattr(options, field.name), field, field.name, problems)
    if problems:
        raise UserError("; ".join(problems))


def _is(value: Any, kind: type) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float):
        numeric = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        return numeric and abs(value) <= sys.float_info.max  # exact for integers of any size; False for NaN
    if kind is list:
        return isinstance(value, (list, tuple))
    return isinstance(value, kind)


def _in_range(value: Any, rule: Mapping[str, Any]) -> bool:
    if rule["choices"] is not None:
        return value in rule["choices"]
    low, high, above, below = (rule[name] for name in ("min", "max", "above", "below"))
    return (
        (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
        and (below is None or value < below)
    )


def expected(rule: Mapping[str, Any]) -> str:
    """A field's kind and range in words."""
    if rule["choices"] is not None:
        return f"one of {', '.join(str(choice) for choice in rule['choices'])}"
    kind = rule["kind"]
    text = _NAMES.get(kind, "a block of keys")
    if kind is list and rule["items"] is not None:
        count = "" if rule["length"] is None else f"{rule['length']} "
        plural = {int: "integers", float: "numbers", str: "words", dict: "blocks"}.get(rule["items"], "entries")
        text = f"a list of {count}{plural}"
    low, high = (rule["min"], rule["above"]), (rule["max"], rule["below"])
    parts = [f"at least {low[0]}" if low[0] is not None else f"above {low[1]}"] if low != (None, None) else []
    parts += [f"at most {high[0]}" if high[0] is not None else f"below {high[1]}"] if high != (None, None) else []
    return f"{text} of {' and '.join(parts)}" if parts else text


def short(value: Any, limit: int = 200) -> str:
    """A value for a message, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
