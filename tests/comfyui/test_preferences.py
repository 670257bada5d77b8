"""Kept and rejected results of Reference Refine, as the page sends them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from refiner_core.data.preferences import read_preference
from tests.comfyui.graphs import CASES, pixels, repair


def test_nothing_is_remembered_until_the_page_asks(server: Any) -> None:
    server.run(repair(seed=21))
    status, answer = server.post("/omnirefiner/verdict", {"node": "refine", "kept": True})
    assert status == 404 and answer["error"]
    assert not (server.base / "output" / "omnirefiner-preferences").exists()


def test_a_kept_and_a_rejected_result_are_a_preference(server: Any) -> None:
    status, answer = server.post("/omnirefiner/preferences", {"on": True})
    folder = server.base / "output" / "omnirefiner-preferences"
    assert status == 200 and Path(answer["folder"]) == folder
    try:
        files: list[Path] = []
        saved: list[Path] = []
        for seed, kept in ((22, True), (23, False)):
            saved += server.saved(server.run(repair(seed=seed, align_reference="off")), "save")
            verdict = {"node": "refine", "picture": 0, "kept": kept}
            status, answer = server.post("/omnirefiner/verdict", verdict)
            assert status == 200, answer
            files.append(Path(answer["file"]))
        assert files[0].parent == files[1].parent and files[0].parent.parent == folder
        found = read_preference(files[0].parent)
        assert [r.rank for r in found.repairs] == [1, 2]
        for repaired, picture in zip(found.repairs, saved, strict=True):
            apart = np.abs(repaired.pixels.astype(int) - pixels(picture))
            assert apart.max() <= 1, "Save Image rounds down"
        assert (found.draft == pixels(CASES / "logo" / "draft.png")).all()
        status, _ = server.post("/omnirefiner/verdict", {"node": "refine", "picture": 5})
        assert status == 404
    finally:
        status, answer = server.post("/omnirefiner/preferences", {"on": False})
    assert not answer["on"]
    status, _ = server.post("/omnirefiner/verdict", {"node": "refine", "kept": True})
    assert status == 404, "switched off, nothing is remembered"
