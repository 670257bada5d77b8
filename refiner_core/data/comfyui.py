"""A client for ComfyUI servers: uploads pictures, runs a graph and downloads what it saved.

Plain HTTP with the standard library: `/upload/image`, `/prompt`, `/history`, `/queue`, `/view`.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..storage.text_files import parse_object
from .triplets import decode_png, encode_png
from .workflow import titles

_RESPONSE_TIMEOUT = 30.0  # seconds per request; a server also responds while it computes
_LOST = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)


class ComfyUIError(ConnectionError):
    """No server can be reached, or one rejects the workflow: the build cannot go on."""


class _LostError(Exception):
    """This server cannot be reached; another may do the work."""


@dataclass(frozen=True)
class Server:
    """One ComfyUI."""

    url: str  # such as http://127.0.0.1:8188
    timeout: float = 900.0  # seconds per graph

    def _request(
        self, path: str, data: bytes | None = None, kind: str = "application/json"
    ) -> bytes:
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=_RESPONSE_TIMEOUT) as answer:
                return answer.read()
        except urllib.error.HTTPError as e:
            body = e.read()
            if path == "/prompt" and e.code == 400:
                raise ComfyUIError(f"{self.url} rejects the workflow: {_refusal(body)}") from e
            raise _LostError(f"{self.url}{path} responded with status {e.code}") from e
        except _LOST as e:
            reason = getattr(e, "reason", e)
            # The words of the system, without its number.
            raise _LostError(f"{self.url}: {getattr(reason, 'strerror', None) or reason}") from e

    def _json(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        try:
            return parse_object(self._request(path, data), f"the response to {path}")
        except ValueError as e:
            raise _LostError(f"{self.url} is not a ComfyUI server: {e}") from e

    def waiting(self) -> int:
        """Number of graphs running or queued."""
        queue = self._json("/queue")
        return len(queue["queue_running"]) + len(queue["queue_pending"])

    def upload(self, pixels: np.ndarray) -> str:
        """Upload a picture; returns its name for a Load Image node. Equal pictures share one file."""
        data = encode_png(pixels)
        name = f"{hashlib.blake2b(data, digest_size=12).hexdigest()}.png"
        boundary = uuid.uuid4().hex
        fields = [("subfolder", "omnirefiner"), ("type", "input"), ("overwrite", "true")]
        body = b"".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode()
            for k, v in fields
        )
        body += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            "Content-Type: image/png\r\n\r\n"
        ).encode()
        body += data + f"\r\n--{boundary}--\r\n".encode()
        answer = json.loads(
            self._request("/upload/image", body, f"multipart/form-data; boundary={boundary}")
        )
        return f"{answer['subfolder']}/{answer['name']}" if answer["subfolder"] else answer["name"]

    def run(self, graph: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Run a graph; returns the saved pictures by the titles of the saving nodes.

        Raises:
            ValueError: a node failed, or nothing was saved.
            ComfyUIError: the graph is rejected.
        """
        prompt = self._json("/prompt", {"prompt": graph, "client_id": "omnirefiner-data"})
        if prompt.get("node_errors"):
            # ComfyUI would run the valid branches and leave out the others.
            self._request("/queue", json.dumps({"delete": [prompt["prompt_id"]]}).encode())
            raise ComfyUIError(f"{self.url} rejects the workflow: {_node_errors(prompt)}")
        entry = self._wait(prompt["prompt_id"])
        status = entry.get("status", {})
        if status.get("status_str") == "error":
            raise ValueError(f"the workflow failed on {self.url}: {_failure(status)}")
        names, pictures = titles(graph), {}
        for node, output in entry["outputs"].items():
            for image in output.get("images", [])[:1]:
                query = urllib.parse.urlencode(
                    {k: image[k] for k in ("filename", "subfolder", "type")}
                )
                pictures[names.get(node, node)] = decode_png(
                    self._request(f"/view?{query}"), mask=False
                )
        if not pictures:
            raise ValueError("the workflow saved no picture: end it with a Save Image node")
        return pictures

    def _wait(self, prompt: str) -> dict[str, Any]:
        """The history entry of a prompt, once it has finished."""
        started, pause = time.monotonic(), 0.05
        while time.monotonic() - started < self.timeout:
            history = self._json(f"/history/{prompt}")
            if prompt in history:
                return history[prompt]
            time.sleep(pause)
            pause = min(1.0, pause * 1.5)
            if not self._knows(prompt) and prompt not in self._json(f"/history/{prompt}"):
                raise _LostError(
                    f"{self.url} has lost the workflow: it was restarted, or its queue was cleared"
                )
        raise ValueError(f"the workflow did not finish within {self.timeout:g} s on {self.url}")

    def _knows(self, prompt: str) -> bool:
        queue = self._json("/queue")
        return any(entry[1] == prompt for entries in queue.values() for entry in entries)


def _node_errors(answer: Mapping[str, Any]) -> str:
    return "; ".join(
        f"node {node} ({errors['class_type']}): {e['message']} {e['details']}".strip()
        for node, errors in (answer.get("node_errors") or {}).items()
        for e in errors["errors"]
    )


def _refusal(body: bytes) -> str:
    """ComfyUI's reasons for rejecting a graph, node by node."""
    try:
        answer = json.loads(body)
        return "; ".join(t for t in (answer["error"]["message"], _node_errors(answer)) if t)
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:500]


def _failure(status: Mapping[str, Any]) -> str:
    for kind, message in status.get("messages", []):
        if kind == "execution_error":
            node = f"node {message['node_id']} ({message['node_type']})"
            return f"{node}: {message['exception_message']}".strip()
        if kind == "execution_interrupted":
            return "it was interrupted"
    return "no reason given"


@dataclass(frozen=True)
class Servers:
    """Several ComfyUIs that share the work; each graph goes to the one with the shortest queue."""

    servers: tuple[Server, ...]
    retries: int = 3  # rounds over all servers before giving up
    pause: float = 1.0  # seconds between rounds

    def _by_queue(self, first: int) -> tuple[list[Server], list[str]]:
        """Reachable servers by the length of their queues (ties go to `first` and those after it),
        and why the others cannot be reached.
        """
        n = len(self.servers)
        queues, lost = [], []
        for offset in range(n):
            server = self.servers[(first + offset) % n]
            try:
                queues.append((server.waiting(), offset, server))
            except _LostError as e:
                lost.append(str(e))
        return [server for _, _, server in sorted(queues, key=lambda q: q[:2])], lost

    def run(
        self,
        fill: Any,
        pictures: Mapping[str, np.ndarray],
        first: int = 0,
    ) -> dict[str, np.ndarray]:
        """Upload `pictures` and run `fill({name: uploaded name})` on one server.

        If a server fails, the next one is tried.

        Raises:
            ValueError: the graph failed.
            ComfyUIError: no server can be reached, or the graph is rejected.
        """
        lost: list[str] = []
        for attempt in range(self.retries):
            if attempt:
                time.sleep(self.pause)
            reachable, lost = self._by_queue(first)
            for server in reachable:
                try:
                    names = {k: server.upload(p) for k, p in pictures.items()}
                    return server.run(fill(names))
                except _LostError as e:
                    lost.append(str(e))
        raise ComfyUIError(
            f"No ComfyUI server can be reached ({'; '.join(lost)}). Finished work is kept: start one and "
            "run the same command again."
        )


def servers_of(urls: Sequence[str], timeout: float) -> Servers:
    """The servers at these URLs; `host:port` means http.

    Raises:
        ValueError: there is no URL, or one is not valid.
    """
    if not urls:
        raise ValueError(
            "A workflow needs a ComfyUI server: add --comfyui URL, once for each server."
        )
    servers = []
    for url in urls:
        full = url if "://" in url else f"http://{url}"
        parts = urllib.parse.urlsplit(full)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"{url!r} is not a URL of a ComfyUI server such as http://127.0.0.1:8188."
            )
        servers.append(Server(full.rstrip("/"), timeout))
    return Servers(tuple(servers))
