"""Recipes that users write themselves: small JSON or TOML files, which are data and run no code.

    {"name": "my-refiner", "based_on": "omnirefiner", "prompt": "fix the {subject}", "steps": 20}

`based_on` takes all other fields from a built-in recipe. Unknown fields are errors.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast, get_args

from ..images.geometry import (
    KONTEXT_BUCKETS,
    NANO_BUCKETS,
    QWEN_BUCKETS,
    Blend,
    Buckets,
    Extent,
)
from ..storage.text_files import TABLE_SUFFIXES, read_table
from .recipe import (
    RECIPES,
    Attention,
    ConditioningKind,
    Distilled,
    Family,
    Layout,
    Recipe,
    get_recipe,
)

SUFFIXES = TABLE_SUFFIXES
_NAMED_BUCKETS = {"kontext": KONTEXT_BUCKETS, "qwen": QWEN_BUCKETS, "nano": NANO_BUCKETS}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
# Of (a+)+ and (a|a)* Python tries every division of a text, of which there are 2^length.
_REPEATED_GROUP = re.compile(r"(?<!\\)\)(?:[*+]|\{(?:\d*,\d*|\d{2,})\})")
_ROLES = ("draft", "reference", "mask")
_LARGEST = 100_000  # bytes; a recipe has about a thousand


class BadValueError(ValueError):
    """What is wrong with one value; the caller adds the file and the field."""


def _number(low: float, high: float, whole: bool = False) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        kinds = (int,) if whole else (int, float)
        good = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        if not good or not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            raise BadValueError(f"must be {kind} from {low:g} to {high:g}")
        return value

    return check


def _optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Null, "none" (as TOML has no null), or a value that passes `check`."""
    return lambda value: None if value in (None, "none") else check(value)


def _choice(kind: Any) -> Callable[[Any], Any]:
    names = get_args(kind)

    def check(value: Any) -> Any:
        if value not in names:
            raise BadValueError(f"must be one of {', '.join(names)}")
        return value

    return check


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 2000:
        raise BadValueError("must be text of up to 2000 characters")
    return value


def _prompt(value: Any) -> str:
    text = _text(value)
    try:
        text.format(subject="")
    except (KeyError, IndexError, ValueError, AttributeError) as e:
        raise BadValueError("may contain {subject} and no other braces") from e
    if set(re.findall(r"{([^}]*)}", text)) - {"subject"}:
        raise BadValueError("may contain {subject} and no other braces")
    return text


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadValueError("must be true or false")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadValueError(f"must be a list of {what}")
    return cast(list[Any], value)


def _tile(value: Any) -> int:
    side = _number(0, 512, True)(value)
    if side and (side < 32 or side % 16):
        raise BadValueError("must be 0, or a multiple of 16 from 32 to 512")
    return side


def _order(value: Any) -> tuple[str, ...]:
    roles = tuple(_text(role) for role in _list(value, "roles"))
    if "draft" not in roles or len(set(roles)) != len(roles) or set(roles) - set(_ROLES):
        raise BadValueError(
            "must contain draft, and may contain reference and mask, each only once"
        )
    return roles


def _indices(value: Any) -> tuple[int, ...]:
    indices = tuple(_number(0, 100, True)(v) for v in _list(value, "whole numbers"))
    if not indices or indices != tuple(range(indices[0], indices[0] + len(indices))):
        raise BadValueError("must be consecutive whole numbers in rising order, for example [1, 2]")
    return indices


def _references(value: Any) -> tuple[int, int]:
    pair = [_number(0, 3, True)(v) for v in _list(value, "two numbers")]
    if len(pair) != 2 or pair[0] > pair[1]:
        raise BadValueError(
            "must be the smallest and the largest number of references, for example [1, 3]"
        )
    return pair[0], pair[1]


def _triggers(value: Any) -> tuple[tuple[str, str], ...]:
    pairs = [tuple(_list(v, "role and word")) for v in _list(value, "[role, word] pairs")]
    if any(len(p) != 2 or p[0] not in _ROLES or not isinstance(p[1], str) for p in pairs):
        raise BadValueError(
            'must be a list of [role, word] pairs, for example [["reference", "IMG1"]]'
        )
    return cast(tuple[tuple[str, str], ...], tuple(pairs))


def _patterns(value: Any) -> tuple[str, ...]:
    patterns = tuple(_text(v) for v in _list(value, "patterns"))
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as e:
            raise BadValueError(
                f"contains {pattern!r}, which is not a valid regular expression ({e})"
            ) from e
        if _REPEATED_GROUP.search(pattern):
            raise BadValueError(
                f"contains {pattern!r}, which repeats a group any number of times: some prompts would "
                "take hours. Repeat it fewer than 10 times, for example (...){3}"
            )
    return patterns


def _distilled(value: Any) -> Distilled:
    if not isinstance(value, dict) or set(cast(dict[str, Any], value)) != {"steps", "cfg"}:
        raise BadValueError('must be {"steps": N, "cfg": X}')
    table = cast(dict[str, Any], value)
    return Distilled(_number(1, 1000, True)(table["steps"]), float(_number(1, 100)(table["cfg"])))


def _buckets(value: Any) -> Buckets:
    if isinstance(value, str):
        if value not in _NAMED_BUCKETS:
            raise BadValueError(
                f"must be one of {', '.join(_NAMED_BUCKETS)}, or a list of [width, height]"
            )
        return _NAMED_BUCKETS[value]
    side = _number(32, 8192, True)
    sizes = [tuple(side(n) for n in _list(v, "two numbers")) for v in _list(value, "sizes")]
    if not sizes or any(len(s) != 2 for s in sizes):
        raise BadValueError("must contain at least one [width, height]")
    multiple = math.gcd(*(n for s in sizes for n in s))
    if multiple % 8:
        raise BadValueError("must have sides that are multiples of 8")
    return Buckets(tuple(Extent(*s) for s in sizes), min(multiple & -multiple, 32))


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "name": _text,
    "title": _text,
    "order": _order,
    "indices": _indices,
    "prompt": _prompt,
    "guidance": _optional(_number(0, 100)),
    "steps": _number(1, 1000, True),
    "shift": _optional(_number(-10, 10)),
    "text_tokens": _number(1, 4096, True),
    "buckets": _buckets,
    "context": _number(1, 100),
    "align": _switch,
    "latent_factor": _number(1, 64, True),
    "correct_drift_and_color": _switch,
    "blend": _choice(Blend),
    "reference_blend": _number(0, 1),
    "tile": _tile,
    "codec_residual": _number(0, 1),
    "native_detail": _switch,
    "family": _choice(Family),
    "layout": _choice(Layout),
    "attention": _choice(Attention),
    "conditioning": _choice(ConditioningKind),
    "references": _references,
    "shared_bucket": _switch,
    "cfg": _number(1, 100),
    "negative": _text,
    "distilled": _optional(_distilled),
    "triggers": _triggers,
    "prompt_strip": _patterns,
    "note": _text,
}
assert set(_CHECKS) == {f.name for f in fields(Recipe)}, "every field can be written in a file"

# Names that fields had in earlier versions; files that use them are read as before.
_FORMER_NAMES = {
    "settles": "correct_drift_and_color",
    "prefill": "reference_blend",
    "remainder": "codec_residual",
    "sight": "conditioning",
    "one_size": "shared_bucket",
    "fast": "distilled",
    "dropped": "prompt_strip",
}


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a `.json` or `.toml` file.

    Raises:
        ValueError: names the file, the field and what it may be; for an unknown field also the
            nearest existing one.
    """
    path = Path(path).expanduser()
    table = read_table(path, "recipe", _LARGEST)
    base = table.pop("based_on", None)
    if base is not None and (not isinstance(base, str) or base not in RECIPES):
        raise ValueError(f"{path}: based_on must be one of {', '.join(RECIPES)}, got {base!r}.")
    values = _checked(path, table)
    _check_name(path, values.get("name"))
    values.setdefault("title", values["name"])
    recipe = _complete(path, None if base is None else RECIPES[base], values)
    _check_consistency(path, recipe)
    return recipe


def _checked(path: Path, table: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the file's fields under the fields' present names."""
    values: dict[str, Any] = {}
    for written, value in table.items():
        name = _FORMER_NAMES.get(written, written)
        if name not in _CHECKS:
            raise ValueError(f"{path}: there is no field {name!r}{_nearest(name)}.")
        if name in values:
            raise ValueError(f"{path}: {name} is given twice, once under its former name.")
        try:
            values[name] = _CHECKS[name](value)
        except BadValueError as e:
            raise ValueError(f"{path}: {written} {e}, got {value!r}.") from e
    return values


def _check_name(path: Path, name: str | None) -> None:
    if name is None or not _NAME.fullmatch(name):
        raise ValueError(
            f"{path}: name must be up to 64 letters, digits, spaces, '.', '-' and '_', and begin "
            f"with a letter or digit, got {name!r}."
        )
    if name in RECIPES:
        raise ValueError(f"{path}: {name!r} is the name of a built-in recipe. Choose another name.")


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, [*_CHECKS, "based_on"], 1, 0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; the fields are {', '.join(_CHECKS)}"


def _complete(path: Path, base: Recipe | None, values: Mapping[str, Any]) -> Recipe:
    if base is not None:
        return replace(base, **values)
    try:
        return Recipe(**values)
    except TypeError as e:
        needed = re.findall(r"'(\w+)'", str(e))
        raise ValueError(
            f"{path}: a recipe without based_on needs {', '.join(needed)} too. Give them, or add "
            '"based_on": "omnirefiner".'
        ) from e


def _check_consistency(path: Path, recipe: Recipe) -> None:
    if len(recipe.indices) != len(recipe.order):
        raise ValueError(
            f"{path}: order has {len(recipe.order)} roles and indices has {len(recipe.indices)} "
            f"numbers ({list(recipe.indices)}). Give one index per role."
        )
    if (recipe.conditioning == "detail") != bool(recipe.triggers):
        raise ValueError(f'{path}: triggers and conditioning "detail" need each other.')
    if (recipe.conditioning == "vision") != (recipe.family == "qwen-edit"):
        raise ValueError(f'{path}: conditioning "vision" and family "qwen-edit" need each other.')
    if recipe.tile and not (recipe.native_detail and recipe.align):
        raise ValueError(f"{path}: tile needs align and native_detail to be true.")
    if recipe.attention == "one way" and (recipe.family, recipe.layout) != ("flux", "index"):
        raise ValueError(
            f'{path}: attention "one way" needs family "flux" and layout "index", got '
            f'"{recipe.family}" and "{recipe.layout}".'
        )


def find_recipe(name: str) -> Recipe:
    """A built-in recipe by its name, or a user's recipe by its file.

    Raises:
        ValueError: no recipe has that name, or the file is not valid.
    """
    return read_recipe(name) if name.lower().endswith(SUFFIXES) else get_recipe(name)
