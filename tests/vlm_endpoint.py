"""A local OpenAI-compatible endpoint for the tests of what asks vision-language models."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[int, dict[str, Any]], tuple[int, bytes]]


def said(text: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@contextmanager
def endpoint(
    answer: Answer, held: threading.Event | None = None
) -> Iterator[tuple[str, list[Any]]]:
    """Serves `answer(number, body)`; with `held`, no answer comes before it is set."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, dict(self.headers), body))
            if held is not None:
                held.wait(30)
            status, data = answer(len(asked) - 1, body)
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # whoever asked has left

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        if held is not None:
            held.set()
        server.shutdown()
        server.server_close()
        thread.join()


def said_with_tokens(text: str, *tokens: dict[str, float]) -> bytes:
    """A reply with the probabilities of the alternatives at each position, and 7 + 1 tokens."""
    content = [
        {"top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in position.items()]}
        for position in tokens
    ]
    choice = {"message": {"content": text}, "logprobs": {"content": content}}
    usage = {"prompt_tokens": 7, "completion_tokens": 1}
    return json.dumps({"choices": [choice], "usage": usage}).encode()
