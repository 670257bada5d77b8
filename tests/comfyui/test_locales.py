"""The nodes' names and tooltips in other languages, against what the server says there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

LOCALES = Path(__file__).resolve().parents[2] / "locales"


@pytest.mark.parametrize("language", ["zh", "ja", "ko"])
def test_translations_fit_the_nodes(server: Any, language: str) -> None:
    known = {k: v for k, v in server.get("/object_info").items() if k.startswith("OmniRefiner_")}
    texts = json.loads((LOCALES / language / "nodeDefs.json").read_text())
    assert texts.keys() <= known.keys()
    translated = total = 0
    for name, info in known.items():
        text = texts.get(name, {"inputs": {}})
        groups = (info["input"].get(g, {}) for g in ("required", "optional"))
        inputs = {key for group in groups for key in group}
        assert text["inputs"].keys() <= inputs, f"{name}: no such inputs any more"
        assert all(t["name"] and t["tooltip"] for t in text["inputs"].values())
        assert len(text.get("outputs", {})) <= len(info["output"]), name
        translated, total = translated + len(text["inputs"]), total + len(inputs)
    assert translated >= 0.9 * total, f"{translated} of {total} inputs are translated"
