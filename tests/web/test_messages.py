"""The page's messages: there in every language, with the same placeholders, and none forgotten."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ["zh", "ja", "ko"]


def messages(language: str) -> dict[str, str]:
    return json.loads((ROOT / "locales" / language / "main.json").read_text())["omnirefiner"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_message_is_translated(language: str) -> None:
    english, other = messages("en"), messages(language)
    assert other.keys() == english.keys()
    for key, text in english.items():
        assert other[key].strip()
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", other[key])), (
            key
        )


def test_every_message_that_is_said_exists() -> None:
    code = "\n".join(p.read_text() for p in (ROOT / "web" / "js").glob("*.js"))
    said = set(re.findall(r'say\("(\w+)"', code))
    assert len(said) > 30 and said <= messages("en").keys()


def test_no_page_code_names_another_server() -> None:
    for path in (ROOT / "web" / "js").iterdir():
        assert not re.search(r"https?://|//cdn", path.read_text()), path.name
