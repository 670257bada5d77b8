"""What a command imports before it works: nothing large that it does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from refiner_core.__main__ import parser
from refiner_core.images.demo_cases import CASES

LARGE = ("torch", "numpy", "PIL", "scipy", "diffusers", "transformers", "peft", "matplotlib")
# Runs the command line in a new interpreter and prints what it has imported in the end.
_PROBE = """
import contextlib, io, sys
from refiner_core.__main__ import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(sys.argv[1:])
print(*sys.modules)
"""


def imported(*arguments: str) -> set[str]:
    """Of `LARGE`, what this command line imports."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *arguments], capture_output=True, text=True, check=True
    )
    assert not done.stderr, done.stderr
    return set(done.stdout.split()) & set(LARGE)


def commands() -> list[str]:
    choices = [a.choices for a in parser()._actions if isinstance(a.choices, dict)]
    return list(choices[0])


@pytest.mark.parametrize("command", ["", *commands()])
def test_help_imports_nothing_large(command: str) -> None:
    assert imported(*command.split(), "--help") == set()


@pytest.mark.slow
def test_a_nano_repair_needs_neither_diffusers_nor_transformers(tmp_path: Path) -> None:
    case, out = CASES / "word", tmp_path / "out.png"
    files = {
        "--draft": case / "draft.png",
        "--reference": case / "reference.png",
        "--mask": case / "mask.png",
        "--reference-mask": case / "reference_mask.png",
        "--out": out,
    }
    found = imported("refine", *(str(part) for pair in files.items() for part in pair))
    assert out.exists()
    assert found == {"torch", "numpy", "PIL", "scipy"}
