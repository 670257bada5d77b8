"""Text files that people and programs write: JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

from refiner_core.storage.text_files import read_json_lines


def test_only_line_feeds_end_json_lines(tmp_path: Path) -> None:
    """JSON allows U+2028 and U+0085 within strings; Windows ends lines with two characters."""
    rows = [{"prompt": "two\u2028lines"}, {"prompt": "next\x85line"}]
    first, second = (json.dumps(row, ensure_ascii=False) for row in rows)
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(f"{first}\r\n\r\n{second}\n{{".encode())
    (one, a), (three, b), (four, error) = read_json_lines(path)
    assert [one, three, four] == [1, 3, 4]
    assert [a, b] == rows
    assert isinstance(error, ValueError)
