"""The example workflows: their notes, and the models that ComfyUI's page offers to download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.browser.examples import EXAMPLES
from tests.browser.model_files import FILES, named

FOLDER = Path(__file__).resolve().parents[1] / "example_workflows"
NOTES = {e.name: e.note for e in EXAMPLES}


def nodes_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["nodes"]


def note_of(path: Path) -> str:
    return next(n["widgets_values"][0] for n in nodes_of(path) if n["type"] == "MarkdownNote")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda p: p.stem)
def test_every_model_file_can_be_downloaded_or_the_note_says_not(path: Path) -> None:
    note = note_of(path)
    assert ("GB of VRAM" in note) == ("`diffusion_models`" in note)
    for node in nodes_of(path):
        files = named(node.get("widgets_values") or [])
        offered = {m["name"]: m for m in node["properties"].get("models", [])}
        assert offered.keys() == {f.name for f in files if f.path}
        for file in files:
            assert file.name in note, f"the note does not name {file.name}"
            if file.path is None:
                assert "not been published" in note
                continue
            entry = offered[file.name]
            assert entry["directory"] == file.folder and entry["url"] in note
            # Where ComfyUI's page offers a download, and of what type.
            assert entry["url"].startswith("https://huggingface.co/")
            assert entry["url"].endswith(".safetensors")


@pytest.mark.parametrize("name", NOTES)
def test_the_note_is_the_written_one(name: str) -> None:
    assert note_of(FOLDER / f"{name}.json") == NOTES[name]


def test_every_file_of_the_list_is_used() -> None:
    used = {
        f.name
        for path in FOLDER.glob("*.json")
        for node in nodes_of(path)
        for f in named(node.get("widgets_values") or [])
    }
    assert used == FILES.keys()
