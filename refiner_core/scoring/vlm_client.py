"""A client for vision-language models behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import base64
import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


def png_url(png: bytes) -> str:
    """A PNG file as a `data:` URL."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


@dataclass(frozen=True)
class VlmClient:
    """Asks one model."""

    url: str  # base URL of the endpoint (".../v1")
    model: str  # its name there
    key: str | None = field(default=None, repr=False)  # sent as bearer token
    timeout: float = 60.0  # seconds per reply

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"The endpoint must be an http(s) URL, got {self.url!r}.")
        if not self.model:
            raise ValueError("The endpoint needs the name of a model (--vlm-model).")
        if self.timeout <= 0:
            raise ValueError(f"The timeout must be more than 0 s, got {self.timeout}.")

    def ask(self, text: str, pictures: Sequence[str], *, max_tokens: int = 300) -> str:
        """The model's raw reply, at temperature 0.

        Args:
            text: the question.
            pictures: their URLs, see `png_url`.
            max_tokens: of the reply.

        Raises:
            OSError: no reply in time, a refusal, or a reply that does not follow the protocol.
        """
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        content += [{"type": "image_url", "image_url": {"url": u}} for u in pictures]
        body = {
            "model": self.model,
            "temperature": 0,
            "seed": 0,
            "max_tokens": max_tokens,
            "messages": [{"role": "user", "content": content}],
        }
        reply = self._post(json.dumps(body).encode())
        if not isinstance(reply, str):
            raise OSError(f"the reply is a {type(reply).__name__}, not text")
        return reply

    def _post(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        url = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return json.load(answer)["choices"][0]["message"]["content"]
        except urllib.error.HTTPError as e:
            raise OSError(f"HTTP {e.code}: {e.read(300).decode(errors='replace')}") from e
        except (ValueError, LookupError, TypeError, http.client.HTTPException) as e:
            raise OSError(
                f"the reply does not follow the protocol ({type(e).__name__}: {e})"
            ) from e


def json_objects(reply: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a reply, beginning with the one that starts last."""
    decoder = json.JSONDecoder()
    for brace in reversed([m.start() for m in re.finditer(r"\{", reply)]):
        try:
            yield decoder.raw_decode(reply, brace)[0]
        except ValueError:
            continue
