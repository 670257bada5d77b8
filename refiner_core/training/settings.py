"""Typed training settings: each with its default, range, unit and one sentence of documentation."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import (
    Any,
    ClassVar,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from ..storage.text_files import parse_toml, read_table

T = TypeVar("T")


# Old names by group, which settings files and command lines may still use.
RENAMED = {
    "data": {"views": "crops", "grow": "dilate"},
    "loss": {"times": "timesteps"},
    "rollout": {"consensus": "group_mean"},
    "run": {"sample_every": "validate_every"},
}


def option(default: T, text: str, low: float | None = None, high: float | None = None) -> T:
    """A setting.

    Args:
        text: what it is and in which unit, in one sentence.
        low, high: the range of a number (see `Group`).
    """
    about = {"text": text, "range": None if low is None or high is None else (low, high)}
    if isinstance(default, dict):
        return cast(T, dataclasses.field(default_factory=default.copy, metadata=about))
    return cast(T, dataclasses.field(default=default, metadata=about))


def section(kind: type[T]) -> T:
    """A field that is itself a group of settings."""
    return cast(T, dataclasses.field(default_factory=kind))


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError for a value outside its range."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low:g} to {high:g}, got {value:g}.")


class Group:
    """A group of settings, a dataclass; checks the ranges of its numbers.

    It is called as its class without "Settings", unless `section_name` names it.
    """

    section_name: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        where = self.section_name or type(self).__name__.removesuffix("Settings").lower()
        for f in dataclasses.fields(cast(Any, self)):
            value = getattr(self, f.name)
            if f.metadata["range"] and value is not None:
                check_range(f"{where}.{f.name}", value, *f.metadata["range"])


def build(kind: type[T], values: Mapping[str, Any]) -> T:
    """A settings object from nested plain values; what is not named keeps its default.

    Raises:
        ValueError: an unknown name (with the nearest known one), a setting given under its old and
            its new name, a value of the wrong type, or a contradiction between settings.
    """
    return _build(kind, _with_new_names(values), "")


def _with_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for group, inner in values.items():
        names = RENAMED.get(group, {})
        if not isinstance(inner, Mapping):
            out[group] = inner
            continue
        for old, new in names.items():
            if old in inner and new in inner:
                raise ValueError(f"{group}.{old} is the old name of {group}.{new}; give only one.")
        out[group] = {names.get(k, k): v for k, v in inner.items()}
    return out


def _build(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    hints = get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(cast(Any, kind))]
    given: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{where}{name}"
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1, 0.0)
            raise ValueError(
                f"There is no setting {path!r}; the nearest is {where}{nearest[0]}. "
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
        return _build(cast(type[Any], hint), value, f"{path}.")
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


def read_settings_file(path: str | Path) -> dict[str, Any]:
    """The values in a TOML or JSON file.

    Raises:
        ValueError: no such file, another suffix, or not a valid table.
    """
    return read_table(Path(path).expanduser(), "settings file")


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` updated with the values of `over`, group by group; old names become the new ones."""
    return _merge(_with_new_names(base), _with_new_names(over))


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        inner = out.get(key)
        both = isinstance(value, Mapping) and isinstance(inner, Mapping)
        out[key] = _merge(cast(Any, inner), value) if both else value
    return out


def parse_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """`group.name=value` from the command line as nested values; a value is TOML or a plain word.

    Raises:
        ValueError: one of them has no `=`.
    """
    out: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"--set takes group.name=value, got {text!r}.")
        try:
            parsed = parse_toml(f"v = {value}")["v"]
        except ValueError:
            parsed = value.strip()
        *groups, last = name.strip().split(".")
        nested: dict[str, Any] = {last: parsed}
        for group in reversed(groups):
            nested = {group: nested}
        out = _merge(out, nested)
    return out


def write_toml(settings: Any) -> str:
    """The settings as TOML, each with its documentation as a comment."""
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
