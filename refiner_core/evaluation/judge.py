"""A vision-language model as judge, through any OpenAI-compatible endpoint.

The paper reports a VLM score of 0 to 100 without naming model or prompt, so figures of other
judges and rubrics cannot be compared with it; ours is printed below and in the documentation.
"""

from __future__ import annotations

import io
import json
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..scoring.vlm_client import ask, png_url
from .metrics import Case, Column, Scores

RUBRIC = """You judge the repair of one detail in a generated picture. You see three pictures:
1. the reference: it shows the true detail (a logo, lettering, a pattern or a face);
2. the draft: the generated picture, in which that detail is wrong;
3. the result: the draft after the repair.
Score the result from 0 (useless) to 100 (perfect) on each of:
- "detail": the detail's shapes, strokes and colours match the reference, apart from pose and light;
- "text": lettering in the detail reads exactly as in the reference; null if there is no lettering;
- "background": everything around the detail is as in the draft;
- "naturalness": the detail sits in the scene: perspective, light, sharpness, no seam.
Answer with one JSON object and nothing else, for example
{"detail": 70, "text": null, "background": 100, "naturalness": 80}"""

WEIGHTS = {"detail": 0.4, "text": 0.3, "background": 0.15, "naturalness": 0.15}
_LONGEST_SIDE = 1024
_PATIENCE = 3  # requests without an answer, in a row, before the endpoint is given up


@dataclass(frozen=True)
class Endpoint:
    """Where to ask: base `url` (".../v1"), `model`, `key` or None, `timeout` in seconds, `votes` a
    result.
    """

    url: str
    model: str
    key: str | None = None
    timeout: float = 60.0
    votes: int = 3

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"The endpoint must be an http(s) address, got {self.url!r}.")
        if not self.model:
            raise ValueError("The endpoint needs the model's name (--vlm-model).")
        if self.votes < 1 or self.timeout <= 0:
            raise ValueError(
                f"votes must be 1 or more and the timeout over 0 s, got {self.votes} and "
                f"{self.timeout}."
            )

    def ask(self, images: list[str], vote: int) -> str:
        """The model's raw reply.

        Raises:
            OSError: as `chat.ask`.
        """
        return ask(
            self.url, self.model, RUBRIC, images, key=self.key, timeout=self.timeout, seed=vote
        )


def read_reply(reply: str) -> float | None:
    """The score 0..100 in a reply: the last JSON object that keeps to the rubric; None if none."""
    for found in reversed(re.findall(r"\{[^{}]*\}", reply)):
        try:
            parts = json.loads(found)
        except ValueError:
            continue
        score = _weighted(parts)
        if score is not None:
            return score
    return None


def _weighted(parts: Mapping[str, Any]) -> float | None:
    total = weight = 0.0
    for key, share in WEIGHTS.items():
        value = parts.get(key)
        if value is None and key == "text":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
            return None
        total, weight = total + share * value, weight + share
    return total / weight


def data_url(pixels: Tensor) -> str:
    """A picture 1 3 H W as a PNG in a data: address, at most 1024 px on a side."""
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return png_url(stream.getvalue())


class VlmJudge:
    """Median of several votes. Every raw reply is appended to `replies`, a JSON-lines file.

    An endpoint that did not answer three times in a row is not asked again: `trouble` says why,
    and the column stays empty from there.
    """

    columns = (Column("vlm", "VLM score", True, 1, 81.91),)

    def __init__(self, endpoint: Endpoint, replies: Path) -> None:
        self.endpoint, self.replies = endpoint, replies
        self.silent = 0
        self.trouble: str | None = None

    def measure(self, case: Case, results: Mapping[str, Tensor]) -> Scores:
        given = [data_url(case.reference), data_url(case.draft)]
        return {
            name: {"vlm": self._judge(case.id, name, [*given, data_url(result)])}
            for name, result in results.items()
        }

    def _judge(self, case: str, system: str, images: list[str]) -> float | None:
        votes = []
        for vote in range(self.endpoint.votes):
            if self.trouble is not None:
                break
            score = self._vote(images, {"case": case, "system": system, "vote": vote})
            if score is not None:
                votes.append(score)
        return statistics.median(votes) if votes else None

    def _vote(self, images: list[str], entry: dict[str, Any]) -> float | None:
        score = None
        try:
            reply = self.endpoint.ask(images, entry["vote"])
            score = read_reply(reply)
            entry |= {"reply": reply, "score": score}
            self.silent = 0
        except OSError as e:  # TimeoutError and URLError are OSErrors
            entry["error"] = str(e)
            self.silent += 1
            if self.silent >= _PATIENCE:
                self.trouble = (
                    f"VLM: {self.endpoint.url} was given up after {self.silent} tries: {e}"
                )
        with self.replies.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
        return score

    def describe(self) -> dict[str, str]:
        return {"vlm": f"{self.endpoint.model} at {self.endpoint.url}, {self.endpoint.votes} votes"}
