"""The one way from "a name and its arguments" to an object, with errors that name the key and the nearest known one."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from paddle_vheat._arguments import did_you_mean
from paddle_vheat.errors import ConfigError, UserError


def unknown_keys(block: Iterable[Any], known: Iterable[str], where: str = "") -> list[str]:
    """A problem for every key of ``block`` that is not known."""
    known = list(known)
    prefix = f"{where}." if where else ""
    return [f"unknown key '{prefix}{key}'{did_you_mean(key, known)}" for key in block if key not in known]


def arguments_of(factory: Any) -> tuple[list[str], list[str]] | None:
    """Names of the arguments that a class or function takes, and those of them that have no default.

    None if it takes any argument (``**kwargs``).
    """
    parameters = list(inspect.signature(factory).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return [p.name for p in named], [p.name for p in named if p.default is p.empty]


def find_problems(
    name: Any, arguments: Any, registry: Mapping[str, Any], where: str, given: Iterable[str] = ()
) -> list[str]:
    """What is wrong with a name and its arguments, before anything is built.

    Args:
        name: of an entry of ``registry``.
        arguments: by name; None for none.
        where: the path of the block in its file, such as "train_dataset.transforms.1".
        given: arguments that the program gives.
    """
    if not isinstance(name, str) or name not in registry:
        names = list(registry)
        listed = ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:20])} and {len(names) - 20} more"
        return [f"'{where}': nothing is called {name!r}{did_you_mean(name, registry)} (known: {listed})"]
    if arguments is not None and not isinstance(arguments, Mapping):
        return [f"'{where}.{name}' must be arguments by name, got {arguments!r}"]
    taken = arguments_of(registry[name]) if callable(registry[name]) else ([], [])
    if taken is None:
        return []
    known, required = taken
    problems = [
        f"'{where}.{key}': {name} has no such argument{did_you_mean(key, known)}"
        for key in arguments or {}
        if key not in known
    ]
    absent = [argument for argument in required if argument not in (arguments or {}) and argument not in set(given)]
    return problems + [f"'{where}.{argument}': {name} needs this argument" for argument in absent]


def build(
    name: Any, arguments: Mapping[str, Any] | None, registry: Mapping[str, Callable[..., Any]], where: str, **given: Any
) -> Any:
    """``registry[name](**arguments, **given)``.

    Raises:
        ConfigError: for an unknown name or argument, one that is missing, and for values that the object does not
            take; names ``where``.
    """
    problems = find_problems(name, arguments, registry, where, given)
    if problems:
        raise ConfigError("\n  ".join(problems)) if len(problems) == 1 else ConfigError(where, problems)
    with building(where):
        return registry[name](**{**(arguments or {}), **given})


def build_list(
    entries: Any, registry: Mapping[str, Callable[..., Any]], where: str, split: Callable[[Any], tuple[Any, Any]]
) -> list[Any]:
    """One object for each entry of a list; all mistakes are reported at once.

    Args:
        split: an entry to its name and arguments: :func:`by_type` or :func:`by_name`.
    """
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise ConfigError(f"'{where}' must be a list, got {entries!r}")
    built, problems = [], []
    for i, entry in enumerate(entries):
        try:
            name, arguments = split(entry)
        except ValueError as error:
            problems.append(f"'{where}.{i}' {error}")
            continue
        wrong = find_problems(name, arguments, registry, f"{where}.{i}")
        if not wrong:
            try:
                built.append(build(name, arguments, registry, f"{where}.{i}"))
            except ConfigError as error:
                wrong = error.problems
        problems += wrong
    if problems:
        raise ConfigError(problems[0]) if len(problems) == 1 else ConfigError(where, problems)
    return built


def by_type(entry: Any) -> tuple[Any, dict[str, Any]]:
    """``{type: name, argument: value, ...}``, as PaddleSeg writes it."""
    if not isinstance(entry, Mapping) or "type" not in entry:
        raise ValueError(f"must be a block with a 'type', got {entry!r}")
    return entry["type"], {key: value for key, value in entry.items() if key != "type"}


def by_name(entry: Any) -> tuple[Any, Any]:
    """``{name: {argument: value, ...}}``, as PaddleClas writes it."""
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise ValueError(f"must be one 'name: arguments', got {entry!r}")
    return next(iter(entry.items()))


@contextlib.contextmanager
def building(where: str) -> Iterator[None]:
    """Inside, an object is built from a block of a configuration: what goes wrong is the block's fault.

    The system's errors of files, and errors of the user's that name theirs, pass as they are.
    """
    try:
        yield
    except (UserError, OSError) as error:
        if type(error) is not UserError:
            raise
        raise ConfigError(f"{where}: {error}") from error
    except Exception as error:  # libraries say it in any way: AssertionError, OverflowError, RuntimeError ...
        kind = "" if isinstance(error, (ValueError, RuntimeError)) else f"{type(error).__name__}: "
        text = re.sub(r"<(?:\w+\.)*(\w+) object at 0x\w+>", r"\1", str(error))
        raise ConfigError(f"{where}: {kind}{text[:500]}") from error
