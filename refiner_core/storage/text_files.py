"""Text that people write by hand: prompts, recipes and settings, in any encoding that editors use."""

from __future__ import annotations

import codecs
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

TABLE_SUFFIXES = (".json", ".toml")
# UTF-32 first: its little-endian mark begins with UTF-16's.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in the UTF-8, UTF-16 or UTF-32 that its byte order mark announces.

    Raises:
        ValueError: the bytes are not text in that encoding.
    """
    data = path.read_bytes()
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as e:
        raise ValueError(
            f"{path} is not {encoding} text (byte {e.start}: {e.reason}). Save it as UTF-8."
        ) from e


def parse_json(text: str | bytes, source: str) -> Any:
    """The value of a JSON text.

    Args:
        text: the text, as bytes in UTF-8, UTF-16 or UTF-32.
        source: where it comes from, for errors: "The manifest X, line 3".

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except UnicodeDecodeError as e:
        raise ValueError(f"{source} is not valid JSON: byte {e.start} is not text.") from e
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{source} is not valid JSON: {e}.") from e


def parse_object(text: str | bytes, source: str) -> dict[str, Any]:
    """The names and values of a JSON object; see `parse_json`.

    Raises:
        ValueError: it is not JSON, or another value than an object.
    """
    value = parse_json(text, source)
    if not isinstance(value, dict):
        raise ValueError(f"{source} must be a JSON object, got {_few(value)}.")
    return cast(dict[str, Any], value)


def _few(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The names and values of a JSON file.

    Args:
        path: the file.
        what: what the file is to the user, for errors ("configuration", "boxes file").

    Raises:
        ValueError: the file is not a JSON object, or not text.
        OSError: it cannot be read.
    """
    return parse_object(read_text(path), f"The {what} {path}")


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """The number of every line that is not blank, and its JSON object, or why it holds none."""
    # `splitlines` also splits at separators that JSON allows within strings, such as U+2028.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                yield number, parse_object(line, "it")
            except ValueError as e:
                yield number, e


def read_table(path: Path, what: str, largest: int = 1 << 20) -> dict[str, Any]:
    """The named values in a JSON or TOML file.

    Args:
        path: the file.
        what: what the file is to the user, for errors ("recipe", "settings file").
        largest: a file of more bytes is refused.

    Raises:
        ValueError: the file does not exist, has another suffix, is too large, cannot be parsed, or
            is not a table of names and values.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise ValueError(f"The {what} {path} must end in {' or '.join(TABLE_SUFFIXES)}.")
    if not path.is_file():
        raise ValueError(f"The {what} {path} does not exist.")
    size = path.stat().st_size
    if size > largest:
        raise ValueError(f"The {what} {path} has {size} bytes, but at most {largest} are read.")
    try:
        text = read_text(path)
        table = parse_toml(text) if suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"The {what} {path} cannot be read: {e}") from e
    if not isinstance(table, dict):
        raise ValueError(f"The {what} {path} must be a table of names and values.")
    return cast(dict[str, Any], table)


def parse_toml(text: str) -> dict[str, Any]:
    """The values in a TOML text.

    Raises:
        ValueError: it is not TOML, or this Python has no parser for it.
    """
    for module in ("tomllib", "tomli"):  # tomllib comes with Python 3.11
        try:
            parser: Any = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        return parser.loads(text)
    raise ValueError("TOML needs Python 3.11 or the package tomli. Write a .json file instead.")
