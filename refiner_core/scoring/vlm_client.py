"""A client for vision-language models behind OpenAI-compatible endpoints."""

from __future__ import annotations

import base64
import hashlib
import http.client
import itertools
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

_BUSY = (408, 425, 429, 500, 502, 503, 504)  # HTTP states that another attempt may change
_ALTERNATIVES = 20  # tokens per position: as many as the protocol allows
_LONGEST_WAIT = 60.0  # seconds between two attempts
_LOCK = threading.Lock()  # of what the threads of a client share: its turns, its cache, its usage


def png_url(png: bytes) -> str:
    """A PNG file as a `data:` URL."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


@dataclass(frozen=True)
class Question:
    """What a model is asked.

    Args:
        pictures: their URLs, see `png_url`.
        max_tokens: of the reply.
        temperature, seed: of its sampling; at temperature 0 a repeated question has one answer.
        logprobs: also ask for the log-probabilities of the likeliest tokens.
    """

    text: str
    pictures: tuple[str, ...]
    max_tokens: int = 300
    temperature: float = 0.0
    seed: int = 0
    logprobs: bool = False

    def body(self, model: str) -> dict[str, Any]:
        """The request to the endpoint."""
        content: list[dict[str, Any]] = [{"type": "text", "text": self.text}]
        content += [{"type": "image_url", "image_url": {"url": u}} for u in self.pictures]
        extra = {"logprobs": True, "top_logprobs": _ALTERNATIVES} if self.logprobs else {}
        return {
            "model": model,
            "temperature": self.temperature,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            **extra,
            "messages": [{"role": "user", "content": content}],
        }


@dataclass(frozen=True)
class Reply:
    """A reply, and for each of its tokens the log-probabilities of the likeliest alternatives.

    `tokens` is empty where the server gives no log-probabilities.
    """

    text: str
    tokens: tuple[dict[str, float], ...] = ()
    prompt_tokens: int = 0
    reply_tokens: int = 0


@dataclass
class Usage:
    """What the questions to a model have cost."""

    requests: int = 0  # sent to a server, repeated attempts included
    cached: int = 0  # answered from the cache
    failures: int = 0  # questions without a reply
    prompt_tokens: int = 0
    reply_tokens: int = 0
    seconds: float = 0.0  # of all requests, which overlap

    def summary(self) -> str:
        """One line."""
        return (
            f"{self.requests} requests, {self.cached} from the cache, {self.failures} unanswered, "
            f"{self.prompt_tokens} + {self.reply_tokens} tokens, {self.seconds:.1f} s"
        )


@dataclass(frozen=True)
class VlmClient:
    """Asks one model, on one server or on several that share the questions.

    Args:
        url: base URL of the endpoint (".../v1"), or several, separated by commas.
        model: its name there.
        key: sent as bearer token.
        timeout: seconds per reply.
        retries: further attempts after a timeout, a refused connection or a busy server, each on the
            next server.
        back_off: seconds before the first of them, doubled each time.
        cache: a JSON-lines file of replies; a question that is in it is not sent again.
        parallel: questions per server at a time.

    Raises:
        ValueError: no http(s) URL, no model, or a number out of range.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    retries: int = 0
    back_off: float = 1.0
    cache: Path | None = None
    parallel: int = 4
    usage: Usage = field(default_factory=Usage, compare=False, repr=False)

    def __post_init__(self) -> None:
        for url in self.urls or [self.url]:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"The endpoint must be an http(s) URL, got {url!r}.")
        if not self.model:
            raise ValueError("The endpoint needs the name of a model (--vlm-model).")
        if self.timeout <= 0:
            raise ValueError(f"The timeout must be more than 0 s, got {self.timeout}.")
        if self.retries < 0 or self.parallel < 1 or self.back_off < 0:
            raise ValueError(
                f"retries and back_off must be at least 0 and parallel at least 1, got "
                f"{self.retries}, {self.back_off} and {self.parallel}."
            )

    @property
    def urls(self) -> list[str]:
        """The servers."""
        return [u.strip() for u in self.url.split(",") if u.strip()]

    @cached_property
    def _turns(self) -> Iterator[str]:
        return itertools.cycle(self.urls)

    @cached_property
    def _known(self) -> dict[str, Reply]:
        return {} if self.cache is None else _read_cache(self.cache)

    def ask(self, text: str, pictures: Sequence[str], *, max_tokens: int = 300) -> str:
        """The model's raw reply, at temperature 0.

        Raises:
            OSError: as `reply`.
        """
        return self.reply(Question(text, tuple(pictures), max_tokens)).text

    def replies(self, questions: Sequence[Question]) -> list[Reply | OSError]:
        """The replies to several questions that are asked at the same time, or why there is none."""

        def one(question: Question) -> Reply | OSError:
            try:
                return self.reply(question)
            except OSError as e:
                return e

        with ThreadPoolExecutor(self.parallel * len(self.urls)) as pool:
            return list(pool.map(one, questions))

    def reply(self, question: Question) -> Reply:
        """The model's reply, from the cache if it is there.

        Raises:
            OSError: no reply in time, a refusal, or a reply that does not follow the protocol.
        """
        data = json.dumps(question.body(self.model)).encode()
        key = hashlib.sha256(data).hexdigest()
        with _LOCK:
            known = self._known.get(key)
            if known is not None:
                self.usage.cached += 1
                return known
        try:
            found = self._attempts(data)
        except OSError:
            with _LOCK:
                self.usage.failures += 1
            raise
        with _LOCK:
            self._remember(key, found)
        return found

    def _remember(self, key: str, reply: Reply) -> None:
        self.usage.prompt_tokens += reply.prompt_tokens
        self.usage.reply_tokens += reply.reply_tokens
        if self.cache is None:
            return
        self._known[key] = reply
        with self.cache.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"key": key, **asdict(reply)}, ensure_ascii=False) + "\n")

    def _attempts(self, data: bytes) -> Reply:
        for attempt in range(self.retries):
            try:
                return self._post(self._next_url(), data)
            except _FinalError:
                raise
            except OSError:
                time.sleep(min(_LONGEST_WAIT, self.back_off * 2**attempt))
        return self._post(self._next_url(), data)

    def _next_url(self) -> str:
        with _LOCK:
            return next(self._turns)

    def _post(self, url: str, body: bytes) -> Reply:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(f"{url.rstrip('/')}/chat/completions", body, headers)
        start = time.perf_counter()
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return read_answer(json.load(answer))
        except urllib.error.HTTPError as e:
            kind = OSError if e.code in _BUSY else _FinalError
            raise kind(f"HTTP {e.code}: {e.read(300).decode(errors='replace')}") from e
        except urllib.error.URLError as e:
            words = getattr(e.reason, "strerror", None) or e.reason
            raise OSError(f"{url} cannot be reached: {words}") from e
        except (ValueError, LookupError, TypeError, http.client.HTTPException) as e:
            raise OSError(
                f"the reply does not follow the protocol ({type(e).__name__}: {e})"
            ) from e
        finally:
            with _LOCK:
                self.usage.requests += 1
                self.usage.seconds += time.perf_counter() - start


class _FinalError(OSError):
    """A refusal that another attempt would not change."""


def read_answer(answer: Any) -> Reply:
    """The reply in an endpoint's JSON.

    Raises:
        OSError: the message is not text.
        LookupError, TypeError, ValueError: it does not follow the protocol.
    """
    choice = answer["choices"][0]
    text = choice["message"]["content"]
    if not isinstance(text, str):
        raise OSError(f"the reply is a {type(text).__name__}, not text")
    listed = (choice.get("logprobs") or {}).get("content") or []
    tokens = tuple({a["token"]: float(a["logprob"]) for a in t["top_logprobs"]} for t in listed)
    usage = answer.get("usage") or {}
    return Reply(
        text,
        tokens,
        int(usage.get("prompt_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
    )


def _read_cache(path: Path) -> dict[str, Reply]:
    """The replies of a cache file; a line that a killed run left incomplete is ended and ignored."""
    known: dict[str, Reply] = {}
    if not path.is_file():
        return known
    content = path.read_text(encoding="utf-8", errors="replace")
    if content and not content.endswith("\n"):
        with path.open("a", encoding="utf-8") as stream:
            stream.write("\n")
    for line in content.split("\n"):  # replies may contain the separators of `splitlines`
        try:
            entry: Any = json.loads(line)
            text, tokens = entry["text"], tuple(entry["tokens"])
            counts = entry["prompt_tokens"], entry["reply_tokens"]
            known[entry["key"]] = Reply(text, tokens, *counts)
        except (ValueError, LookupError, TypeError):
            continue
    return known


def json_objects(reply: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a reply, beginning with the one that starts last."""
    decoder = json.JSONDecoder()
    for brace in reversed([m.start() for m in re.finditer(r"\{", reply)]):
        try:
            yield decoder.raw_decode(reply, brace)[0]
        except ValueError:
            continue
