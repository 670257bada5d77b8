"""Settings of the training commands: typed, explained, read from TOML or JSON, never guessed."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


def option(default: T, text: str, low: float | None = None, high: float | None = None) -> T:
    """A field with its default and one sentence that says what it is, in which unit; a number also
    with the least and the largest value that it may have (see `Group`).
    """
    about = {"text": text, "range": None if low is None or high is None else (low, high)}
    if isinstance(default, dict):
        return cast(T, dataclasses.field(default_factory=default.copy, metadata=about))
    return cast(T, dataclasses.field(default=default, metadata=about))


def section(kind: type[T]) -> T:
    """A field that is a group of settings of its own."""
    return cast(T, dataclasses.field(default_factory=kind))


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError for a value outside its range."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low:g} to {high:g}, got {value:g}.")


class Group:
    """A group of settings, a dataclass `<Name>Settings`: numbers have to lie in their ranges."""

    def __post_init__(self) -> None:
        where = type(self).__name__.removesuffix("Settings").lower()
        for f in dataclasses.fields(cast(Any, self)):
            if f.metadata["range"]:
                check_range(f"{where}.{f.name}", getattr(self, f.name), *f.metadata["range"])


def build(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """A settings object from nested plain values; what is not named keeps its default.

    Raises:
        ValueError: an unknown name (with the nearest one there is), a value of the wrong type, or
            what the settings themselves refuse.
    """
    hints = get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(cast(Any, kind))]
    given: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{where}{name}"
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.0)
            raise ValueError(
                f"There is no setting {path!r}; the nearest is {where}{near[0]}. "
                f"There are: {', '.join(known)}."
            )
        given[name] = _convert(value, hints[name], path)
        if isinstance(given[name], dict):  # a table: what is not named keeps its value
            given[name] = getattr(kind(), name) | given[name]
    return kind(**given)


def _convert(value: Any, hint: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{path} is a group of settings, got {value!r}.")
        return build(cast(type[Any], hint), value, f"{path}.")
    if get_origin(hint) is not None:
        return _convert_generic(value, hint, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{path} must be of type {hint.__name__}, got {value!r}.")
    return value


def _convert_generic(value: Any, hint: Any, path: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # a value or nothing
        empty = value is None or value == ""
        return None if empty else _convert(value, inner[0], path)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{path} must be one of {', '.join(map(str, inner))}, got {value!r}.")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(inner):
            raise ValueError(f"{path} takes {len(inner)} values, got {value!r}.")
        return tuple(_convert(v, i, path) for v, i in zip(value, inner, strict=True))
    if not isinstance(value, Mapping):
        raise ValueError(f"{path} takes names with values, got {value!r}.")
    return {str(k): _convert(v, inner[1], f"{path}.{k}") for k, v in value.items()}


def read_file(path: str | Path) -> dict[str, Any]:
    """The values in a TOML or JSON file.

    Raises:
        ValueError: no such file, another suffix, or it cannot be parsed.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"The settings file {path} does not exist.")
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text())
        if path.suffix == ".toml":
            return _toml().loads(path.read_text())
    except ValueError as e:
        raise ValueError(f"The settings file {path} cannot be read: {e}") from e
    raise ValueError(f"Settings are .toml or .json, not {path.name}.")


def _toml() -> Any:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    return tomllib


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` put in, group by group."""
    out = dict(base)
    for key, value in over.items():
        inner = out.get(key)
        both = isinstance(value, Mapping) and isinstance(inner, Mapping)
        out[key] = merged(cast(Any, inner), value) if both else value
    return out


def parse_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """`group.name=value` of the command line as nested values; the value is TOML, or a plain word.

    Raises:
        ValueError: no `=` in one of them.
    """
    out: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"--set takes group.name=value, got {text!r}.")
        try:
            parsed = _toml().loads(f"v = {value}")["v"]
        except ValueError:
            parsed = value.strip()
        *groups, last = name.strip().split(".")
        nested: dict[str, Any] = {last: parsed}
        for part in reversed(groups):
            nested = {part: nested}
        out = merged(out, nested)
    return out


def write_toml(settings: Any) -> str:
    """The settings as TOML, every one with its sentence."""
    lines: list[str] = []
    _write(settings, "", lines)
    return "\n".join(lines).strip() + "\n"


def _write(settings: Any, path: str, lines: list[str]) -> None:
    groups = []
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if dataclasses.is_dataclass(value):
            groups.append((f.name, value))
            continue
        low, high = f.metadata["range"] or (0, math.inf)
        limits = f" {low:g} to {high:g}." if high <= 10_000 else ""
        lines.append(f"# {f.metadata['text']}{limits}")
        lines.append(f"{f.name} = {_literal(value)}")
    for name, value in groups:
        lines += ["", f"[{path}{name}]"]
        _write(value, f"{path}{name}.", lines)


def _literal(value: Any) -> str:
    if value is None:
        return '""'
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_literal(v)}" for k, v in value.items()) + " }"
    return json.dumps(list(value) if isinstance(value, tuple) else value)
