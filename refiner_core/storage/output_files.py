"""Output files: named so that every system takes them, refused before any work is done, and written
whole or not at all.

Windows reserves the names of its devices with any suffix, some characters, and dots and spaces at the
end; it and macOS do not tell upper and lower case apart.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import tempfile
import zlib
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"
}
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')
_LONGEST = 200  # bytes; file systems take 255, and temporary files have longer names
_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST_ID = 90  # characters
_ON_WINDOWS = os.name == "nt"
_LONGEST_NAME = 255  # bytes, on every common file system
_LONGEST_PREFIX = 120  # bytes of a file's name in that of its temporary file
# Other machines, whose processes are unknown here, may write to the same folder.
_MACHINE = f"at{zlib.crc32(platform.node().encode()):08x}"
_TEMPORARY = re.compile(rf"\.{_MACHINE}-(\d+)-[^.]*(\.[^.]*)?$")
_CLEANED: set[Path] = set()


def is_device(name: str) -> bool:
    """Whether Windows takes the name for a device, as `nul`, `CON.txt` and `com1 .png`."""
    return name.partition(".")[0].rstrip(" ").lower() in _DEVICES


def name_problem(name: str) -> str | None:
    """Why a file or folder cannot have the name on every system; None if it can."""
    found = _FORBIDDEN.search(name)
    if not name.strip(" ."):
        return "it is empty"
    if found:
        return f"it contains {found[0]!r}"
    if name[-1] in " .":
        return f"it ends with {name[-1]!r}"
    if is_device(name):
        return "Windows reserves it for a device"
    size = len(name.encode("utf-8", "replace"))
    return f"it has {size} bytes, more than {_LONGEST}" if size > _LONGEST else None


def check_name(name: str, what: str) -> str:
    """The name of a file or folder, if it is valid on every system.

    Args:
        name: without a folder.
        what: what the name is to the user, for errors ("lora_name").

    Raises:
        ValueError: it is not; says why.
    """
    problem = name_problem(name)
    if problem or name.startswith("."):
        reason = problem or "it begins with '.'"
        raise ValueError(f"{what} must be the name of a file without a folder: {name!r}: {reason}.")
    return name


def unique_ids(names: Sequence[str]) -> list[str]:
    """Names as ids that are file names: other characters become "_", and names that some system takes
    for the same get a number.
    """
    ids: list[str] = []
    taken: set[str] = set()
    for name in names:
        base = _NOT_IN_IDS.sub("_", name)[:_LONGEST_ID] or "case"
        base = f"{base}_" if is_device(base) else base
        chosen, number = base, 2
        while chosen.lower() in taken:
            chosen, number = f"{base}-{number}", number + 1
        taken.add(chosen.lower())
        ids.append(chosen)
    return ids


def same_but_for_case(names: Iterable[str]) -> tuple[str, str] | None:
    """Two different names that are one file on Windows and macOS, or None if there are none."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            return other, name
    return None


def ignores_case(file: Path) -> bool:
    """Whether the file system of an existing file takes other cases of its name for the same."""
    return file.with_name(file.name.swapcase()).exists()


def check_ids(ids: Iterable[str], what: str, ignoring_case: bool = True) -> None:
    """Refuse ids that cannot name files.

    Args:
        ids: letters, digits, "-" and "_".
        what: whose they are, for errors ("jobs").
        ignoring_case: whether ids that differ in case alone are refused, too.

    Raises:
        ValueError: Windows reserves one of them, or two of them differ in case alone; names them.
    """
    ids = list(ids)
    for name in ids:
        if is_device(name):
            raise ValueError(
                f"The id {name!r} of the {what} is the name of a device on Windows. Choose another."
            )
    pair = same_but_for_case(ids) if ignoring_case else None
    if pair:
        raise ValueError(
            f"The ids {pair[0]!r} and {pair[1]!r} of the {what} differ in case alone: their files would "
            "replace one another on Windows and macOS. Choose others."
        )


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


def write_text(path: str | Path, text: str) -> None:
    """Write a file as UTF-8, completely or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
