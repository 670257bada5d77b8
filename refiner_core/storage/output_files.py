"""Output files: refused before any work is done, and written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Generator
from pathlib import Path


def check_output(path: str | Path, overwrite: bool) -> Path:
    """Refuse an output path that cannot or should not be written, before any work is done.

    Raises:
        ValueError: the file exists (and `overwrite` is False), the path is a folder, or its folder
            does not exist or is not writable.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"The output {path} is a folder. Give the name of a file in it.")
    if path.exists() and not overwrite:
        raise ValueError(f"The output {path} already exists. Pass --overwrite to replace it.")
    if not path.parent.is_dir():
        raise ValueError(f"The folder {path.parent} of the output {path.name} does not exist.")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"The folder {path.parent} of the output {path.name} is not writable.")
    return path


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Generator[Path, None, None]:
    """A temporary path beside `path` that replaces it when the block ends without an error."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
