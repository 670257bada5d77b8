"""ComfyUI workflows as templates: API-format JSON with named placeholders.

A placeholder is `{{name}}` in any input of any node: `"image": "{{reference}}"` in a Load Image
node, `"seed": "{{seed}}"` in a sampler, `"text": "a photo, {{prompt}}"` in a text encoder.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..storage.text_files import parse_json, read_text

_PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")

Value = str | int | float


@dataclass(frozen=True)
class Workflow:
    """A workflow with placeholders."""

    path: Path  # the file it was read from
    graph: dict[str, Any]  # in API format
    names: frozenset[str]  # of its placeholders

    @property
    def digest(self) -> str:
        """Changes when the graph does."""
        return hashlib.sha256(json.dumps(self.graph, sort_keys=True).encode()).hexdigest()[:16]

    def fill(self, values: Mapping[str, Value]) -> dict[str, Any]:
        """The graph with every placeholder replaced.

        An input that consists of a placeholder takes the value's own type; inside a longer text
        the value becomes text.
        """
        return _fill(self.graph, values)


def _fill(entry: Any, values: Mapping[str, Value]) -> Any:
    if isinstance(entry, dict):
        return {k: _fill(v, values) for k, v in entry.items()}
    if isinstance(entry, list):
        return [_fill(v, values) for v in entry]
    if not isinstance(entry, str):
        return entry
    alone = _PLACEHOLDER.fullmatch(entry.strip())
    if alone:
        return values[alone.group(1)]
    return _PLACEHOLDER.sub(lambda m: str(values[m.group(1)]), entry)


def _strings(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, (dict, list)):
        for value in entry.values() if isinstance(entry, dict) else entry:
            yield from _strings(value)


def load_workflow(path: Path, known: Mapping[str, str], needed: tuple[str, ...]) -> Workflow:
    """Read a workflow file and check its placeholders.

    Args:
        path: JSON as ComfyUI writes it with "Export (API)".
        known: the placeholders that can be filled, each with a description.
        needed: the placeholders that must be there.

    Raises:
        ValueError: the file is not an API-format workflow, or a placeholder is missing or unknown.
    """
    graph = parse_json(read_text(path), f"The workflow {path}")
    _check_api_format(path, graph)
    inputs = [node["inputs"] for node in graph.values()]
    names = {m for text in _strings(inputs) for m in _PLACEHOLDER.findall(text)}
    listed = ", ".join(f"{{{{{n}}}}} ({what})" for n, what in known.items())
    for name in sorted(names - known.keys()):
        near = difflib.get_close_matches(name, known, 1)
        hint = f" Did you mean {{{{{near[0]}}}}}?" if near else ""
        raise ValueError(
            f"The workflow {path} has an unknown placeholder {{{{{name}}}}}.{hint} Known: {listed}."
        )
    for name in needed:
        if name not in names:
            raise ValueError(
                f"The workflow {path} has no placeholder {{{{{name}}}}} ({known[name]}): write it "
                f"into the input that takes the value. Known: {listed}."
            )
    return Workflow(path, graph, frozenset(names))


def _check_api_format(path: Path, graph: Any) -> None:
    if isinstance(graph, dict) and "nodes" in graph and "links" in graph:
        raise ValueError(
            f"The workflow {path} is in the editor's format. In ComfyUI choose Workflow > "
            "Export (API) and use that file."
        )
    nodes = list(graph.values()) if isinstance(graph, dict) else []
    if not nodes or not all(_is_node(n) for n in nodes):
        raise ValueError(
            f"The workflow {path} is not in API format: expected an object of nodes with "
            "class_type and inputs."
        )


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("inputs"), dict) and "class_type" in node


def titles(graph: Mapping[str, Any]) -> dict[str, str]:
    """Node id to title in lower case, or the class of a node without a title."""
    return {
        key: str((node.get("_meta") or {}).get("title", node["class_type"])).strip().lower()
        for key, node in graph.items()
    }
