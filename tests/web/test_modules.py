"""Runs the tests of the page's modules that need no page."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def test_page_modules() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on the PATH: the page's modules cannot be run")
    done = subprocess.run(
        [node, "--test", Path(__file__).with_name("modules.test.mjs")], capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
