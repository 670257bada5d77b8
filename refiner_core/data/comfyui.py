"""Talks to ComfyUI servers: send pictures, run a graph, fetch what it saved.

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

from .triplets import decode_png, encode_png
from .workflow import titles

_ANSWER = 30.0  # seconds a server may take for one answer; it answers while it computes
_LOST = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)


class ComfyUIError(ConnectionError):
    """No server can do the work, or one refuses the workflow: going on is pointless."""


class _LostError(Exception):
    """This server is gone; another may do the work."""


@dataclass(frozen=True)
class Server:
    """One ComfyUI, such as http://127.0.0.1:8188. `timeout` seconds for one graph."""

    url: str
    timeout: float = 900.0

    def _request(
        self, path: str, data: bytes | None = None, kind: str = "application/json"
    ) -> bytes:
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER) as answer:
                return answer.read()
        except urllib.error.HTTPError as e:
            body = e.read()
            if path == "/prompt" and e.code == 400:
                raise ComfyUIError(f"{self.url} refuses the workflow: {_refusal(body)}") from e
            raise _LostError(f"{self.url}{path} answered {e.code}") from e
        except _LOST as e:
            raise _LostError(f"{self.url}: {getattr(e, 'reason', e)}") from e

    def _json(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        try:
            return json.loads(self._request(path, data))
        except ValueError as e:
            raise _LostError(f"{self.url}{path} is no ComfyUI: its answer is no JSON") from e

    def waiting(self) -> int:
        """Graphs running or queued there."""
        queue = self._json("/queue")
        return len(queue["queue_running"]) + len(queue["queue_pending"])

    def upload(self, pixels: np.ndarray) -> str:
        """Send a picture; the name a Load Image node takes. The same picture is one file there."""
        data = encode_png(pixels)
        name = f"{hashlib.blake2b(data, digest_size=12).hexdigest()}.png"
        mark = uuid.uuid4().hex
        parts = [("subfolder", "omnirefiner"), ("type", "input"), ("overwrite", "true")]
        body = b"".join(
            f'--{mark}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode()
            for k, v in parts
        )
        body += (
            f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            "Content-Type: image/png\r\n\r\n"
        ).encode()
        body += data + f"\r\n--{mark}--\r\n".encode()
        answer = json.loads(
            self._request("/upload/image", body, f"multipart/form-data; boundary={mark}")
        )
        return f"{answer['subfolder']}/{answer['name']}" if answer["subfolder"] else answer["name"]

    def run(self, graph: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Run a graph to its end; the pictures it saved by the saving nodes' titles.

        Raises:
            ValueError: a node failed, or nothing was saved.
            ComfyUIError: the graph is refused.
        """
        prompt = self._json("/prompt", {"prompt": graph, "client_id": "omnirefiner-data"})
        if prompt.get("node_errors"):
            # ComfyUI would run the branches that are right and leave out the others.
            self._request("/queue", json.dumps({"delete": [prompt["prompt_id"]]}).encode())
            raise ComfyUIError(f"{self.url} refuses the workflow: {_node_errors(prompt)}")
        entry = self._wait(prompt["prompt_id"])
        status = entry.get("status", {})
        if status.get("status_str") == "error":
            raise ValueError(f"the workflow failed on {self.url}: {_failure(status)}")
        names, found = titles(graph), {}
        for node, output in entry["outputs"].items():
            for image in output.get("images", [])[:1]:
                query = urllib.parse.urlencode(
                    {k: image[k] for k in ("filename", "subfolder", "type")}
                )
                found[names[node]] = decode_png(self._request(f"/view?{query}"), mask=False)
        if not found:
            raise ValueError("the workflow saved no picture: end it with a Save Image node")
        return found

    def _wait(self, prompt: str) -> dict[str, Any]:
        """The history entry of a prompt, once it has ended."""
        begun, pause = time.monotonic(), 0.05
        while time.monotonic() - begun < self.timeout:
            history = self._json(f"/history/{prompt}")
            if prompt in history:
                return history[prompt]
            time.sleep(pause)
            pause = min(1.0, pause * 1.5)
            if not self._knows(prompt) and prompt not in self._json(f"/history/{prompt}"):
                raise _LostError(
                    f"{self.url} has forgotten the workflow: it was restarted or cleared"
                )
        raise ValueError(f"the workflow did not end in {self.timeout:g} s on {self.url}")

    def _knows(self, prompt: str) -> bool:
        queue = self._json("/queue")
        return any(entry[1] == prompt for part in queue.values() for entry in part)


def _node_errors(answer: Mapping[str, Any]) -> str:
    return "; ".join(
        f"node {node} ({errors['class_type']}): {e['message']} {e['details']}".strip()
        for node, errors in (answer.get("node_errors") or {}).items()
        for e in errors["errors"]
    )


def _refusal(body: bytes) -> str:
    """ComfyUI's reasons for refusing a graph, node by node."""
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
    """Several ComfyUIs that do the same work; each graph goes to the one with the shortest queue.

    `retries` rounds over all of them with `pause` seconds between, before giving up.
    """

    servers: tuple[Server, ...]
    retries: int = 3
    pause: float = 1.0

    def _by_queue(self, first: int) -> tuple[list[Server], list[str]]:
        """Reachable servers, the idlest first, from `first` on where they are equal; and why the
        others are not.
        """
        n = len(self.servers)
        queues, lost = [], []
        for place in range(n):
            server = self.servers[(first + place) % n]
            try:
                queues.append((server.waiting(), place, server))
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

        A server that dies on the way is left for the next.

        Raises:
            ValueError: the graph failed.
            ComfyUIError: no server is left, or the graph is refused.
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
            f"No ComfyUI does the work ({'; '.join(lost)}). What is done is kept: start it and run "
            "the same command again."
        )


def servers_of(urls: Sequence[str], timeout: float) -> Servers:
    """The servers at these addresses; `host:port` is taken as http.

    Raises:
        ValueError: no address, or one that is none.
    """
    if not urls:
        raise ValueError("A workflow needs a ComfyUI: give --comfyui URL, once for each server.")
    found = []
    for url in urls:
        whole = url if "://" in url else f"http://{url}"
        parts = urllib.parse.urlsplit(whole)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no address of a ComfyUI; one is http://127.0.0.1:8188.")
        found.append(Server(whole.rstrip("/"), timeout))
    return Servers(tuple(found))
