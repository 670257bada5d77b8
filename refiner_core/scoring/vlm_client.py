"""One question with pictures to a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import base64
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any


def png_url(png: bytes) -> str:
    """A PNG file as a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def ask(
    url: str,
    model: str,
    text: str,
    pictures: Sequence[str],
    *,
    key: str | None = None,
    timeout: float = 60.0,
    seed: int = 0,
    tokens: int = 300,
) -> str:
    """The model's raw reply, at temperature 0.

    Args:
        url: base address (".../v1").
        model: its name there.
        text: the question.
        pictures: their addresses, see `png_url`.
        key: sent as bearer token if there is one.
        timeout: seconds.
        seed: of the reply.
        tokens: at most so many.

    Raises:
        OSError: no answer in time, a refusal, or an answer that is none of the protocol's.
    """
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    content += [{"type": "image_url", "image_url": {"url": u}} for u in pictures]
    body = {
        "model": model, "temperature": 0, "seed": seed, "max_tokens": tokens,
        "messages": [{"role": "user", "content": content}],
    }  # fmt: skip
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(
        f"{url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            reply = json.load(answer)["choices"][0]["message"]["content"]
    except urllib.error.HTTPError as e:
        raise OSError(f"HTTP {e.code}: {e.read(300).decode(errors='replace')}") from e
    except (ValueError, LookupError, TypeError, http.client.HTTPException) as e:
        raise OSError(f"not an answer of the protocol ({type(e).__name__}: {e})") from e
    if not isinstance(reply, str):
        raise OSError(f"the reply is a {type(reply).__name__}, not text")
    return reply
