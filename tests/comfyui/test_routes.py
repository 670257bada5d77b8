"""The pack's routes over HTTP, asked as an attacker or with odd names would."""

from __future__ import annotations

import http.client
import io
import json
import struct
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.fuzzing import tiny_picture

PICTURE = "/omnirefiner/picture"


def ask(
    server: Any, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> tuple[int, bytes]:
    """Status and body of the answer."""
    request = urllib.request.Request(server.url + path, body, dict(headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as e:
        return e.code, e.read()


def query(**values: str) -> str:
    return f"{PICTURE}?{urllib.parse.urlencode(values)}"


@pytest.fixture(scope="module", autouse=True)
def log_before(server: Any) -> int:
    """Length of the server's log before this file's requests: other files share the server."""
    return len(server.log.read_text())


@pytest.fixture(scope="module")
def pictures(server: Any) -> Path:
    """ComfyUI's input folder with a picture in it, in a folder in it, and outside."""
    folder: Path = server.base / "input"
    (folder / "inner").mkdir(exist_ok=True)
    for path in (folder / "seen.png", folder / "inner" / "seen.png", server.base / "secret.png"):
        path.write_bytes(tiny_picture("PNG"))
    return folder


@pytest.mark.parametrize(
    "named",
    [
        {"filename": "seen.png"},
        {"filename": "seen.png", "subfolder": "inner"},
        {"filename": "inner/seen.png"},
        {"filename": "seen.png", "subfolder": "inner/.."},
        {"case": "logo", "name": "draft"},
    ],
)
def test_what_lies_in_comfyuis_folders_is_shown(
    server: Any, pictures: Path, named: dict[str, str]
) -> None:
    status, body = ask(server, query(**named))
    assert status == 200
    assert Image.open(io.BytesIO(body)).format == "JPEG"


@pytest.mark.parametrize(
    "named",
    [
        {},
        {"filename": ""},
        {"filename": "../secret.png"},
        {"filename": "secret.png", "subfolder": ".."},
        {"filename": "secret.png", "subfolder": "../"},
        {"filename": "seen.png", "type": "models"},
        {"filename": "secret.png", "type": "../"},
        {"filename": "{base}/secret.png"},
        {"filename": "secret.png", "subfolder": "{base}"},
        {"filename": "..\\secret.png"},
        {"filename": "%2e%2e/secret.png"},
        {"filename": "....//secret.png"},
        {"filename": "seen.png\0"},
        {"filename": "seen.png", "subfolder": "\0"},
        {"filename": "inner"},
        {"filename": "x" * 3000},
        {"filename": "link.png"},
        {"filename": "\ud83d\ude00.png".encode("utf-16", "surrogatepass").decode("utf-16")},
        {"case": "../logo", "name": "draft"},
        {"case": "logo", "name": "../draft"},
        {"case": "logo", "name": "mask"},
    ],
)
def test_nothing_else_is_shown(server: Any, pictures: Path, named: dict[str, str]) -> None:
    link = pictures / "link.png"
    if not link.exists():
        link.symlink_to(server.base / "secret.png")
    filled = {k: v.replace("{base}", str(server.base)) for k, v in named.items()}
    status, body = ask(server, query(**filled))
    assert status == 404 and str(server.base) not in body.decode()


def huge_png(side: int) -> bytes:
    """A PNG of a few bytes that says it is that large."""
    data = bytearray(tiny_picture("PNG"))
    data[16:24] = struct.pack(">II", side, side)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        tiny_picture("PNG")[:60],
        tiny_picture("JPEG")[:200],
        huge_png(60_000),
        struct.pack("<2sHIH", b"II", 42, 8, 0),  # a TIFF without dimensions
    ],
)
def test_damaged_pictures_are_refused(server: Any, pictures: Path, data: bytes) -> None:
    (pictures / "bad.png").write_bytes(data)
    status, body = ask(server, query(filename="bad.png"))
    assert status == 415 and json.loads(body)["error"]


@pytest.mark.parametrize("path", [PICTURE, "/omnirefiner/recipes", f"/api{PICTURE}"])
@pytest.mark.parametrize(
    "headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://elsewhere.example"}]
)
def test_other_sites_get_nothing(
    server: Any, pictures: Path, path: str, headers: dict[str, str]
) -> None:
    named = f"{path}?filename=seen.png"
    assert ask(server, named, headers)[0] == 403
    assert ask(server, named)[0] == 200


@pytest.mark.parametrize("path", [PICTURE, "/omnirefiner/recipes"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_the_routes_only_read(server: Any, path: str, method: str) -> None:
    host = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=30)
    # The server answers without waiting for a body of a terabyte.
    connection.request(method, path, headers={"Content-Length": str(1 << 40)})
    assert connection.getresponse().status == 405
    connection.close()


def test_the_log_has_no_traceback(server: Any, log_before: int) -> None:
    assert "Traceback" not in server.log.read_text()[log_before:]
