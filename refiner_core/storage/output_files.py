"""Output files: refused before any work is done, and written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import tempfile
import zlib
from collections.abc import Generator
from pathlib import Path

from .file_names import name_problem

_ON_WINDOWS = os.name == "nt"
_LONGEST_NAME = 255  # bytes, on every common file system
_LONGEST_PREFIX = 120  # bytes of a file's name in that of its temporary file
# Other machines, whose processes are unknown here, may write to the same folder.
_MACHINE = f"at{zlib.crc32(platform.node().encode()):08x}"
_TEMPORARY = re.compile(rf"\.{_MACHINE}-(\d+)-[^.]*(\.[^.]*)?$")
_CLEANED: set[Path] = set()


def check_output(path: str | Path, overwrite: bool) -> Path:
    """Refuse an output path that cannot or should not be written, before any work is done.

    Raises:
        ValueError: the file exists (and `overwrite` is False), the path is a folder, its folder
            does not exist or is not writable, or the name is too long, or none on Windows.
    """
    path = Path(path)
    problem = name_problem(path.name)
    if problem and (_ON_WINDOWS or len(os.fsencode(path.name)) > _LONGEST_NAME):
        raise ValueError(f"The output {path.name} cannot be the name of a file: {problem}.")
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
    """A temporary path beside `path` that replaces it when the block ends without an error.

    Before the first one in a folder, what killed programs left there is deleted.
    """
    path = Path(path)
    _delete_left_over(path.parent)
    head = path.name.encode("utf-8", "replace")[:_LONGEST_PREFIX].decode("utf-8", "ignore")
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{head}.{_MACHINE}-{os.getpid()}-", suffix=path.suffix
    )
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


def _delete_left_over(folder: Path) -> None:
    """Delete the temporary files of this machine's ended processes, once for each folder."""
    if _ON_WINDOWS or folder in _CLEANED:  # Windows cannot be asked for a process without ending it
        return
    _CLEANED.add(folder)
    for path in folder.glob(f".*.{_MACHINE}-*"):
        found = _TEMPORARY.search(path.name)
        if found and not _is_running(int(found[1])):
            path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
